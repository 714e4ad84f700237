"""How the next point is drawn."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from seqtune.errors import UserError, nearest
from seqtune.metrics import direction
from seqtune.space import Space

STARTUP = 10  # random trials before TPE has something to learn from; a portfolio takes their place
DEFAULT, PORTFOLIO, DRAWN = "default", "portfolio", "drawn"  # where a point comes from
DRAWS = 500  # tries for one new point: the first tenth by TPE, the others at random
# Of twice as many trials or more, TPE sees the best and the newest. It models at most 25 trials as
# good ones, the best tenth, so that more of them would only be more of the others.
WINDOW = 125
SAMPLERS = ("tpe", "random", "qmc", "gp")
AHEAD = 2**20  # points of a sequence between a trial's own and what it takes in their place


@dataclass(frozen=True)
class Draft:
    """A point that is new and obeys the model's rules."""

    values: dict[str, Any]  # of all hyperparameters that are fixed or sampled
    params: dict[str, Any]  # of those that are sampled, as Optuna stores them
    distributions: dict[str, BaseDistribution]
    origin: str = DRAWN


def check_sampler(name: str, place: str = "--sampler") -> str:
    """Returns the name of a sampler that there is: ours, or ``module:function`` of one's own.

    Raises:
        UserError: there is none of that name.
    """
    if ":" in name:
        _own(name, place)
    elif name not in SAMPLERS:
        raise UserError(f"{place} {name}: there is no such sampler{nearest(name, SAMPLERS)}")
    return name


def _own(name: str, place: str) -> Callable[[int], BaseSampler]:
    """Returns what makes a sampler of Optuna from a seed."""
    module, _, function = name.partition(":")
    try:
        made: Callable[[int], BaseSampler] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{place} {name}: cannot be imported ({error})") from None
    return made


def make_sampler(name: str, seed: int, startup: int) -> BaseSampler:
    """Returns a sampler of Optuna that draws at random until it knows ``startup`` trials."""
    match name:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        case "gp":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case _:
            return _own(name, "--sampler")(seed)


class Draws:
    """Draws points by a sampler, in a scratch study in memory that knows the ended trials.

    The draw for trial n depends on the seed, n and the trials that have ended before, in their
    order, so that a resumed study draws what an uninterrupted one would have drawn. It costs the
    same however long the study is: TPE itself takes time in proportion to its trials, and beyond
    some hundred of them the best and the newest say it all.

    ``qmc`` is a scrambled Sobol sequence (scipy's), of which trial n has the n-th point.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        sampler: str = "tpe",
        objectives: Sequence[str] = (),
    ) -> None:
        self.space, self.seed, self.sampler, self.objectives = space, seed, sampler, objectives
        self._ended: list[FrozenTrial] = []
        self._scratch = self._anew([])

    def learn(self, trial: FrozenTrial) -> None:
        """Takes a trial into account that is complete or was pruned."""
        trial = self._as_scratch(trial)
        self._ended.append(trial)
        if len(self._ended) % WINDOW == 0 and len(self._ended) >= 2 * WINDOW:
            self._scratch = self._anew(best_and_newest(self._ended, WINDOW))
        else:
            self._scratch.add_trial(trial)

    def _as_scratch(self, trial: FrozenTrial) -> FrozenTrial:
        """Returns a trial with all its objectives: of several Optuna wants ends, and no curves."""
        if len(self.objectives) < 2:
            return trial
        trial = copy.deepcopy(trial)
        trial.state, trial.intermediate_values = TrialState.COMPLETE, {}
        trial.values = [trial.user_attrs["measured"][name] for name in self.objectives]
        return trial

    def _anew(self, trials: list[FrozenTrial]) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        names = self.objectives if len(self.objectives) > 1 else ()
        lower = [direction(name) == "lower" for name in names] or [False]
        way = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
        scratch = optuna.create_study(directions=[way[one] for one in lower])
        scratch.add_trials(trials)
        return scratch

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
        if self.sampler == "qmc":
            return self._quasi_random(number, allowed)
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        known = len(self.space.portfolio)
        startup = 1 + known if known else STARTUP
        self._scratch.sampler = make_sampler(self.sampler, seed, startup)
        for attempt in range(DRAWS):
            if attempt == DRAWS // 10:  # a model insists on the best of a small space
                self._scratch.sampler = optuna.samplers.RandomSampler(seed=seed)
            asked = self._scratch.ask()
            values = self.space.suggest(asked)
            found = Draft(values, asked.params, asked.distributions)
            self._scratch.tell(asked, state=TrialState.FAIL)  # what it reaches comes by `learn`
            if allowed(values):
                return found
        return None

    def _quasi_random(
        self, number: int, allowed: Callable[[Mapping[str, Any]], bool]
    ) -> Draft | None:
        from scipy.stats.qmc import Sobol

        dimensions = self.space.dimensions
        if not dimensions:
            return None
        engine = Sobol(len(dimensions), rng=np.random.default_rng(self.seed))
        engine.fast_forward(number)
        for _ in range(DRAWS):
            shares = engine.random(1)[0]
            wanted = {d.name: d.at(float(u)) for d, u in zip(dimensions, shares, strict=True)}
            fixed = FixedTrial(self.space.point(wanted), number=number)
            values = self.space.suggest(fixed)
            if allowed(values):
                return Draft(values, fixed.params, fixed.distributions)
            engine.fast_forward(AHEAD)
        return None


def best_and_newest(ended: list[FrozenTrial], n: int) -> list[FrozenTrial]:
    """Returns ``n`` trials in their order: the better half of them, and the newest of the rest."""
    by_value = sorted(range(len(ended)), key=lambda place: -_value(ended[place]))
    best = set(by_value[: n // 2])
    newest = [place for place in range(len(ended)) if place not in best][-(n - len(best)) :]
    return [ended[place] for place in sorted(best.union(newest))]


def _value(trial: FrozenTrial) -> float:
    if trial.values is not None:
        return float(trial.values[0])
    return max(trial.intermediate_values.values(), default=float("-inf"))
