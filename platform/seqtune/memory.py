"""How much memory a training takes on its device, before it has begun.

What grows with the catalogue is known from the shapes of the weights: the weights, their gradients
and what the optimizer keeps of each. What grows with a batch is what autograd keeps of a step: that
is counted in a step of a few windows of some of the data, and multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from seqtune import batches
from seqtune.data import Dataset, Protocol
from seqtune.data.split import leave_out
from seqtune.errors import UserError
from seqtune.evaluate import ROWS, SCORES
from seqtune.losses import logits_bytes
from seqtune.model import Model, model_class
from seqtune.params import Params, Trained, training

SAMPLE = 100_000  # events of the users that the counted step is of
ITEMS = 1_000  # that there are then at least: some losses want many to choose from
FEW, MORE = 8, 24  # windows of the two steps that are counted
FLOAT = 4  # bytes
SLACK = 1.25  # what the allocator cannot use, and what a backward pass holds for a moment


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes at its peak, by what for."""

    bare: int  # weights, a gradient and the optimizer's state: there is no less
    weights: int  # with what is held of them beside that
    batch: int  # what autograd keeps of a step, and the loss's buffer
    data: int  # the events
    scores: int  # of an evaluation

    @property
    def total(self) -> int:
        """All of it: a step and an evaluation do not happen at once."""
        return int(SLACK * (self.weights + self.data + max(self.batch, self.scores)))

    def __str__(self) -> str:
        parts = {"weights": self.weights, "a batch": self.batch, "data": self.data}
        inner = ", ".join(f"{name} {size(n)}" for name, n in parts.items())
        return f"{size(self.total)} ({inner})"


def size(n: float) -> str:
    """Says a number of bytes: ``1.2 GB``."""
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.0f} MB"


def need(
    model: str,
    params: Params,
    dataset: Dataset,
    protocol: Protocol,
    device: str,
    workers: int = 1,
) -> Need:
    """Estimates what each of ``workers`` processes takes that train a model together on devices."""
    kind, p = model_class(model), training(params)
    weight = FLOAT * weights_of(kind, params, dataset.n_items, dataset.n_users)
    windows = batches.windows(protocol.split(dataset), p)
    rows = windows.batch_size(p) if windows.steps is None else p.batch_size
    each, least = kept_by_a_window(kind, params, dataset)
    return Need(
        bare=copies(p) * weight,
        weights=(copies(p) + 1 + (workers > 1)) * weight,  # and gradients on their way
        batch=int(each * rows / workers + least)
        + logits_bytes(dataset.n_items, torch.device(device)),
        data=dataset.n_interactions * (FLOAT + 8 * kind.uses_times),
        scores=3 * FLOAT * min(ROWS * (dataset.n_items + 1), SCORES),
    )


def copies(p: Trained) -> int:
    """Returns how often each weight is there: itself, its gradient, and the optimizer's moments."""
    return 4 if p.optimizer != "adagrad" or p.momentum else 3


def weights_of(kind: type[Model], params: Params, n_items: int, n_users: int) -> int:
    """Returns the number of weights, without making them."""
    with torch.device("meta"):
        model = kind(params, n_items, n_users)
    return sum(weight.numel() for weight in model.parameters())


def kept_by_a_window(kind: type[Model], params: Params, dataset: Dataset) -> tuple[float, float]:
    """Returns the bytes that autograd keeps of each of the longest windows, and besides.

    Counted for the first users alone, and few items: what a step keeps does not grow with them.
    """
    some = first_users(dataset, 2 * getattr(params, "neg_samples", 0))
    split, p = leave_out(some), training(params)
    windows = batches.windows(split, p)
    data = batches.sequences(split, torch.device("cpu"), times=kind.uses_times)
    with torch.random.fork_rng():
        model = kind(params, some.n_items, some.n_users)
        model.prepare(data)
        model.train()
        longest = np.argsort(windows.start - windows.end, kind="stable")
        few, more = (_kept(model, p, windows, longest[:n], data) for n in (FEW, MORE))
    n = min(MORE, len(longest)) - min(FEW, len(longest))
    each = max(0.0, (more - few) / n) if n else float(few) / max(len(longest), 1)
    return each, max(0.0, few - each * min(FEW, len(longest)))


def _kept(model: Model, p: Trained, windows: Any, index: Any, data: Any) -> int:
    """Returns the bytes that autograd keeps of a step on some windows."""
    if windows.steps is not None:  # sessions have batches of their own
        index = np.arange(min(len(index), windows.steps[1]))
    storages: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    batch = batches.gather(windows, index, data)
    rng = torch.Generator().manual_seed(0)
    with (
        saved_tensors_hooks(note, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, p.precision == "bf16"),
    ):
        model(batch, rng)
    return sum(n for place, n in storages.items() if place not in own)


def first_users(dataset: Dataset, least: int = 0) -> Dataset:
    """Returns the dataset of the first users, with their items and few others, if not ``least``."""
    n_users = max(1, int(np.searchsorted(dataset.offsets, SAMPLE, "right")) - 1)
    events = slice(0, int(dataset.offsets[n_users]))
    own, items = np.unique(dataset.items[events], return_inverse=True)
    return Dataset(
        dataset.name,
        (items + 1).astype(np.int32),
        np.asarray(dataset.offsets[: n_users + 1]),
        np.asarray(dataset.times[events]),
        np.arange(n_users),
        np.arange(max(len(own), min(dataset.n_items, max(ITEMS, least)))),
    )


def check_fits(model: str, params: Params, dataset: Dataset, room: float, where: str) -> None:
    """Refuses a model whose weights alone, with what training holds of them, do not fit.

    Args:
        room: bytes of the device.
        where: what it is: "this machine".

    Raises:
        UserError: it says what would fit.
    """
    kind = model_class(model)
    if not isinstance(params, Trained):
        return

    def bare(size_of_all: int) -> int:
        tried = params.model_copy(update={"embedding_size": size_of_all})
        return FLOAT * copies(params) * weights_of(kind, tried, dataset.n_items, dataset.n_users)

    width: int = params.model_dump()["embedding_size"]
    taken = bare(width)
    if taken <= room:
        return
    smaller = width
    while smaller > 1 and bare(smaller) > room:
        smaller //= 2
    fits = f"--set embedding_size={smaller} would fit"
    if bare(smaller) > room:
        fits = "use --min-item and --min-user to leave rare items and users out"
    raise UserError(
        f"{model} with embedding_size {width} takes at least {size(taken)} for {dataset.n_items:,} "
        f"items and {dataset.n_users:,} users (weights, gradients and what the optimizer keeps of "
        f"each), and {where} has {size(room)}; {fits}"
    )
