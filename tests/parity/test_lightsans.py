"""LightSANs against loops written from its equations, one history and one query at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference import Array, gelu, linear, normalised, softmax, weights_of
from seqtune.model import Batch, History, Model, Sequences
from seqtune.models.lightsans import LightSANs
from seqtune.params import Trained, build

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "inner_size": 12,
    "max_seq_len": LENGTH,
    "k_interests": 3,
    "dropout_prob": 0.0,
}
VARIANTS: list[dict[str, object]] = [
    {"softmax_axis": axis, "pad_mask": mask} | sizes
    for axis in ("interest", "query")
    for mask in (True, False)
    for sizes in ({}, {"n_heads": 4, "n_layers": 3, "k_interests": 6}, {"n_layers": 1})
]


def state(items: list[int], model: LightSANs) -> Array:
    """The state at the last item, with every product written out at all positions."""
    w, p = weights_of(model), model.params
    last, axis = len(items) - 1, {"interest": 1, "query": 0}[p.softmax_axis]
    if not p.pad_mask:
        items = items + [0] * (p.max_seq_len - len(items))

    x = normalised(w, "layer_norm", w["item_embedding.weight"][items])
    positions = w["position_embedding.weight"][: len(items)]
    for layer in range(p.n_layers):
        name = f"blocks.{layer}"
        q, k, v = (linear(w, f"{name}.{part}", x) for part in ("query", "key", "value"))
        theta = w[f"{name}.theta"]
        interests_k = softmax(k @ theta[0], 0).T @ k
        interests_v = softmax(v @ theta[1], 0).T @ v
        both = linear(w, f"{name}.positions.1", normalised(w, f"{name}.positions.0", positions))
        size = p.embedding_size // p.n_heads
        heads = []
        for head in range(p.n_heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ interests_k[:, part].T / math.sqrt(size)
            by_item = softmax(scores, axis) @ interests_v[:, part]
            scores = both[:, :8][:, part] @ both[:, 8:][:, part].T / math.sqrt(2 * size)
            by_position = softmax(scores / math.sqrt(size), axis) @ v[:, part]
            heads.append(by_item + by_position)
        y = normalised(w, f"{name}.norm_1", x + linear(w, f"{name}.out", np.concatenate(heads, 1)))
        wide = gelu(linear(w, f"{name}.feed_forward.widen", y))
        x = normalised(w, f"{name}.norm_2", y + linear(w, f"{name}.feed_forward.narrow", wide))
    result: Array = x[last]
    return result


def expected_scores(history: History, model: LightSANs) -> Array:
    table = model.item_embedding.weight.detach().double().numpy()
    rows = zip(history.items.tolist(), history.lengths.tolist(), strict=True)
    return np.stack([table[1:] @ state(row[:length], model) for row, length in rows])


def made(values: dict[str, object], randomise: Callable[[Model], None]) -> LightSANs:
    model = LightSANs(build(LightSANs.Params, SMALL | values, "test"), N_ITEMS, N_USERS)
    randomise(model)
    return model


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_scores(
    values: dict[str, object], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model = made(values, randomise).eval()
    history = data.before(data.targets, LENGTH)
    assert {1, LENGTH} <= set(history.lengths.tolist())
    scores = model.score(history)[:, 1:].detach()
    expected = torch.tensor(expected_scores(history, model)).float()
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", VARIANTS[::3], ids=str)
def test_loss(
    values: dict[str, object],
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
) -> None:
    model = made(values, randomise).train()
    batch = make_batch(model.params)
    z = expected_scores(batch, model)
    chosen = z[np.arange(len(z)), batch.targets.numpy() - 1]
    expected = float((np.log(np.exp(z).sum(1)) - chosen).sum())
    term = model(batch, torch.Generator())["ce"]
    assert term.count == len(z)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
