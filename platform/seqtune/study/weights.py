"""Which trials keep their weights: a study of hundreds needs those of the best."""

from __future__ import annotations

import heapq

from seqtune.study.plan import Plan


class Weights:
    """Removes the states of ended trials, but for trial 0 and the best so many.

    What was removed is trained again where it should be needed after all (``study/final.py``).
    """

    def __init__(self, plan: Plan, most: int) -> None:
        self._plan, self._most = plan, most
        self._kept: list[tuple[float, int]] = []  # value and minus the number, the worst first

    def ended(self, number: int, value: float | None) -> None:
        """Is told of each trial that has ended with a value, its best."""
        if value is None or number == 0:  # all is compared with trial 0
            return
        heapq.heappush(self._kept, (value, -number))
        if len(self._kept) > self._most:
            self._plan.trial_folder(-heapq.heappop(self._kept)[1]).remove("state.pt")
