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
        (
            "gini@10",
            "--metric gini@10: is reported; no study can maximise it first; choose ndcg@10",
        ),
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


def test_the_whole_ranking_by_hand():
    among = np.array([5, 4, 3])
    found = metrics.whole(np.array([1, 2.5, 3], np.float32), among)
    assert found["auc"] == pytest.approx((4 / 4 + 1.5 / 3 + 0) / 3)
    assert found["r-precision"] == pytest.approx(1 / 3)
    # Places 4 and 1 of 6 items: of the four others, two and four are below. Then 2 of 3 items.
    lists = metrics.Lists(np.array([4, 1, 2.0]), np.array([0, 2]), np.array([0, 1]))
    found = metrics.whole(lists, np.array([6, 6, 3]))
    assert found["auc"] == pytest.approx(((2 / 4 + 4 / 4) / 2 + 1 / 2) / 2)
    assert found["r-precision"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics.direction("auc") == "higher"


def test_sampled_metrics_are_those_among_drawn_items(monkeypatch):
    ranks, among = np.array([1, 40, 100.0]), np.array([100, 100, 100])
    every = metrics.sampled(ranks, among, 99, seed=0)
    assert every["sampled_hr@10"] == pytest.approx(1 / 3)
    assert every == metrics.sampled(ranks, among, 10**9, seed=1)
    ranks, among = np.full(20_000, 40.0), np.full(20_000, 100)
    # Of the 99 others 60 are below. None of nine is above with 60 / 99 * 59 / 98 * ... * 52 / 91.
    first = np.prod((60 - np.arange(9)) / (99 - np.arange(9)))
    monkeypatch.setattr(metrics, "KS", (1,))
    assert metrics.sampled(ranks, among, 9, 0)["sampled_hr@1"] == pytest.approx(first, abs=0.003)
    assert metrics.direction("sampled_ndcg@10") == "higher"
    with pytest.raises(UserError, match="sampled_ndcg@10: is reported; no study can"):
        metrics.parse_metric("sampled_ndcg@10")


def test_a_metric_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Gains_of_Mine.py").write_text(
        "def biased(ranks):\n    return 0.2 * 0.8 ** (ranks - 1)\n"
        "def one(ranks):\n    return 1.0\n"
        "def fails(ranks):\n    raise KeyError('x')\n"
        "five = 5\n"
    )
    name = "Gains_of_Mine:biased"
    assert metrics.parse_metric(name) == (name, metrics.WHOLE)
    assert metrics.check_measure(name, "--metric") == name
    np.testing.assert_allclose(metrics.per_user(name, RANKS), 0.2 * 0.8 ** (RANKS - 1))
    lists = metrics.Lists(np.array([1, 2, 1.0]), np.array([0, 2]), np.array([0, 1]))
    np.testing.assert_allclose(metrics.per_user(name, lists), [0.18, 0.2])
    assert metrics.compute(RANKS, also=[name])[name] > 0
    assert metrics.direction(name) == "higher"
    assert metrics.mlflow_name(name) == "Gains_of_Mine.biased"
    for wrong, message in (
        ("Gains_of_Mine:two", "cannot be imported"),
        ("gains_of_nobody:two", "cannot be imported"),
        ("Gains_of_Mine:five", "is not a function"),
        ("Gains_of_Mine:one", r"must make a finite number of each rank, and made \(\) of \(3,\)"),
        ("Gains_of_Mine:fails", r"failed \(KeyError\('x'\)\)"),
    ):
        with pytest.raises(UserError, match=f"^--metric {wrong}: {message}"):
            metrics.parse_metric(wrong)
