"""Paired tests, against values worked out by hand and against scipy's own test."""

from __future__ import annotations

import numpy as np
import pytest

from seqtune.significance import compare, holm, paired_t


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
