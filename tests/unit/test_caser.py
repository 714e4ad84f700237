"""Caser's windows, targets and users."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqtune import batches
from seqtune.data import Dataset, leave_one_out
from seqtune.model import Batch, History, Sequences
from seqtune.models.caser import Caser

# Two users: 1 2 3 4 5 | 6 1 2. The last event of the first is held out.
DATA = Sequences(
    items=torch.tensor([1, 2, 3, 4, 5, 6, 1, 2]),
    offsets=torch.tensor([0, 5, 8]),
    train_end=torch.tensor([4, 8]),
    n_items=6,
)


def model(**values: Any) -> Caser:
    torch.manual_seed(0)
    small = {"embedding_size": 4, "n_h": 2, "n_v": 2, "dropout_prob": 0.0, "max_seq_len": 3}
    made = Caser(Caser.Params.model_validate(small | values), 6, 2)
    made.prepare(DATA)
    return made


def batch() -> Batch:
    """Both histories as rows: targets 2 3 4 and 1 2."""
    return Batch(
        users=torch.tensor([0, 1]),
        items=torch.tensor([[1, 2, 3], [6, 1, 0]]),
        lengths=torch.tensor([3, 2]),
        where=torch.tensor([0, 1, 2, 3, 4]),
        targets=torch.tensor([2, 3, 4, 1, 2]),
        events=torch.tensor([1, 2, 3, 6, 7]),
    )


def history(users: list[int], items: list[int]) -> History:
    rows = torch.tensor([items] * len(users))
    return History(torch.tensor(users), rows, torch.tensor([len(items)] * len(users)))


def test_a_window_has_the_next_targets_but_none_that_is_held_out() -> None:
    """The gradient of the biases is the softmax minus what counts as a target, and how much."""
    made = model(loss_type="ce", target_len=2)
    assert made.item_bias is not None
    (term,) = made(batch(), torch.Generator()).values()
    term.total.backward()
    table, bias = made.output()
    assert bias is not None
    assert bias.grad is not None
    softmax = (made.states_at_targets(batch()) @ table[1:].T + bias[1:]).softmax(1)
    # Windows of user 0: {2 3} {3 4} {4}; of user 1: {1 2} {2}. Item 5 is held out.
    wanted = torch.tensor([0.5, 0.5 + 0.5 + 1, 0.5 + 0.5, 0.5 + 1, 0, 0])
    torch.testing.assert_close(softmax.sum(0) - bias.grad[1:], wanted)


def test_the_loss_of_the_authors_is_two_means() -> None:
    """-mean log sg(s) over targets - mean log(1 - sg(s)) over negatives."""
    made = model(target_len=1, neg_samples=2, reject="none")
    rng = torch.Generator().manual_seed(3)
    drawn = made.negatives(batch(), rng).items
    states = made.states_at_targets(batch())
    table, bias = made.output()
    assert bias is not None
    scores = states @ table.T + bias
    positive = scores[torch.arange(5), batch().targets].sigmoid().log().mean()
    negative = (1 - scores.gather(1, drawn).sigmoid()).log().mean()
    (term,) = made(batch(), torch.Generator().manual_seed(3)).values()
    torch.testing.assert_close(term.total / term.count, -positive - negative)


def test_negatives_are_unseen_and_the_held_out_item_may_be_one() -> None:
    drawn = model(neg_samples=31).negatives(batch(), torch.Generator().manual_seed(0))
    assert drawn.rejected is not None
    for n, unseen in enumerate([{5, 6}] * 3 + [{3, 4, 5}] * 2):
        assert set(drawn.items[n][~drawn.rejected[n]].tolist()) == unseen


def test_the_window_is_the_last_items_whatever_the_width() -> None:
    made = model().eval()
    scores = made.score(history([0], [4, 5, 1, 2, 3]))
    assert scores.equal(made.score(history([0], [6, 6, 1, 2, 3])))
    assert scores.equal(made.score(history([0], [1, 2, 3])))
    assert not scores.equal(made.score(history([0], [2, 1, 3])))
    one = made.score(history([0], [3]))  # shorter than the window, and than its filters
    padded = History(torch.tensor([0]), torch.tensor([[3, 0, 0, 0, 0, 0]]), torch.tensor([1]))
    assert one.equal(made.score(padded))
    assert one[:, 1:].isfinite().all()


def test_pads_bring_nothing_but_the_biases_of_filters() -> None:
    made = model().eval()
    assert not made.item_embedding.weight[0].any()
    with torch.no_grad():
        empty = made.states(torch.zeros(1, 3, 4), torch.tensor([0]))
    nothing = History(torch.tensor([0]), torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]))
    assert made.encode_last(nothing).equal(empty[:, 0])


def test_a_new_user_has_the_mean_of_the_users() -> None:
    made = model().eval()
    assert made.user_embedding is not None
    mean = made.user_embedding.weight.mean(0)
    for stranger in (2, 50):
        assert made.encode_last(history([stranger], [1, 2, 3]))[0, 4:].equal(mean)
    known = made.encode_last(history([1], [1, 2, 3]))[0, 4:]
    assert known.equal(made.user_embedding.weight[1])


def test_without_users_all_users_are_alike() -> None:
    made = model(user_embedding=False).eval()
    scores = made.score(history([0, 1, 7], [1, 2, 3]))
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0])


def test_states_are_not_forced_to_be_positive() -> None:
    states = model(tie_weights=True).eval().encode_last(history([0, 1], [1, 2, 3]))
    assert (states < 0).any()


def test_tables_start_as_the_authors_do() -> None:
    torch.manual_seed(0)
    made = Caser(Caser.Params(embedding_size=50), 2000, 2000)
    assert made.user_embedding is not None
    assert made.output_embedding is not None
    assert made.item_bias is not None
    assert made.item_embedding.weight[1:].std().item() == pytest.approx(1 / 50, rel=0.02)
    assert made.user_embedding.weight.std().item() == pytest.approx(1 / 50, rel=0.02)
    assert made.output_embedding.weight[1:].std().item() == pytest.approx(1 / 100, rel=0.02)
    assert not made.item_bias.any()


def test_each_target_is_trained_once_with_a_whole_window_before_it() -> None:
    counts = [3, 130, 136, 400]
    items = np.concatenate([1 + np.arange(n) for n in counts]).astype(np.int32)
    dataset = Dataset(
        name="long",
        items=items,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        times=np.arange(len(items)),
        user_ids=np.arange(4),
        item_ids=np.arange(1, 401),
    )
    split = leave_one_out(dataset)
    params = Caser.Params()
    windows = batches.windows(split, params)
    data = batches.sequences(split, torch.device("cpu"))
    (whole,) = batches.epoch(windows, data, batch_size=100, seed=(0, 0))
    assert sorted(whole.events.tolist()) == data.targets.tolist()
    step = whole.where % whole.items.shape[1] + 1  # items of the row up to the target
    before = whole.events - data.first[whole.events]  # items of the history up to it
    assert (step >= before.clamp(max=params.max_seq_len)).all()
    assert whole.items.shape[1] == 128 + params.max_seq_len
