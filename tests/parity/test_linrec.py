"""LinRec against its equations, one user and one position at a time, with explicit weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reference import Array, Weights, gelu, linear, normalised, weights_of
from seqtune.model import Batch, Model, Sequences
from seqtune.models.linrec import LinRec
from seqtune.negatives import Negatives
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SIZES: dict[str, Any] = {
    "embedding_size": 8,
    "inner_size": 12,
    "n_layers": 2,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "neg_samples": 4,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"n_heads": 1, "n_layers": 1},
    {"k_norm": "sequence", "n_heads": 4},
    {"pad_mask": False},
    {"pad_mask": False, "k_norm": "sequence", "n_layers": 3},
    {"causal": True},
]


def elu(x: Array) -> Array:
    return np.where(x > 0, x, np.exp(x) - 1)


def unit(x: Array) -> Array:
    return x / math.sqrt((x**2).sum() + 1e-6)


def attention(w: Weights, name: str, p: LinRec.Params, xs: list[Array]) -> list[Array]:
    """What each position takes: the values, each weighted by the product of query and key."""
    (wq, wk, wv), (bq, bk, bv) = (
        np.split(w[f"{name}.project_in.{part}"], 3) for part in ("weight", "bias")
    )
    size = p.embedding_size // p.n_heads
    mixed = np.zeros((len(xs), p.embedding_size))
    for head in range(p.n_heads):
        part = slice(head * size, (head + 1) * size)
        queries = [unit(elu((wq @ x + bq)[part])) for x in xs]
        keys = np.array([elu((wk @ x + bk)[part]) for x in xs])
        values = [(wv @ x + bv)[part] for x in xs]
        for index in range(len(xs) if p.k_norm == "position" else size):
            line = (index, slice(None)) if p.k_norm == "position" else (slice(None), index)
            keys[line] = unit(keys[line])
        for i, query in enumerate(queries):
            for j in range(i + 1 if p.causal else len(xs)):
                mixed[i, part] += (query @ keys[j]) / math.sqrt(size) * values[j]
    return [linear(w, f"{name}.project_out", x) for x in mixed]


def states(w: Weights, p: LinRec.Params, items: list[int]) -> list[Array]:
    """The state after each of a user's items, those of pads too where they take part."""
    window = items if p.pad_mask else items + [0] * (p.max_seq_len - len(items))
    xs = []
    for place, item in enumerate(window):
        x = w["item_embedding.weight"][item] + w["body.position_embedding.weight"][place]
        xs.append(normalised(w, "body.layer_norm", x))
    for layer in range(p.n_layers):
        name, out = f"body.blocks.{layer}", []
        for x, a in zip(xs, attention(w, f"{name}.attention", p, xs), strict=True):
            y = normalised(w, f"{name}.norm_1", x + a)
            inner = gelu(linear(w, f"{name}.feed_forward.widen", y))
            f = linear(w, f"{name}.feed_forward.narrow", inner)
            out.append(normalised(w, f"{name}.norm_2", y + f))
        xs = out
    return xs


def make(randomise: Callable[[Model], None], values: dict[str, Any]) -> tuple[LinRec, Weights]:
    model = LinRec(LinRec.Params.model_validate(SIZES | values), N_ITEMS, N_USERS)
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
    scores, everywhere = model.score(history), model.encode(history)
    for row, length in enumerate(history.lengths.tolist()):
        slow = states(w, model.params, history.items[row, :length].tolist())[:length]
        wanted = w["item_embedding.weight"][1:] @ slow[-1]
        np.testing.assert_allclose(scores[row, 1:].detach().numpy(), wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            everywhere[row, :length].detach().numpy(), slow, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    "values",
    [
        *VARIANTS,
        {"causal": True, "train_mode": "rows"},
        {"causal": True, "train_mode": "rows", "loss_type": "sampled_softmax"},
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
    assert (name, term.count) == (p.loss_type, len(batch.targets))
    table, width, expected = w["item_embedding.weight"], batch.items.shape[1], 0.0
    for n, where in enumerate(batch.where.tolist()):
        row, t = divmod(where, width)
        target = int(batch.targets[n])
        state = states(w, p, batch.items[row, : int(batch.lengths[row])].tolist())[t]
        others = drawn[0].items[n].tolist() if drawn else range(1, N_ITEMS + 1)
        scores = [state @ table[item] for item in [target, *(i for i in others if i != target)]]
        expected += math.log(sum(math.exp(s - scores[0]) for s in scores))
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
