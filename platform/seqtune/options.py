"""What a person asks for: the options of the commands, each declared once.

A field and its ``Flag`` give the option of the command line with its help, the command line that a
report prints, what a resumed study must share with its beginning, the keyword in Python, and the
row in docs/options.md.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

from seqtune.errors import UserError
from seqtune.outside import lowered
from seqtune.secrecy import redact
from seqtune.storage import Folder

RESULTS = "seqtune-results"
MOST_TRIALS = 50  # where nobody says how many
GENERATIONS = 5  # of a population, each of which trains a part of what the defaults train
MOST_NAMED = 4  # models in the name of a study
DEFAULTS = "defaults"  # what trial 0 runs, unless a file says otherwise
WHAT, DATA, SEARCH, RESOURCES, WHERE = "What", "Columns and filters", "Search", "Resources", "Where"


@dataclass(frozen=True)
class Flag:
    """How an option is written and what it means."""

    panel: str  # of the help
    text: str
    metavar: str = ""
    names: tuple[str, ...] = ()  # where the field's name is not the option's
    least: float | None = None
    most: float = 10**9  # of a number; beyond it nobody means it
    shown: str = ""  # what the help says in place of the default None
    read: Callable[[str], Any] | None = None  # from the word on the command line
    write: Callable[[Any], str] = str  # to that word
    same: bool = False  # a resumed study must have the value that it began with
    private: bool = False  # may hold a password: neither stored nor tagged
    is_model: bool = False  # completed with the names of the models


MOST_WORKERS = 1000
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str, place: str = "--time-budget") -> float:
    """Reads ``90s``, ``15m``, ``1h30m`` or ``45s``, in seconds."""
    clean = text.replace(" ", "").lower()
    if re.fullmatch(r"\d+(\.\d+)?", clean):
        raise UserError(f"{place} {text}: say of what; write {clean}s, {clean}m or {clean}h")
    if not re.fullmatch(r"(\d+(\.\d+)?d)?(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?", clean):
        raise UserError(f"{place} {text}: not a duration; write 90s, 15m, 2h or 1h30m")
    parts = re.findall(r"([\d.]+)([dhms])", clean)
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < 3650 * SECONDS["d"]:
        raise UserError(f"{place} {text}: must last between zero and ten years, for example 15m")
    return seconds


Workers = int | tuple[int, int]  # so many, or any number between two


def parse_workers(text: str, place: str = "--workers") -> Workers:
    """Reads ``4``, or ``2:8`` for as many as there are machines for, from 2 to 8."""
    if not re.fullmatch(r"[0-9]+(:[0-9]+)?", text):
        raise UserError(f"{place} {text[:40]}: not a number; write one, or two such as 2:8")
    numbers = [int(word[:10]) for word in text.split(":")]
    if not 1 <= numbers[0] <= numbers[-1] <= MOST_WORKERS:
        raise UserError(
            f"{place} {text[:40]}: must lie between 1 and {MOST_WORKERS:,}; of two the smaller is "
            "first, as in 2:8"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def parse_goal(text: str, place: str = "--goal") -> tuple[str, float]:
    """Reads ``ndcg@10=0.06``: a metric, and its value."""
    metric, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not equals or not math.isfinite(value):
        raise UserError(f"{place} {text[:40]}: write a metric and its value, as ndcg@10=0.06")
    return metric.strip(), value


def bounds(workers: Workers) -> tuple[int, int]:
    """Returns the least and the most workers."""
    return (workers, workers) if isinstance(workers, int) else workers


def _workers_word(workers: Workers) -> str:
    return ":".join(map(str, dict.fromkeys(bounds(workers))))


def _duration_word(seconds: float) -> str:
    return f"{seconds / 60:.0f}m" if seconds % 60 == 0 else f"{seconds:g}s"


TRACKING = Flag(
    WHERE,
    "Track in this MLflow server or store.",
    "URI",
    shown="a SQLite file in --storage",
    private=True,
)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, with which hyperparameters, on which interactions; None leaves the choice to us.

    Where several say a hyperparameter, the first of these holds: ``set``, ``seed``, the file
    ``params``, what a search space fixes, the declared default.
    """

    model: Annotated[
        str, Flag(WHAT, "Name the model; --list shows all.", "NAME", same=True, is_model=True)
    ]
    data: Annotated[
        str,
        Flag(
            WHAT,
            "Read these interactions: a csv, tsv, jsonl, parquet or .inter file (also .gz), a "
            "folder or a pattern of such, a folder of seqtune data prepare, or a generated set: "
            "demo, tiny, ml1m, beauty, yoochoose, xl.",
            "FILE",
        ),
    ] = "demo"
    train: Annotated[str | None, Flag(DATA, "Train on this file: the same as --data.", "FILE")] = (
        None
    )
    valid: Annotated[str | None, Flag(DATA, "Validate on the events of this file.", "FILE")] = None
    test: Annotated[str | None, Flag(DATA, "Test on those of this file.", "FILE")] = None
    params: Annotated[
        str | None,
        Flag(
            WHAT,
            "Take hyperparameters from a file in WarpRec's form (models: {DuoRec: {...}}); lists "
            "are searched.",
            "FILE",
        ),
    ] = None
    set: Annotated[
        tuple[str, ...], Flag(WHAT, "Fix a hyperparameter; may be given many times.", "NAME=VALUE")
    ] = ()
    user_col: Annotated[
        str | None,
        Flag(DATA, "Name the column of users, where its name is not a usual one.", "NAME"),
    ] = None
    item_col: Annotated[str | None, Flag(DATA, "Name the column of items.", "NAME")] = None
    time_col: Annotated[
        str | None,
        Flag(DATA, "Name the column of times: s, ms or ISO; none: the order of the rows.", "NAME"),
    ] = None
    user_group_col: Annotated[
        str | None,
        Flag(
            DATA,
            "Name a column with the kind of a user: the report says how good the best model is "
            "for each.",
            "NAME",
        ),
    ] = None
    candidates: Annotated[
        str | None, Flag(DATA, "Rank the items of this file alone, a line each.", "FILE")
    ] = None
    time_format: Annotated[
        str | None,
        Flag(DATA, "Read times in this form, as %d.%m.%Y %H:%M.", "FORM", shown="s, ms or ISO"),
    ] = None
    encoding: Annotated[
        str | None,
        Flag(DATA, "Read text in this encoding, as cp1252.", "NAME", shown="UTF-8 or UTF-16"),
    ] = None
    drop_bad_rows: Annotated[
        bool,
        Flag(
            DATA,
            "Leave out rows without a user, an item or a time that can be read.",
            names=("--drop-bad-rows", "--keep-all-rows"),
        ),
    ] = False
    min_user: Annotated[int, Flag(DATA, "Drop users with fewer interactions.", "N", least=1)] = 3
    min_item: Annotated[int, Flag(DATA, "Drop items with fewer interactions.", "N", least=1)] = 1
    rating_col: Annotated[
        str | None, Flag(DATA, "Name the column of ratings.", "NAME", shown="rating")
    ] = None
    min_rating: Annotated[
        float | None, Flag(DATA, "Leave out rows that are rated lower.", "N", shown="all count")
    ] = None
    event_col: Annotated[
        str | None, Flag(DATA, "Name the column of kinds of events.", "NAME", shown="event")
    ] = None
    events: Annotated[
        tuple[str, ...],
        Flag(DATA, "Leave out rows of other kinds than this; may be given many times.", "KIND"),
    ] = ()
    since: Annotated[str | None, Flag(DATA, "Leave out rows before this date.", "DATE")] = None
    before: Annotated[str | None, Flag(DATA, "Leave out rows from this date on.", "DATE")] = None
    drop_repeats: Annotated[
        Literal["none", "consecutive", "all"],
        Flag(DATA, "Leave out an item that a user has had just before, or ever."),
    ] = "none"
    split_col: Annotated[
        str | None,
        Flag(DATA, "Name the column that says train, valid or test of each row.", "NAME"),
    ] = None
    seed: Annotated[
        int | None,
        Flag(
            SEARCH,
            "Seed the search and the training.",
            "N",
            least=0,
            shown="0, or that of --params",
        ),
    ] = None


@dataclass(frozen=True)
class JudgedOptions(ModelOptions):
    """By what a training is judged, and where its results go."""

    metric: Annotated[
        str,
        Flag(
            WHAT,
            "Maximise this metric on validation: ndcg, hr, mrr, ... at k, or your own "
            "(module:function).",
            "NAME@K",
            read=lowered,
            same=True,
        ),
    ] = "ndcg@10"
    valid_users: Annotated[
        int | None,
        Flag(
            WHAT,
            "Validate on so many users, the same for all trials; the test is on all.",
            "N",
            least=1,
            shown="all",
        ),
    ] = None
    split: Annotated[
        str | None,
        Flag(
            DATA,
            "Split by leave-one-out (or leave-2-out), time:0.9 (a share of all events) or "
            "time:2024-03-01, ratio:0.8,0.1,0.1 of each user, users:0.8,0.1,0.1, session:7 (days), "
            "or as --split-col says (given).",
            "HOW",
            shown="leave-one-out",
        ),
    ] = None
    targets: Annotated[
        Literal["last", "first", "random", "successive", "all"] | None,
        Flag(
            DATA,
            "Predict the last, first or a random event of each held-out span, each after those "
            "before it (successive), or all in one list.",
            shown="last of time and users, all of ratio and leave-2-out, else successive",
        ),
    ] = None
    validation: Annotated[
        Literal["time", "users", "last"],
        Flag(
            DATA,
            "With --split time, validate on a span before the test, on some users, or on the last "
            "event of each.",
        ),
    ] = "time"
    cold_users: Annotated[
        bool,
        Flag(
            DATA,
            "Test users of whom nothing is known before the test by what they do in it.",
            names=("--cold-users", "--no-cold-users"),
        ),
    ] = False
    cold_items: Annotated[
        bool,
        Flag(
            DATA,
            "Count targets whose item has no training event, which nobody could learn.",
            names=("--cold-items", "--no-cold-items"),
        ),
    ] = True
    mask_seen: Annotated[
        bool | None,
        Flag(
            DATA,
            "Leave items that a user has seen out of the ranking.",
            names=("--mask-seen", "--rank-seen"),
            shown="mask, unless 1 % of validation repeats items",
        ),
    ] = None
    sampled_metrics: Annotated[
        int | None,
        Flag(
            DATA,
            "On test, also rank each item among so many drawn ones, to compare with old papers: "
            "sampled_ndcg@10 and others.",
            "N",
            least=1,
            shown="no",
        ),
    ] = None
    time_budget: Annotated[
        float | None,
        Flag(
            SEARCH,
            "Stop after this time: 90s, 15m, 1h30m.",
            "TIME",
            read=parse_duration,
            write=_duration_word,
        ),
    ] = None
    storage: Annotated[
        str, Flag(WHERE, "Keep results in this folder: a path, s3:// or gs://.", "FOLDER")
    ] = RESULTS


@dataclass(frozen=True)
class StudyOptions(JudgedOptions):
    """The options of ``tune``."""

    model: Annotated[
        str,
        Flag(
            WHAT,
            "Name the model, or several: sasrec,gru4rec; fast: five quick ones; all; --list shows "
            "them.",
            "NAME",
            same=True,
            is_model=True,
        ),
    ]
    space: Annotated[
        str | None,
        Flag(
            WHAT,
            "Search this space; of several models, those in this folder, each MODEL.yaml.",
            "FILE",
            shown="search_spaces/MODEL.yaml",
        ),
    ] = None
    also: Annotated[
        tuple[str, ...],
        Flag(
            WHAT,
            "Given again: judge trials by this measure too; what is best of all is a front.",
            "NAME@K",
            names=("--metric",),
            read=lowered,
            same=True,
        ),
    ] = ()
    prefer: Annotated[
        str | None,
        Flag(
            WHAT,
            "Of the front, choose the point that is best by these weights: "
            "ndcg@10=2,coverage@10=1.",
            "NAME@K=N,...",
            read=lowered,
            shown="the best by the first --metric",
            same=True,
        ),
    ] = None
    limit: Annotated[
        tuple[str, ...],
        Flag(
            SEARCH,
            "Choose no trial beyond this: parameters<=2e6, megabytes<=8, ms_per_request<=5, or a "
            "metric on validation; may be given many times.",
            "NAME<=N",
            same=True,
        ),
    ] = ()
    trials: Annotated[
        int | None,
        Flag(
            SEARCH,
            "Run so many trials, those of the defaults included.",
            "N",
            least=1,
            shown=f"until it has settled, {MOST_TRIALS} at most",
        ),
    ] = None
    until: Annotated[
        Literal["settled", "trials"] | None,
        Flag(
            SEARCH,
            "End when further trials would add less than the error of the best ones (settled), or "
            "when all --trials have ended.",
            shown="trials where --trials says how many, else settled",
        ),
    ] = None
    sampler: Annotated[
        str,
        Flag(
            SEARCH,
            "Draw points by tpe, random, qmc, grid, gp or cma-es, or by your own: module:function, "
            "which makes a sampler of Optuna from a seed.",
            "NAME",
        ),
    ] = "tpe"
    seeds: Annotated[
        int,
        Flag(
            SEARCH,
            "Train the best three and the defaults with so many seeds in the end, or until it is "
            "clear which is best.",
            "N",
            least=1,
            most=100,
        ),
    ] = 1
    refit: Annotated[
        Literal["test", "all"] | None,
        Flag(
            SEARCH,
            "Train the best once more on all that is before the test, and test that too; or on "
            "everything (all), for use without a test.",
            shown="no",
        ),
    ] = None
    goal: Annotated[
        str | None,
        Flag(
            SEARCH,
            "End when a trial has reached this on validation: ndcg@10=0.06.",
            "NAME@K=VALUE",
            read=lowered,
        ),
    ] = None
    patience_trials: Annotated[
        int | None,
        Flag(SEARCH, "End after so many trials in a row without a better one.", "N", least=1),
    ] = None
    max_failed: Annotated[
        int | None, Flag(SEARCH, "End when so many trials have failed.", "N", least=1)
    ] = None
    portfolio: Annotated[
        bool,
        Flag(
            SEARCH,
            "Run the points that a space file lists under start before others are drawn.",
            names=("--portfolio", "--no-portfolio"),
            shown="run them",
        ),
    ] = True
    warm_start: Annotated[
        str | None,
        Flag(SEARCH, "Run the best points of this earlier study before others.", "NAME"),
    ] = None
    scheduler: Annotated[
        Literal["reach", "asha", "hyperband", "median", "pbt", "none"],
        Flag(
            SEARCH,
            "Stop trials early: those that the best one is out of reach of (reach), that are not "
            "among the best third (asha, hyperband) or half (median), or none. pbt trains a "
            "population, of which poor ones take over from good ones.",
        ),
    ] = "reach"
    concurrency: Annotated[
        int | None,
        Flag(
            RESOURCES,
            "Run so many trials at a time.",
            "N",
            least=1,
            most=1000,
            shown="what fits the machine",
        ),
    ] = None
    cpus_per_trial: Annotated[
        float | None,
        Flag(RESOURCES, "Give each worker so many CPUs.", "N", least=0.01, most=1000, shown="1"),
    ] = None
    gpus_per_trial: Annotated[
        float | None,
        Flag(
            RESOURCES,
            "Give each worker so many GPUs; 0.5 lets two share one.",
            "N",
            least=0,
            most=1000,
            shown="1 where there is one",
        ),
    ] = None
    workers_per_trial: Annotated[
        Workers,
        Flag(
            RESOURCES,
            "Train a trial in so many processes together; 2:8: as many as there is room for.",
            "N",
            read=partial(parse_workers, place="--workers-per-trial"),
            write=_workers_word,
        ),
    ] = 1
    max_failures: Annotated[
        int, Flag(RESOURCES, "Restart a trial that crashes so many times.", "N", least=0)
    ] = 2
    name: Annotated[str | None, Flag(WHERE, "Name the study.", "NAME", shown="MODEL-DATA")] = None
    keep_weights: Annotated[
        int,
        Flag(
            WHERE, "Keep the weights of so many of the best trials, and of trial 0.", "N", least=1
        ),
    ] = 10
    tracking_uri: Annotated[str | None, TRACKING] = None
    resume: Annotated[bool, Flag(WHERE, "Continue the study of this name.")] = False

    @property
    def models(self) -> tuple[str, ...]:
        """The models, in the order in which their defaults run."""
        return tuple(self.model.split(","))

    @property
    def most(self) -> int:
        """The trials that the study has at most."""
        return MOST_TRIALS if self.trials is None else self.trials

    @property
    def settles(self) -> bool:
        """Whether it ends when further trials would add nothing that counts."""
        alone = len(self.models) == 1 and not self.also and not self.evolves
        asked = self.until == "settled" or (self.until is None and self.trials is None)
        return alone and asked

    @property
    def evolves(self) -> bool:
        """Whether its trials are generations of a population."""
        return self.scheduler == "pbt"

    @property
    def kept(self) -> int:
        """The trials that keep their weights: in a population all, since others begin with them."""
        return self.most if self.evolves else self.keep_weights

    @property
    def objectives(self) -> tuple[str, ...]:
        """What trials are judged by: the metric that is maximised, and those beside it."""
        return (self.metric, *self.also)

    @property
    def study(self) -> str:
        """The name of the study."""
        several = len(self.models) > MOST_NAMED
        models = f"{len(self.models)}-models" if several else "-".join(self.models)
        return self.name or f"{models}-{data_name(self.data)}"

    @property
    def baseline(self) -> str:
        """What trial 0 runs: the defaults, or the values of a file."""
        return DEFAULTS if self.params is None else f"values of {Path(self.params).name}"


@dataclass(frozen=True)
class TrainOptions(JudgedOptions):
    """The options of ``train``: the loop once, without a study."""

    workers: Annotated[
        Workers,
        Flag(
            RESOURCES,
            "Train in so many processes together; 2:8: as many as there is room for.",
            "N",
            read=parse_workers,
            write=_workers_word,
        ),
    ] = 1
    gpus_per_worker: Annotated[
        float | None,
        Flag(
            RESOURCES,
            "Give each of several workers so many GPUs.",
            "N",
            least=0,
            most=1000,
            shown="1 where there is one for each",
        ),
    ] = None
    out: Annotated[
        str | None,
        Flag(
            WHERE,
            "Write the checkpoint into this folder.",
            "FOLDER",
            shown="MODEL-DATA-train in --storage",
        ),
    ] = None
    tracking_uri: Annotated[str | None, TRACKING] = None
    resume: Annotated[bool, Flag(WHERE, "Continue the training in --out.")] = False

    @property
    def folder(self) -> str:
        """Where the checkpoint goes."""
        if self.out is not None:
            return self.out
        return (Folder(self.storage) / f"{self.model}-{data_name(self.data)}-train").uri


@dataclass(frozen=True)
class BenchOptions(ModelOptions):
    """The options of ``bench``."""

    seconds: Annotated[
        float, Flag(RESOURCES, "Measure so many seconds of training.", "N", least=0.1)
    ] = 10.0
    threads: Annotated[
        int | None, Flag(RESOURCES, "Use so many CPU threads.", "N", least=1, shown="one per core")
    ] = None


@dataclass(frozen=True)
class LookOptions(JudgedOptions):
    """The options of ``data``: how interactions are read and held out, and no model."""

    model: Annotated[str, Flag(WHAT, "Of no model.")] = "stan"


@dataclass(frozen=True)
class PrepareOptions:
    """The options of ``data prepare``."""

    data: Annotated[
        str, Flag(WHAT, "Prepare this file, or all files of a folder, with one kind.", "FILE")
    ]
    out: Annotated[str, Flag(WHAT, "Write into this folder, which must be empty.", "FOLDER")]
    user_col: Annotated[str | None, Flag(DATA, "Name the column of users.", "NAME")] = None
    item_col: Annotated[str | None, Flag(DATA, "Name the column of items.", "NAME")] = None
    time_col: Annotated[str | None, Flag(DATA, "Name the column of times.", "NAME")] = None
    min_user: Annotated[int, Flag(DATA, "Drop users with fewer interactions.", "N", least=1)] = 3
    min_item: Annotated[int, Flag(DATA, "Drop items with fewer interactions.", "N", least=1)] = 1


@dataclass(frozen=True)
class RecommendOptions:
    """The options of ``recommend``."""

    checkpoint: Annotated[
        str,
        Flag(
            WHAT,
            "Load the checkpoint of this folder, or models:/NAME@champion in MLflow.",
            "FOLDER",
        ),
    ]
    data: Annotated[str, Flag(WHAT, "Recommend to the users of these interactions.", "FILE")]
    out: Annotated[str, Flag(WHAT, "Write this file: .parquet, .csv, .tsv or .jsonl.", "FILE")] = (
        "recommendations.parquet"
    )
    k: Annotated[int, Flag(WHAT, "Recommend so many items to each user.", "N", least=1)] = 10
    exclude_seen: Annotated[
        bool | None,
        Flag(
            WHAT,
            "Leave out items that the user has seen.",
            names=("--exclude-seen", "--include-seen"),
            shown="as in evaluation",
        ),
    ] = None
    user_col: Annotated[str | None, Flag(DATA, "Name the column of users.", "NAME")] = None
    item_col: Annotated[str | None, Flag(DATA, "Name the column of items.", "NAME")] = None
    time_col: Annotated[str | None, Flag(DATA, "Name the column of times.", "NAME")] = None
    storage: Annotated[
        str, Flag(WHERE, "Look for MLflow's SQLite file in this folder.", "FOLDER")
    ] = RESULTS
    tracking_uri: Annotated[
        str | None,
        Flag(WHERE, "Ask this MLflow server or store.", "URI", shown="a SQLite file in --storage"),
    ] = None


# What follows from a declaration.


@dataclass(frozen=True)
class Declared:
    """One declared option."""

    name: str
    kind: Any  # type of its value
    default: Any
    required: bool
    flag: Flag

    @property
    def names(self) -> tuple[str, ...]:
        """How it is written on the command line; the second name says no."""
        return self.flag.names or (f"--{self.name.replace('_', '-')}",)

    def words(self, value: Any) -> list[str]:
        """Returns the words of a command line that give a value."""
        if isinstance(value, bool):
            return [self.names[0] if value else self.names[1]]
        values = value if get_origin(self.kind) is tuple else (value,)
        return [word for one in values for word in (self.names[0], self.flag.write(one))]


def declared(options: type[Any]) -> Iterator[Declared]:
    """Yields the options of a command, in the order of their declaration."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        kind, flag = hints[field.name].__args__[0], hints[field.name].__metadata__[0]
        required = field.default is MISSING
        yield Declared(field.name, kind, None if required else field.default, required, flag)


def command(options: StudyOptions | TrainOptions, *, private: bool = True) -> str:
    """Returns the command line that gives these options, ready to paste but for its secrets.

    Without ``private`` it leaves out what may hold a password, and can be stored.
    """
    words = _program("tune" if isinstance(options, StudyOptions) else "train")
    for one in declared(type(options)):
        value = getattr(options, one.name)
        if value != one.default and (private or not one.flag.private):
            words += one.words(value)
    return redact(shlex.join(words))


def shared(options: Any, kind: type[Any]) -> Mapping[str, Any]:
    """Returns the values of those options that commands of another kind have too."""
    names = {field.name for field in fields(kind)}
    return {f.name: getattr(options, f.name) for f in fields(options) if f.name in names}


def _program(verb: str) -> list[str]:
    # `python tune.py` is the way in without an installation, and knows `tune` alone.
    if verb == "tune" and Path(sys.argv[0]).name == "tune.py":
        return ["python", sys.argv[0]]
    return ["seqtune", verb]


def data_name(source: str) -> str:
    """Returns a short name of a data set: ``../shared/ml-100k.parquet`` -> ``ml-100k``."""
    name = source.rstrip("/").rpartition("/")[2].removesuffix(".gz")
    stem, dot, suffix = name.rpartition(".")
    return re.sub(r"[^\w.-]+", "-", stem if dot and stem else suffix).strip("-.") or "data"
