"""gSASRec against its equations, one user and one position at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqtune import losses
from seqtune.model import Batch, Model, Sequences
from seqtune.models.gsasrec import GSASRec
from seqtune.params import Trained

Array = NDArray[np.float64]
Weights = dict[str, Array]
N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SIZES: dict[str, Any] = {
    "embedding_size": 8,
    "inner_size": 8,
    "n_layers": 2,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "neg_samples": 5,
}


def normalised(w: Weights, name: str, x: Array) -> Array:
    spread = math.sqrt(((x - x.mean()) ** 2).mean() + 1e-12)
    return (x - x.mean()) / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def states(w: Weights, p: GSASRec.Params, items: list[int]) -> list[Array]:
    """The state after each of a user's items, the blocks as in SASRec's official code."""
    first = p.max_seq_len - len(items) if p.pos == "rev" else 0
    xs = [
        w["item_embedding.weight"][item] + w["body.position_embedding.weight"][first + place]
        for place, item in enumerate(items)
    ]
    size = p.embedding_size // p.n_heads
    for layer in range(p.n_layers):
        name, out = f"body.blocks.{layer}", []
        matrices, biases = (w[f"{name}.attention.project_in.{part}"] for part in ("weight", "bias"))
        (wq, wk, wv), (bq, bk, bv) = np.split(matrices, 3), np.split(biases, 3)
        for t, x in enumerate(xs):
            query = normalised(w, f"{name}.norm_1", x)  # keys and values are not normalised
            mixed = []
            for head in range(p.n_heads):
                part = slice(head * size, (head + 1) * size)
                q = (wq @ query + bq)[part]
                scores = [q @ (wk @ xs[j] + bk)[part] / math.sqrt(size) for j in range(t + 1)]
                parts = np.exp(scores) / np.exp(scores).sum()
                mixed.append(sum(parts[j] * (wv @ xs[j] + bv)[part] for j in range(t + 1)))
            u = normalised(w, f"{name}.norm_2", query + np.concatenate(mixed))
            inner = w[f"{name}.feed_forward.widen.weight"] @ u
            inner = np.maximum(inner + w[f"{name}.feed_forward.widen.bias"], 0)
            narrowed = w[f"{name}.feed_forward.narrow.weight"] @ inner
            out.append(u + narrowed + w[f"{name}.feed_forward.narrow.bias"])
        xs = out
    return [normalised(w, "body.layer_norm", x) for x in xs]


def make(randomise: Callable[[Model], None], values: dict[str, Any]) -> tuple[GSASRec, Weights]:
    model = GSASRec(GSASRec.Params.model_validate(SIZES | values), N_ITEMS, N_USERS)
    randomise(model)
    return model, {key: value.double().numpy() for key, value in model.state_dict().items()}


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
    drawn: list[losses.Negatives],
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
