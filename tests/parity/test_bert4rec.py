"""BERT4Rec against its equations, one user and one position at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference import Array, Weights, gelu, linear, normalised, post_norm_states, weights_of
from seqtune.model import Batch, Model, Sequences
from seqtune.models.bert4rec import BERT4Rec
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
MASK = N_ITEMS + 1
VARIANTS: list[dict[str, object]] = [
    {},
    {"output_head": False},
    {"n_layers": 1, "n_heads": 4},
    {"mask_prob": 0.6, "last_mask_prob": 0.0},
    {"last_mask_prob": 1.0},
    {"window_stride": 2},
    {"max_seq_len": 10},  # longer than every row
]


def states(w: Weights, items: list[int], p: BERT4Rec.Params) -> list[Array]:
    """The output of the last block at each item; each looks at all of them."""
    return post_norm_states(w, items, p.n_layers, p.n_heads, causal=False)


def scores_of(w: Weights, state: Array, p: BERT4Rec.Params) -> Array:
    """The scores of items 1..I."""
    table = w["item_embedding.weight"][1 : N_ITEMS + 1]
    if not p.output_head:
        return np.array([row @ state for row in table])
    state = normalised(w, "head.2", gelu(linear(w, "head.0", state)))
    return np.array([row @ state for row in table]) + w["item_bias"][1:]


def made(
    values: dict[str, object], data: Sequences, randomise: Callable[[Model], None]
) -> tuple[BERT4Rec, Weights]:
    sizes = {"embedding_size": 8, "inner_size": 12, "max_seq_len": LENGTH, "dropout_prob": 0.0}
    params = BERT4Rec.Params.model_validate(sizes | values)
    model = BERT4Rec(params, N_ITEMS, N_USERS)
    model.prepare(data)
    randomise(model)
    return model, weights_of(model)


@pytest.mark.parametrize("values", VARIANTS[:3], ids=str)
def test_scores(
    values: dict[str, object], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model, w = made(values, data, randomise)
    events = (data.first < torch.arange(len(data.first))).nonzero().squeeze(1)
    history = data.before(events, LENGTH)
    assert history.lengths.unique().tolist() == [1, 2, 3, 4, 5, 6]
    found = model.eval().score(history)[:, 1:]
    for row, (items, n) in enumerate(
        zip(history.items.tolist(), history.lengths.tolist(), strict=True)
    ):
        query = [*items[:n][-(LENGTH - 1) :], MASK]
        expected = scores_of(w, states(w, query, model.params)[-1], model.params)
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def cloze(
    model: BERT4Rec, w: Weights, data: Sequences, batch: Batch, rng: torch.Generator
) -> list[tuple[int, Array, int]]:
    """Every masked position: its row, the scores of items 1..I there, and the hidden item."""
    length = model.params.max_seq_len
    ends = {int(row): 0 for row in range(len(batch.items))}
    for place, event in zip(batch.where.tolist(), batch.events.tolist(), strict=True):
        row = place // batch.items.shape[1]
        ends[row] = max(ends[row], event + 1)
    windows = [
        data.items[max(int(data.first[end - 1]), end - length) : end].tolist()
        for end in ends.values()
    ]
    lengths = torch.tensor([len(window) for window in windows])
    masked = model.masked(lengths, int(lengths.max()), rng)  # the draw is taken as it is
    found = []
    for row, window in enumerate(windows):
        chosen = masked[row].nonzero().squeeze(1).tolist()
        visible = [MASK if t in chosen else item for t, item in enumerate(window)]
        out = states(w, visible, model.params)
        found += [(row, scores_of(w, out[t], model.params), window[t]) for t in chosen]
    return found


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_loss(
    values: dict[str, object],
    data: Sequences,
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
) -> None:
    model, w = made(values, data, randomise)
    batch = make_batch(model.params)
    term = model.train()(batch, torch.Generator().manual_seed(3))["ce"]
    expected = cloze(model, w, data, batch, torch.Generator().manual_seed(3))
    total = sum(math.log(np.exp(z).sum()) - z[item - 1] for _, z, item in expected)
    assert term.count == len(expected)
    assert term.total.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", ["sampled_softmax", "bce", "bpr", "gbce"])
def test_losses_that_sample(
    kind: str,
    data: Sequences,
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
) -> None:
    """With one set of negatives per row, so that a row mistaken for another would show.

    No row fills its window, so that a window is one wider than the row of the batch.
    """
    k = 3
    values = {"loss_type": kind, "neg_samples": k, "neg_sharing": "row", "reject": "none"}
    model, w = made(values | {"mask_prob": 0.4, "max_seq_len": 10}, data, randomise)
    batch = make_batch(model.params)
    term = model.train()(batch, torch.Generator().manual_seed(3))[kind]

    rng = torch.Generator().manual_seed(3)
    expected = cloze(model, w, data, batch, rng)
    negatives = torch.randint(1, N_ITEMS + 1, (len(batch.items), k), generator=rng).tolist()

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    total, alpha = 0.0, k / (N_ITEMS - 1)
    for row, z, item in expected:
        positive, others = z[item - 1], [z[other - 1] for other in negatives[row]]
        apart = sum(softplus(s) for s in others)
        total += {
            "sampled_softmax": math.log(np.exp([positive, *others]).sum()) - positive,
            "bce": softplus(-positive) + apart,
            "bpr": sum(softplus(s - positive) for s in others) / k,
            "gbce": ((1 - 0.75 * (1 - alpha)) * softplus(-positive) + apart) / (k + 1),
        }[kind]
    assert term.count == len(expected)
    assert term.total.item() == pytest.approx(total, rel=1e-5)
