"""Which trial is chosen, where validation is a sample of users: the winner's curse.

The highest of many noisy values looks better than it is. Every trial keeps the rank of each user's
validation item, so the errors of the values and how they go together are known.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from seqtune.metrics import per_user
from seqtune.results import Choice, TrialRow
from seqtune.storage import Folder

MOST = 40  # trials that are compared, the best ones: no other is a candidate
FEWEST = 5  # of which something can be said
DRAWS = 2000
TIE = 1.0  # standard errors, within which the earlier trial is chosen

Floats = NDArray[np.float64]


def choose(rows: Sequence[TrialRow], gains: Mapping[int, Floats]) -> Choice | None:
    """Returns the trial whose expected value is best; of those within the error, the first.

    Expected values are those of a normal model: what trials truly reach has a mean and a variance,
    and what is measured has the covariance that the users say (empirical Bayes; Efron and Morris,
    JASA 1975). What selection adds is that of the same choice among values drawn around those
    that were measured.

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
    best = [row.number for row in ranked if len(gains.get(row.number, ())) == users][:MOST]
    if len(best) < FEWEST:
        return None
    numbers = sorted(best)
    each = np.stack([gains[number] for number in numbers])
    values, covariance = each.mean(axis=1), np.cov(each) / each.shape[1]
    expected = _expected(values, covariance)
    place = _first_of_equals(expected, covariance)
    highest = numbers.index(ranked[0].number)
    return Choice(
        number=numbers[place],
        highest=numbers[highest],
        behind=float(values[highest] - values[place]),
        error=math.sqrt(_of_difference(covariance, place, highest)),
        selection=_selection(values, covariance),
    )


def _expected(values: Floats, covariance: Floats) -> Floats:
    """Returns the posterior means of the better half, and the values of the others."""
    half = np.argsort(-values)[: max(FEWEST, len(values) // 2)]
    own, noise = values[half], covariance[np.ix_(half, half)]
    n = len(half)
    apart = np.trace(noise) / n - (noise.sum() - np.trace(noise)) / (n * (n - 1))
    spread = max(float(np.var(own, ddof=1) - apart), 0.0)
    whole = spread * np.eye(n) + noise + 1e-12 * np.trace(noise) * np.eye(n)
    weights = np.linalg.solve(whole, np.ones(n))
    mean = weights @ own / weights.sum()
    found = values.copy()
    found[half] = mean + spread * np.linalg.solve(whole, own - mean)
    return found


def _first_of_equals(expected: Floats, covariance: Floats) -> int:
    top = int(np.argmax(expected))
    for place in range(top):
        error = math.sqrt(_of_difference(covariance, place, top))
        if expected[top] - expected[place] <= TIE * error:
            return place
    return top


def _selection(values: Floats, covariance: Floats) -> float:
    """Returns by how much the highest of noisy values is above what it has without the noise."""
    noise = np.random.default_rng(0).multivariate_normal(
        np.zeros(len(values)), covariance, DRAWS, method="eigh"
    )
    highest = np.argmax(values + noise, axis=1)
    return float(noise[np.arange(DRAWS), highest].mean())


def _of_difference(covariance: Floats, one: int, other: int) -> float:
    both = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
    return max(float(both), 0.0)


def error_of(one: Floats, other: Floats) -> float:
    """Returns the standard error of the difference between two trials, on the same users."""
    return float(np.std(one - other, ddof=1) / math.sqrt(len(one)))


def read_gains(folder: Folder, metric: str) -> Floats | None:
    """Returns what each user contributes at a trial's best epoch; None where it is not known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = folder.read("ranks.parquet")
    if content is None:
        return None
    try:
        ranks = pq.read_table(io.BytesIO(content))["rank"].to_numpy()
    except (pa.ArrowException, OSError, KeyError):
        return None
    return np.asarray(per_user(metric, ranks), np.float64)
