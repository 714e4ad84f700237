"""Interactions as flat arrays: what every model is trained and evaluated on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqtune.data.strings import Strings
from seqtune.errors import UserError

DAY, YEAR_1973 = 86_400_000, 10**11  # milliseconds
# int64 or uint64, or str: as the file types them.
Ids = NDArray[np.int64] | NDArray[np.uint64] | NDArray[np.object_] | Strings


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Histories of U users with I items, E events in all, users one after another.

    The events of user ``u`` are ``items[offsets[u]:offsets[u + 1]]`` in the order of time; events
    at the same time keep the order of the file. Item 0 is padding and never occurs.

    Plain arrays, so that Ray's object store hands them to every trial without a copy; there they
    are read-only.
    """

    name: str
    items: NDArray[np.int32]  # (E,) 1..I
    offsets: NDArray[np.int64]  # (U + 1,)
    times: NDArray[np.int64]  # (E,) Unix milliseconds
    user_ids: Ids  # (U,) the user's own ids
    item_ids: Ids  # (I,) item k has the own id item_ids[k - 1]
    columns: Mapping[str, str] = field(default_factory=dict)  # of the file: role -> name
    notes: tuple[str, ...] = ()  # what reading did that the user should know, one line each
    best_hit_10: float | None = None  # generated data: the best reachable HR@10 on the test item
    candidates: NDArray[np.bool_] | None = None  # (I,) which items are ranked; None: all
    parts: NDArray[np.int8] | None = None  # (E,) where the data say: 0 trains, 1 validates, 2 tests
    groups: NDArray[np.int16] | None = None  # (U,) index of each user's group in group_names
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("user_ids", "item_ids"):
            if isinstance(ids := getattr(self, name), np.ndarray) and ids.dtype == object:
                object.__setattr__(self, name, Strings(ids))

    def __repr__(self) -> str:
        return f"Dataset({self.describe()})"

    @property
    def n_users(self) -> int:
        """The number of users, U."""
        return len(self.offsets) - 1

    @property
    def n_items(self) -> int:
        """The number of items, I."""
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        """The number of events, E."""
        return len(self.items)

    @property
    def users(self) -> NDArray[np.int64]:
        """The user 0..U-1 of each event: (E,); made anew each time, since it is large."""
        return np.repeat(np.arange(self.n_users), np.diff(self.offsets))

    @cached_property
    def n_repeats(self) -> int:
        """The number of events whose user has met the item before."""
        pairs = np.sort(self.users * (self.n_items + 1) + self.items)
        return int(np.count_nonzero(pairs[1:] == pairs[:-1]))

    @cached_property
    def clock(self) -> Literal["clock", "days", "order"]:
        """What times tell: the moment, the day, or the order of a user's events alone.

        Positions, dates in digits and rows without times lie before 1973, if they are read as
        milliseconds; those of different users cannot be compared.
        """
        if self.times.max(initial=0) < YEAR_1973:
            return "order"
        return "days" if not (self.times % DAY).any() else "clock"

    @property
    def has_repeats(self) -> bool:
        """Whether any user meets an item twice."""
        return self.n_repeats > 0

    def describe(self) -> str:
        """Returns the data in a line: ``x: 1,000 users, 600 items, 30,000 interactions (u, i, t)``.

        In brackets are the columns of the file, where there is one.
        """
        columns = f" ({', '.join(self.columns.values())})" if self.columns else ""
        return (
            f"{self.name}: {self.n_users:,} users, {self.n_items:,} items, "
            f"{self.n_interactions:,} interactions{columns}"
        )

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any event, time, user id or item id, and only then."""
        digest = hashlib.blake2b(digest_size=8)
        some = [one for one in (self.parts, self.candidates) if one is not None]
        usual = (self.items, self.offsets, self.times, self.user_ids, self.item_ids)
        for array in (*usual, *some):
            digest.update(f"{array.dtype.kind}{len(array)}:".encode())
            if isinstance(array, Strings):  # lengths first: ids cannot run into each other
                digest.update(array.lengths().tobytes())
                digest.update(array.joined())
            else:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def k_core(dataset: Dataset, min_user: int, min_item: int, place: str) -> Dataset:
    """Drops users and items with too few interactions until every one left has enough.

    Dropping an item shortens histories, and dropping a user takes interactions from items: it is
    repeated until nothing changes. What was dropped becomes a note. Raises UserError where
    nothing is left.
    """
    items = dataset.items
    users = dataset.users
    kept = np.arange(len(items))
    while True:
        by_user = np.bincount(users[kept], minlength=dataset.n_users)
        by_item = np.bincount(items[kept], minlength=dataset.n_items + 1)
        if not len(kept):
            longest = np.diff(dataset.offsets).max(initial=0)
            raise UserError(nothing_left(longest, min_user, min_item, place))
        enough = (by_user[users[kept]] >= min_user) & (by_item[items[kept]] >= min_item)
        if enough.all():
            break
        kept = kept[enough]
    if by_user.all() and by_item[1:].all():
        return dataset

    inside = np.zeros(len(items), bool)
    inside[kept] = True
    left = keep(dataset, inside)
    before, after = ((one.n_users, one.n_items, one.n_interactions) for one in (dataset, left))
    return replace(left, notes=(*dataset.notes, kept_note(after, before, min_user, min_item)))


def keep(dataset: Dataset, inside: NDArray[np.bool_]) -> Dataset:
    """Returns the dataset of some events, without users and items that have none left."""
    users = dataset.users[inside]
    by_user = np.bincount(users, minlength=dataset.n_users)
    items = dataset.items[inside]
    there = np.bincount(items, minlength=dataset.n_items + 1) > 0
    numbers = np.cumsum(there) - there[0]
    return replace(
        dataset,
        items=numbers[items].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(by_user[by_user > 0])]),
        times=dataset.times[inside],
        parts=None if dataset.parts is None else dataset.parts[inside],
        groups=None if dataset.groups is None else dataset.groups[by_user > 0],
        user_ids=dataset.user_ids[by_user > 0],
        item_ids=dataset.item_ids[there[1:]],
        best_hit_10=None,  # it was computed for the events before
    )


def kept_note(after: Sequence[int], before: Sequence[int], min_user: int, min_item: int) -> str:
    """Says what filters have left of (users, items, interactions)."""
    return (
        f"kept {after[0]:,} of {before[0]:,} users (with at least {min_user} interactions), "
        f"{after[1]:,} of {before[1]:,} items (at least {min_item}) and {after[2]:,} of "
        f"{before[2]:,} interactions"
    )


def nothing_left(longest: int, min_user: int, min_item: int, place: str) -> str:
    """Says why filters have left nothing; ``longest`` is the most that a user had."""
    if longest < min_user:
        return (
            f"{place}: no user has {min_user} interactions (the most is {longest}), and each needs "
            "at least three: to train, to validate and to test; is --user-col the right column?"
        )
    return (
        f"{place}: nothing is left once users with fewer than {min_user} and items with fewer than "
        f"{min_item} interactions are dropped; lower --min-user or --min-item"
    )
