"""Floors by hand on a dozen events, and against a slow loop written from the formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seqtune import floors
from seqtune.data import Dataset, Protocol, Split, leave_one_out
from seqtune.data.split import Held
from seqtune.metrics import Lists

# Trained on 1 2 3, 2 3 1 and 4 2 3: the counts of items 1 to 5 are 2, 3, 3, 1, 0; after 2 comes 3,
# three times; after 1 comes 2, after 3 comes 1, after 4 comes 2.
HISTORIES = ([1, 2, 3, 1, 4], [2, 3, 1, 2, 3], [4, 2, 3, 5, 1])


def dataset(*histories: list[int]) -> Dataset:
    items = np.array([item for history in histories for item in history], np.int32)
    return Dataset(
        name="example",
        items=items,
        offsets=np.cumsum([0, *map(len, histories)]),
        times=np.arange(len(items)),
        user_ids=np.arange(len(histories)),
        item_ids=np.arange(1, items.max() + 1),
    )


@pytest.mark.parametrize(
    ("name", "mask_seen", "valid", "test"),
    [
        # Validation targets 1, 2, 5 with counts 2, 3, 0; test targets 4, 3, 1 with 1, 3, 2.
        ("popularity", False, [3, 1.5, 5], [4, 1.5, 3]),
        # User 0 has seen 2 and 3 (and the target 1): 1 leads 4 and 5. And so on.
        ("popularity", True, [1, 1, 2], [1, 1, 1]),
        # After 3 comes 1. After 1 comes 2. After 3 comes 1, then by count 2 and 3 together, 4, 5.
        # Test: after 1 comes 2, then 3, 1, 4. After 2 comes 3. 5 is unknown: by popularity.
        ("markov", False, [1, 1, 5], [4, 1, 3]),
        ("markov", True, [1, 1, 2], [1, 1, 1]),
    ],
)
def test_by_hand(name: str, mask_seen: bool, valid: list[float], test: list[float]) -> None:
    split = leave_one_out(dataset(*HISTORIES))
    (found,) = [f for f in floors.floors(split, mask_seen=mask_seen) if f.name == name]
    assert found.test_ranks.tolist() == test
    assert found.test_ranks.dtype == np.float32
    assert found.test["mrr@10"] == pytest.approx(np.mean(1 / np.array(test)))
    assert found.valid["mrr@10"] == pytest.approx(np.mean(1 / np.array(valid)))
    assert found.valid["hr@5"] == 1


def test_older_items_count_less(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trained on 1 2 3 4, so P(2|1) : P(3|1) : P(4|1) = 1 : .7 : .49, and so on. At the test of
    # user 1, with the history 1 2, the items 3 and 4 have P(3|2) + .7 P(3|1) = 1/1.7 + .49/2.19
    # = .812 and .7/1.7 + .343/2.19 = .568, and 2 has .7/2.19 = .320.
    data = dataset([1, 2, 3, 4, 5, 5], [1, 2, 4], [5, 2, 2])
    split = leave_one_out(data)
    for most in (2**24, 0):  # as an array, and as a sparse table
        monkeypatch.setattr(floors, "DENSE", most)
        matrix = floors.transitions(split, 3)
        assert isinstance(matrix, np.ndarray) == (most > 0)
    matrix = matrix.toarray()
    assert matrix[1, 1:].tolist() == pytest.approx([0, 1 / 2.19, 0.7 / 2.19, 0.49 / 2.19, 0])
    assert matrix[2, 1:].tolist() == pytest.approx([0, 0, 1 / 1.7, 0.7 / 1.7, 0])
    assert matrix[5].tolist() == [0] * 6
    decayed = floors.floors(split, mask_seen=False)[2]
    assert decayed.name == "decayed markov"
    # User 2, after 5 and 2: 3 and 4 lead the target 2 by score, 1 by its count, and 5 ties.
    assert decayed.test_ranks.tolist() == [5, 2, 4.5]
    assert floors.floors(split, mask_seen=True)[2].test_ranks.tolist() == [1, 2, 4]


def test_neighbours_are_had_by_the_same_users(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trained on 1 2 1, 1 3 and 2 3: two users have had each item, one has had each pair.
    split = leave_one_out(dataset([1, 2, 1, 4, 4], [1, 3, 4, 4], [2, 3, 4, 4]))
    found = floors.neighbours(split).toarray()
    assert found[1].tolist() == pytest.approx([0, 1, 0.5, 0.5, 0])
    assert found[3].tolist() == pytest.approx([0, 0.5, 0.5, 1, 0])
    assert found[4].tolist() == [0] * 5
    monkeypatch.setattr(floors, "NEIGHBOURS", 1)
    monkeypatch.setattr(floors, "ITEMS", 2)
    assert np.allclose(floors.neighbours(split).toarray(), np.diag([0, 1, 1, 1, 0]))
    monkeypatch.setattr(floors, "RECENT", 2)  # then the first user has 2 1
    split = leave_one_out(dataset([3, 2, 1, 4, 4], [1, 3, 4, 4], [2, 3, 4, 4]))
    monkeypatch.setattr(floors, "NEIGHBOURS", 9)
    assert floors.neighbours(split).toarray()[3].tolist() == pytest.approx([0, 0.5, 0.5, 1, 0])


def slow(split: Split, held: Held, way: int, mask_seen: bool) -> list[float]:
    """Ranks by the formulas of the page, one user and one item at a time."""
    data, decay = split.dataset, floors.DECAY
    n, lags = data.n_items + 1, (0, 1, floors.LAGS, floors.LAGS)[way]
    follow, counts = np.zeros((n, n)), np.zeros(n)
    had: list[set[int]] = [set() for _ in range(n)]
    for user in range(data.n_users):
        train = data.items[data.offsets[user] : split.train_end[user]].tolist()
        for place, item in enumerate(train):
            counts[item] += 1
            had[item].add(user)
            for lag, later in enumerate(train[place + 1 : place + 1 + lags]):
                follow[item, later] += decay**lag
    if way == 3:
        for one in range(n):
            for other in range(n):
                both = len(had[one] & had[other])
                follow[one, other] = both / max(len(had[one]) * len(had[other]), 1) ** 0.5
    ranks = []
    for user, end, event in zip(held.users, held.ends, held.events, strict=True):
        history = data.items[data.offsets[user] : end].tolist()
        target, scores = int(data.items[event]), np.zeros(n)
        for age, item in enumerate(history[::-1][:lags]):
            total = follow[item].sum() if way < 3 else 1
            scores += decay**age * follow[item] / (total or 1)
        rank = 1.0
        for item in range(1, n):
            if item == target or (mask_seen and item in history):
                continue
            lead = round(scores[item] - scores[target], 9) or counts[item] - counts[target]
            rank += 1 if lead > 0 else 0.5 if lead == 0 else 0
        ranks.append(rank)
    return ranks


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("repeats", [True, False])
def test_ranks_in_one_list_are_those_of_a_slow_loop(mask_seen: bool, repeats: bool) -> None:
    rng = np.random.default_rng(4)
    histories = [rng.choice(30, rng.integers(4, 25), replace=repeats) + 1 for _ in range(40)]
    split = Protocol(True, split_by="ratio:0.4,0.3,0.3").split(dataset(*map(list, histories)))
    for way, one in enumerate(floors.floors(split, mask_seen=mask_seen)):
        assert isinstance(one.test_ranks, Lists)
        assert one.test_ranks.ranks.tolist() == slow(split, split.test, way, mask_seen)
        assert len(one.test_ranks) == len(set(split.test.users.tolist()))


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("repeats", [True, False])
def test_the_ranks_are_those_of_a_slow_loop(
    mask_seen: bool, repeats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    histories = [
        rng.choice(30, size=rng.integers(2, 25), replace=repeats, p=np.arange(1, 31) / 465) + 1
        for _ in range(60)
    ]
    split = leave_one_out(dataset(*map(list, histories)))
    split = replace(split, valid=split.valid.sample(20, seed=0))
    whole = floors.floors(split, mask_seen=mask_seen, metric="hr@1")
    monkeypatch.setattr(floors, "CELLS", 100)  # a few users at a time
    monkeypatch.setattr(floors, "DENSE", 0)
    blocks = floors.floors(split, mask_seen=mask_seen)
    assert len(whole) == 4
    for way, (one, other) in enumerate(zip(whole, blocks, strict=True)):
        assert one.test_ranks.tolist() == slow(split, split.test, way, mask_seen)
        assert other.test_ranks.tolist() == one.test_ranks.tolist()
        valid = np.array(slow(split, split.valid, way, mask_seen))
        assert one.valid["hr@1"] == np.mean(valid <= 1)
        assert one.valid["mrr@20"] == pytest.approx(np.mean(np.where(valid <= 20, 1 / valid, 0)))


def test_the_ranks_are_those_of_evaluate() -> None:
    import torch

    from seqtune import batches
    from seqtune.data import load
    from seqtune.evaluate import evaluate
    from seqtune.model import History, Model
    from seqtune.params import Trained

    split = leave_one_out(load("tiny"))
    sequences = batches.sequences(split, torch.device("cpu"))

    class Popular(Model):
        def score(self, history: History) -> torch.Tensor:
            return sequences.counts().float().repeat(len(history.items), 1)

    model = Popular(Trained(), split.dataset.n_items, 1)
    for mask_seen in (True, False):
        theirs = evaluate(model, sequences, split, split.test, mask_seen=mask_seen).ranks
        ours = floors.floors(split, mask_seen=mask_seen)[0].test_ranks
        assert ours.tolist() == theirs.tolist()
