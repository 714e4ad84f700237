"""SASRec against its equations, one user and one position at a time."""

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
    gelu,
    linear,
    normalised,
    official_block,
    post_norm_block,
    relu,
    weights_of,
)
from seqtune.model import Batch, Model, Sequences
from seqtune.models.sasrec import SASRec
from seqtune.negatives import Negatives
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SIZES: dict[str, Any] = {
    "embedding_size": 8,
    "inner_size": 12,
    "n_layers": 2,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "neg_samples": 3,
}
OFFICIAL = {"norm": "sasrec", "inner_size": 8, "activation": "relu", "pos": "rev"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_heads": 1, "pos": "rev", "tie_weights": False},
    {"norm": "pre", "activation": "relu", "scale_emb": True},
    {"norm": "pre", "n_heads": 4, "pos": "rev"},
    OFFICIAL | {"scale_emb": True},
    OFFICIAL | {"n_heads": 1, "n_layers": 1},
    {"norm": "sasrec", "tie_weights": False},
]


ACTIVATIONS = {"relu": relu, "gelu": gelu}


def pre_norm_block(w: Weights, name: str, p: SASRec.Params, xs: list[Array]) -> list[Array]:
    out = []
    for t, x in enumerate(xs):
        memory = [normalised(w, f"{name}.norm_1", m) for m in xs[: t + 1]]
        mixed = attention(w, f"{name}.attention", p.n_heads, memory[t], memory)
        y = x + linear(w, f"{name}.attention.project_out", mixed)
        inner = linear(w, f"{name}.feed_forward.widen", normalised(w, f"{name}.norm_2", y))
        inner = ACTIVATIONS[p.activation](inner)
        out.append(y + linear(w, f"{name}.feed_forward.narrow", inner))
    return out


def states(w: Weights, p: SASRec.Params, items: list[int]) -> list[Array]:
    """The state after each of a user's items."""
    xs = []
    for place, item in enumerate(items):
        vector = w["item_embedding.weight"][item]
        if p.scale_emb:
            vector = vector * math.sqrt(p.embedding_size)
        position = place if p.pos == "abs" else p.max_seq_len - len(items) + place
        x = vector + w["body.position_embedding.weight"][position]
        xs.append(normalised(w, "body.layer_norm", x) if p.norm == "post" else x)
    for layer in range(p.n_layers):
        name = f"body.blocks.{layer}"
        if p.norm == "post":
            xs = post_norm_block(w, name, p.n_heads, xs)
        elif p.norm == "pre":
            xs = pre_norm_block(w, name, p, xs)
        else:
            xs = official_block(w, name, p.n_heads, xs, ACTIVATIONS[p.activation])
    return xs if p.norm == "post" else [normalised(w, "body.layer_norm", x) for x in xs]


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def loss_of(kind: str, positive: float, negatives: list[float], k: int, beta: float) -> float:
    """The loss of one target; ``negatives`` are those that count, of k."""
    if kind in ("ce", "sampled_softmax"):
        return math.log(sum(math.exp(s - positive) for s in [positive, *negatives]))
    if kind == "bpr":
        return sum(softplus(s - positive) for s in negatives) / max(len(negatives), 1)
    if kind == "bce":
        return softplus(-positive) + sum(softplus(s) for s in negatives)
    return (beta * softplus(-positive) + sum(softplus(s) for s in negatives)) / (k + 1)


def slow_loss(
    w: Weights, p: SASRec.Params, batch: Batch, table: Array, drawn: Negatives | None
) -> float:
    """The loss of a batch, target by target; ``drawn`` are the negatives of a sampled loss."""
    width, kind, k = batch.items.shape[1], p.loss_type, p.neg_samples
    beta = 1 - p.gbce_t * (1 - k / (N_ITEMS - 1))
    total = 0.0
    for n, (where, target) in enumerate(
        zip(batch.where.tolist(), batch.targets.tolist(), strict=True)
    ):
        row, t = divmod(where, width)
        items = batch.items[row, : int(batch.lengths[row])].tolist()
        state = states(w, p, items)[t]
        if drawn is None:
            negatives = [item for item in range(1, N_ITEMS + 1) if item != target]
        else:
            own = {"position": n, "row": row}.get(drawn.sharing, slice(None))
            negatives = [item for item in drawn.items[own].tolist() if item != target]
        scores = [float(state @ table[item]) for item in negatives]
        total += loss_of(kind, float(state @ table[target]), scores, k, beta)
    return total


def make(randomise: Callable[[Model], None], values: dict[str, Any]) -> SASRec:
    model = SASRec(SASRec.Params.model_validate(SIZES | values), N_ITEMS, N_USERS)
    randomise(model)
    return model


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_scores(
    values: dict[str, Any], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model = make(randomise, values).eval()
    w = weights_of(model)
    table = w["item_embedding.weight" if model.params.tie_weights else "output_embedding.weight"]
    history = data.before(data.targets, LENGTH)
    assert set(history.lengths.tolist()) == set(range(1, LENGTH + 1))
    fast = model.score(history)
    everywhere = model.encode(history)
    for row, length in enumerate(history.lengths.tolist()):
        slow = states(w, model.params, history.items[row, :length].tolist())
        torch.testing.assert_close(
            everywhere[row, :length].double(),
            torch.from_numpy(np.array(slow)),
            rtol=1e-5,
            atol=1e-5,
        )
        torch.testing.assert_close(
            fast[row, 1:].double(), torch.from_numpy(table[1:] @ slow[-1]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("mode", ["rows", "prefixes"])
@pytest.mark.parametrize(
    "values",
    [
        *VARIANTS,
        {"loss_type": "bce"},
        {"loss_type": "bpr", "neg_sharing": "row"},
        {"loss_type": "gbce", "gbce_t": 0.6, "neg_sharing": "batch"},
        OFFICIAL | {"loss_type": "sampled_softmax", "neg_sharing": "row", "neg_samples": 9},
    ],
    ids=str,
)
def test_loss(
    values: dict[str, Any],
    mode: str,
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
    drawn: list[Negatives],
) -> None:
    model = make(randomise, values | {"train_mode": mode})
    batch, p = make_batch(model.params), model.params
    ((name, term),) = model(batch, torch.Generator().manual_seed(3)).items()
    assert (name, term.count) == (p.loss_type, len(batch.targets))
    w = weights_of(model)
    table = w["item_embedding.weight" if p.tie_weights else "output_embedding.weight"]
    expected = slow_loss(w, p, batch, table, drawn[0] if drawn else None)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
