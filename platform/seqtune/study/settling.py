"""When a study has settled: what further trials would add is less than the error of what there is.

How far the values of drawn trials lie above a threshold that a third of them exceed is taken to be
exponential, as the excess over a high threshold is of most distributions (Pickands, Annals of
Statistics 1975). So a further trial is better than the best one with a probability that is known,
and then by the mean excess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

FEWEST, DRAWN = 8, 3  # trials with a value, and of these such as no list of start points named
PART, LEAST = 3, 2  # a third of the drawn ones are above the threshold, and at least two
AHEAD = 10  # further trials whose gain counts


def still_to_gain(drawn: Sequence[float], best: float, further: int) -> float:
    """Returns what so many further trials are expected to add to the best value.

    ``drawn`` are the best values of the trials that a sampler has drawn; larger is better.
    """
    ranked = sorted(drawn, reverse=True)
    above = min(max(LEAST, len(ranked) // PART), len(ranked) - 1)
    if above < 1:
        return math.inf
    threshold = ranked[above]
    excess = sum(ranked[:above]) / above - threshold
    if excess <= 0:
        return 0.0
    better = above / len(ranked) * math.exp(-max(best - threshold, 0) / excess)
    return further * better * excess


class Settling:
    """Hears of each trial that has ended, and says when the others would add nothing that counts.

    Args:
        most: trials that the study has at most.
        metric: for the sentence.
        error: returns the standard error of the difference between two trials, on the users of
            validation; None where it is not known.
    """

    def __init__(self, most: int, metric: str, error: Callable[[int, int], float | None]) -> None:
        self._most, self._metric, self._error = most, metric, error
        self._values: dict[int, float] = {}
        self._drawn: list[float] = []
        self._ended = 0

    def ended(self, number: int, value: float | None, *, drawn: bool) -> str:
        """A trial has ended, with a value or without; returns why no other shall begin, if so."""
        self._ended += 1
        if value is not None:
            self._values[number] = value
            self._drawn += [value] * drawn
        further = min(self._most - self._ended, AHEAD)
        if len(self._values) < FEWEST or len(self._drawn) < DRAWN or further < 1:
            return ""
        best, second = sorted(self._values, key=lambda n: (-self._values[n], n))[:2]
        gain = still_to_gain(self._drawn, self._values[best], further)
        error = self._error(best, second)
        if error is None or gain >= error:
            return ""
        return (
            f"the study has settled after {self._ended} trials: {further} more would add "
            f"{gain:.4f} {self._metric}, as far as can be expected, which is less than the error "
            f"of the difference between the two best ({error:.4f})"
        )
