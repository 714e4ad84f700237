"""Floors: what counting reaches on the same split, by the same rules, as a trained model.

Four recommenders are counted on the training events alone:

- ``popularity`` ranks the items by their number of events.
- ``markov`` ranks them by how often they came next after the last item of the history.
- ``decayed markov`` adds up what followed each of the last items, however many events later:
  with k and l of at most ``LAGS``, s(i) = sum_k DECAY^(k-1) * P(i | k-th last item), where
  P(i | j) is proportional to sum_l DECAY^(l-1) * #(i came l events after j).
- ``item-knn`` adds up, with the same weights, how like an item is to each of the last items: the
  cosine of who had them among their last ``RECENT`` training events, of the ``NEIGHBOURS`` nearest
  of each (Sarwar et al., WWW 2001), to which an item itself belongs.

In all four, items with equal scores are ranked by popularity, and those without any score come
last. The rank is that of ``evaluate``: the whole catalogue competes, what still ties counts half,
seen items may be left out but never the target, and the history of a test target holds the
validation item.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqtune import metrics
from seqtune.data.split import Held, Split, within

if TYPE_CHECKING:  # scipy takes a moment that --help should not wait for
    from scipy.sparse import csr_array

LAGS, DECAY = 13, 0.7  # the weight of the last lag is 1 %
RECENT, NEIGHBOURS = 50, 100
CELLS = 2**21  # scores held at once: about 100 MB with all that is computed from them
DENSE = 2**24  # cells of a table that is mostly filled, up to which it is a plain array
ITEMS = 2**11  # whose neighbours are looked for at once

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Way:
    """A way of counting: what is counted, and how much each of the last items says."""

    name: str
    table: Callable[[Split], Any]  # what an item says of others: (I + 1, I + 1), plain or sparse
    last: int  # so many of a history are asked


@dataclass(frozen=True)
class Floor:
    """What one way of counting reaches."""

    name: str
    valid: dict[str, float]  # metric at cut-off -> value, over the users that validate
    test: dict[str, float]
    test_ranks: metrics.Ranks  # in the order of split.test
    seconds: float


def floors(split: Split, *, mask_seen: bool, metric: str = "") -> list[Floor]:
    """Counts all four; ``metric`` is given beside those at the usual cut-offs.

    Takes seconds, no torch, and memory that grows with the data and not with users times items.
    """
    found = []
    for way in WAYS:
        began = time.monotonic()
        table = way.table(split)
        with ThreadPoolExecutor(2) as pool:
            valid, test = pool.map(
                partial(rank, split, way=way, table=table, mask_seen=mask_seen),
                (split.valid, split.test),
            )
        of_valid, of_test = (
            metrics.compute(ranks, also=[metric] * bool(metric)) for ranks in (valid, test)
        )
        found.append(Floor(way.name, of_valid, of_test, test, time.monotonic() - began))
    return found


def logged(found: Sequence[Floor]) -> dict[str, float]:
    """Returns what floors reach on test, by the names that MLflow has for it."""
    return {
        f"floor/{floor.name.replace(' ', '_')}/{name}": value
        for floor in found
        for name, value in floor.test.items()
    }


def transitions(split: Split, lags: int) -> Any:
    """Returns P(i | j) in row j, counted at lags 1 to ``lags``: (I + 1, I + 1).

    A row adds up to 1, or to 0 where nothing ever followed the item.
    """
    from scipy.sparse import csr_array, diags_array

    data = split.dataset
    n = data.n_items + 1
    left = np.repeat(split.train_end, np.diff(data.offsets)) - np.arange(data.n_interactions)

    def pairs(lag: int) -> tuple[Ints, Ints]:
        first = np.flatnonzero(left > lag)  # events whose user trains on one ``lag`` later
        return data.items[first], data.items[first + lag]

    if n * n <= min(DENSE, lags * data.n_interactions):
        filled = np.zeros((n, n))
        for lag in range(1, lags + 1):
            before, after = pairs(lag)
            np.add.at(filled.ravel(), before * n + after, DECAY ** (lag - 1))
        return filled / np.maximum(filled.sum(axis=1, keepdims=True), DECAY**lags)
    counts = csr_array((n, n))
    for lag in range(1, lags + 1):
        cells = pairs(lag)
        counts += csr_array((np.full(len(cells[0]), DECAY ** (lag - 1)), cells), (n, n))
    total = counts.sum(axis=1)
    return csr_array(diags_array(1 / np.where(total > 0, total, 1)) @ counts)


def neighbours(split: Split) -> csr_array:
    """Returns the cosines of each item with those that are nearest to it: (I + 1, I + 1)."""
    from scipy.sparse import csr_array, vstack

    data = split.dataset
    n = data.n_items + 1
    user, event = within(np.maximum(data.offsets[:-1], split.train_end - RECENT), split.train_end)
    user, item = np.divmod(np.unique(user * n + data.items[event]), n)
    each = np.bincount(item, minlength=n)
    length = 1 / np.sqrt(np.maximum(each, 1))
    had = csr_array((length[item], (user, item)), (data.n_users, n))
    whose = csr_array(had.T)
    parts = []
    for start in range(0, n, ITEMS):
        some = csr_array(whose[start : start + ITEMS] @ had)
        for row in np.flatnonzero(np.diff(some.indptr) > NEIGHBOURS):
            cosines = some.data[some.indptr[row] : some.indptr[row + 1]]
            cosines[np.argpartition(-cosines, NEIGHBOURS)[NEIGHBOURS:]] = 0
        some.eliminate_zeros()
        parts.append(some)
    return csr_array(vstack(parts))


def _nothing(split: Split) -> csr_array:
    """Returns an empty table: all items tie, and popularity decides."""
    from scipy.sparse import csr_array

    n = split.dataset.n_items + 1
    return csr_array((n, n))


CHAIN = Way("decayed markov", lambda split: transitions(split, LAGS), LAGS)
POPULARITY = "popularity"
WAYS = (
    Way(POPULARITY, _nothing, 0),
    Way("markov", lambda split: transitions(split, 1), 1),
    CHAIN,
    Way("item-knn", neighbours, LAGS),
)


def rank(split: Split, held: Held, way: Way, table: Any, *, mask_seen: bool) -> metrics.Ranks:
    """Ranks the held-out items by a table of this way of counting: (M,)."""
    from scipy.sparse import csr_array

    data, counts = split.dataset, np.concatenate([[0], split.counts()])
    plain = isinstance(table, np.ndarray)
    if data.candidates is not None:  # others have no score and a count below all
        ranked = np.concatenate([[True], data.candidates])
        table, counts = table * ranked, np.where(ranked, counts, -1)
        table = table if plain else csr_array(table)
    ladder = np.sort(counts[1:])
    first, ends = data.offsets[held.users], held.ends
    ranks = np.empty(len(held.users), np.float32)
    for rows in _blocks(split, held, table, way.last):
        target = data.items[held.events[rows]]
        shape = (len(target), data.n_items + 1)
        row, event = within(np.maximum(first[rows], ends[rows] - way.last), ends[rows])
        weights = DECAY ** (ends[rows][row] - event - 1)
        scores = csr_array((weights, (row, data.items[event])), shape) @ table
        out = np.empty(0, np.int64), np.empty(0, np.int64)
        if mask_seen:
            out = split.seen(held, rows)
        if plain:
            ranks[rows] = _ranks_of_all(scores, out, target, counts)
        else:
            ranks[rows] = _ranks(scores, out, target, counts, ladder)
    return metrics.of_held(ranks, held)


def _ranks_of_all(
    scores: Floats, out: tuple[Ints, Ints], target: Ints, counts: Ints
) -> NDArray[np.float64]:
    """Returns the rank of each row's target where all items have a score: (B,).

    As ``_ranks`` does, which is for rows that are mostly empty.
    """
    own = scores[np.arange(len(target)), target]
    leads = np.sign(scores - own[:, None])
    row, item = np.nonzero(leads == 0)
    leads[row, item] = np.sign(counts[item] - counts[target[row]])
    leads[out] = -1
    ranks: NDArray[np.float64] = (len(counts) + leads[:, 1:].sum(axis=1)) / 2
    return ranks


def _ranks(
    scores: csr_array, out: tuple[Ints, Ints], target: Ints, counts: Ints, ladder: Ints
) -> NDArray[np.float64]:
    """Returns the rank of each row's target by scores (B, I + 1): (B,).

    Competitors lead the target (1), tie with it (0) or trail (-1), by score and then by count;
    the rank is (n + 1 + sum of the leads) / 2. Most have no score, and are not looked at. The
    cells (row, item) that are out of the race trail, whatever they have.
    """
    n_rows, n_items = scores.shape[0], len(ladder)
    own = _at(scores, np.arange(n_rows), target)
    n_scored = np.diff(scores.indptr)
    limit = np.repeat(own, n_scored)

    def by_count(row: Ints, item: Ints) -> NDArray[np.float64]:
        signs: NDArray[np.float64] = np.sign(counts[item] - counts[target[row]]).astype(np.float64)
        return signs

    def added(row: Ints, leads: Any) -> NDArray[np.float64]:
        return np.bincount(row, leads, n_rows).astype(np.float64)

    # Where the target has a score, all without one trail, and what ties is seen by its count.
    higher = np.concatenate([[0], np.cumsum(scores.data > limit)])
    above = np.diff(higher[scores.indptr])
    even = np.flatnonzero(scores.data == limit)
    row = np.searchsorted(scores.indptr, even, "right") - 1
    leads = 2 * above - n_items + added(row, 1 + by_count(row, scores.indices[even]))
    # Where it has none, all with one lead, and the others are as their counts say.
    bare = own == 0
    by_counts = n_items - np.searchsorted(ladder, counts[target], "right")
    by_counts -= np.searchsorted(ladder, counts[target])
    row = np.repeat(np.arange(n_rows), np.where(bare, n_scored, 0))
    item = scores.indices[np.repeat(bare, n_scored)]
    leads = np.where(bare, by_counts + added(row, 1 - by_count(row, item)), leads)
    ahead = np.sign(_at(scores, *out) - own[out[0]])
    leads += added(out[0], -1 - np.where(ahead == 0, by_count(*out), ahead))
    ranks: NDArray[np.float64] = (n_items + 1 + leads) / 2
    return ranks


def _at(scores: csr_array, row: Ints, item: Ints) -> NDArray[np.float64]:
    """Returns the scores of some cells; looks them up in a table where most cells have one."""
    if not len(row):
        return np.empty(0)
    table = scores.toarray() if 9 * scores.nnz > scores.shape[0] * scores.shape[1] else scores
    return np.asarray(table[row, item]).ravel()


def _blocks(split: Split, held: Held, table: Any, last: int) -> Iterator[slice]:
    """Cuts the rows where scores and histories would fill the memory."""
    first, ends = split.dataset.offsets[held.users], held.ends
    row, event = within(np.maximum(first, ends - last), ends)
    n = table.shape[0]
    each = np.full(n, n) if isinstance(table, np.ndarray) else np.diff(table.indptr)
    followers = each[split.dataset.items[event]]
    scored = np.bincount(row, weights=followers, minlength=len(first))
    cells = np.cumsum(np.minimum(scored, n) + ends - first)
    start = 0
    while start < len(cells):
        room = CELLS + (cells[start - 1] if start else 0)
        end = max(start + 1, int(np.searchsorted(cells, room, "right")))
        yield slice(start, end)
        start = end
