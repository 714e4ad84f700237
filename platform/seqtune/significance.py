"""Is one recommender better than another? Paired tests over users.

Both are evaluated on the same users, so the differences user by user are tested: much of the
spread between users cancels. The test speaks about other users of the same kind, not about other
seeds of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqtune.metrics import per_user


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of a system with a baseline."""

    difference: float  # mean of the system minus mean of the baseline
    low: float  # confidence interval of the difference
    high: float
    p_value: float  # two-sided
    n: int  # users
    relative: float  # difference / mean of the baseline; infinite where that is 0


def compare(
    metric: str,
    ranks: NDArray[np.floating],
    baseline: NDArray[np.floating],
    confidence: float = 0.95,
) -> Comparison:
    """Compares two systems on a metric such as ``ndcg@10``, given each user's rank in both.

    (U,) and (U,), the same users in the same order.
    """
    if len(ranks) != len(baseline):
        raise ValueError(f"ranks of {len(ranks)} users cannot be paired with {len(baseline)}")
    return paired_t(per_user(metric, ranks), per_user(metric, baseline), confidence)


def paired_t(
    values: NDArray[np.floating], baseline: NDArray[np.floating], confidence: float = 0.95
) -> Comparison:
    """Paired two-sided t-test of the mean difference, with its confidence interval."""
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    n = len(differences)
    mean, base = float(differences.mean()), float(np.mean(baseline))
    relative = mean / base if base else float(np.copysign(np.inf, mean)) if mean else 0.0
    if n < 2:
        return Comparison(mean, -np.inf, np.inf, 1.0, n, relative)
    error = float(differences.std(ddof=1)) / n**0.5
    if error == 0:
        return Comparison(mean, mean, mean, 0.0 if mean else 1.0, n, relative)
    # scipy.special, not scipy.stats: the same numbers, a tenth of the import time.
    from scipy.special import stdtr, stdtrit

    margin = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    p_value = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Comparison(mean, mean - margin, mean + margin, p_value, n, relative)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for several comparisons (Holm 1979), in the given order.

    The smallest is multiplied by m, the next by m - 1, and so on; none falls below a smaller one.
    """
    m = len(p_values)
    corrected = [0.0] * m
    largest = 0.0
    for place, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - place) * p_values[index]))
        corrected[index] = largest
    return corrected
