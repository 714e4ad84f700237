"""Is one recommender better than another? Paired tests over users.

Both are evaluated on the same users, so the differences user by user are tested: much of the
spread between users cancels. The tests speak about other users of the same kind, not about other
seeds of the training. They are scipy's; this room says what is compared, and what happens where
nothing varies.

- ``paired_t`` asks whether the means differ (Student 1908), and says by how much.
- ``wilcoxon`` asks whether the differences are symmetric about 0 (Wilcoxon 1945), by their ranks.
- ``welch`` asks whether a model is as good for some users as for others.
- ``holm`` keeps the chance of any false finding among several (Holm 1979), and
  ``benjamini_hochberg`` the share of false ones among the findings (1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqtune.metrics import Lists, per_user

SURE = 0.05  # the chance of a false finding, below which we say that we are sure


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
    ranks: NDArray[np.floating] | Lists,
    baseline: NDArray[np.floating] | Lists,
    confidence: float = 0.95,
) -> Comparison:
    """Compares two systems on a metric such as ``ndcg@10``, given the ranks of both.

    They are of the same items in the same order. Of users with several lists it compares what each
    user contributes, since lists of one user go together.
    """
    if len(ranks) != len(baseline):
        raise ValueError(f"ranks of {len(ranks)} users cannot be paired with {len(baseline)}")
    return paired_t(per_user(metric, ranks), per_user(metric, baseline), confidence)


def paired_t(
    values: NDArray[np.floating], baseline: NDArray[np.floating], confidence: float = 0.95
) -> Comparison:
    """Paired two-sided t-test of the mean difference, with its confidence interval."""
    from scipy import stats  # a second, which --help should not wait for

    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    differences = values - baseline
    n, mean, base = len(differences), float(differences.mean()), float(baseline.mean())
    relative = mean / base if base else float(np.copysign(np.inf, mean)) if mean else 0.0
    if n < 2:
        return Comparison(mean, -np.inf, np.inf, 1.0, n, relative)
    if (differences == differences[0]).all():  # nothing varies, and t would divide by 0
        return Comparison(mean, mean, mean, 0.0 if mean else 1.0, n, relative)
    test = stats.ttest_rel(values, baseline)
    interval = test.confidence_interval(confidence)
    low, high = float(interval.low), float(interval.high)
    return Comparison(mean, low, high, float(test.pvalue), n, relative)


def welch(values: NDArray[np.floating], others: NDArray[np.floating]) -> tuple[float, float]:
    """Returns how far the mean of some users is above that of others, and its two-sided p-value.

    Welch's t-test (1947): neither the users nor the variances are the same. 1 where nothing varies.
    """
    from scipy import stats

    if not len(values) or not len(others):
        return 0.0, 1.0
    difference = float(values.mean() - others.mean())
    if min(len(values), len(others)) < 2 or not (np.ptp(values) or np.ptp(others)):
        return difference, 1.0
    known = ((float(one.mean()), float(one.std(ddof=1)), len(one)) for one in (values, others))
    (mean, spread, n), (other_mean, other_spread, other_n) = known
    test = stats.ttest_ind_from_stats(
        mean, spread, n, other_mean, other_spread, other_n, equal_var=False
    )
    return difference, float(test.pvalue)


def wilcoxon(values: NDArray[np.floating], baseline: NDArray[np.floating]) -> float:
    """Returns the two-sided p-value of the Wilcoxon signed-rank test: (U,), (U,) -> p.

    Users without a difference are ranked with the others, and half of their ranks goes to either
    side (``zsplit``): at a cut-off most users are such, and to leave them out, as Wilcoxon did, is
    to test among the others alone. 1 where nobody differs.
    """
    from scipy import stats

    differences = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


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


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for the share of false findings, in the given order.

    Those below q are findings of which a share of q at most is expected to be false
    (Benjamini and Hochberg 1995). None is larger than Holm's.
    """
    from scipy import stats

    if not len(p_values):
        return []
    return [float(p) for p in stats.false_discovery_control(p_values, method="bh")]
