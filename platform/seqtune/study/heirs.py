"""Trials that begin where others have stopped: from their weights, and on with their training.

Where no new trial is left and workers are idle, the best of those that were stopped early go on. In
population based training (arXiv 1711.09846) all do so, and poor ones take over from good ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from seqtune.options import GENERATIONS
from seqtune.space import Space
from seqtune.study.samplers import CONTINUED, EVOLVED, Draft
from seqtune.study.store import best_value

PART = 5  # a fifth of the members takes over from the best fifth
FACTORS = (0.8, 1.2)  # by which a number changes then


class Stopped:
    """The trials that were stopped early, the best of which go on while workers are idle."""

    def __init__(self) -> None:
        self._trials: dict[int, FrozenTrial] = {}

    def ended(self, trial: FrozenTrial) -> None:
        """A trial has ended; one that goes on has its turn once."""
        about = trial.user_attrs
        value = best_value(trial)
        if trial.state != TrialState.PRUNED or about.get("over") or value is None:
            return
        if about["origin"] not in (CONTINUED, EVOLVED):
            self._trials[trial.number] = trial

    def goes_on(self, number: int) -> None:
        """A trial has been taken up again."""
        self._trials.pop(number, None)

    def best(self) -> tuple[str, Draft] | None:
        """Returns the model and the point of the best one; None where there is none."""
        if not self._trials:
            return None
        one = max(self._trials.values(), key=lambda trial: (best_value(trial) or 0, -trial.number))
        about = one.user_attrs
        draft = Draft(about["params"], one.params, one.distributions, CONTINUED, one.number)
        return about["model"], draft


class Population:
    """Says how each generation of a population goes on from the one before.

    A member goes on from its own best evaluation. One of the worst fifth takes over the weights and
    the point of one of the best fifth, in which each real number is multiplied by .8 or 1.2. So
    does one that has come to its end by itself, or has failed: there is nothing to go on with. Who
    has ended first has its turn first, so that nobody waits for a whole generation.

    Args:
        space: of the points.
        trials: that the study has in the end, a fifth of them at a time in the population.
        seed: of the choices.
    """

    def __init__(self, space: Space, trials: int, seed: int) -> None:
        self.size = max(2, math.ceil(trials / GENERATIONS))
        self._space, self._seed = space, seed
        self._ended: dict[int, FrozenTrial] = {}
        self._followed: set[int] = set()

    def begun(self, follows: int) -> None:
        """The trial of that number has been followed by another."""
        self._followed.add(follows)

    def ended(self, trial: FrozenTrial) -> None:
        """A trial has ended, however it did."""
        self._ended[trial.number] = trial

    def runs(self, trials: int) -> bool:
        """Whether any of so many trials has not ended."""
        return len(self._ended) < trials

    def next(self, number: int) -> Draft | None:
        """Returns how trial ``number`` goes on, and from whom; None where nobody can."""
        waiting = sorted(self._ended.keys() - self._followed)
        ended = {one.user_attrs.get("follows") for one in self._ended.values()}
        values = {n: self._value(n) for n in self._ended if n not in ended}  # each member's newest
        best = sorted((n for n in values if values[n] > -math.inf), key=lambda n: (-values[n], n))
        few = max(1, len(values) // PART)
        if not waiting or not best:
            return None
        rng = np.random.default_rng([self._seed, number])
        member = parent = waiting[0]
        poor = member not in best or member in best[few:][-few:]
        if poor:
            parent = int(rng.choice(best[:few]))
        source = self._ended[parent]
        draft = Draft(source.user_attrs["params"], source.params, source.distributions)
        if poor:
            draft = self._changed(source.user_attrs["params"], rng) or draft
        return replace(draft, origin=EVOLVED, parent=parent, follows=member)

    def _value(self, number: int) -> float:
        """Returns how good a trial is whose training can go on; minus infinity for others."""
        trial = self._ended[number]
        value = best_value(trial)
        able = trial.state == TrialState.PRUNED and not trial.user_attrs.get("over")
        return value if able and value is not None else -math.inf

    def _changed(self, values: Mapping[str, Any], rng: np.random.Generator) -> Draft | None:
        """Returns a point with other real numbers: what has a form, as sizes do, stays."""
        wanted = dict(values)
        for d in self._space.dimensions:
            if d.name in wanted and not d.choice and not d.integer:
                wanted[d.name] = wanted[d.name] * float(rng.choice(FACTORS))
        fixed = FixedTrial(self._space.point(wanted))
        changed = self._space.suggest(fixed)
        if not self._space.allows(changed):
            return None
        return Draft(changed, fixed.params, fixed.distributions)
