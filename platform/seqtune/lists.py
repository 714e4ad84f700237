"""Metrics of what is recommended, whatever the held-out items are: beyond accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqtune.data.split import Held, Split, within

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Direction = Literal["higher", "lower", "neither"]
HEAD = 0.8  # of all events: what the items of the head have
THIRDS = (0.2, 0.8)  # of all events, where popular items end and rare ones begin
LOOKED_AT = 2000  # lists, in which pairs are compared
ASKED = 2**16  # users, whose items say what is alike
BYTES = 2**24  # compared at once


@dataclass(frozen=True, eq=False)
class Known:
    """What lists are held against: training events, and the histories before Q lists."""

    split: Split
    held: Held  # (Q,) a target of each list

    @cached_property
    def counts(self) -> Ints:
        """The training events of each item: (I,)."""
        return self.split.counts()

    @cached_property
    def percentile(self) -> Floats:
        """The popularity percentile of each item, 0 rarest and 1 most popular: (I,).

        Items that are equally popular share the middle of their places.
        """
        _, group, sizes = np.unique(self.counts, return_inverse=True, return_counts=True)
        middle = np.cumsum(sizes) - (sizes + 1) / 2  # of the places, from 0
        found: Floats = middle[group] / max(len(self.counts) - 1, 1)
        return found

    @cached_property
    def share_before(self) -> Floats:
        """The share of all events that more popular items have: (I,)."""
        order = np.argsort(-self.counts, kind="stable")
        before = np.empty(len(order))
        before[order] = (np.cumsum(self.counts[order]) - self.counts[order]) / self.counts.sum()
        return before

    @cached_property
    def third(self) -> Ints:
        """Whether an item is popular (0), rare (2) or neither (1): (I,)."""
        return np.digitize(self.share_before, THIRDS)

    @cached_property
    def profiles(self) -> Floats:
        """The shares of the thirds in the history of each list, 0 where there is none: (Q, 3)."""
        data = self.split.dataset
        first, ends = data.offsets[self.held.users], self.held.ends
        third = self.third.astype(np.int8)[data.items - 1]
        found: Floats = np.empty((len(ends), 3))
        for part in range(3):
            until = np.concatenate([[0], np.cumsum(third == part, dtype=np.int32)])
            found[:, part] = until[ends] - until[first]
        found /= np.maximum(found.sum(axis=1, keepdims=True), 1)
        return found

    def alike(self, one: Ints, other: Ints) -> Floats:
        """Returns the cosine of the users who had the items of each pair in training: (P,)."""
        data, ends = self.split.dataset, self.split.train_end
        users = np.arange(0, data.n_users, -(-data.n_users // ASKED))
        row, event = within(data.offsets[:-1][users], ends[users])
        items, place = np.unique(np.concatenate([one, other]), return_inverse=True)
        number = np.full(data.n_items + 1, -1)
        number[items] = np.arange(len(items))
        of = number[data.items[event]]
        inside = of >= 0
        had = np.zeros((len(items), len(users) // 8 + 1), np.uint8)  # a bit for each user
        bits = np.left_shift(1, row[inside] % 8).astype(np.uint8)
        np.bitwise_or.at(had, (of[inside], row[inside] // 8), bits)
        n = np.bitwise_count(had).sum(axis=1, dtype=np.int64)
        both = np.empty(len(one))
        left, right = place[: len(one)], place[len(one) :]
        for some in np.array_split(np.arange(len(one)), max(1, len(one) * had.shape[1] // BYTES)):
            shared = had[left[some]] & had[right[some]]
            both[some] = np.bitwise_count(shared).sum(axis=1, dtype=np.int64)
        found: Floats = both / np.sqrt(np.maximum(n[left] * n[right], 1))
        return found


@dataclass(frozen=True, eq=False)
class Shown:
    """What is recommended: Q lists of k items, of a catalogue of I."""

    top: Ints  # (Q, k) items 1..I, best first
    known: Known

    @cached_property
    def times(self) -> Ints:
        """In how many lists each item stands: (I,)."""
        return np.bincount(self.top.ravel(), minlength=len(self.known.counts) + 1)[1:]


@dataclass(frozen=True)
class ListMetric:
    """A metric at a cut-off of what is recommended."""

    name: str
    value: Callable[[Shown], float]
    meaning: str
    better: Direction = "higher"


def _gini(shown: Shown) -> float:
    shares = np.cumsum(np.sort(shown.times)) / shown.times.sum()
    return float(1 + 1 / len(shares) - 2 * shares.mean())


def _bits(shares: Floats) -> Floats:
    """Returns -p log2 p of each share: the terms of an entropy."""
    return -shares * np.log2(np.where(shares > 0, shares, 1))


def _information(shown: Shown) -> float:
    counts = shown.known.counts
    shares = (counts + 1) / (counts.sum() + len(counts))
    return float(-np.log2(shares)[shown.top - 1].mean())


def _personal(shown: Shown) -> float:
    n, k = shown.top.shape
    shared = (shown.times * (shown.times - 1.0)).sum() / (k * n * max(n - 1, 1))
    return float(1 - shared)


def _similarity(shown: Shown) -> float:
    lists = shown.top[:: -(-len(shown.top) // LOOKED_AT)]
    if lists.shape[1] < 2:
        return 0.0
    one, other = (lists[:, some].ravel() for some in np.triu_indices(lists.shape[1], 1))
    n = len(shown.known.counts) + 1
    pairs, place = np.unique(
        np.minimum(one, other) * n + np.maximum(one, other), return_inverse=True
    )
    return float(shown.known.alike(*np.divmod(pairs, n))[place].mean())


def _calibration(shown: Shown) -> float:
    """Returns the mean Jensen-Shannon divergence between histories and lists, in bits."""
    wanted = shown.known.profiles
    third = shown.known.third[shown.top - 1]
    given = np.stack([(third == part).mean(axis=1) for part in range(3)], axis=1)
    between = _bits((wanted + given) / 2) - (_bits(wanted) + _bits(given)) / 2
    some = wanted.sum(axis=1) > 0
    return float(between.sum(axis=1)[some].mean()) if some.any() else 0.0


LISTS = (
    ListMetric(
        "coverage",
        lambda shown: float((shown.times > 0).mean()),
        "Share of the catalogue that is among the first k of at least one user.",
    ),
    ListMetric(
        "popularity",
        lambda shown: float(shown.known.percentile[shown.top - 1].mean()),
        "Mean popularity percentile of the first k items, 0 rarest and 1 most popular; items that "
        "are equally popular share the middle of their places.",
        better="neither",
    ),
    ListMetric(
        "gini",
        _gini,
        "Gini coefficient of how often items are recommended: 0 where all are alike, near 1 where "
        "few have it all.",
        better="lower",
    ),
    ListMetric(
        "entropy",
        lambda shown: float(_bits(shown.times / shown.times.sum()).sum()),
        "Shannon entropy, in bits, of the same: log2 of the catalogue's size where all are alike.",
    ),
    ListMetric(
        "tail",
        lambda shown: float((shown.known.share_before >= HEAD)[shown.top - 1].mean()),
        "Share of recommendations beyond the most popular items that have 80 % of the events.",
    ),
    ListMetric(
        "novelty",
        _information,
        "Mean self-information of the first k items, in bits: -log2 of an item's share of the "
        "training events, one more added to each.",
    ),
    ListMetric(
        "personal",
        _personal,
        "Personalisation: 1 less the share of the first k items that two lists have in common, in "
        "the mean over all pairs.",
    ),
    ListMetric(
        "similarity",
        _similarity,
        "Intra-list similarity: the cosine of who had two items of a list in training, in the mean "
        f"over all pairs of at most {LOOKED_AT:,} lists.",
        better="neither",
    ),
    ListMetric(
        "calibration",
        _calibration,
        "How far lists are from what users have had so far, by popularity: the Jensen-Shannon "
        "divergence, in bits, of the shares of the most popular items with 20 % of the events, of "
        "the rarest with 20 % and of the others (Abdollahpouri et al., UMAP 2021); 0 is the same.",
        better="lower",
    ),
)
LIST_METRICS = {metric.name: metric for metric in LISTS}


def of_lists(top: Ints, known: Known, names: Iterable[str]) -> dict[str, float]:
    """Returns these metrics, such as ``coverage@10``, of recommended lists.

    ``top`` (Q, K) holds item ids 1..I, best first, with K as large as the largest cut-off.
    """
    shown: dict[int, Shown] = {}
    found = {}
    for full in names:
        name, _, k = full.partition("@")
        at = shown.setdefault(int(k), Shown(top[:, : int(k)], known))
        found[full] = LIST_METRICS[name].value(at)
    return found


def of_these(names: Iterable[str]) -> list[str]:
    """Returns those names that are of lists."""
    return [name for name in names if name.partition("@")[0] in LIST_METRICS]


def longest(names: Iterable[str]) -> int:
    """Returns the largest cut-off of those names that are of lists, or 0."""
    return max((int(name.partition("@")[2]) for name in of_these(names)), default=0)
