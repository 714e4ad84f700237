"""How the next point is drawn."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from seqtune.errors import UserError, nearest
from seqtune.metrics import ways
from seqtune.outside import imported, is_own
from seqtune.space import Dimension, Space

STARTUP = 10  # random trials before TPE has something to learn from; a portfolio takes their place
DEFAULT, PORTFOLIO, DRAWN = "default", "portfolio", "drawn"  # where a point comes from
CONTINUED, EVOLVED = "continued", "evolved"  # from that of another trial, whose weights it has
DRAWS = 500  # tries for one new point: the first tenth by TPE, the others at random
# Of twice as many trials or more, TPE sees the best and the newest. It models at most 25 trials as
# good ones, the best tenth, so that more of them would only be more of the others.
WINDOW = 125
CUBE = ("qmc", "grid", "cma-es")  # samplers that draw in a cube of side 1
SAMPLERS = ("tpe", "random", "gp", *CUBE)
LEVELS = 3  # of a range in a grid
AHEAD = 2**20  # points of a sequence between a trial's own and what it takes in their place


@dataclass(frozen=True)
class Draft:
    """A point that is new and obeys the model's rules."""

    values: dict[str, Any]  # of all hyperparameters that are fixed or sampled
    params: dict[str, Any]  # of those that are sampled, as Optuna stores them
    distributions: dict[str, BaseDistribution]
    origin: str = DRAWN
    parent: int | None = None  # the trial from whose weights it begins
    follows: int | None = None  # the trial whose place in a population it takes


def check_sampler(name: str, place: str = "--sampler") -> str:
    """Returns the name of a sampler that there is: ours, or ``module:function`` of one's own.

    Raises:
        UserError: there is none of that name.
    """
    if is_own(name):
        imported(name, place)
    elif name not in SAMPLERS:
        raise UserError(f"{place} {name}: there is no such sampler{nearest(name, SAMPLERS)}")
    return name


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
            made: BaseSampler = imported(name, "--sampler")(seed)
            return made


class Draws:
    """Draws points by a sampler, in a scratch study in memory that knows the ended trials.

    The draw for trial n depends on the seed, n and the trials that have ended before, in their
    order, so that a resumed study draws what an uninterrupted one would have drawn. It costs the
    same however long the study is: TPE itself takes time in proportion to its trials, and beyond
    some hundred of them the best and the newest say it all.

    ``qmc`` is a scrambled Sobol sequence (scipy's), of which trial n has the n-th point. ``grid``
    has each choice, and three points of each range, in an order that is spread over the grid.
    ``cma-es`` is the evolution strategy of the library cmaes (arXiv 1604.00772), with the defaults
    for its first mean; each generation is the trials that have ended next.
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
        several = len(self.objectives) > 1
        scratch = optuna.create_study(directions=ways(self.objectives) if several else ["maximize"])
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
        if self.sampler in CUBE:
            return self._in_the_cube(number, allowed)
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

    def _in_the_cube(
        self, number: int, allowed: Callable[[Mapping[str, Any]], bool]
    ) -> Draft | None:
        """Returns the first of the sampler's points in a cube of side 1 that is allowed."""
        dimensions = self.space.dimensions
        if not dimensions:
            return None
        points = {"qmc": self._sobol, "grid": self._grid, "cma-es": self._evolution}[self.sampler]
        for shares in itertools.islice(points(number), DRAWS):
            wanted = {d.name: d.at(float(u)) for d, u in zip(dimensions, shares, strict=True)}
            fixed = FixedTrial(self.space.point(wanted), number=number)
            values = self.space.suggest(fixed)
            if allowed(values):
                return Draft(values, fixed.params, fixed.distributions)
        return None

    def _sobol(self, number: int) -> Iterator[Sequence[float]]:
        from scipy.stats.qmc import Sobol

        engine = Sobol(len(self.space.dimensions), rng=np.random.default_rng(self.seed))
        engine.fast_forward(number)
        while True:
            yield engine.random(1)[0]
            engine.fast_forward(AHEAD)

    def _grid(self, number: int) -> Iterator[Sequence[float]]:
        """Yields the points of the grid that come after those of the trials before, each once."""
        sizes = [len(d.choice) or LEVELS for d in self.space.dimensions]
        whole = math.prod(sizes)
        step = next(s for s in itertools.count(int(whole * 0.618) + 1) if math.gcd(s, whole) == 1)
        first = int(np.random.default_rng(self.seed).integers(whole))
        for place in range(number, number + whole):
            index, shares = (first + place * step) % whole, []
            for size, d in zip(sizes, self.space.dimensions, strict=True):
                index, level = divmod(index, size)
                shares.append((level + 0.5) / size if d.choice else level / (size - 1))
            yield shares

    def _evolution(self, number: int) -> Iterator[Sequence[float]]:
        """Yields points of an evolution strategy that has seen the ended trials in their order."""
        from cmaes import CMA

        start = [_share(d, self.space.start.get(d.name)) for d in self.space.dimensions]
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        # One dimension is too few for the library: the second is ignored.
        mean = np.array(start if len(start) > 1 else [*start, 0.5])
        bounds = np.tile([0.0, 1.0], (len(mean), 1))
        strategy = CMA(mean=mean, sigma=0.3, bounds=bounds, seed=seed)
        names = [f"{self.space.prefix}{d.name}" for d in self.space.dimensions]
        seen = []
        for trial in self._ended:
            pairs = zip(self.space.dimensions, names, strict=True)
            place = np.array([_share(d, trial.params.get(name)) for d, name in pairs])
            seen.append((np.resize(place, len(mean)), -_value(trial)))
            if len(seen) == strategy.population_size:
                strategy.tell(seen)
                seen = []
        while True:
            yield strategy.ask()[: len(start)]


def _share(dimension: Dimension, value: Any) -> float:
    """Returns where a value lies in a dimension, from 0 to 1; the middle where there is none."""
    if value is None:
        return 0.5
    if dimension.choice:
        return (dimension.choice.index(value) + 0.5) / len(dimension.choice)
    low, high = dimension.low, dimension.high
    if low == high:
        return 0.5
    if dimension.log:
        return float(np.clip(math.log(value / low) / math.log(high / low), 0, 1))
    return float(np.clip((value - low) / (high - low), 0, 1))


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
