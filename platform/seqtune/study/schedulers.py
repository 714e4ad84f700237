"""Which trials are stopped early: those that are poor where the others have been.

Where trials are compared is not said in epochs: ten of them are 1,500 steps on one data set and 90
on another, where each curve still stands at the level of popularity. The best trial so far shows
how long a training is and from where on it has learnt something. In steps of the optimizer, that
is where the others are judged.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from seqtune.limits import Judge
from seqtune.options import GENERATIONS
from seqtune.study.samplers import CONTINUED

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

FIRST = 9  # nobody is judged before this part of the steps that the best trial took to its best
MARGIN = 1.25  # by which a trial may gain more than any other has
FURTHER = 1.3  # times the steps: so much further must a trial be to say what is still to gain
REDUCTION = 3  # of so many trials one goes on
LEARNT = 2 / 3  # of the best trial's gain: before it, a curve says nothing of a trial's rank
BRACKETS = 3  # of hyperband, the trials of each of which are compared from a later rung on
LEVEL = 1.25  # times what popularity reaches: below, a recommender has not begun to learn
REVIVES = ("asha", "hyperband", "median")  # by which one may be stopped that would have won
KEPT = 100  # best trials, and so many of the newest, with which others are compared


@dataclass
class Course:
    """What a trial has shown so far."""

    steps: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)  # so far, at each of the steps

    @property
    def top(self) -> float:
        """Its best value."""
        return self.best[-1]

    @property
    def length(self) -> int:
        """The steps that it took to its best value."""
        return self.steps[bisect_left(self.best, self.top)]

    def at(self, step: int) -> float | None:
        """Returns the best value at the first evaluation from a step on; None before it."""
        place = bisect_left(self.steps, step)
        return self.best[place] if place < len(self.steps) else None

    def rungs(self) -> list[int]:
        """Returns the steps at which others are compared, if this is how a training goes."""
        least = self.best[0] + LEARNT * (self.top - self.best[0])
        rungs = [max(self.steps[bisect_left(self.best, least)], self.length // FIRST, 1)]
        while rungs[-1] * REDUCTION <= self.length:
            rungs.append(rungs[-1] * REDUCTION)
        return rungs


def make_scheduler(
    name: str, models: Sequence[str], judge: Judge | None = None, trials: int = 0
) -> FIFOScheduler:
    """Returns a scheduler by its name, for so many trials of these models.

    Of several objectives a poor value in one says nothing of the others: nobody is stopped.
    """
    if name == "pbt":
        return Generations(trials)
    several = judge is not None and judge.several
    return FIFOScheduler() if name == "none" or several else Race(name, models, judge)


class Race(FIFOScheduler):
    """Stops a trial that is not good enough among those of its model, at the same step.

    ``reach``: a trial goes on while the largest gain that another has made from here on, and a
    quarter more, would bring it to the best value. So a curve that still stands where all others
    stood before they rose is not stopped, and one that has fallen behind is, at any evaluation.

    ``asha``: at each rung the best third goes on (arXiv 1810.05934). ``hyperband``: so it does, but
    only a third of the trials begin at the first rung, a third at the second and so on
    (arXiv 1603.06560, asynchronous). ``median``: from the first rung on, the better half goes on,
    at each evaluation (Golovin et al., KDD 2017).

    The defaults, with which all is compared, are never stopped: that would make tuning look better
    than it is. Nobody is before there is a trial of the model that has ended by itself. Nor is a
    trial that stands where ``popularity`` does, or any where nobody has got above it: curves lie
    there for a while, whatever the trial, and many rise afterwards. A trial that was stopped and
    goes on, since a worker was idle, does so as long as others run; by ``reach`` there is none,
    since what it stops cannot win.

    Args:
        rule: ``reach``, ``asha``, ``hyperband`` or ``median``.
        models: whose trials there are.
        judge: a trial beyond its limits is nobody to be compared with.
    """

    def __init__(self, rule: str, models: Sequence[str], judge: Judge | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule, self.judge = rule, judge or Judge()
        self.courses: dict[str, dict[int, Course]] = {model: {} for model in models}
        self.popularity: Callable[[], float | None] = lambda: None  # what it reaches, if known
        self._ended: set[str] = set()  # models with a trial that has ended by itself
        self._judged: dict[int, int] = {}  # trial -> the last rung that it has passed

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Decides whether a trial goes on."""
        number, model = trial.config["number"], trial.config["model"]
        if "epoch" not in result or self.judge.over(result):  # a note, or why it failed
            return TrialScheduler.CONTINUE
        if trial.config["origin"] == CONTINUED:  # its curve has no beginning to be compared with
            busy = any(t.config["origin"] != CONTINUED for t in tune_controller.get_live_trials())
            return TrialScheduler.CONTINUE if busy else TrialScheduler.STOP
        self._hear(number, model, result)
        stays = number < len(self.courses) or model not in self._ended
        stays = stays or self.courses[model][number].top <= self._level
        if stays or self._stays(number, model):
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP

    @cached_property
    def _level(self) -> float:
        """The value above which a trial has learnt something."""
        known = self.popularity()
        return -math.inf if known is None else LEVEL * known

    def remember(self, about: Mapping[str, Any], number: int, rows: list[dict[str, Any]]) -> None:
        """Takes the curve of a trial that has ended, as if it had been reported now."""
        model = about["model"]
        for row in rows if about["origin"] != CONTINUED else ():
            # Optuna, whose rows they are where a folder was lost, knows no steps.
            if "step" in row and not self.judge.over(row):
                self._hear(number, model, row)

    def _hear(self, number: int, model: str, row: dict[str, Any]) -> None:
        courses = self.courses[model]
        if number not in courses:
            courses[number] = Course()
            if len(courses) > 3 * KEPT:
                self.courses[model] = courses = _best_and_newest(courses)
        course = courses[number]
        course.steps.append(int(row["step"]))
        course.best.append(float(row["best"]))
        if row["finished"]:
            self._ended.add(model)

    def _stays(self, number: int, model: str) -> bool:
        courses = self.courses[model]
        own, others = courses[number], [c for n, c in courses.items() if n != number]
        pattern = max(courses.values(), key=lambda course: course.top)
        now = own.steps[-1]
        if pattern.top <= self._level:
            return True
        if self.rule == "reach":
            return now * FIRST < pattern.length or _within_reach(own, others)
        rungs = pattern.rungs()
        if self.rule == "hyperband":
            rungs = rungs[number % min(BRACKETS, len(rungs)) :]
        if self.rule == "median":
            rungs = [now] if now >= rungs[0] else []
        for rung in rungs:
            if self._judged.get(number, 0) < rung <= now:
                self._judged[number] = rung
                reached = own.at(rung)
                known = [one for c in others if (one := c.at(rung)) is not None]
                if known and reached is not None and not self._good(reached, known):
                    return False
        return True

    def _good(self, value: float, others: list[float]) -> bool:
        if self.rule == "median":
            return value >= statistics.median(others)
        better = sum(other > value for other in others)
        return better * REDUCTION < len(others) + 1  # among the best third, itself included


class Generations(FIFOScheduler):
    """Stops a trial of a population when its generation is over.

    Each generation is a part of the steps that the first trial which ended by itself took to its
    best evaluation; until there is one, nobody is stopped. Nor are the defaults, with which all is
    compared, and the last generation, which comes to its end.
    """

    def __init__(self, trials: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._last = trials - math.ceil(trials / GENERATIONS)  # the first of the last generation
        self._steps: dict[int, dict[int, int]] = {}  # trial -> epoch -> step
        self._length: float | None = None

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Decides whether a trial goes on."""
        number = trial.config["number"]
        if "epoch" not in result:  # a note, or why it failed
            return TrialScheduler.CONTINUE
        self._hear(number, result)
        if self._length is None or not 0 < number < self._last:
            return TrialScheduler.CONTINUE
        steps = self._steps[number].values()
        trained = max(steps) - (min(steps) if "parent" in trial.config else 0)
        over = trained >= self._length / GENERATIONS
        return TrialScheduler.STOP if over else TrialScheduler.CONTINUE

    def remember(self, about: Mapping[str, Any], number: int, rows: list[dict[str, Any]]) -> None:
        """Takes the curve of a trial that has ended, as if it had been reported now."""
        for row in rows:
            if "step" in row:
                self._hear(number, row)

    def _hear(self, number: int, row: dict[str, Any]) -> None:
        steps = self._steps.setdefault(number, {})
        steps[int(row["epoch"])] = int(row["step"])
        if row["finished"] and self._length is None:
            self._length = steps[int(row["best_epoch"])]


def _within_reach(own: Course, others: list[Course]) -> bool:
    """Says whether a trial would be the best if it gained as much as others have from here on."""
    now = own.steps[-1]
    gains = [
        course.top - there
        for course in others
        if course.steps[-1] > FURTHER * now and (there := course.at(now)) is not None
    ]
    best = max((course.top for course in others), default=own.top)
    return not gains or own.top + MARGIN * max(gains) >= best


def _best_and_newest(courses: dict[int, Course]) -> dict[int, Course]:
    """Leaves out the poorer of the old trials, so that a decision costs the same in any study."""
    told = {n: course for n, course in courses.items() if course.steps}
    best = sorted(told, key=lambda n: -told[n].top)[:KEPT]
    newest = list(courses)[-KEPT:]
    return {n: courses[n] for n in sorted({*best, *newest})}
