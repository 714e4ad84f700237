"""What is recommended, on lists of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest

from seqtune import lists, metrics
from seqtune.data import Dataset, Split
from seqtune.data.split import Held


def known(histories: list[list[int]], n_items: int) -> lists.Known:
    """What is known where all events train, and there is a list after those of each."""
    items = np.concatenate([np.array(one, np.int32) for one in histories])
    offsets = np.cumsum([0, *map(len, histories)])
    users = np.arange(len(histories))
    data = Dataset("x", items, offsets, np.arange(len(items)), users, np.arange(n_items))
    held = Held(users, np.zeros_like(users), offsets[1:])
    return lists.Known(Split(data, offsets[1:], held, held), held)


def shows(top: np.ndarray, counts: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    """The metrics of lists, where the items have so many training events, all of one user."""
    history = np.repeat(np.arange(1, len(counts) + 1), counts).tolist()
    names = [f"{name}@{k}" for name in lists.LIST_METRICS for k in ks]
    own = known([history], len(counts))
    at = np.zeros(len(top), int)
    return lists.of_lists(top, lists.Known(own.split, own.held.take(at)), names)


def test_coverage_and_popularity_by_hand():
    top = np.array([[1, 2], [1, 3]])
    popularity = np.array([50, 10, 30, 0])  # percentiles 1, 1/3, 2/3, 0
    found = shows(top, popularity, ks=(1, 2))
    assert found["coverage@1"] == 1 / 4
    assert found["coverage@2"] == 3 / 4
    assert found["popularity@1"] == 1
    assert found["popularity@2"] == pytest.approx((1 + 1 / 3 + 1 + 2 / 3) / 4)


def test_equally_popular_items_share_their_place():
    popularity = np.array([7, 0, 3, 3, 0, 3])  # places 5 | 0, 1 | 2, 3, 4
    for item, percentile in ((1, 1), (2, 0.1), (3, 0.6), (4, 0.6), (5, 0.1), (6, 0.6)):
        found = shows(np.array([[item]]), popularity, ks=(1,))
        assert found["popularity@1"] == pytest.approx(percentile)


def test_what_lists_show_by_hand():
    top = np.array([[1, 2], [1, 3], [1, 2], [4, 1]])  # items 1 to 5: four times, 2, 1, 1 and never
    counts = np.array([50, 25, 15, 9, 1])
    found = shows(top, counts, ks=(2, 1))
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
    alike = shows(np.array([[1, 2]] * 3), np.ones(4, int), ks=(2,))
    assert alike["personal@2"] == 0
    assert alike["gini@2"] == pytest.approx(0.5)
    each = shows(np.arange(1, 5)[:, None], np.ones(4, int), ks=(1,))
    assert each["personal@1"] == 1
    assert each["gini@1"] == pytest.approx(0)
    assert each["entropy@1"] == pytest.approx(2)
    assert shows(np.array([[3]]), np.ones(4, int), ks=(1,))["personal@1"] == 1


def test_items_are_alike_that_the_same_users_had(monkeypatch):
    # Users 0 to 2 had 1 and 2, user 3 had 2 and 3, and 4 is nobody's.
    own = known([[1, 2, 1], [2, 1], [1, 2], [2, 3]], 4)
    top = np.array([[1, 2, 3], [2, 1, 4]])
    found = lists.of_lists(top, own, ["similarity@2", "similarity@3", "similarity@1"])
    near, far = 3 / np.sqrt(3 * 4), 1 / np.sqrt(4 * 1)
    assert found["similarity@2"] == pytest.approx(near)
    assert found["similarity@3"] == pytest.approx((near + far + 0 + near + 0 + 0) / 6)
    assert found["similarity@1"] == 0
    monkeypatch.setattr(lists, "BYTES", 1)
    assert lists.of_lists(top, own, ["similarity@3"])["similarity@3"] == found["similarity@3"]
    monkeypatch.setattr(lists, "ASKED", 2)  # then users 0 and 2
    assert lists.of_lists(top, own, ["similarity@2"])["similarity@2"] == pytest.approx(1)
    monkeypatch.setattr(lists, "LOOKED_AT", 1)
    assert lists.of_lists(top, own, ["similarity@3"])["similarity@3"] == pytest.approx(1 / 3)


def test_lists_are_as_popular_as_histories():
    # 20 events: item 1 has 5 of them (popular), 2 to 4 the next 11, items 5 to 8 one each (rare).
    histories = [[1] * 5, [2, 3, 4] * 3 + [2, 3], [5, 6, 7, 8], []]
    own = known(histories, 8)
    assert own.third.tolist() == [0, 1, 1, 1, 2, 2, 2, 2]
    assert own.profiles.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    top = np.array([[1, 1], [1, 1], [5, 2], [1, 2]])
    found = lists.of_lists(top, own, ["calibration@1", "calibration@2"])
    # The same; all apart, which is one bit; the same; nothing is known of the last user.
    assert found["calibration@1"] == pytest.approx((0 + 1 + 0) / 3)
    of_third = 0.75 * np.log2(1 / 0.75) + 0.25 * np.log2(1 / 0.25) - 0.5
    assert found["calibration@2"] == pytest.approx((0 + 1 + of_third) / 3)
