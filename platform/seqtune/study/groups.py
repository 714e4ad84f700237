"""For whom a model is good: the metric over groups of users, and over groups of their items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtune.data import Split
from seqtune.metrics import Ranks, per_list
from seqtune.results import Group
from seqtune.significance import holm, welch

PARTS = 4  # of the users, about equal
FEWEST = 10  # lists of a group that is tested: the variance of fewer is not known


def groups(split: Split, metric: str, systems: Mapping[str, Ranks]) -> tuple[Group, ...]:
    """Returns the test metric by groups of users and of their items.

    They are those of the data, if it names any; by the length of histories; by how popular test
    items are, and whether any training event has them. ``systems`` has the ranks of the test items,
    by the name of who ranked them; of the first it is tested whether a group differs from all
    others. Of several items in a list the first one counts.
    """
    if not systems:
        return ()
    dataset, held = split.dataset, split.test.take(split.test.lists)
    history = held.ends - dataset.offsets[held.users]
    popularity = split.counts()[dataset.items[held.events] - 1]
    masks = dict[str, NDArray[np.bool_]]()
    if dataset.groups is not None:
        of = dataset.groups[held.users]
        masks |= {f"group {name}": of == k for k, name in enumerate(dataset.group_names)}
    masks |= _parts("history of {} events", history)
    cold = popularity == 0
    masks["test item without a training event"] = cold
    masks |= _parts("test item with {} training events", popularity, ~cold)
    values = {name: per_list(metric, ranks) for name, ranks in systems.items()}
    first = next(iter(values.values()))
    masks = {name: inside for name, inside in masks.items() if inside.any()}
    tested = {
        name: welch(*(_by_user(first[some], held.users[some]) for some in (inside, ~inside)))
        for name, inside in masks.items()
    }
    enough = {name: p for name, (_, p) in tested.items() if masks[name].sum() >= FEWEST}
    corrected = dict(zip(enough, holm(list(enough.values())), strict=True))
    return tuple(
        Group(
            name,
            int(inside.sum()),
            {who: float(own[inside].mean()) for who, own in values.items()},
            tested[name][0],
            corrected.get(name),
        )
        for name, inside in masks.items()
    )


def _by_user(values: NDArray[np.floating[Any]], users: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the mean of each user's lists, which go together: (U,)."""
    if not len(users):
        return np.empty(0)
    _, first, n = np.unique(users, return_index=True, return_counts=True)
    return np.add.reduceat(np.asarray(values, np.float64), first) / n


def _parts(
    words: str, number: NDArray[np.int64], some: NDArray[np.bool_] | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Returns groups of about equal size of ``some``, by a number that each list has."""
    some = np.ones(len(number), bool) if some is None else some
    if not some.any():
        return {}
    edges = np.unique(np.quantile(number[some], np.arange(1, PARTS) / PARTS, method="lower"))
    place = np.searchsorted(edges, number, side="left")
    found = {}
    for part in np.unique(place[some]):
        inside = some & (place == part)
        least, most = int(number[inside].min()), int(number[inside].max())
        span = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        found[words.format(span)] = inside
    return found
