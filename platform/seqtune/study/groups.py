"""For whom a model is good: the metric over groups of users, and over groups of their items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtune.data import Split
from seqtune.metrics import Ranks, per_list
from seqtune.results import Group

PARTS = 4  # of the users, about equal


def groups(split: Split, metric: str, systems: Mapping[str, Ranks]) -> tuple[Group, ...]:
    """Returns the test metric by the length of histories, and by how popular test items are.

    ``systems`` has the ranks of the test items, by the name of who ranked them. Of several items in
    a list the first one counts.
    """
    if not systems:
        return ()
    dataset, held = split.dataset, split.test.take(split.test.lists)
    history = held.ends - dataset.offsets[held.users]
    popularity = split.counts()[dataset.items[held.events] - 1]
    values = {name: per_list(metric, ranks) for name, ranks in systems.items()}
    found = [
        *_parts("history of {} events", history, values),
        *_parts("test item with {} training events", popularity, values),
    ]
    return tuple(found)


def _parts(
    words: str, number: NDArray[np.int64], values: Mapping[str, NDArray[np.floating[Any]]]
) -> Iterator[Group]:
    """Yields groups of about equal size, by a number that each user has."""
    edges = np.unique(np.quantile(number, np.arange(1, PARTS) / PARTS, method="lower"))
    place = np.searchsorted(edges, number, side="left")
    for part in np.unique(place):
        inside = place == part
        least, most = int(number[inside].min()), int(number[inside].max())
        span = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        means = {name: float(own[inside].mean()) for name, own in values.items()}
        yield Group(words.format(span), int(inside.sum()), means)
