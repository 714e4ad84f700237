"""Which model of a study gets the next trial: those that pay, in equal shares of what is scarce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Spent:
    """What a model has had, and what came of it."""

    begun: int = 0  # trials
    ended: int = 0
    seconds: float = 0.0  # of training and evaluation, by all trials
    ended_seconds: float = 0.0  # by those that have ended
    best: float | None = None  # None before its first evaluation
    exhausted: bool = False  # its space has no new point

    @property
    def expected(self) -> float:
        """The seconds that it will have had when what runs has ended."""
        if not self.ended:
            return self.seconds
        running = (self.begun - self.ended) * self.ended_seconds / self.ended
        return max(self.seconds, self.ended_seconds + running)


class Allocation:
    """Shares the trials of a study among its models, by successive halving.

    The defaults of each model run first. Then the study has phases of equal length, in trials or
    in time, whichever is scarce: in the first all models go on, in each later one the better half
    of those before (Jamieson and Talwalkar, arXiv 1502.07943, with models for arms). In a phase the
    next trial is for the model whose dominant share is least: its part of all seconds of training,
    or of all trials, whichever is larger (Ghodsi et al., NSDI 2011). So a slow model gets fewer
    trials and not less time, and a fast one cannot use up the trials.

    Args:
        models: their order is that of their defaults.
        trials: that the study has in the end.
        budget: seconds that it may take; None: any.
    """

    def __init__(self, models: Sequence[str], trials: int, budget: float | None = None) -> None:
        self.spent = {model: Spent() for model in models}
        self.trials, self.budget = trials, budget

    def begun(self, model: str) -> None:
        """A trial of the model has begun."""
        self.spent[model].begun += 1

    def evaluated(self, model: str, value: float, seconds: float) -> None:
        """A trial of the model was evaluated, after so many seconds more."""
        spent = self.spent[model]
        spent.seconds += seconds
        if math.isfinite(value):
            spent.best = value if spent.best is None else max(spent.best, value)

    def ended(self, model: str, seconds: float) -> None:
        """A trial of the model has ended, which took so many seconds in all."""
        spent = self.spent[model]
        spent.ended += 1
        spent.ended_seconds += seconds

    def exhausted(self, model: str) -> None:
        """There is no new point for the model."""
        self.spent[model].exhausted = True

    def choose(self, elapsed: float) -> str | None:
        """Returns whose turn it is, ``elapsed`` seconds after the beginning; None: nobody's."""
        first = [model for model, spent in self.spent.items() if not spent.begun]
        if first:
            return first[0]
        able = [m for m in self.surviving(elapsed) if not self.spent[m].exhausted]
        able = able or [model for model, spent in self.spent.items() if not spent.exhausted]
        return min(able, key=lambda model: self._share(model, elapsed), default=None)

    def surviving(self, elapsed: float) -> list[str]:
        """Returns the models that go on, the best first; one without a value is not judged yet."""
        n = len(self.spent)
        phases = math.ceil(math.log2(n)) + 1
        phase = min(phases - 1, int(self._progress(elapsed) * phases))
        ranked = sorted(self.spent, key=lambda m: -_or(self.spent[m].best, math.inf))
        return ranked[: math.ceil(n / 2**phase)]

    def _progress(self, elapsed: float) -> float:
        """Returns the part of the study after the defaults that is over."""
        n, begun = len(self.spent), self._begun
        in_trials = (begun - n) / (self.trials - n) if self.trials > n else 1.0
        return max(in_trials, elapsed / self.budget if self.budget else 0.0)

    def _share(self, model: str, elapsed: float) -> float:
        over = max(self._begun / self.trials, elapsed / self.budget if self.budget else 0.0)
        seconds = sum(spent.expected for spent in self.spent.values())
        spent = self.spent[model]
        in_time = spent.expected * over / seconds if seconds else 0.0
        return max(in_time, spent.begun / self.trials)

    @property
    def _begun(self) -> int:
        return sum(spent.begun for spent in self.spent.values())


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
