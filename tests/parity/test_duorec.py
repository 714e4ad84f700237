"""DuoRec against loops written from its equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import Array, post_norm_states, weights_of
from seqtune.model import Batch, Model, Sequences
from seqtune.models import duorec
from seqtune.models.duorec import DuoRec
from seqtune.params import Trained, build

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "inner_size": 12,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "ssl_lambda": 0.3,
    "ssl_lambda_sem": 0.7,
}


def state_after(items: list[int], model: DuoRec) -> Array:
    """The last state of a post-norm Transformer over a history, a query and a head at a time."""
    p = model.params
    return post_norm_states(weights_of(model), items, p.n_layers, p.n_heads)[-1]


def info_nce(first: list[Array], second: list[Array], model: DuoRec, same: list[int]) -> float:
    """The sum over both views; rows of equal ``same`` are no negatives where the model says so."""
    p, rows, n, total = model.params, [*first, *second], len(first), 0.0
    if p.sim_type == "cos":
        rows = [z / np.linalg.norm(z) for z in rows]
    for r, z in enumerate(rows):
        partner = (r + n) % (2 * n)
        others = [
            c
            for c in range(2 * n)
            if c not in (r, partner) and not (p.mask_same_target and same[c % n] == same[r % n])
        ]
        similar = {c: float(z @ rows[c]) / p.tau for c in [partner, *others]}
        total += math.log(sum(math.exp(s) for s in similar.values())) - similar[partner]
    return total


def made(randomise: Callable[[Model], None], **values: object) -> DuoRec:
    model = DuoRec(build(DuoRec.Params, SMALL | values, "test"), N_ITEMS, N_USERS)
    randomise(model)
    return model


@pytest.mark.parametrize(("n_layers", "n_heads"), [(1, 1), (2, 2), (2, 4)])
def test_scores_equal_the_equations(
    n_layers: int, n_heads: int, randomise: Callable[[Model], None], data: Sequences
) -> None:
    model = made(randomise, n_layers=n_layers, n_heads=n_heads).eval()
    history = data.before(data.targets, LENGTH)
    assert set(history.lengths.tolist()) == set(range(1, LENGTH + 1))
    table = model.item_embedding.weight.detach().double().numpy()
    expected = [
        table[1:] @ state_after(items[:length].tolist(), model)
        for items, length in zip(history.items, history.lengths, strict=True)
    ]
    found = model.score(history)[:, 1:].double()
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)), atol=1e-5, rtol=1e-5)


class Draws:
    """What a step drew: a target of each row, and an event with the same target."""

    def __init__(self, model: DuoRec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.one: list[int] | None = None
        self.others: list[int] = []
        choose, find = duorec.one_per_row, model.same_target

        def one_per_row(*given: Any) -> Tensor:
            found = choose(*given)
            self.one = found.tolist()
            return found

        def same_target(*given: Any) -> Tensor:
            found = find(*given)
            self.others = found.tolist()
            return found

        monkeypatch.setattr(duorec, "one_per_row", one_per_row)
        monkeypatch.setattr(model, "same_target", same_target)


@pytest.mark.parametrize("ssl_type", ["un", "su", "us", "us_x"])
@pytest.mark.parametrize("mode", ["rows", "prefixes"])
@pytest.mark.parametrize(
    "sim", [{}, {"sim_type": "cos", "tau": 0.2, "mask_same_target": True}], ids=["dot", "cos"]
)
def test_the_loss_equals_the_equations(
    ssl_type: str,
    mode: str,
    sim: dict[str, object],
    randomise: Callable[[Model], None],
    data: Sequences,
    make_batch: Callable[[Trained], Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made(randomise, ssl_type=ssl_type, train_mode=mode, **sim).train()
    model.prepare(data)
    drawn, batch = Draws(model, monkeypatch), make_batch(model.params)
    terms = model.loss(batch, torch.Generator().manual_seed(3))

    items, table = data.items.tolist(), model.item_embedding.weight.detach().double().numpy()
    targets, width = batch.targets.tolist(), batch.items.shape[1]
    states, expected = [], 0.0
    for where, target in zip(batch.where.tolist(), targets, strict=True):
        row = batch.items[where // width, : where % width + 1].tolist()
        states.append(state_after(row, model))
        scores = table[1:] @ states[-1]
        expected += np.log(np.exp(scores).sum()) - scores[target - 1]
    ce = terms.pop("ce")
    assert (ce.count, ce.weight) == (len(targets), 1)
    assert ce.total.item() == pytest.approx(expected, rel=1e-5)

    def before(event: int) -> Array:
        return state_after(items[int(data.first[event]) : event][-LENGTH:], model)

    chosen = list(range(len(targets))) if drawn.one is None else drawn.one
    assert (drawn.one is None) == (mode == "prefixes")
    assert len(chosen) == len(batch.items)
    same = [targets[n] for n in chosen]
    if ssl_type == "un":  # which compares nothing with it
        assert not drawn.others
    else:
        pairs_of_events = zip(chosen, drawn.others, strict=True)
        assert any(other != int(batch.events[n]) for n, other in pairs_of_events)
        assert [items[event] for event in drawn.others] == same
    h = [states[n] for n in chosen]
    again = [before(int(batch.events[n])) for n in chosen]  # h', which no dropout changes here
    meant = [before(event) for event in drawn.others]
    pairs = {
        "un": {"un": (h, again, 0.3)},
        "su": {"su": (h, meant, 0.7)},
        "us": {"un": (h, again, 0.3), "su": (h, meant, 0.7)},
        "us_x": {"us_x": (again, meant, 0.7)},
    }[ssl_type]
    assert set(terms) == set(pairs)
    for name, (first, second, weight) in pairs.items():
        assert (terms[name].count, terms[name].weight) == (2 * len(chosen), weight)
        wanted = info_nce(first, second, model, same)
        assert terms[name].total.item() == pytest.approx(wanted, rel=1e-5)
