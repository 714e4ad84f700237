"""Metrics where several items are looked for in a list, or a user has several lists: by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from seqtune import batches, metrics
from seqtune.data import Dataset, Protocol
from seqtune.data.generate import make_preset
from seqtune.evaluate import evaluate
from seqtune.floors import floors
from seqtune.metrics import Lists, as_held, per_list, per_user
from seqtune.model import History, Model
from seqtune.params import Params
from seqtune.significance import compare

# User 0 looks for three items, found at 1, 4 and 12; user 1 for one at 2, and for two at 3 and 30.
RANKS = np.array([4, 1, 12, 2, 30, 3], np.float32)
LISTS = Lists(RANKS, np.array([0, 3, 4]), np.array([0, 1, 1]))
LOG3, LOG4, LOG5 = np.log2([3, 4, 5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndcg@10", [(1 + 1 / LOG5) / (1 + 1 / LOG3 + 1 / 2), 1 / LOG3, 0.5 / (1 + 1 / LOG3)]),
        ("ndcg@2", [1 / (1 + 1 / LOG3), 1 / LOG3, 0]),
        ("hr@10", [1, 1, 1]),
        ("hr@1", [1, 0, 0]),
        ("mrr@10", [1, 1 / 2, 1 / 3]),
        ("recall@10", [2 / 3, 1, 1 / 2]),
        ("precision@10", [0.2, 0.1, 0.1]),
        ("map@10", [(1 + 2 / 4) / 3, 1 / 2, (1 / 3) / 2]),
        ("map@2", [1 / 2, 1 / 2, 0]),
    ],
)
def test_each_list_by_hand(name: str, expected: list[float]) -> None:
    assert per_list(name, LISTS) == pytest.approx(expected)
    assert metrics.compute(LISTS, also=[name])[name] == pytest.approx(np.mean(expected))


def test_a_user_contributes_with_all_lists() -> None:
    values = per_user("recall@10", LISTS)
    assert values == pytest.approx([2 / 3 * 2 / 3, 1.5 * 2 / 3])  # 2 users have 3 lists
    assert values.mean() == pytest.approx(per_list("recall@10", LISTS).mean())


def test_one_item_each_is_to_the_last_digit_what_it_was() -> None:
    ranks = np.random.default_rng(0).integers(1, 60, 999).astype(np.float32) / 2 + 0.5
    one = np.arange(999)
    assert as_held(ranks, one, one) is ranks
    lists = Lists(ranks, one, one)
    for name, value in metrics.compute(ranks).items():
        assert metrics.compute(lists)[name] == value
        assert np.array_equal(per_user(name, lists), per_user(name, ranks))


def test_who_has_several() -> None:
    assert isinstance(as_held(RANKS, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 3, 4])), Lists)
    each = as_held(RANKS[:2], np.array([3, 3]), np.array([0, 1]))
    assert isinstance(each, Lists)
    assert each.users.tolist() == [3, 3]
    assert len(each) == 2


def test_lists_of_one_user_are_no_further_evidence() -> None:
    rng = np.random.default_rng(1)
    ranks, other = (rng.integers(1, 20, 40).astype(np.float32) for _ in range(2))
    users = np.arange(40)
    once = compare("ndcg@10", ranks, other)
    tenfold = [
        Lists(np.repeat(some, 10), np.arange(400), np.repeat(users, 10)) for some in (ranks, other)
    ]
    again = compare("ndcg@10", *tenfold)
    assert again.difference == pytest.approx(once.difference)
    assert again.p_value == pytest.approx(once.p_value)
    assert again.n == once.n == 40


class ByNumber(Model):
    """Ranks items by their numbers, the last first, and counts what it scores."""

    class Params(Params):
        max_seq_len: int = 50

    scored = 0

    def score(self, history: History) -> torch.Tensor:
        self.scored += len(history.items)
        scores = torch.arange(self.n_items + 1.0).repeat(len(history.items), 1)
        scores[:, 0] = -torch.inf
        return scores


@pytest.mark.parametrize("mask_seen", [True, False])
def test_items_of_a_list_are_ranked_among_all_with_its_history(mask_seen: bool) -> None:
    data = Dataset(
        "two",
        np.array([1, 9, 3, 8, 2, 7, 5, 6, 4], np.int32),
        np.array([0, 4, 9]),
        np.arange(9),
        np.arange(2),
        np.arange(9),
    )
    split = Protocol(mask_seen, split_by="ratio:0.2,0.4,0.4").split(data)
    # User 0 tests 8 after 1 9 3; user 1 tests 6 and 4 after 2 7 5
    model = ByNumber(ByNumber.Params(), 9, 2)
    sequences = batches.sequences(split, torch.device("cpu"))
    found = evaluate(model, sequences, split, split.test, mask_seen=mask_seen, top_k=3)
    assert found.ranks.tolist() == ([1, 3, 4] if mask_seen else [2, 4, 6])
    assert model.scored == 2  # a list is scored once
    assert found.top is not None
    assert found.top.tolist() == ([[8, 7, 6], [9, 8, 6]] if mask_seen else [[9, 8, 7], [9, 8, 7]])
    ranks = as_held(found.ranks, split.test.users, split.test.lists)
    assert per_list("recall@3", ranks).tolist() == ([1, 0.5] if mask_seen else [1, 0])


@pytest.mark.parametrize("mask_seen", [True, False])
def test_candidates_alone_are_ranked(mask_seen: bool) -> None:
    """As a ranking that was done without the others: of a model, and of what is counted."""
    whole = make_preset("tiny")
    ranked = np.random.default_rng(3).random(whole.n_items) < 0.6
    some = replace(whole, candidates=ranked)
    assert some.fingerprint != whole.fingerprint
    protocol = Protocol(mask_seen)
    split, usual = protocol.split(some), protocol.split(whole)
    assert ranked[some.items[split.test.events] - 1].all()
    assert len(split.test.users) + split.unranked == len(usual.test.users)
    assert f"among {ranked.sum()} of 60 items" in protocol.sentence(some)

    model = ByNumber(ByNumber.Params(), whole.n_items, whole.n_users)
    sequences = batches.sequences(split, torch.device("cpu"))
    found = evaluate(model, sequences, split, split.test, mask_seen=mask_seen, top_k=5)
    assert found.top is not None
    assert ranked[found.top - 1].all()
    for row, (user, event) in enumerate(zip(split.test.users, split.test.events, strict=True)):
        target = some.items[event]
        better = {n for n in range(target + 1, 61) if ranked[n - 1]}
        better -= {*some.items[some.offsets[user] : event].tolist()} if mask_seen else set()
        assert found.ranks[row] == len(better) + 1

    for floor in floors(split, mask_seen=mask_seen):
        most = (ranked.sum() - 1) + 1
        assert np.asarray(floor.test_ranks).max() <= most
    (popular, *_) = floors(split, mask_seen=False)
    counts = split.counts()
    own = counts[some.items[split.test.events] - 1]
    ahead = [(counts[ranked] > n).sum() + ((counts[ranked] == n).sum() - 1) / 2 for n in own]
    assert np.asarray(popular.test_ranks).tolist() == [n + 1 for n in ahead]
