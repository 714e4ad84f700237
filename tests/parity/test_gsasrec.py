"""gSASRec against its equations, one user and one position at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reference import Array, Weights, normalised, official_block, weights_of
from seqtune.model import Batch, Model, Sequences
from seqtune.models.gsasrec import GSASRec
from seqtune.negatives import Negatives
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SIZES: dict[str, Any] = {
    "embedding_size": 8,
    "inner_size": 8,
    "n_layers": 2,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "neg_samples": 5,
}


def states(w: Weights, p: GSASRec.Params, items: list[int]) -> list[Array]:
    """The state after each of a user's items, the blocks as in SASRec's official code."""
    first = p.max_seq_len - len(items) if p.pos == "rev" else 0
    xs = [
        w["item_embedding.weight"][item] + w["body.position_embedding.weight"][first + place]
        for place, item in enumerate(items)
    ]
    for layer in range(p.n_layers):
        xs = official_block(w, f"body.blocks.{layer}", p.n_heads, xs)
    return [normalised(w, "body.layer_norm", x) for x in xs]


def make(randomise: Callable[[Model], None], values: dict[str, Any]) -> tuple[GSASRec, Weights]:
    model = GSASRec(GSASRec.Params.model_validate(SIZES | values), N_ITEMS, N_USERS)
    randomise(model)
    return model, weights_of(model)


def table_of(w: Weights, p: GSASRec.Params) -> Array:
    return w["item_embedding.weight" if p.tie_weights else "output_embedding.weight"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"n_heads": 1, "tie_weights": True},
        {"n_layers": 1, "n_heads": 4, "pos": "abs"},
    ],
    ids=str,
)
def test_scores(
    values: dict[str, Any], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model, w = make(randomise, values)
    model.eval()
    history = data.before(data.targets, LENGTH)
    assert set(history.lengths.tolist()) == set(range(1, LENGTH + 1))
    fast, everywhere = model.score(history), model.encode(history)
    for row, length in enumerate(history.lengths.tolist()):
        slow = states(w, model.params, history.items[row, :length].tolist())
        scores = table_of(w, model.params)[1:] @ slow[-1]
        np.testing.assert_allclose(
            everywhere[row, :length].detach().numpy(), slow, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(fast[row, 1:].detach().numpy(), scores, rtol=1e-5, atol=1e-5)


def probability(score: float) -> float:
    return 1 / (1 + math.exp(-score))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"reject": "none", "neg_sharing": "position"},
        {"gbce_t": 0.0, "neg_sharing": "row", "tie_weights": True},
        {"gbce_t": 1.0, "neg_samples": N_ITEMS - 1, "neg_sharing": "row"},
        {"gbce_t": 0.5, "neg_samples": 1, "neg_sharing": "batch"},
        {"max_seq_len": 4, "window_stride": 2},
        {"train_mode": "prefixes"},
    ],
    ids=str,
)
def test_loss(
    values: dict[str, Any],
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
    drawn: list[Negatives],
) -> None:
    model, w = make(randomise, values)
    p, batch = model.params, make_batch(model.params)
    ((name, term),) = model(batch, torch.Generator().manual_seed(3)).items()
    assert (name, term.count) == ("gbce", len(batch.targets))

    k = p.neg_samples
    alpha = k / (N_ITEMS - 1)
    beta = alpha * (p.gbce_t * (1 - 1 / alpha) + 1 / alpha)
    table, width, expected = table_of(w, p), batch.items.shape[1], 0.0
    for n, where in enumerate(batch.where.tolist()):
        row, t = divmod(where, width)
        target = int(batch.targets[n])
        items = batch.items[row, : int(batch.lengths[row])].tolist()
        state = states(w, p, items)[t]
        own = {"position": n, "row": row}.get(drawn[0].sharing, slice(None))
        negatives = drawn[0].items[own].tolist()
        if p.reject == "target":
            negatives = [item for item in negatives if item != target]
        total = -math.log(probability(state @ table[target]) ** beta)
        total -= sum(math.log(1 - probability(state @ table[item])) for item in negatives)
        expected += total / (k + 1)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
