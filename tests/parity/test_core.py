"""CORE against loops written from its equations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference import Array, post_norm_states, softmax, weights_of
from seqtune.model import Batch, Model, Sequences
from seqtune.models.core import CORE
from seqtune.params import Trained, build

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "inner_size": 12,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "session_dropout": 0.0,
    "item_dropout": 0.0,
}
VARIANTS: list[dict[str, object]] = [
    {},
    {"train_mode": "prefixes"},
    {"dnn_type": "ave", "temperature": 0.3},
    {"dnn_type": "ave", "train_mode": "prefixes"},
    {"n_heads": 4, "n_layers": 1},
    {"layer_norm_eps": 0.1},
]


def session(items: list[int], model: CORE) -> Array:
    """The unit vector of a session, from that session alone; the last weight needs no other."""
    w, p = weights_of(model), model.params
    x = w["item_embedding.weight"][items]
    if p.dnn_type == "ave":
        mean: Array = x.mean(0)
        return mean / np.sqrt(mean @ mean)

    z = post_norm_states(w, items, p.n_layers, p.n_heads, eps=p.layer_norm_eps)
    logits = np.array([w["weight.weight"][0] @ u + w["weight.bias"][0] for u in z])
    total: Array = softmax(logits) @ x
    return total / np.sqrt(total @ total)


def scores_of(items: list[int], model: CORE) -> Array:
    table = model.item_embedding.weight.detach().double().numpy()[1:]
    s = session(items, model)
    return np.array([s @ e / np.sqrt(e @ e) / model.params.temperature for e in table])


@pytest.fixture(params=VARIANTS, ids=str)
def model(request: pytest.FixtureRequest, randomise: Callable[[Model], None]) -> CORE:
    params = build(CORE.Params, SMALL | request.param, "test")
    made = CORE(params, N_ITEMS, N_USERS)
    randomise(made)
    return made


def test_scores_equal_the_equations(model: CORE, data: Sequences) -> None:
    model.eval()
    history = data.before(data.targets, LENGTH)
    assert set(history.lengths.tolist()) == set(range(1, LENGTH + 1))
    expected = np.stack(
        [
            scores_of(items[:length].tolist(), model)
            for items, length in zip(history.items, history.lengths, strict=True)
        ]
    )
    found = model.score(history)[:, 1:].detach()
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_the_loss_equals_the_equations(model: CORE, make_batch: Callable[[Trained], Batch]) -> None:
    model.train()
    batch = make_batch(model.params)
    expected, width = 0.0, batch.items.shape[1]
    for where, target in zip(batch.where.tolist(), batch.targets.tolist(), strict=True):
        scores = scores_of(batch.items[where // width, : where % width + 1].tolist(), model)
        expected += np.log(np.exp(scores).sum()) - scores[target - 1]
    term = model.loss(batch, torch.Generator())["ce"]
    assert term.count == len(batch.targets)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)


def test_sampled_scores_are_those_of_the_ranking(
    model: CORE, make_batch: Callable[[Trained], Batch]
) -> None:
    """Every negative drawn from one item: BPR of two cosines over the temperature, by hand."""
    values = model.params.model_dump() | {"loss_type": "bpr", "neg_samples": 1, "reject": "none"}
    model.params = build(CORE.Params, values, "test")
    model.train()
    model.n_items = 1  # so that 1 is the only item to draw
    batch = make_batch(model.params)
    expected, width = 0.0, batch.items.shape[1]
    for where, target in zip(batch.where.tolist(), batch.targets.tolist(), strict=True):
        scores = scores_of(batch.items[where // width, : where % width + 1].tolist(), model)
        expected += np.log1p(np.exp(scores[0] - scores[target - 1]))
    total = model.loss(batch, torch.Generator().manual_seed(0))["bpr"].total
    assert total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dnn_type", ["trm", "ave"])
def test_all_prefixes_in_one_pass_have_the_gradients_of_one_pass_each(
    dnn_type: str,
    randomise: Callable[[Model], None],
    make_batch: Callable[[Trained], Batch],
) -> None:
    gradients = []
    for mode in ("rows", "prefixes"):
        values = {"max_seq_len": 12, "train_mode": mode, "dnn_type": dnn_type}
        params = build(CORE.Params, SMALL | values, "test")
        made = CORE(params, N_ITEMS, N_USERS)
        randomise(made)
        made.loss(make_batch(params), torch.Generator())["ce"].total.backward()
        gradients.append({key: weight.grad for key, weight in made.named_parameters()})
    torch.testing.assert_close(*gradients, atol=2e-4, rtol=1e-3)
