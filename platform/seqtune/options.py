"""What a person asks for: the options of ``tune`` and ``train``, and the command line of them."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path

from seqtune.errors import UserError

RESULTS = "seqtune-results"
DEFAULTS = "defaults"  # what trial 0 runs, unless a file says otherwise


@dataclass(frozen=True)
class StudyOptions:
    """The options of ``tune``; None leaves a choice to seqtune."""

    model: str
    data: str = "demo"
    user_col: str | None = None
    item_col: str | None = None
    time_col: str | None = None
    min_user: int = 3
    min_item: int = 1
    mask_seen: bool | None = None  # None: on where no user meets an item twice
    space: str | None = None  # None: search_spaces/<model>.yaml
    params: str | None = None  # a file in WarpRec's form
    set: tuple[str, ...] = ()  # "n_layers=3"
    trials: int = 20
    time_budget: float | None = None  # seconds
    metric: str = "ndcg@10"
    valid_users: int | None = None  # None: all
    scheduler: str = "asha"
    seed: int = 0
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    workers_per_trial: int = 1
    max_failures: int = 2
    name: str | None = None
    storage: str = RESULTS
    tracking_uri: str | None = None
    resume: bool = False

    @property
    def study(self) -> str:
        """The name of the study."""
        return self.name or f"{self.model}-{data_name(self.data)}"

    @property
    def baseline(self) -> str:
        """What trial 0 runs: the defaults, or the values of a file."""
        return DEFAULTS if self.params is None else f"values of {Path(self.params).name}"


@dataclass(frozen=True)
class TrainOptions:
    """The options of ``train``: the loop once, without a study."""

    model: str
    data: str = "demo"
    user_col: str | None = None
    item_col: str | None = None
    time_col: str | None = None
    min_user: int = 3
    min_item: int = 1
    mask_seen: bool | None = None
    params: str | None = None
    set: tuple[str, ...] = ()
    metric: str = "ndcg@10"
    valid_users: int | None = None
    seed: int = 0
    workers: int = 1
    out: str | None = None  # None: <storage>/<model>-<data>-train
    storage: str = RESULTS
    resume: bool = False

    @property
    def folder(self) -> str:
        """Where the checkpoint goes."""
        return self.out or f"{self.storage}/{self.model}-{data_name(self.data)}-train"


def command(options: StudyOptions | TrainOptions) -> str:
    """Returns the command line that gives these options, ready to paste."""
    words = _program("tune" if isinstance(options, StudyOptions) else "train")
    for field in fields(options):
        value = getattr(options, field.name)
        if value == _default(field):
            continue
        flag = "--" + field.name.replace("_", "-")
        if value is False:
            words.append("--rank-seen")  # the one option that is on, off or left to seqtune
        elif value is True:
            words.append(flag)
        elif field.name == "time_budget":
            words += [flag, f"{value / 60:.0f}m" if value % 60 == 0 else f"{value:g}s"]
        else:
            for one in value if isinstance(value, tuple) else [value]:
                words += [flag, str(one)]
    return shlex.join(words)


def _program(verb: str) -> list[str]:
    # `python tune.py` is the way in without an installation, and knows `tune` alone.
    if verb == "tune" and Path(sys.argv[0]).name == "tune.py":
        return ["python", sys.argv[0]]
    return ["seqtune", verb]


def _default(field: Field[object]) -> object:
    return None if field.default is MISSING else field.default


def data_name(source: str) -> str:
    """Returns a short name of a data set: ``../shared/ml-100k.parquet`` -> ``ml-100k``."""
    name = source.rstrip("/").rpartition("/")[2].removesuffix(".gz")
    stem, dot, suffix = name.rpartition(".")
    return re.sub(r"[^\w.-]+", "-", stem if dot and stem else suffix).strip("-.") or "data"


SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str, place: str = "--time-budget") -> float:
    """Reads ``90s``, ``15m``, ``1h30m`` or plain seconds, in seconds."""
    clean = text.replace(" ", "").lower()
    if re.fullmatch(r"\d+(\.\d+)?", clean):
        seconds = float(clean)
    elif re.fullmatch(r"(\d+(\.\d+)?d)?(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?", clean):
        parts = re.findall(r"([\d.]+)([dhms])", clean)
        seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    else:
        raise UserError(f"{place} {text}: not a duration; write 90s, 15m, 2h or 1h30m")
    if seconds <= 0:
        raise UserError(f"{place} {text}: must be longer than zero, for example 15m")
    return seconds


def duration(seconds: float) -> str:
    """Writes seconds for people: ``0.4s``, ``42s``, ``3m 05s``, ``2h 07m``, ``3d 04h``."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for (big, size), (small, unit) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("m", 60)),
        (("m", 60), ("s", 1)),
    ):
        if whole >= size:
            return f"{whole // size}{big} {whole % size // unit:02d}{small}"
    return f"{whole}s"
