"""BERT4Rec's windows, masks and query."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seqtune.model import Batch, History, Sequences
from seqtune.models.bert4rec import BERT4Rec

# Two users: 1 2 3 2 1 (5 6 held out) | 3 2 4.
DATA = Sequences(
    items=torch.tensor([1, 2, 3, 2, 1, 5, 6, 3, 2, 4]),
    offsets=torch.tensor([0, 7, 10]),
    train_end=torch.tensor([5, 10]),
    n_items=6,
)
MASK = 7


def made(**values: object) -> BERT4Rec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": 4, "dropout_prob": 0.0}
    return BERT4Rec(BERT4Rec.Params.model_validate(sizes | values), 6, 2)


def batch() -> Batch:
    history = DATA.before(torch.tensor([4, 9]), 4)  # 1 2 3 2 | 3 2
    return Batch(
        history.users,
        history.items,
        history.lengths,
        where=torch.tensor([0, 1, 2, 3, 4, 5]),
        targets=DATA.items[DATA.targets],
        events=DATA.targets,
    )


def always(model: BERT4Rec, masked: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks these positions, whatever is drawn."""
    monkeypatch.setattr(model, "masked", lambda *_: masked)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Windows.


def test_a_window_ends_with_the_last_target_of_its_row_and_never_beyond() -> None:
    window = made().windows(batch())
    assert window.items.tolist() == [[2, 3, 2, 1], [3, 2, 4, 0]]  # 5 and 6 are held out
    assert window.lengths.tolist() == [4, 3]
    assert window.users.tolist() == [0, 1]


def test_the_window_of_an_older_row_ends_with_its_own_last_target() -> None:
    older = DATA.before(torch.tensor([2]), 4)  # 1 2, of which 3 is the last target
    row = Batch(
        older.users,
        older.items,
        older.lengths,
        where=torch.tensor([0, 1]),
        targets=torch.tensor([2, 3]),
        events=torch.tensor([1, 2]),
    )
    assert made().windows(row).items.tolist() == [[1, 2, 3, 0]]


# Masks.


@pytest.mark.parametrize("mask_prob", [0.1, 0.2, 0.35, 0.5, 1.0])
def test_as_many_are_masked_as_the_share_says(mask_prob: float) -> None:
    lengths = torch.arange(1, 51)
    masked = made(mask_prob=mask_prob, last_mask_prob=0.0).masked(lengths, 50, rng())
    expected = [max(1, round(mask_prob * n)) for n in range(1, 51)]
    assert masked.sum(1).tolist() == expected
    assert not (masked & (torch.arange(50) >= lengths[:, None])).any()  # pads are never masked


def test_every_position_is_masked_as_often() -> None:
    masked = made(mask_prob=0.4, last_mask_prob=0.0).masked(torch.full((4000,), 5), 6, rng())
    share = masked.float().mean(0)
    assert share[:5].tolist() == pytest.approx([0.4] * 5, abs=0.03)
    assert share[5] == 0


def test_masks_are_drawn_anew_by_the_generator_alone() -> None:
    model, lengths = made(), torch.full((100,), 20)
    first, second = (model.masked(lengths, 20, rng(seed)) for seed in (0, 1))
    assert not first.equal(second)
    assert first.equal(model.masked(lengths, 20, rng(0)))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_rows_masks_the_last_item_alone(share: float) -> None:
    lengths = 10 + torch.arange(4000) % 11  # at least two are masked in a cloze row
    masked = made(last_mask_prob=share).masked(lengths, 20, rng())
    alone = masked.sum(1) == 1
    assert alone.float().mean().item() == pytest.approx(share, abs=0.03)
    assert masked[alone].nonzero()[:, 1].equal(lengths[alone] - 1)


def test_a_first_item_masked_alone_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    masked = torch.zeros(2, 4, dtype=torch.bool)
    masked[0, 0] = True
    always(model, masked, monkeypatch)
    term = model(batch(), rng())["ce"]
    assert term.count == 1
    assert term.total > 0
    term.total.backward()
    grad = model.item_embedding.weight.grad
    assert grad is not None
    assert grad[MASK].any()
    assert model.item_bias is not None
    assert model.item_bias.grad is not None
    assert model.item_bias.grad.argmin() == 2  # the hidden item, pulled up
    position = model.body.position_embedding.weight.grad
    assert position is not None
    assert position[0].any()


def test_a_masked_item_is_hidden_from_its_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the target changes with the hidden item: the logits do not."""
    model = made()
    always(model, torch.tensor([[False, True, False, False], [False] * 4]), monkeypatch)
    states: list[Tensor] = []
    monkeypatch.setattr(model, "next_item", lambda found, *_: states.append(found) or {})
    model.loss(batch(), rng())
    for place in (2, 3):  # what was masked, and what comes after it
        other = batch().items.clone()
        other[0, place] = 6
        model.loss(replace(batch(), items=other), rng())
    assert states[0].shape == (1, 8)
    assert states[0].equal(states[1])
    assert not states[0].equal(states[2])


def test_mask_and_padding_are_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    history = DATA.before(torch.tensor([5, 9]), 4)
    losses = [model(batch(), rng())["ce"].total.item()]
    scores = [model.score(history)]
    table, bias = (x.detach().clone() for x in model.output() if x is not None)
    table[[0, MASK]], bias[0] = 100.0, 100.0
    monkeypatch.setattr(model, "output", lambda: (table, bias))
    losses += [model(batch(), rng())["ce"].total.item()]
    scores += [model.score(history)]
    assert losses[0] == losses[1]
    assert scores[0].shape == (2, 7)
    assert scores[0].equal(scores[1])


def test_regularisation_covers_what_masks_hide() -> None:
    model = made(reg_weight=0.1, mask_prob=1.0)
    table = model.item_embedding.weight[[1, 2, 3, 4]]  # MASK is not among them
    assert model(batch(), rng())["l2"].total.item() == pytest.approx(
        0.5 * table.square().sum().item()
    )


# The query.


def test_the_query_follows_the_newest_items_within_the_trained_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = made(), []

    def spy(x: Tensor, lengths: Tensor) -> Tensor:
        ids = (x[:, :, None] == model.item_embedding.weight).all(3).long().argmax(2)
        seen.append((ids.tolist(), lengths.tolist()))
        return x[:, 0]

    monkeypatch.setattr(model.body, "last", spy)
    items = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [1, 2, 3, 0], [0, 0, 0, 0]])
    model.score(History(torch.zeros(4), items, torch.tensor([4, 2, 3, 0])))
    ids, lengths = seen[0]
    assert ids == [[2, 3, 4, MASK], [5, 6, MASK, 0], [1, 2, 3, MASK], [MASK, 0, 0, 0]]
    assert lengths == [4, 3, 4, 1]  # at most max_seq_len


def test_the_position_of_the_query_is_trained() -> None:
    model = made(last_mask_prob=1.0)
    model(batch(), rng())["ce"].total.backward()
    grad = model.body.position_embedding.weight.grad
    assert grad is not None
    assert grad.any(1).all()


def test_a_window_of_one_item_is_the_mask_alone() -> None:
    model = made(max_seq_len=1)
    assert model(batch(), rng())["ce"].count == 2
    scores = model.score(DATA.before(torch.tensor([5, 9]), 1))
    assert scores[0].equal(scores[1])


def test_states_see_both_sides_but_no_padding() -> None:
    model = made().eval()
    x, lengths = torch.randn(1, 4, 8), torch.tensor([3])
    before = model.body(x, lengths)
    x[:, 3] += 1.0  # a pad
    assert model.body(x, lengths)[:, :3].equal(before[:, :3])
    x[:, 2] += torch.arange(8.0)
    assert not model.body(x, lengths)[:, 0].equal(before[:, 0])


def test_the_head_can_be_left_out() -> None:
    extra = set(made().state_dict()) - set(made(output_head=False).state_dict())
    assert extra == {"item_bias", "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}
    weights = made(embedding_size=64).item_embedding.weight
    assert weights.abs().max() <= 0.04  # two standard deviations of .02
    assert weights[1:].std().item() == pytest.approx(0.0176, abs=0.002)  # after the truncation


@pytest.mark.parametrize("loss_type", ["ce", "gbce"])
def test_the_last_block_may_skip_what_no_loss_looks_at(
    loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with unequal numbers of masks: the same loss and gradients as with all positions."""
    model = made(loss_type=loss_type, mask_prob=0.5, neg_samples=3)
    always(
        model, torch.tensor([[True, False, True, True], [False, True, False, False]]), monkeypatch
    )

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        total = model(batch(), rng())[loss_type].total
        total.backward()
        return total, {k: w.grad.clone() for k, w in model.named_parameters() if w.grad is not None}

    total, gradients = step()

    def everywhere(x: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        return model.body(x, lengths)[torch.arange(len(x))[:, None], positions]

    monkeypatch.setattr(model.body, "some", everywhere)
    plain, expected = step()
    torch.testing.assert_close(total, plain, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for key, wanted in expected.items():
        torch.testing.assert_close(gradients[key], wanted, rtol=1e-5, atol=1e-6, msg=key)
