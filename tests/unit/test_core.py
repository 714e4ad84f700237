"""CORE: sessions in the space of items, cosines over a temperature."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from seqtune.errors import UserError
from seqtune.model import Batch, History
from seqtune.models.core import CORE
from seqtune.params import build

N_ITEMS = 9
NO_DROPOUT: dict[str, object] = {
    "dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "session_dropout": 0.0,
    "item_dropout": 0.0,
}
both = pytest.mark.parametrize("dnn_type", ["trm", "ave"])


def model(**values: object) -> CORE:
    torch.manual_seed(0)
    sizes = {"embedding_size": 16, "inner_size": 8, "max_seq_len": 6}
    return CORE(build(CORE.Params, sizes | values, "test"), N_ITEMS, 2)


def history(rows: list[list[int]]) -> History:
    items = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return History(torch.arange(len(rows)), items, torch.tensor([len(row) for row in rows]))


def batch() -> Batch:
    """Rows of 4, 1 and 2 items; every position has a target."""
    rows = history([[1, 2, 3, 4], [5], [6, 7]])
    where = rows.items.flatten().nonzero().squeeze(1)
    targets = where % N_ITEMS + 1
    return Batch(
        rows.users, rows.items, rows.lengths, where=where, targets=targets, events=0 * where
    )


def total(made: CORE) -> Tensor:
    (term,) = made.loss(batch(), torch.Generator().manual_seed(0)).values()
    return term.total


@both
@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
def test_scores_lie_within_one_over_the_temperature(dnn_type: str, temperature: float) -> None:
    made = model(dnn_type=dnn_type, temperature=temperature).eval()
    scores = made.score(history([[1, 2, 3, 4, 5], [3], [3, 3, 3]]))[:, 1:]
    assert scores.abs().max() <= 1 / temperature * 1.00001
    # A session of one item is that item, whatever its weight.
    torch.testing.assert_close(scores[1:, 2], torch.full((2,), 1 / temperature))


@both
def test_a_session_is_a_convex_combination_of_its_items(dnn_type: str) -> None:
    made = model(dnn_type=dnn_type).eval()
    rows = history([[1, 5, 2], [7, 8, 4]])
    sessions = made.encode_last(rows).detach()
    torch.testing.assert_close(sessions.norm(dim=1), torch.ones(2))
    for items, session in zip(rows.items, sessions, strict=True):
        vectors = made.item_embedding.weight.detach()[items]  # (3, D)
        weights = torch.linalg.lstsq(vectors.T, session[:, None]).solution.squeeze(1)
        torch.testing.assert_close(weights @ vectors, session, atol=1e-5, rtol=1e-5)
        assert (weights > 0).all()
        if dnn_type == "ave":
            torch.testing.assert_close(weights / weights.sum(), torch.full((3,), 1 / 3))


@both
def test_weights_sum_to_one_over_the_items_and_are_zero_at_pads(dnn_type: str) -> None:
    made = model(dnn_type=dnn_type).eval()
    rows = batch()
    seen = torch.arange(4) < rows.lengths[:, None, None]
    weights = made.weights(made.item_embedding(rows.items), rows.lengths, seen)
    assert weights.shape == (3, 1, 4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1))
    assert (weights[:, 0] > 0).equal(rows.items > 0)


def test_large_logits_neither_overflow_nor_reach_earlier_states() -> None:
    made = model().eval()
    rows = history([[1, 2, 3, 4, 5, 6]])
    logits = torch.tensor([[[0.0], [-300.0], [10.0], [300.0], [5.0], [1e4]]])
    made.weight = nn.Linear(16, 1)
    with mock.patch.object(made.weight, "forward", return_value=logits):
        states = made.encode(rows)[0]
    unit = nn.functional.normalize(made.item_embedding.weight.detach(), dim=1)
    for t, nearest in enumerate([1, 1, 3, 4, 4, 6]):  # the heaviest item so far
        torch.testing.assert_close(states[t].detach(), unit[nearest], atol=1e-4, rtol=1e-4)


def test_the_weights_come_from_a_causal_transformer() -> None:
    made = model().eval()
    rows = history([[1, 2, 3, 4, 5, 6]])
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    weights = made.weights(made.item_embedding(rows.items), rows.lengths, seen)
    changed = history([[1, 2, 3, 4, 5, 9]])
    again = made.weights(made.item_embedding(changed.items), rows.lengths, seen)
    assert again[:, :5].equal(weights[:, :5])
    assert not again[:, 5].equal(weights[:, 5])


@both
@pytest.mark.parametrize("loss_type", ["ce", "sampled_softmax", "bce"])
def test_padding_and_zero_vectors_give_no_huge_gradient(dnn_type: str, loss_type: str) -> None:
    made = model(dnn_type=dnn_type, loss_type=loss_type, neg_samples=3)
    with torch.no_grad():
        made.item_embedding.weight[5] = 0  # a session of nothing but this item, too
    total(made).backward()
    for weight in made.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
    grad = made.item_embedding.weight.grad
    assert grad is not None
    assert not grad[0].any()
    others = [row for row in range(1, N_ITEMS + 1) if row != 5]
    assert grad[others].abs().max() < 1e4


def test_a_mask_of_the_table_serves_the_whole_step() -> None:
    made = model(**NO_DROPOUT | {"item_dropout": 0.5}).train()
    tables = []

    def output() -> tuple[Tensor, Tensor | None]:
        tables.append(CORE.output(made)[0])
        return tables[-1], None

    with mock.patch.object(made, "output", output):
        total(made)
    (table,) = tables
    zeros = table[1:] == 0
    assert 0.3 < zeros.float().mean() < 0.7
    # What is left is normalised after the dropout, so that every row is still a cosine.
    norms = table[1:].norm(dim=1) * made.params.temperature
    torch.testing.assert_close(norms, torch.ones(N_ITEMS))
    assert not made.output()[0].equal(table)  # the next step has a mask of its own
    assert made.eval().output()[0].equal(made.output()[0])


@pytest.mark.parametrize(
    "rate", ["dropout_prob", "attn_dropout_prob", "session_dropout", "item_dropout"]
)
def test_every_rate_of_dropout_is_used(rate: str) -> None:
    plain = model(**NO_DROPOUT).train()
    assert total(plain).equal(total(plain))
    made = model(**NO_DROPOUT | {rate: 0.5}).train()
    assert not total(made).equal(total(made))
    assert total(made.eval()).equal(total(plain))


def test_layer_normalisation_begins_plain_and_has_the_epsilon_asked_for() -> None:
    made = model(layer_norm_eps=1e-3)
    layers = [part for part in made.modules() if isinstance(part, nn.LayerNorm)]
    assert len(layers) == 5
    for layer in layers:
        assert layer.eps == 1e-3
        assert layer.weight.eq(1).all()
        assert layer.bias.eq(0).all()


def test_items_are_drawn_uniformly_and_the_rest_normally() -> None:
    torch.manual_seed(0)
    made = CORE(build(CORE.Params, {"embedding_size": 64}, "test"), 2000, 9)
    items = made.item_embedding.weight[1:]
    assert items.abs().max() <= 1 / 8
    assert items.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    wide = made.body.blocks[0].feed_forward.widen.weight  # type: ignore[union-attr]
    assert wide.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr, operator]
    assert not made.item_embedding.weight[0].any()


def test_warprecs_name_of_a_rate_is_understood() -> None:
    assert model(hidden_dropout_prob=0.1).params == model(dropout_prob=0.1).params
    with pytest.raises(UserError, match="hidden_dropout_prob and dropout_prob are one hyperparam"):
        build(CORE.Params, {"dropout_prob": 0.1, "hidden_dropout_prob": 0.1}, "test")
