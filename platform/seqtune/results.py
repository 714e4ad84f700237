"""What a trial, a finalist, a whole study and a single training have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from seqtune.limits import Judge
from seqtune.metrics import Ranks
from seqtune.options import DEFAULTS

if TYPE_CHECKING:
    from seqtune.floors import Floor


CHECKPOINT_FILES = ("items.parquet", "model.safetensors", "model.json")  # in this order
FRONT = "front"  # the folder of the checkpoints of trials that are best in several objectives
BEST = "best"  # the folder of each model's best checkpoint, in a study of several


@dataclass(frozen=True)
class TrialRow:
    """One trial of a study."""

    number: int
    model: str
    status: str  # complete, pruned, failed, running, or unfinished when time was up
    params: dict[str, object]
    value: float | None  # best value of the study's metric on validation
    epoch: int | None  # of the best value
    seconds: float | None  # None while it has not ended
    reason: str = ""  # why it failed
    origin: str = "drawn"  # default, portfolio, drawn, continued, evolved: where its point is from
    parent: int | None = None  # the trial from whose weights it began, if any
    measured: Mapping[str, float] = field(default_factory=dict)  # at its best epoch, if asked for
    over: str = ""  # which limits it is beyond; it cannot be the best then

    @property
    def eligible(self) -> bool:
        """Whether it can be the best: it has a value, did not fail, and keeps all limits."""
        return self.value is not None and self.status != "failed" and not self.over


def best_trial(rows: Sequence[TrialRow], judge: Judge | None = None) -> TrialRow | None:
    """Returns the trial with the best validation value that can be chosen, the first of equals.

    Where objectives have weights, it is that of the front with the largest weighted sum, in which
    each objective is 0 where it is worst on the front and 1 where it is best.
    """
    known = [row for row in rows if row.eligible]
    if judge is None or not judge.several or not judge.weights:
        return max(known, key=lambda row: (row.value or 0, -row.number), default=None)
    points = front(rows, judge)
    if not points:
        return None
    reached = np.array([judge.better(row.measured) for row in points])
    span = np.ptp(reached, axis=0)
    shares = (reached - reached.min(axis=0)) / np.where(span > 0, span, 1)
    worth = shares @ [judge.weights.get(name, 0.0) for name in judge.objectives]
    return points[int(np.argmax(worth))]


def front(rows: Sequence[TrialRow], judge: Judge) -> tuple[TrialRow, ...]:
    """Returns the trials than which none is better in one objective and as good in all others.

    The best by the first objective comes first.
    """
    known = [row for row in rows if row.eligible and {*judge.objectives} <= row.measured.keys()]
    points = {row.number: np.array(judge.better(row.measured)) for row in known}
    found = [
        row
        for row in known
        if not any(
            (other >= points[row.number]).all() and (other > points[row.number]).any()
            for other in points.values()
        )
    ]
    return tuple(sorted(found, key=lambda row: tuple(-points[row.number])))


@dataclass(frozen=True)
class Finalist:
    """A trial whose best checkpoint was evaluated on test: a model's defaults, or its best one."""

    number: int
    model: str
    params: dict[str, object]
    valid: dict[str, float]  # "ndcg@10" -> value
    test: dict[str, float]
    test_ranks: Ranks  # of the test items
    note: str = ""  # what was wrong with its files
    train_seconds: float | None = None  # that its training took, evaluations left out
    request_ms: float | None = None  # median time to answer one user; where it has a checkpoint
    megabytes: float | None = None  # of its weights
    peak_megabytes: float | None = None  # that the process of its training held at most
    joules: float | None = None  # that the machine used meanwhile, where it tells


@dataclass(frozen=True)
class Contender:
    """A model of a study: its best trial, and its defaults where they got to an evaluation."""

    best: Finalist
    default: Finalist | None
    trials: int  # that it had

    @property
    def model(self) -> str:
        """Its name."""
        return self.best.model


@dataclass(frozen=True)
class Choice:
    """The trial that was chosen, and what is known of its value on validation."""

    number: int
    highest: int  # the trial with the highest value
    behind: float  # by how much the chosen one is below it
    error: float  # the standard error of that difference
    selection: float  # so much of its value comes from being chosen, as far as can be expected


@dataclass(frozen=True)
class Runner:
    """A trial that was trained with several seeds."""

    number: int
    mean: float  # of the study's metric on validation, over seeds
    spread: float  # standard deviation between seeds
    p_best: float  # how likely it is the best of those that raced
    p_holm: float | None  # of its difference from the best; None for that one


@dataclass(frozen=True)
class Raced:
    """The best trials and the defaults, trained with several seeds each."""

    runners: tuple[Runner, ...]  # the best first
    seeds: int  # of each
    settled: bool  # whether the best is surely better than all others

    @property
    def winner(self) -> int:
        """The number of the best one."""
        return self.runners[0].number


@dataclass(frozen=True)
class Share:
    """How much of the variance between trials a hyperparameter explains, from 0 to 1."""

    name: str
    share: float
    low: float  # of the 90 % interval
    high: float


@dataclass(frozen=True)
class Group:
    """Some of the test users, and what the study's metric is for them."""

    name: str
    n: int  # lists
    values: dict[str, float]  # by who ranked their items
    difference: float = 0.0  # of the first of these, from all other users
    p_holm: float | None = None  # of that difference, corrected; None where the users are too few


@dataclass(frozen=True)
class StudyResult:
    """Everything that a finished study has to say.

    Of several models ``best`` is the best of all, and ``default``, ``searched`` and what mattered
    are those of its model.
    """

    name: str
    models: tuple[str, ...]  # that it compares: one, mostly
    data_name: str
    metric: str  # what the study maximised, on validation
    protocol: str  # how it was evaluated, in a sentence
    trials: tuple[TrialRow, ...]
    default: Finalist | None  # the first trial of the best one's model; None where it failed
    best: Finalist | None  # None where no trial finished an evaluation
    importances: tuple[Share, ...]  # largest first; empty where it is not known
    searched: tuple[str, ...]  # names of the hyperparameters that were searched
    planned: int  # trials that it has when it has ended
    seconds: float
    checkpoint: str  # folder of the best checkpoint
    train_command: str
    ui_command: str = ""
    view_link: str = ""
    plain_link: str = ""  # should MLflow not know the prepared view
    dashboard_command: str = ""  # of Optuna
    report: str = ""  # folder of the report's files
    serve_command: str = ""
    champion: str = ""  # name of the registered model
    best_hit_10: float | None = None  # generated data: the best HR@10 that any model can reach
    notes: tuple[str, ...] = ()
    baseline: str = DEFAULTS  # what trial 0 ran
    floors: tuple[Floor, ...] = ()  # what counting reaches; empty where it could not be counted
    unimportant: str = ""  # why it is not known which hyperparameters mattered
    contenders: tuple[Contender, ...] = ()  # each model's best, the best on validation first
    groups: tuple[Group, ...] = ()  # of test users
    judge: Judge = field(default_factory=Judge)  # of trials
    choice: Choice | None = None  # how the best one was chosen, where that can be said
    raced: Raced | None = None  # the best ones with several seeds, where they were asked for
    refitted: Finalist | None = None  # the best one, trained again until the test
    production: str = ""  # the folder of the best one's checkpoint, trained again on everything
    facts: Mapping[str, str] = field(default_factory=dict)  # what the study was made of, as tags

    @property
    def model(self) -> str:
        """The model of the best trial; before there is one, all of them."""
        return self.best.model if self.best else ",".join(self.models)

    @property
    def front(self) -> tuple[TrialRow, ...]:
        """The trials that are best in several objectives; empty where there is but one."""
        return front(self.trials, self.judge) if self.judge.several else ()

    @property
    def lineage(self) -> tuple[TrialRow, ...]:
        """The trials whose weights became those of the best one, the first first, it last."""
        row = self.trials[self.best.number] if self.best else None
        found = [row] if row else []
        while row is not None and row.parent is not None:
            row = self.trials[row.parent]
            found.insert(0, row)
        return tuple(found)

    @property
    def several(self) -> bool:
        """Whether models are compared."""
        return len(self.models) > 1

    @property
    def tuned(self) -> bool:
        """Whether the best trial is another than the defaults."""
        return self.best is not None and not (
            self.default is not None and self.default.number == self.best.number
        )


@dataclass(frozen=True)
class TrainResult:
    """What ``seqtune train`` has to say in the end."""

    model: str
    data_name: str
    metric: str
    epoch: int  # of the best validation value
    valid: dict[str, float]
    test: dict[str, float]
    seconds: float
    checkpoint: str
    best_hit_10: float | None = None
    notes: tuple[str, ...] = ()
    floors: tuple[Floor, ...] = ()
    test_ranks: Ranks | None = None  # of the test items
    ui_command: str = ""  # what shows the training's curves in MLflow
