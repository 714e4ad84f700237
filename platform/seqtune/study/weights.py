"""Which trials keep their weights: a study of hundreds needs those of the best."""

from __future__ import annotations

from seqtune.study.plan import Plan


class Weights:
    """Removes the states of ended trials, but for those of the best so many.

    The defaults of each model stay too, and its best.

    What was removed is trained again where it should be needed after all (``study/final.py``).
    """

    def __init__(self, plan: Plan, most: int, models: int = 1) -> None:
        self._plan, self._most, self._models = plan, most, models
        self._kept: list[tuple[float, int, str]] = []  # value, minus the number, model

    def ended(self, number: int, model: str, value: float | None) -> None:
        """Is told of each trial that has ended with a value, its best."""
        if value is None or number < self._models:  # all is compared with the defaults
            return
        self._kept = sorted([*self._kept, (value, -number, model)])
        best = {one[2]: one for one in self._kept}  # the last of each model
        others = [one for one in self._kept if best[one[2]] != one]
        if len(self._kept) > self._most and others:
            self._kept.remove(others[0])
            self._plan.trial_folder(-others[0][1]).remove("state.pt")
