"""eSASRec against its equations, one user and one position at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reference import (
    Array,
    Weights,
    attention,
    linear,
    normalised,
    official_block,
    sigmoid,
    weights_of,
)
from seqtune.model import Batch, Model, Sequences
from seqtune.models.esasrec import ESASRec
from seqtune.negatives import Negatives
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SIZES: dict[str, Any] = {
    "embedding_size": 8,
    "inner_size": 12,
    "n_layers": 2,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "neg_samples": 5,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_heads": 1, "n_layers": 1, "inner_size": 32},
    {"n_heads": 4, "pos": "abs"},
    {"use_relative_pos": True},
    {"use_ligr": False, "inner_size": 8},
]


def gated(w: Weights, name: str, p: ESASRec.Params, xs: list[Array]) -> list[Array]:
    """A LiGR block."""

    out = []
    for t, x in enumerate(xs):
        memory = [normalised(w, f"{name}.norm_1", m, 1e-5) for m in xs[: t + 1]]
        bias = None
        if p.use_relative_pos:  # by distance
            bias = w[f"{name}.bias.weight"][[t - j for j in range(t + 1)]]
        mixed = attention(w, f"{name}.attention", p.n_heads, memory[t], memory, bias)
        mixed = linear(w, f"{name}.attention.project_out", mixed)
        x = x + sigmoid(linear(w, f"{name}.gate_1", x)) * mixed
        u = normalised(w, f"{name}.norm_2", x, 1e-5)
        a, b = (linear(w, f"{name}.feed_forward.{part}", u) for part in ("gate", "widen"))
        narrowed = linear(w, f"{name}.feed_forward.narrow", a * sigmoid(a) * b)
        out.append(x + sigmoid(linear(w, f"{name}.gate_2", x)) * narrowed)
    return out


def states(w: Weights, p: ESASRec.Params, items: list[int]) -> list[Array]:
    """The state after each of a user's items."""
    first = p.max_seq_len - len(items) if p.pos == "rev" else 0
    xs = [
        w["item_embedding.weight"][item] + w["body.position_embedding.weight"][first + place]
        for place, item in enumerate(items)
    ]
    for layer in range(p.n_layers):
        name = f"body.blocks.{layer}"
        xs = gated(w, name, p, xs) if p.use_ligr else official_block(w, name, p.n_heads, xs)
    if p.use_ligr:
        return xs
    return [normalised(w, "body.layer_norm", x) for x in xs]


def make(randomise: Callable[[Model], None], values: dict[str, Any]) -> tuple[ESASRec, Weights]:
    model = ESASRec(ESASRec.Params.model_validate(SIZES | values), N_ITEMS, N_USERS)
    randomise(model)
    return model, weights_of(model)


@pytest.mark.parametrize("values", VARIANTS, ids=str)
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
        scores = w["item_embedding.weight"][1:] @ slow[-1]
        np.testing.assert_allclose(
            everywhere[row, :length].detach().numpy(), slow, rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(fast[row, 1:].detach().numpy(), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        *VARIANTS,
        {"reject": "none", "neg_sharing": "position"},
        {"neg_sharing": "row", "neg_samples": 40},  # the target is among them, many times
        {"mn_ratio": 0.6, "neg_sharing": "row"},
        {"mn_ratio": 0.6, "logq": True, "neg_sharing": "position"},
        {"mn_ratio": 1.0, "logq": True, "neg_sharing": "batch"},
        {"neg_samples": 1, "logq": True},
        {"use_sampled_softmax": False},
        {"train_mode": "prefixes"},
    ],
    ids=str,
)
def test_loss(
    values: dict[str, Any],
    data: Sequences,
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
    drawn: list[Negatives],
) -> None:
    model, w = make(randomise, values)
    model.prepare(data)
    p, batch = model.params, make_batch(model.params)
    ((name, term),) = model(batch, torch.Generator().manual_seed(3)).items()
    assert (name, term.count) == ("sampled_softmax" if drawn else "ce", len(batch.targets))

    trained = set(data.targets.tolist()) | set(data.first.tolist())
    counts = [sum(int(data.items[e]) == item for e in trained) for item in range(N_ITEMS + 1)]
    table, width, expected = w["item_embedding.weight"], batch.items.shape[1], 0.0
    for n, where in enumerate(batch.where.tolist()):
        row, t = divmod(where, width)
        target = int(batch.targets[n])
        items = batch.items[row, : int(batch.lengths[row])].tolist()
        state = states(w, p, items)[t]
        negatives = list(range(1, N_ITEMS + 1))
        if drawn:
            own = {"position": n, "row": row}.get(drawn[0].sharing, slice(None))
            negatives = drawn[0].items[own].tolist()
        if p.reject == "target" or not drawn:
            negatives = [item for item in negatives if item != target]
        scores = [state @ table[item] for item in [target, *negatives]]
        if p.logq:
            seen = [max(counts[item], 1) for item in [target, *negatives]]
            scores = [s - math.log(count) for s, count in zip(scores, seen, strict=True)]
        expected += math.log(sum(math.exp(s - scores[0]) for s in scores))
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
