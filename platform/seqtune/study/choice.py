"""Which trial is chosen, where validation is a sample of users: the winner's curse.

The highest of many noisy values looks better than it is. Every trial keeps the rank of each user's
validation item, so the errors of the values and how they go together are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seqtune.metrics import per_user
from seqtune.results import Choice, TrialRow
from seqtune.state import ranks_in
from seqtune.storage import Folder

MOST = 40  # trials whose ranks are read, the best ones: no other is a candidate
FEWEST = 5  # of which something can be said
DRAWS = 2000
TIE = 0.5  # standard errors, within which the earlier trial is chosen

Floats = NDArray[np.float64]


def choose(rows: Sequence[TrialRow], gains: Mapping[int, Floats]) -> Choice | None:
    """Returns the earliest trial that is as good as the highest, as far as users can tell.

    That is within half a standard error of their paired difference: a whole one would cost more on
    test than it is worth (docs/search.md). What selection adds to the highest value is that of the
    highest among values drawn around those that were measured, with their covariance.

    Args:
        rows: the trials that can be chosen.
        gains: trial -> what each user contributes to the metric, (U,).

    Returns:
        None where there are too few to compare, or the highest has no gains.
    """
    ranked = sorted(rows, key=lambda row: (-(row.value or 0), row.number))
    if not ranked or ranked[0].number not in gains:
        return None
    users = len(gains[ranked[0].number])
    numbers = sorted(row.number for row in ranked if len(gains.get(row.number, ())) == users)
    if len(numbers) < FEWEST:
        return None
    each = np.stack([gains[number] for number in numbers])
    values, covariance = each.mean(axis=1), np.cov(each) / each.shape[1]
    place = _first_of_equals(values, covariance)
    highest = numbers.index(ranked[0].number)
    return Choice(
        number=numbers[place],
        highest=numbers[highest],
        behind=float(values[highest] - values[place]),
        error=error_between(covariance, place, highest),
        selection=_selection(values, covariance),
    )


def _first_of_equals(values: Floats, covariance: Floats) -> int:
    top = int(np.argmax(values))
    for place in range(top):
        if values[top] - values[place] <= TIE * error_between(covariance, place, top):
            return place
    return top


def _selection(values: Floats, covariance: Floats) -> float:
    """Returns by how much the highest of noisy values is above what it has without the noise."""
    noise = np.random.default_rng(0).multivariate_normal(
        np.zeros(len(values)), covariance, DRAWS, method="eigh"
    )
    highest = np.argmax(values + noise, axis=1)
    return float(noise[np.arange(DRAWS), highest].mean())


def error_between(covariance: Floats, one: int, other: int) -> float:
    """Returns the standard error of the difference of two means, given the covariance of all."""
    both = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
    return math.sqrt(max(float(both), 0.0))


def error_of(one: Floats, other: Floats) -> float:
    """Returns the standard error of the difference between two trials, on the same users."""
    return float(np.std(one - other, ddof=1) / math.sqrt(len(one)))


def read_gains(folder: Folder, metric: str) -> Floats | None:
    """Returns what each user contributes at a trial's best epoch; None where it is not known."""
    import pyarrow as pa

    content = folder.read("ranks.parquet")
    if content is None:
        return None
    try:
        ranks = ranks_in(content)
    except (pa.ArrowException, OSError, KeyError):
        return None
    return np.asarray(per_user(metric, ranks), np.float64)
