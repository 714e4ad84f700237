"""Paired tests, against values worked out by hand and against scipy's own test."""

from __future__ import annotations

import numpy as np
import pytest

from seqtune.significance import benjamini_hochberg, compare, holm, paired_t, wilcoxon


def test_paired_t_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, standard error 1/sqrt(3), t = 3.4641.
    # t(2) beyond 3.4641 on both sides: 0.0742; its 97.5 % quantile is 4.3027.
    found = paired_t(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert found.n == 3
    assert found.difference == pytest.approx(2.0)
    assert found.relative == pytest.approx(1.0)
    assert found.p_value == pytest.approx(0.0742, abs=5e-5)
    margin = 4.3027 / 3**0.5
    assert (found.low, found.high) == pytest.approx((2 - margin, 2 + margin), rel=1e-4)


def test_paired_t_equals_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    baseline = rng.normal(size=200)
    values = baseline + rng.normal(0.05, 0.5, size=200)
    found = paired_t(values, baseline, confidence=0.9)
    theirs = stats.ttest_rel(values, baseline)
    interval = theirs.confidence_interval(0.9)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_compare_reads_ranks_as_the_metric_does() -> None:
    # hr@2 of ranks 1, 2.5, 3 is 1, 0, 0; of the baseline's 1, 1, 2: 1, 1, 1.
    found = compare("hr@2", np.array([1, 2.5, 3]), np.array([1, 1, 2]))
    assert found.difference == pytest.approx(-2 / 3)
    assert found.relative == pytest.approx(-2 / 3)
    # ndcg@10: rank 3 gives 1/log2(4) = 0.5, rank 1 gives 1, rank 11 gives 0.
    found = compare("ndcg@10", np.array([1.0, 3.0]), np.array([3.0, 11.0]))
    assert found.difference == pytest.approx(0.5)
    assert found.relative == pytest.approx(2.0)


def test_equal_systems_differ_by_nothing() -> None:
    ranks = np.array([1.0, 4.0, 90.0])
    found = compare("ndcg@10", ranks, ranks)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_a_constant_difference_is_certain() -> None:
    found = paired_t(np.array([0.5, 0.75]), np.array([0.25, 0.5]))
    assert (found.difference, found.low, found.high, found.p_value) == (0.25, 0.25, 0.25, 0)


def test_one_user_proves_nothing() -> None:
    found = compare("hr@10", np.array([1.0]), np.array([99.0]))
    assert (found.difference, found.p_value, found.relative) == (1.0, 1.0, np.inf)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_ranks_of_different_users_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="3 users cannot be paired with 2"):
        compare("hr@10", np.ones(3), np.ones(2))


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04: times 3, 2, 1 = .03 .06 .04; the last may not fall below .06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_wilcoxon_by_hand() -> None:
    # Differences 1, 2, 3, 4, 5 of one sign: of the 2^5 signs one is as extreme on each side.
    assert wilcoxon(np.arange(1.0, 6.0), np.zeros(5)) == pytest.approx(2 / 32)
    # 1, 2, 3, -4: the negative ranks add up to 4; {}, 1, 2, 3, 12, 13 and 4 are at most that.
    assert wilcoxon(np.array([1.0, 2.0, 3.0, -4.0]), np.zeros(4)) == pytest.approx(14 / 16)
    # It does not matter how large the largest difference is; the t-test would see it.
    assert wilcoxon(np.array([1.0, 2.0, 3.0, 4.0, 500.0]), np.zeros(5)) == pytest.approx(2 / 32)


def test_users_without_a_difference_count_for_both_sides() -> None:
    # 0, 0, 1, 1, 1: of the signs of the three, all plus and all minus are as extreme: 2 / 2^3.
    assert wilcoxon(np.array([0.0, 0.0, 1.0, 1.0, 1.0]), np.zeros(5)) == pytest.approx(2 / 8)
    # 40 zeros have the rank 20.5 each, of which half counts as minus, and 15 ones and 5 minus ones
    # 50.5 each: R- = 5 * 50.5 + 40 * 20.5 / 2 = 662.5; its mean is 60 * 61 / 4 = 915, its variance
    # 60 * 61 * 121 / 24 - (40^3 - 40 + 20^3 - 20) / 48 = 16953.75: z = -1.939, p = .0525.
    values = np.array([0.0] * 40 + [1.0] * 15 + [-1.0] * 5)
    assert wilcoxon(values, np.zeros(60)) == pytest.approx(0.0525, abs=1e-4)
    assert wilcoxon(np.ones(4), np.ones(4)) == 1


def test_benjamini_hochberg_by_hand() -> None:
    # Sorted .01 .02 .04 .5: times 4/1, 4/2, 4/3, 1 = .04 .04 .0533 .5; none above a larger one.
    found = benjamini_hochberg([0.04, 0.5, 0.01, 0.02])
    assert found == pytest.approx([4 * 0.04 / 3, 0.5, 0.04, 0.04])
    assert benjamini_hochberg([0.03, 0.04]) == pytest.approx([0.04, 0.04])  # the larger bounds it
    assert benjamini_hochberg([]) == []
    p_values = np.random.default_rng(0).uniform(size=20).tolist()
    assert all(np.array(benjamini_hochberg(p_values)) <= np.array(holm(p_values)) + 1e-12)
