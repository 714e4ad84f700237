"""The points of a study that are new: of which model, and where in its space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from seqtune.limits import Judge
from seqtune.space import Space
from seqtune.study.allocation import Allocation
from seqtune.study.heirs import Population, Stopped
from seqtune.study.samplers import CONTINUED, DRAWS, EVOLVED, Draft, Draws
from seqtune.study.store import best_value

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Points:
    """Hands out points that obey the rules of their model and are no trial yet.

    Args:
        spaces: model -> its space.
        trials: that the study has in the end.
        budget: seconds that it may take.
        seed: of the draws.
        say: gets a sentence where a space has no new point.
        sampler: by which points are drawn.
        judge: by what trials are judged.
        fits: says of a model and a point whether it keeps those that are known beforehand.
        evolves: the trials are generations of a population.
    """

    def __init__(
        self,
        spaces: Mapping[str, Space],
        trials: int,
        budget: float | None,
        seed: int,
        say: Callable[[str], None],
        sampler: str = "tpe",
        judge: Judge | None = None,
        fits: Callable[[str, Mapping[str, Any]], bool] = lambda model, values: True,
        *,
        evolves: bool = False,
    ) -> None:
        self.spaces, self.trials, self._say = spaces, trials, say
        self.count = 0  # trials that there are
        self._exhausted = False
        self.allocation = Allocation(list(spaces), trials, budget)
        self._taken: set[str] = set()
        judge = judge or Judge()
        self._fits, self._limited = fits, bool(judge.limits)
        how = (seed, sampler, judge.objectives)
        self._draws = {model: Draws(space, *how) for model, space in spaces.items()}
        self._stopped, self._population = Stopped(), None
        if evolves:
            (space,) = spaces.values()
            self._population = Population(space, trials, seed)

    def begun(self, about: Mapping[str, Any]) -> None:
        """A point has become a trial, with these attributes."""
        model: str = about["model"]
        self._taken.add(self._identity(model, about["params"]))
        if about["origin"] == CONTINUED:
            self._stopped.goes_on(about["parent"])
        if self._population is not None and about["origin"] == EVOLVED:
            self._population.begun(about["follows"])
        self.allocation.begun(model)
        self.count += 1

    def ended(self, trial: FrozenTrial) -> None:
        """A trial of this driver has ended."""
        model: str = trial.user_attrs["model"]
        self.allocation.ended(model, trial.user_attrs.get("seconds", 0.0))
        self._stopped.ended(trial)
        if self._population is not None:
            self._population.ended(trial)
        if trial.state in ENDED:
            self._draws[model].learn(trial)

    def recall(self, trial: FrozenTrial) -> None:
        """Takes a trial of an earlier driver into account."""
        about = trial.user_attrs
        self.begun(about)
        if not trial.state.is_finished():
            return  # what it took is told again
        value = best_value(trial)
        reached = -math.inf if value is None or about.get("over") else value
        self.allocation.evaluated(about["model"], reached, about.get("seconds", 0.0))
        self.ended(trial)

    @property
    def complete(self) -> bool:
        """Whether the study has all its trials, or no space a new point."""
        return self.count >= self.trials or self._exhausted

    @property
    def generation(self) -> bool:
        """Whether the next trial follows one of a population, which must have ended."""
        return self._population is not None and self.count >= self._population.size

    def stopped(self) -> tuple[str, Draft] | None:
        """Returns the best trial that was stopped early, to go on; None where there is none."""
        return self._stopped.best()

    def draw(self, elapsed: float) -> tuple[str, Draft] | None:
        """Returns the model whose turn it is and its new point; None where there is none now.

        ``elapsed`` are the seconds since the study began. The draft has the model among its
        parameters where there are several.
        """
        if self.generation:
            assert self._population is not None
            draft = self._population.next(self.count)
            if draft is not None:
                return next(iter(self.spaces)), draft
            if self._population.runs(self.count):
                return None
        while (model := self.allocation.choose(elapsed)) is not None:
            space, n = self.spaces[model], self.allocation.spent[model].begun
            draft = self._draws[model].draw(n, partial(self._is_new, space))
            if draft is not None:
                return model, self._with_model(model, draft)
            self.allocation.exhausted(model)
            if len(self.spaces) > 1:
                self._say(f"{model} has no more points after {n} trials")
        self._exhausted = True
        self._say(
            f"the study ends after {self.count} of {self.trials} trials: {DRAWS} draws gave no "
            "point of the search space that is new and obeys the model's rules"
            + " and the limits"
            * self._limited
        )
        return None

    def _with_model(self, model: str, draft: Draft) -> Draft:
        if len(self.spaces) == 1:
            return draft
        models = CategoricalDistribution(list(self.spaces))
        return replace(
            draft,
            params=draft.params | {"model": model},
            distributions=draft.distributions | {"model": models},
        )

    def _is_new(self, space: Space, values: Mapping[str, Any]) -> bool:
        if not space.allows(values) or self._identity(space.model, values) in self._taken:
            return False
        return self._fits(space.model, values)

    def _identity(self, model: str, values: Mapping[str, Any]) -> str:
        # All hyperparameters: n_layers=2 given and n_layers=2 by default are the same point.
        return f"{model} {self.spaces[model].build(values).model_dump_json()}"
