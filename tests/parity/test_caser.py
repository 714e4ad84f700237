"""Caser against its equations, one window at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reference import Array, weights_of
from seqtune.model import Batch, History, Model, Sequences
from seqtune.models.caser import Caser

N_ITEMS, N_USERS = 17, 9
VARIANTS: list[dict[str, Any]] = [
    {},
    {"max_seq_len": 1},
    {"max_seq_len": 4, "n_v": 1, "act_conv": "tanh"},
    {"target_len": 1, "act_fc": "tanh"},
    {"user_embedding": False},
    {"tie_weights": True},
    {"tie_weights": True, "user_embedding": False},
]
LOSSES = ["window_bce", "ce", "sampled_softmax", "bce", "bpr", "gbce"]
ACTIVATE: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def slow_scores(model: Caser, user: int, items: list[int]) -> Array:
    """The scores of all items (I + 1,) after the items of one history."""
    p, w = model.params, weights_of(model)
    length, size = p.max_seq_len, p.embedding_size
    window = [0] * max(0, length - len(items)) + items[-length:] if items else [0] * length
    image = np.stack([w["item_embedding.weight"][i] for i in window])  # (L, d)
    outputs = []
    for v in range(p.n_v):
        for c in range(size):
            taps = w["vertical.weight"][v]
            outputs.append(sum(taps[j] * image[j, c] for j in range(length)))
            outputs[-1] += w["vertical.bias"][v]
    for height in range(1, length + 1):
        kernel = w[f"horizontal.{height - 1}.weight"]  # (n_h, d, height)
        bias = w[f"horizontal.{height - 1}.bias"]
        for f in range(p.n_h):
            places = []
            for top in range(length - height + 1):
                value = bias[f]
                for row in range(height):
                    value = value + image[top + row] @ kernel[f, :, row]
                places.append(float(ACTIVATE[p.act_conv](value)))
            outputs.append(max(places))
    z = ACTIVATE[p.act_fc](w["dense.weight"] @ np.array(outputs) + w["dense.bias"])
    if p.user_embedding:
        table = w["user_embedding.weight"]
        z = np.concatenate([z, table[user] if user < N_USERS else table.mean(0)])
    if p.tie_weights:
        z = w["project.weight"] @ z + w["project.bias"]
        scores: Array = w["item_embedding.weight"] @ z
    else:
        scores = w["output_embedding.weight"] @ z + w["item_bias"]
    return scores


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def slow_loss(model: Caser, batch: Batch, data: Sequences, drawn: list[list[int]]) -> float:
    """The mean over windows of the mean over their targets; ``drawn``: negatives of each window."""
    p, total = model.params, 0.0
    last = {int(data.users[e]): e for e in sorted(data.targets.tolist())}
    for event, negatives in zip(batch.events.tolist(), drawn, strict=True):
        user, first = int(data.users[event]), int(data.first[event])
        scores = slow_scores(model, user, data.items[first:event].tolist())
        targets = data.items[event : min(event + p.target_len - 1, last[user]) + 1].tolist()
        each = []
        for target in targets:
            s, others = scores[target], [scores[j] for j in negatives]
            k = p.neg_samples
            beta = 1 - p.gbce_t * (1 - k / (N_ITEMS - 1))
            hidden = -sum(log_sigmoid(-x) for x in others)
            each.append(
                {
                    "window_bce": -log_sigmoid(s) + hidden / max(1, len(others)),
                    "bce": -log_sigmoid(s) + hidden,
                    "gbce": (-beta * log_sigmoid(s) + hidden) / (k + 1),
                    "bpr": -sum(log_sigmoid(s - x) for x in others) / max(1, len(others)),
                    "sampled_softmax": math.log(sum(map(math.exp, [s, *others]))) - s,
                    "ce": math.log(np.exp(scores[1:]).sum()) - s,
                }[p.loss_type]
            )
        total += sum(each) / len(each)
    return total / len(drawn)


def made(data: Sequences, randomise: Callable[[Model], None], **values: Any) -> Caser:
    small = {"embedding_size": 6, "n_h": 3, "n_v": 2, "dropout_prob": 0.0}
    model = Caser(Caser.Params.model_validate(small | values), N_ITEMS, N_USERS)
    randomise(model)
    model.prepare(data)
    return model


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_scores(
    values: dict[str, Any], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model = made(data, randomise, **values).eval()
    histories = [[3], [5, 9], [1, 2, 3], [4, 4, 4, 4], [7, 1, 16, 2, 9], [9, 8, 7, 6, 5, 4, 3, 2]]
    users = [0, 8, 3, 9, 12, 4]  # two strangers
    width = max(map(len, histories))
    rows = torch.tensor([h + [0] * (width - len(h)) for h in histories])
    history = History(torch.tensor(users), rows, torch.tensor([len(h) for h in histories]))
    scores = model.score(history)
    for row, (user, items) in enumerate(zip(users, histories, strict=True)):
        wanted = torch.from_numpy(slow_scores(model, user, items))[1:].float()
        torch.testing.assert_close(scores[row, 1:], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("train_mode", ["rows", "prefixes"])
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("values", [{}, {"target_len": 1}, {"tie_weights": True}], ids=str)
def test_loss(
    values: dict[str, Any],
    loss_type: str,
    train_mode: str,
    data: Sequences,
    make_batch: Callable[[Any], Batch],
    randomise: Callable[[Model], None],
) -> None:
    values = values | {"train_mode": train_mode, "loss_type": loss_type}
    model = made(data, randomise, **values).train()
    batch = make_batch(model.params)
    assert len(batch.targets) == len(data.targets)  # every target once, in both modes
    negatives: list[list[int]] = [[]] * len(batch.targets)
    if loss_type != "ce":
        drawn = model.negatives(batch, torch.Generator().manual_seed(7))
        assert drawn.sharing == "position"
        assert drawn.rejected is not None
        rows = zip(drawn.items.tolist(), drawn.rejected.tolist(), strict=True)
        negatives = [[j for j, out in zip(*row, strict=True) if not out] for row in rows]
    (term,) = model(batch, torch.Generator().manual_seed(7)).values()
    assert term.count == len(data.targets)
    wanted = slow_loss(model, batch, data, negatives)
    assert term.total.item() / term.count == pytest.approx(wanted, rel=1e-5)


def test_long_rows_are_windows(data: Sequences, randomise: Callable[[Model], None]) -> None:
    """Filtering a row once, with a sliding maximum, is filtering each of its windows."""
    model = made(data, randomise).eval()
    items = torch.randint(1, N_ITEMS + 1, (2, 140), generator=torch.Generator().manual_seed(0))
    users = torch.tensor([1, 2])
    states = model.encode(History(users, items, torch.tensor([140, 140])))
    for t in range(140):
        prefix = History(users, items[:, : t + 1], torch.tensor([t + 1, t + 1]))
        torch.testing.assert_close(model.encode_last(prefix), states[:, t], rtol=1e-5, atol=1e-5)
