"""The weights of a checkpoint as the first weights of a model whose catalogue has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqtune.checkpoint import Recommender
from seqtune.model import Model


def numbers(recommender: Recommender, item_ids: Sequence[Any]) -> NDArray[np.int64]:
    """Returns the number in a checkpoint's catalogue of each item of another: (I + 1,).

    0 stands for one that it does not know, and for the padding before all.
    """
    return np.array([0, *(recommender.number(own) or 0 for own in item_ids)], np.int64)


def first_weights(
    recommender: Recommender, catalogue: NDArray[np.int64]
) -> Callable[[nn.Module], None]:
    """Returns what gives a model of the same hyperparameters the weights of a checkpoint.

    ``catalogue`` are the ``numbers`` of the new model's items. Items that the checkpoint knows get
    their vectors, and others keep those that they were given. So do users: a checkpoint does not
    say who they are.
    """
    known, old = torch.from_numpy(catalogue), recommender.model

    @torch.no_grad()
    def begin(model: nn.Module) -> None:
        assert isinstance(model, Model)
        by_item, by_user = _grows(old, items=1), _grows(old, users=1)
        before = dict(old.named_parameters())
        for name, weight in model.named_parameters():
            if name in by_user:
                continue
            if name in by_item:
                _carry(before[name], weight, known.to(weight.device), old.n_items)
            else:
                weight.copy_(before[name])

    return begin


def _carry(before: Tensor, now: Tensor, known: Tensor, n_items: int) -> None:
    """Copies the rows of known items, and those before and after all items: (1 + I + S, ...)."""
    rows = known.nonzero().squeeze(1)
    now[rows] = before[known[rows]].to(now.device)
    now[0] = before[0]
    now[len(known) :] = before[n_items + 1 :]


def _grows(model: Model, items: int = 0, users: int = 0) -> set[str]:
    """Returns the names of the parameters that have another shape with more items or users."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        larger = type(model)(model.params, model.n_items + items, model.n_users + users)
    now = {name: weight.shape for name, weight in model.named_parameters()}
    return {name for name, weight in larger.named_parameters() if weight.shape != now[name]}
