"""NARM against loops written from its equations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference import Array, sigmoid, weights_of
from seqtune.model import Batch, Model, Sequences
from seqtune.models.narm import NARM
from seqtune.params import Trained, build

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "hidden_size": 10,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "decoder_dropout_prob": 0.0,
}
VARIANTS: list[dict[str, object]] = [
    {},
    {"n_layers": 2},
    {"attn_norm": "none"},
    {"attn_norm": "none", "n_layers": 2, "train_mode": "prefixes"},
    {"train_mode": "prefixes"},
]


def state_after(items: list[int], model: NARM) -> Array:
    """The state after a history, from that history alone."""
    w = weights_of(model)
    inputs = [w["item_embedding.weight"][i] for i in items]
    for layer in range(model.params.n_layers):
        gates = np.split(w[f"layers.{layer}.weight_ih_l0"], 3)
        b_r, b_z, b_n = (gate[:, 0] for gate in gates)
        w_r, w_z, w_n = (gate[:, 1:] for gate in gates)
        u_r, u_z, u_n = np.split(w[f"layers.{layer}.weight_hh_l0"], 3)
        h, states = np.zeros(model.params.hidden_size), []
        for x in inputs:
            reset, update = sigmoid(w_r @ x + u_r @ h + b_r), sigmoid(w_z @ x + u_z @ h + b_z)
            new = np.tanh(w_n @ x + reset * (u_n @ h) + b_n)
            h = (1 - update) * new + update * h
            states.append(h)
        inputs = states
    key, query, v = w["key.weight"], w["query.weight"], w["energy.weight"][0]
    energies = np.array([v @ sigmoid(key @ h_j + query @ states[-1]) for h_j in states])
    if model.params.attn_norm == "softmax":
        energies = np.exp(energies - energies.max())
        energies /= energies.sum()
    attended = sum(a * h_j for a, h_j in zip(energies, states, strict=True))
    result: Array = w["decoder.weight"] @ np.concatenate([attended, states[-1]])
    return result


@pytest.fixture(params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest, randomise: Callable[[Model], None]) -> NARM:
    params = build(NARM.Params, SMALL | request.param, "test")
    made = NARM(params, N_ITEMS, N_USERS)
    randomise(made)
    return made


def test_scores_equal_the_equations(model: NARM, data: Sequences) -> None:
    model.eval()
    events = data.targets
    history = data.before(events, LENGTH)
    assert set(history.lengths.tolist()) == set(range(1, LENGTH + 1))
    table = model.item_embedding.weight.detach().double().numpy()
    expected = np.stack(
        [
            table[1:] @ state_after(items[:length].tolist(), model)
            for items, length in zip(history.items, history.lengths, strict=True)
        ]
    )
    found = model.score(history)[:, 1:].detach()
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_the_loss_equals_the_equations(
    model: NARM, data: Sequences, make_batch: Callable[[Trained], Batch]
) -> None:
    model.train()
    batch = make_batch(model.params)
    table = model.item_embedding.weight.detach().double().numpy()
    expected = 0.0
    width = batch.items.shape[1]
    for where, target in zip(batch.where.tolist(), batch.targets.tolist(), strict=True):
        items = batch.items[where // width, : where % width + 1].tolist()
        scores = table[1:] @ state_after(items, model)
        expected += np.log(np.exp(scores).sum()) - scores[target - 1]
    term = model.loss(batch, torch.Generator())["ce"]
    assert term.count == len(batch.targets)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)


def test_all_positions_in_one_pass_have_the_gradients_of_one_pass_per_prefix(
    randomise: Callable[[Model], None], data: Sequences, make_batch: Callable[[Trained], Batch]
) -> None:
    gradients = []
    for mode in ("rows", "prefixes"):
        params = build(NARM.Params, SMALL | {"max_seq_len": 12, "train_mode": mode}, "test")
        made = NARM(params, N_ITEMS, N_USERS)
        randomise(made)
        made.loss(make_batch(params), torch.Generator())["ce"].total.backward()
        gradients.append({key: weight.grad for key, weight in made.named_parameters()})
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
