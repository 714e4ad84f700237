import math
from pathlib import Path

import numpy as np
import pytest

from seqtune import metrics
from seqtune.errors import UserError

RANKS = np.array([1, 3, 10, 11, 2.5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndcg@10", [1, 1 / 2, 1 / math.log2(11), 0, 1 / math.log2(3.5)]),
        ("hr@10", [1, 1, 1, 0, 1]),
        ("hr@2", [1, 0, 0, 0, 0]),
        ("mrr@10", [1, 1 / 3, 1 / 10, 0, 1 / 2.5]),
        ("recall@10", [1, 1, 1, 0, 1]),
        ("precision@10", [0.1, 0.1, 0.1, 0, 0.1]),
        ("map@3", [1, 1 / 3, 0, 0, 1 / 2.5]),
    ],
)
def test_each_users_share_by_hand(name, expected):
    np.testing.assert_allclose(metrics.per_user(name, RANKS), expected)


def test_compute_averages_over_users_and_adds_the_metric_asked_for():
    found = metrics.compute(RANKS, ks=(10,), also=["hr@2"])
    assert found["hr@10"] == pytest.approx(0.8)
    assert found["hr@2"] == pytest.approx(0.2)
    assert set(found) == {f"{name}@10" for name in metrics.METRICS} | {"hr@2"}


def test_coverage_and_popularity_by_hand():
    top = np.array([[1, 2], [1, 3]])
    popularity = np.array([50, 10, 30, 0])  # percentiles 1, 1/3, 2/3, 0
    found = metrics.of_lists(top, popularity, ks=(1, 2))
    assert found["coverage@1"] == 1 / 4
    assert found["coverage@2"] == 3 / 4
    assert found["popularity@1"] == 1
    assert found["popularity@2"] == pytest.approx((1 + 1 / 3 + 1 + 2 / 3) / 4)


def test_equally_popular_items_share_their_place():
    popularity = np.array([7, 0, 3, 3, 0, 3])  # places 5 | 0, 1 | 2, 3, 4
    for item, percentile in ((1, 1), (2, 0.1), (3, 0.6), (4, 0.6), (5, 0.1), (6, 0.6)):
        found = metrics.of_lists(np.array([[item]]), popularity, ks=(1,))
        assert found["popularity@1"] == pytest.approx(percentile)


def test_a_metric_has_a_direction_and_a_report_its_first_names():
    assert [metrics.direction(name) for name in ("ndcg@7", "coverage@10", "popularity@5")] == [
        "higher",
        "higher",
        "neither",
    ]
    assert (*("ndcg@5", "ndcg@10", "ndcg@20", "hr@5", "hr@10", "hr@20", "mrr@10"),) == metrics.MAIN


def test_a_rank_metric_is_one_declaration(monkeypatch):
    reciprocal = metrics.Metric("first", lambda r, k: (r == 1) * 1.0, "On top.", metrics._largest)
    monkeypatch.setitem(metrics.METRICS, "first", reciprocal)
    assert metrics.compute(RANKS)["first@10"] == pytest.approx(0.2)
    assert metrics.parse_metric("first@3") == ("first", 3)
    assert "| `first@k` | On top. | higher |" in metrics.page()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndcg@²", "--metric ndcg@²: write a cut-off after the name, for example ndcg@10"),
        ("ndgc@10", "--metric ndgc@10: no such metric; did you mean 'ndcg'?"),
        ("ndcg", "--metric ndcg: write a cut-off after the name, for example ndcg@10"),
        ("hr@0", "--metric hr@0: write a cut-off after the name, for example hr@10"),
    ],
)
def test_a_bad_metric_gets_one_sentence(text, message):
    with pytest.raises(UserError, match="^" + message.replace("?", r"\?") + "$"):
        metrics.parse_metric(text)


def test_mlflow_gets_names_without_an_at_sign():
    assert metrics.mlflow_name("ndcg@10") == "ndcg_10"


def test_the_page_on_metrics_is_what_the_code_says():
    written = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert written == metrics.page(), "write it again: docs/metrics.md is metrics.page()"


def test_what_lists_show_by_hand():
    top = np.array([[1, 2], [1, 3], [1, 2], [4, 1]])  # items 1 to 5: four times, 2, 1, 1 and never
    counts = np.array([50, 25, 15, 9, 1])
    found = metrics.of_lists(top, counts, ks=(2, 1))
    shares = np.array([4, 2, 1, 1]) / 8
    assert found["entropy@2"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert found["gini@2"] == pytest.approx(1 + 1 / 5 - 2 * np.mean([0, 1 / 8, 2 / 8, 4 / 8, 1]))
    assert found["tail@2"] == 1 / 8  # items 1 to 3 have 90 of 100 events, items 1 and 2 not 80
    information = -np.log2(np.array([51, 26, 16, 10, 2]) / 105)
    assert found["novelty@2"] == pytest.approx(information[top - 1].mean())
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    overlaps = [len({*top[a]} & {*top[b]}) / 2 for a, b in pairs]
    assert found["personal@2"] == pytest.approx(1 - np.mean(overlaps))
    assert found["personal@1"] == pytest.approx(1 - 3 / 6)
    assert metrics.direction("gini@5") == "lower"
    assert metrics.ways(["tail@10", "gini@10"]) == ["maximize", "minimize"]


def test_the_ends_of_what_lists_show():
    alike = metrics.of_lists(np.array([[1, 2]] * 3), np.ones(4, int), ks=(2,))
    assert alike["personal@2"] == 0
    assert alike["gini@2"] == pytest.approx(0.5)
    each = metrics.of_lists(np.arange(1, 5)[:, None], np.ones(4, int), ks=(1,))
    assert each["personal@1"] == 1
    assert each["gini@1"] == pytest.approx(0)
    assert each["entropy@1"] == pytest.approx(2)
    assert metrics.of_lists(np.array([[3]]), np.ones(4, int), ks=(1,))["personal@1"] == 1
