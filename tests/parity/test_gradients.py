"""The training step against the plain formulation: the loss, and the gradient of every weight.

Plain is one history at a time without padding, every score of every target at once, and torch's own
functions. What makes the step fast must not change it: trimmed batches, states at targets alone,
the last block's last query, losses made in parts, shared negatives as matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqtune import batches
from seqtune.data import Split
from seqtune.model import Batch, Encoder, History, Model, Sequences, model_class
from seqtune.negatives import Negatives
from seqtune.params import Trained

LOSSES = ["ce", "sampled_softmax", "bce", "bpr", "gbce"]
SHARINGS = ["position", "row", "batch"]
SIZES: dict[str, Any] = {"embedding_size": 8, "max_seq_len": 6, "n_layers": 2, "n_heads": 2}
SIZES |= {"inner_size": 12, "dropout_prob": 0.0, "neg_samples": 4}


def plain(model: Encoder, batch: Batch, negatives: Negatives | None) -> Tensor:
    """The loss of a batch, a target at a time."""
    p, width, total = model.params, batch.items.shape[1], torch.zeros(())
    kind = p.model_dump()["loss_type"]
    table, bias = model.output()
    for n, (where, target) in enumerate(zip(batch.where.tolist(), batch.targets, strict=True)):
        row, step = divmod(where, width)
        one = slice(row, row + 1)
        items = batch.items[one, : int(batch.lengths[row])]
        state = model.encode(History(batch.users[one], items, batch.lengths[one]))[0, step]
        scores = table @ state
        scores = scores if bias is None else scores + bias
        if kind == "ce":
            total = total - scores[1 : model.n_items + 1].log_softmax(0)[target - 1]
            continue
        assert negatives is not None
        drawn = {"position": n, "row": row, "batch": slice(None)}[negatives.sharing]
        wrong = [i for i in negatives.items[drawn].tolist() if i != int(target)]
        own, other = scores[target], scores[wrong]
        if kind == "sampled_softmax":
            total = total - torch.cat([own[None], other]).log_softmax(0)[0]
        elif kind == "bpr":
            total = total - F.logsigmoid(own - other).mean()
        else:
            beta = 1 - p.gbce_t * (1 - 4 / (model.n_items - 1)) if kind == "gbce" else 1.0
            each = -beta * F.logsigmoid(own) - F.logsigmoid(-other).sum()
            total = total + (each / 5 if kind == "gbce" else each)
    return total


@pytest.mark.parametrize("name", ["sasrec", "esasrec"])
@pytest.mark.parametrize("mode", ["rows", "prefixes"])
@pytest.mark.parametrize(
    ("loss_type", "sharing"),
    [("ce", "row"), *((kind, sharing) for kind in LOSSES[1:] for sharing in SHARINGS)],
)
def test_loss_and_gradients_are_those_of_the_plain_formulation(
    name: str,
    mode: str,
    loss_type: str,
    sharing: str,
    split: Split,
    data: Sequences,
    randomise: Callable[[Model], None],
    drawn: list[Negatives],
) -> None:
    kind = model_class(name)
    own = {"train_mode": mode, "loss_type": loss_type, "neg_sharing": sharing}
    params: Trained = kind.Params(**SIZES, **own)
    model = kind(params, data.n_items, data.n_users)
    assert isinstance(model, Encoder)
    randomise(model)
    model.prepare(data)
    model.train()
    weights = dict(model.named_parameters())
    windows = batches.windows(split, params)
    for batch in batches.epoch(windows, data, batch_size=4, seed=(0, 0)):  # of several widths
        drawn.clear()
        total = model(batch, torch.Generator().manual_seed(0))[loss_type].total
        expected = plain(model, batch, drawn[0] if drawn else None)
        torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
        count = len(batch.targets)
        ours, theirs = (
            torch.autograd.grad(loss / count, list(weights.values()), allow_unused=True)
            for loss in (total, expected)
        )
        for label, found, wanted in zip(weights, ours, theirs, strict=True):
            if wanted is None:
                assert found is None or not found.any(), label
            else:
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=label)
