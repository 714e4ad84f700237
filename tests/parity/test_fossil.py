"""FOSSIL against its equations, one candidate at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reference import weights_of
from seqtune.model import Batch, History, Model, Sequences
from seqtune.models.fossil import FOSSIL

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
VARIANTS: list[dict[str, Any]] = [
    {},
    {"order_len": 1, "alpha": 1.0},
    {"order_len": 9, "alpha": 0.0},
    {"tie_weights": True},
    {"item_bias": False},
    {"history": "all"},
    {"history": "all", "tie_weights": True, "item_bias": False},
]


def slow_score(
    model: FOSSIL, user: int, items: list[int], candidate: int, summed: list[int] | None = None
) -> float:
    """The score of a candidate after ``items``; ``summed`` are those of the long-term term."""
    p, w = model.params, weights_of(model)
    history, candidates = w["item_embedding.weight"], w["item_embedding.weight"]
    if not p.tie_weights:
        candidates = w["output_embedding.weight"]
    n = items[-p.max_seq_len :] if summed is None else summed
    if p.history == "all":
        n = [j for j in n if j != candidate]
    state = np.zeros(p.embedding_size)
    for j in n:
        state += history[j] / len(n) ** p.alpha
    for k in range(1, p.order_len + 1):
        if k <= len(items[-p.max_seq_len :]):
            eta = w["eta"][k - 1]
            if user < N_USERS:
                eta = eta + w["user_eta.weight"][user, k - 1]
            state += eta * history[items[-k]]
    bias = w["bias"][candidate] if p.item_bias else 0.0
    return float(state @ candidates[candidate] + bias)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def slow_loss(kind: str, s: float, others: list[float], every: list[float], t: float) -> float:
    """The loss of a target from its score, those of its negatives, and those of all items."""
    k = 3  # negatives drawn, some of them rejected
    if kind == "ce":
        return math.log(sum(map(math.exp, every))) - s
    if kind == "sampled_softmax":
        return math.log(sum(map(math.exp, [s, *others]))) - s
    if kind == "bpr":
        return -sum(log_sigmoid(s - x) for x in others) / max(1, len(others))
    hidden = -sum(log_sigmoid(-x) for x in others)
    if kind == "bce":
        return hidden - log_sigmoid(s)
    beta = 1 - t * (1 - k / (N_ITEMS - 1))
    return (hidden - beta * log_sigmoid(s)) / (k + 1)


def made(data: Sequences, randomise: Callable[[Model], None], **values: Any) -> FOSSIL:
    small = {"embedding_size": 5, "max_seq_len": LENGTH, "neg_samples": 3}
    model = FOSSIL(FOSSIL.Params.model_validate(small | values), N_ITEMS, N_USERS)
    randomise(model)
    model.prepare(data)
    return model


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_scores(
    values: dict[str, Any], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model = made(data, randomise, **values).eval()
    histories = [[3], [5, 9], [1, 2, 1], [4, 4, 4, 4], [7, 1, 16, 2, 9, 7]]
    users = [0, 8, 3, 9, 12]  # two strangers
    rows = torch.tensor([h + [0] * (LENGTH - len(h)) for h in histories])
    history = History(torch.tensor(users), rows, torch.tensor([len(h) for h in histories]))
    scores = model.score(history)
    for row, (user, items) in enumerate(zip(users, histories, strict=True)):
        for i in range(1, N_ITEMS + 1):
            wanted = slow_score(model, user, items, i)
            assert scores[row, i].item() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("train_mode", ["rows", "prefixes"])
@pytest.mark.parametrize("loss_type", ["bpr", "sampled_softmax", "bce", "gbce", "ce"])
@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_loss(
    values: dict[str, Any],
    loss_type: str,
    train_mode: str,
    data: Sequences,
    make_batch: Callable[[Any], Batch],
    randomise: Callable[[Model], None],
) -> None:
    if loss_type == "ce" and values.get("history") == "all":
        pytest.skip("refused")
    values = values | {"train_mode": train_mode, "loss_type": loss_type}
    model = made(data, randomise, **values)
    p, batch = model.params, make_batch(model.params)
    negatives: list[list[int]] = [[]] * len(batch.targets)
    if loss_type != "ce":
        drawn = model.negatives(batch, torch.Generator().manual_seed(7))
        assert drawn.rejected is not None
        rows = zip(drawn.items.tolist(), drawn.rejected.tolist(), strict=True)
        negatives = [[j for j, out in zip(*row, strict=True) if not out] for row in rows]
    last = {int(data.users[e]): e for e in sorted(data.targets.tolist())}
    total = 0.0
    for n, event in enumerate(batch.events.tolist()):
        user, first = int(data.users[event]), int(data.first[event])
        # In rows mode a history begins with its row.
        begin = first if train_mode == "prefixes" else max(first, last[user] - LENGTH)
        items = data.items[max(begin, event - LENGTH) : event].tolist()
        summed = None
        if p.history == "all":
            summed = data.items[max(first, last[user] + 1 - LENGTH) : last[user] + 1].tolist()

        target = int(data.items[event])
        wanted = range(1, N_ITEMS + 1) if loss_type == "ce" else [target, *negatives[n]]
        scores = {i: slow_score(model, user, items, i, summed) for i in wanted}
        others = [scores[j] for j in negatives[n]]
        total += slow_loss(loss_type, scores[target], others, list(scores.values()), p.gbce_t)
    (term,) = model(batch, torch.Generator().manual_seed(7)).values()
    assert term.count == len(batch.targets)
    assert term.total.item() == pytest.approx(total, rel=1e-5)
