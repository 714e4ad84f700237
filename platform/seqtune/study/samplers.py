"""How the next point is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from seqtune.space import Space

STARTUP = 10  # random trials before TPE has something to learn from; a portfolio takes their place
DEFAULT, PORTFOLIO, DRAWN = "default", "portfolio", "drawn"  # where a point comes from
DRAWS = 500  # tries for one new point: the first tenth by TPE, the others at random
# Of twice as many trials or more, TPE sees the best and the newest. It models at most 25 trials as
# good ones, the best tenth, so that more of them would only be more of the others.
WINDOW = 125


@dataclass(frozen=True)
class Draft:
    """A point that is new and obeys the model's rules."""

    values: dict[str, Any]  # of all hyperparameters that are fixed or sampled
    params: dict[str, Any]  # of those that are sampled, as Optuna stores them
    distributions: dict[str, BaseDistribution]
    origin: str = DRAWN


class Draws:
    """Draws points by TPE, in a scratch study in memory that knows the trials that have ended.

    The draw for trial n depends on the seed, n and the trials that have ended before, in their
    order, so that a resumed study draws what an uninterrupted one would have drawn. It costs the
    same however long the study is: TPE itself takes time in proportion to its trials, and beyond
    some hundred of them the best and the newest say it all.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed
        self._ended: list[FrozenTrial] = []
        self._scratch = _scratch([])

    def learn(self, trial: FrozenTrial) -> None:
        """Takes a trial into account that is complete or was pruned."""
        self._ended.append(trial)
        if len(self._ended) % WINDOW == 0 and len(self._ended) >= 2 * WINDOW:
            self._scratch = _scratch(best_and_newest(self._ended, WINDOW))
        else:
            self._scratch.add_trial(trial)

    def draw(self, number: int, allowed: Callable[[Mapping[str, Any]], bool]) -> Draft | None:
        """Returns the point of the model's trial n: the start, the portfolio, then new ones.

        None where ``DRAWS`` draws gave no point that is ``allowed``. A point of the portfolio that
        is not allowed, since the rules forbid it here or it is a trial already, is drawn instead.
        """
        if (start := self.space.started(number)) is not None:
            fixed = FixedTrial(start, number=number)
            values = self.space.suggest(fixed)
            origin = PORTFOLIO if number else DEFAULT
            if not number or allowed(values):
                return Draft(values, fixed.params, fixed.distributions, origin)
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        known = len(self.space.portfolio)
        startup = 1 + known if known else STARTUP
        self._scratch.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        for attempt in range(DRAWS):
            if attempt == DRAWS // 10:  # TPE insists on the best of a small space
                self._scratch.sampler = optuna.samplers.RandomSampler(seed=seed)
            asked = self._scratch.ask()
            values = self.space.suggest(asked)
            found = Draft(values, asked.params, asked.distributions)
            self._scratch.tell(asked, state=TrialState.FAIL)  # what it reaches comes by `learn`
            if allowed(values):
                return found
        return None


def best_and_newest(ended: list[FrozenTrial], n: int) -> list[FrozenTrial]:
    """Returns ``n`` trials in their order: the better half of them, and the newest of the rest."""
    by_value = sorted(range(len(ended)), key=lambda place: -_value(ended[place]))
    best = set(by_value[: n // 2])
    newest = [place for place in range(len(ended)) if place not in best][-(n - len(best)) :]
    return [ended[place] for place in sorted(best.union(newest))]


def _value(trial: FrozenTrial) -> float:
    if trial.value is not None:
        return trial.value
    return max(trial.intermediate_values.values(), default=float("-inf"))


def _scratch(trials: list[FrozenTrial]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scratch = optuna.create_study(direction="maximize")
    scratch.add_trials(trials)
    return scratch
