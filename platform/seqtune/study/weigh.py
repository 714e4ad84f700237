"""What a model costs: its weights, and the time in which it answers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from seqtune.data import Dataset, Split
from seqtune.limits import Judge
from seqtune.study.plan import trial_params

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seqtune.checkpoint import Recommender

REQUESTS = 50  # that are answered, to see how long one takes
KNOWN_BEFORE = ("parameters", "megabytes")  # a training begins


def weigh(model: Any, dataset: Dataset, split: Split) -> dict[str, float]:
    """Returns the costs of a model before its training, which does not change them."""
    import torch

    from seqtune.checkpoint import Recommender

    where = next((one.device for one in model.state_dict().values()), torch.device("cpu"))
    counts, was_training = split.counts(), model.training
    ids = np.arange(1, dataset.n_items + 1)
    recommender = Recommender(model.eval(), ids, counts, True, {}, where)
    milliseconds = request_ms(recommender, dataset)
    model.train(was_training)
    return _size(model) | {"ms_per_request": milliseconds}


def request_ms(recommender: Recommender, dataset: Dataset) -> float:
    """Returns the milliseconds in which one user is answered: the median of some."""
    times = list[float]()
    step = max(1, dataset.n_users // REQUESTS)
    for user in range(0, dataset.n_users, step):
        span = slice(dataset.offsets[user], dataset.offsets[user + 1])
        history = dataset.items[span].astype(np.int64)
        began = time.perf_counter()
        recommender.rank([history])
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def megabytes(weights: Mapping[str, Tensor]) -> float:
    """Returns the size of weights."""
    return sum(one.numel() * one.element_size() for one in weights.values()) / 1e6


def fits(judge: Judge, n_items: int, n_users: int) -> Callable[[str, Mapping[str, Any]], bool]:
    """Returns what says of a model and a point whether its size keeps the limits.

    Nothing is allocated: the model is built on the device ``meta``.
    """
    known = Judge(limits=tuple(one for one in judge.limits if one.name in KNOWN_BEFORE))

    def within(name: str, values: Mapping[str, Any]) -> bool:
        if not known.limits:
            return True
        import torch

        from seqtune.model import model_class

        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = model_class(name)(trial_params(name, dict(values)), n_items, n_users)
        return not known.over(_size(model))

    return within


def _size(model: nn.Module) -> dict[str, float]:
    weights = sum(one.numel() for one in model.parameters())
    return {"parameters": float(weights), "megabytes": megabytes(model.state_dict())}
