"""CL4SRec against its equations, one user and one position at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference import Array, Weights, post_norm_states, weights_of
from seqtune.model import Batch, History, Model, Sequences
from seqtune.models.cl4srec import CL4SRec
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6


def last_state(w: Weights, items: list[int], p: CL4SRec.Params) -> Array:
    """The state after the last item; each item looks at itself and those before it."""
    return post_norm_states(w, items, p.n_layers, p.n_heads)[-1]


def rows_of(history: History) -> list[list[int]]:
    pairs = zip(history.items.tolist(), history.lengths.tolist(), strict=True)
    return [items[:n] for items, n in pairs]


def made(
    values: dict[str, object], data: Sequences, randomise: Callable[[Model], None]
) -> tuple[CL4SRec, Weights]:
    sizes = {"embedding_size": 8, "inner_size": 12, "max_seq_len": LENGTH, "dropout_prob": 0.0}
    params = CL4SRec.Params.model_validate(sizes | values)
    model = CL4SRec(params, N_ITEMS, N_USERS)
    model.prepare(data)
    randomise(model)
    return model, weights_of(model)


@pytest.mark.parametrize("values", [{}, {"n_layers": 1, "n_heads": 4}], ids=str)
def test_scores(
    values: dict[str, object], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model, w = made(values, data, randomise)
    events = (data.first < torch.arange(len(data.first))).nonzero().squeeze(1)
    history = data.before(events, LENGTH)
    assert history.lengths.unique().tolist() == [1, 2, 3, 4, 5, 6]
    found = model.eval().score(history)[:, 1:]
    for row, items in enumerate(rows_of(history)):
        state = last_state(w, items, model.params)
        expected = w["item_embedding.weight"][1 : N_ITEMS + 1] @ state
        np.testing.assert_allclose(found[row].detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["rows", "prefixes"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sim_type": "cos", "tau": 0.3},
        {"distinct_ops": False, "n_heads": 4, "crop_eta": 0.3, "mask_gamma": 0.8},
    ],
    ids=str,
)
def test_loss(
    mode: str,
    values: dict[str, object],
    data: Sequences,
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
) -> None:
    model, w = made(values | {"train_mode": mode}, data, randomise)
    p, batch = model.params, make_batch(model.params)
    terms = model.train()(batch, torch.Generator().manual_seed(3))

    rows, table, total = rows_of(batch), w["item_embedding.weight"], 0.0
    for place, target in zip(batch.where.tolist(), batch.targets.tolist(), strict=True):
        row, t = divmod(place, batch.items.shape[1])
        z = table[1 : N_ITEMS + 1] @ last_state(w, rows[row][: t + 1], p)
        total += math.log(np.exp(z).sum()) - z[target - 1]
    assert terms["ce"].count == len(batch.targets)
    assert terms["ce"].total.item() == pytest.approx(total, rel=1e-5)

    views = model.views(batch, torch.Generator().manual_seed(3))  # the draw is taken as it is
    z = np.array([last_state(w, items, p) for view in views for items in rows_of(view)])
    if p.sim_type == "cos":
        z /= np.sqrt((z**2).sum(1, keepdims=True))
    total, n = 0.0, len(rows)
    for row in range(2 * n):
        partner = (row + n) % (2 * n)
        others = [math.exp(z[row] @ z[c] / p.tau) for c in range(2 * n) if c != row]
        total += math.log(sum(others)) - z[row] @ z[partner] / p.tau
    assert (terms["ssl"].count, terms["ssl"].weight) == (2 * n, 0.1)
    assert terms["ssl"].total.item() == pytest.approx(total, rel=1e-5)
