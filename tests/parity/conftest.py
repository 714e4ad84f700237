"""What the parity tests share: ragged data, batches of it, and weights in which nothing hides.

Each test compares a model with a slow reference that was written from the equations alone, with
loops and in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seqtune import batches
from seqtune.data import Dataset, Split, leave_one_out
from seqtune.model import Batch, Model, Sequences
from seqtune.negatives import Negatives, Sampler
from seqtune.params import Trained

N_ITEMS, N_USERS, LENGTH = 17, 9, 6  # models here have max_seq_len LENGTH


@pytest.fixture(scope="session")
def split() -> Split:
    """Nine users with 3 to 11 items, so 1 to 9 training events; some meet an item twice."""
    rng = np.random.default_rng(5)
    counts = np.arange(3, 3 + N_USERS)
    dataset = Dataset(
        name="ragged",
        items=rng.integers(1, N_ITEMS + 1, counts.sum()).astype(np.int32),
        offsets=np.concatenate([[0], counts.cumsum()]),
        times=1_600_000_000_000 + rng.integers(0, 10**9, counts.sum()).cumsum(),
        user_ids=np.arange(N_USERS),
        item_ids=np.arange(1, N_ITEMS + 1),
    )
    return leave_one_out(dataset)


@pytest.fixture(scope="session")
def data(split: Split) -> Sequences:
    """The same, as models index it, with times."""
    return batches.sequences(split, torch.device("cpu"), times=True)


@pytest.fixture(scope="session")
def make_batch(split: Split, data: Sequences) -> Callable[[Trained], Batch]:
    """Returns a function from hyperparameters to one batch with all training windows."""

    def make(params: Trained) -> Batch:
        windows = batches.windows(split, params)
        (batch,) = batches.epoch(windows, data, batch_size=1000, seed=(0, 0))
        return batch

    return make


@pytest.fixture(scope="session")
def randomise() -> Callable[[Model], None]:
    """Returns a function that draws every weight anew, biases and gains too; padding stays 0."""

    @torch.no_grad()
    def draw(model: Model) -> None:
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.normal_(0, 0.4, generator=generator)
        for part in model.modules():
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0

    return draw


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Negatives]:
    """Returns a list of the negatives that the test's losses draw, in order."""
    found: list[Negatives] = []
    draw = Sampler.draw

    def remember(*args: Any, **kwargs: Any) -> Negatives:
        found.append(draw(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(Sampler, "draw", remember)
    return found
