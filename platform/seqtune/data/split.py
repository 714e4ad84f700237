"""Which events train a model, which validate and which test it: one function for each split.

All are made of the same parts: of each user, up to where it trains, and two spans of events that
are held out. ``targets`` chooses which events of a span a model is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtune.data.dataset import DAY, Dataset
from seqtune.errors import UserError

AT_A_TIME = 2**24  # events that are counted: they are copied for it
USERS = 2**20  # the same of users

Ints = NDArray[np.int64]
Which = Literal["last", "first", "random", "successive", "all"]


class Held(NamedTuple):
    """Events that a model is asked to predict.

    The target is ``items[event]`` and the history everything of the user before ``until``,
    ``items[offsets[user]:until]``: that of a test target holds the validation items. Targets with
    the same history are looked for in one list.
    """

    users: Ints  # (M,) in increasing order
    events: Ints  # (M,) index of the target in Dataset.items
    until: Ints | None = None  # (M,) where the history ends; None: at the event itself

    @property
    def ends(self) -> Ints:
        """Where the history of each target ends: (M,)."""
        return self.events if self.until is None else self.until

    @property
    def lists(self) -> Ints:
        """The first target of each list: (Q,)."""
        ends = self.ends
        return np.flatnonzero(np.diff(ends, prepend=-1))

    def take(self, some: NDArray[np.bool_] | Ints) -> Held:
        """Returns some of the events, in their order."""
        until = None if self.until is None else self.until[some]
        return Held(self.users[some], self.events[some], until)

    def sample(self, n: int, seed: int) -> Held:
        """Returns the events of ``n`` users, or of all where there are not more.

        The seed alone says which users; they stay in their order.
        """
        users = np.unique(self.users)
        if n >= len(users):
            return self
        some = np.random.default_rng(seed).choice(len(users), n, replace=False)
        return self.take(np.isin(self.users, users[some]))


@dataclass(frozen=True, eq=False)
class Split:
    """Which events train a model and which are held out."""

    dataset: Dataset
    train_end: Ints  # (U,) user u trains on events offsets[u] .. train_end[u] - 1
    valid: Held
    test: Held
    cold_users: int = 0  # users who are not tested, since nothing of them is known before
    untested: Ints | None = None  # (U,) the events of user u before this are before the test
    unranked: int = 0  # test targets that are left out, since they are no candidates

    def counts(self) -> Ints:
        """Returns the number of training events of each item: (I,)."""
        data, ends = self.dataset, self.dataset.offsets[1:]
        counts = np.zeros(data.n_items + 1, np.int64)
        for start in range(0, data.n_interactions, AT_A_TIME):
            counts += np.bincount(data.items[start : start + AT_A_TIME], minlength=len(counts))
        for start in range(0, data.n_users, USERS):
            some = slice(start, start + USERS)
            held = within(self.train_end[some], ends[some])[1]
            counts -= np.bincount(data.items[held], minlength=len(counts))
        return counts[1:]

    def competing(self, held: Held, *, mask_seen: bool) -> Ints:
        """Returns among how many items each target is ranked, itself included: (M,)."""
        data = self.dataset
        ranked = np.ones(data.n_items, bool) if data.candidates is None else data.candidates
        among = np.full(len(held.users), int(ranked.sum()))
        if not mask_seen:
            return among
        events = np.cumsum(held.ends - data.offsets[held.users])
        for rows in np.split(np.arange(len(among)), _cuts(events, AT_A_TIME)):
            row, item = self.seen(held, rows)
            among[rows] -= np.bincount(row[ranked[item - 1]], minlength=len(rows))
        return among

    def seen(self, held: Held, rows: slice | Ints) -> tuple[Ints, Ints]:
        """Returns row and item of each item in the histories of some targets but the targets."""
        data = self.dataset
        row, event = within(data.offsets[held.users[rows]], held.ends[rows])
        item: Ints = data.items[event].astype(np.int64)
        if data.has_repeats:
            row, item = np.divmod(np.unique(row * (data.n_items + 1) + item), data.n_items + 1)
        other = item != data.items[held.events[rows]][row]
        return row[other], item[other]

    def cold_items(self, held: Held) -> NDArray[np.bool_]:
        """Says of each target whether its item is in no training event: (M,)."""
        cold: NDArray[np.bool_] = self.counts()[self.dataset.items[held.events] - 1] == 0
        return cold


def _cuts(until: Ints, most: int) -> list[int]:
    """Returns where to cut rows, of which ``until`` counts the cells, to have so many in a part."""
    return [int(np.searchsorted(until, n)) for n in range(most, int(until[-1:].sum()), most)]


def within(first: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Returns the row and the event of each cell, where row b has the events first[b]..end[b]-1."""
    lengths = end - first
    row = np.repeat(np.arange(len(first)), lengths)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[row]


def targets(
    dataset: Dataset, begin: Ints, end: Ints, which: Which, *, seed: int = 0, cold: bool = False
) -> Held:
    """Returns the targets among the events begin[u]..end[u]-1 of each user u: (U,), (U,).

    ``last``, ``first`` or a ``random`` one; ``successive``: each, after all that was before it;
    ``all``: each, in one list, after what was before the first. Users without an event before are
    left out; with ``cold`` they are asked for what follows their first.
    """
    first = dataset.offsets[:-1]
    known = begin > first
    begin = np.maximum(begin, first + 1) if cold else begin
    users = np.flatnonzero((end > begin) & (known | cold))
    begin, end = begin[users], end[users]
    if which in ("successive", "all"):
        row, events = within(begin, end)
        return Held(users[row], events, begin[row] if which == "all" else None)
    if which == "random":
        shares = np.random.default_rng(seed).random(dataset.n_users)[users]
        return Held(users, begin + (shares * (end - begin)).astype(np.int64))
    return Held(users, begin if which == "first" else end - 1)


def leave_out(dataset: Dataset, k: int = 1, which: Which = "successive") -> Split:
    """Holds out the last k events of every user with at least 2 k + 1, and the k before them.

    Shorter users, where a filter let them in, are trained on and not evaluated.
    """
    ends = dataset.offsets[1:]
    long = np.diff(dataset.offsets) > 2 * k
    valid, test = (np.where(long, ends - n * k, ends) for n in (2, 1))
    return Split(
        dataset,
        valid,
        targets(dataset, valid, test, which),
        targets(dataset, test, ends, which),
        untested=test,
    )


def leave_one_out(dataset: Dataset) -> Split:
    """Holds out the last two events of every user with at least three.

    Raises:
        UserError: no user has three.
    """
    split = leave_out(dataset)
    if not len(split.test.users):
        longest = np.diff(dataset.offsets).max(initial=0)
        raise UserError(
            f"{dataset.name}: no user has three interactions (the most is {longest}), and each "
            "needs at least three: to train, to validate and to test; is --user-col right?"
        )
    return split


def by_time(
    dataset: Dataset,
    cuts: tuple[int, int],
    which: Which = "last",
    *,
    validation: str = "time",
    seed: int = 0,
    cold: bool = False,
) -> Split:
    """The global temporal split (arXiv 2507.16289): what was after a time is held out.

    Args:
        dataset: all events.
        cuts: the last millisecond of training and that of validation: an event after the second is
            a test event.
        which: events of a user in each span are targets.
        validation: ``time``: what lies between the two times validates. ``users``: a tenth of the
            users validates, by what they did before the second time, and is not trained on.
            ``last``: the last event of each user before the second time. Training ends at the
            first time only where validation is by time.
        seed: of the choice of random targets and of users.
        cold: whether users are evaluated of whom nothing is known before.
    """
    first, ends = dataset.offsets[:-1], dataset.offsets[1:]
    early, late = (_until(dataset, cut) for cut in cuts)
    of_test = targets(dataset, late, ends, which, seed=seed, cold=cold)
    train_end = early if validation == "time" else late
    if validation == "last":
        train_end = np.where(late - first > 1, late - 1, late)
        valid = targets(dataset, train_end, late, "last")
    elif validation == "users":
        chosen = _some_users(dataset, np.flatnonzero(late - first > 1), 0.1, seed)
        train_end = np.where(chosen, first, late)
        valid = targets(dataset, np.where(chosen, late - 1, late), late, "last")
    else:
        valid = targets(dataset, early, late, which, seed=seed + 1, cold=cold)
    return Split(dataset, train_end, valid, of_test, 0 if cold else _unknown(dataset, late), late)


def quantile(dataset: Dataset, share: float, until: int | None = None) -> int:
    """Returns the time that a share of all events is not after, of those up to a time."""
    times = dataset.times if until is None else dataset.times[dataset.times <= until]
    return int(np.floor(np.quantile(times, share)))


def by_ratio(dataset: Dataset, shares: tuple[float, float, float], which: Which = "all") -> Split:
    """Holds out the newest part of each user's events, and validates on the part before.

    A user with too few events for three parts is trained on and not evaluated.
    """
    first, ends = dataset.offsets[:-1], dataset.offsets[1:]
    lengths = np.diff(dataset.offsets)
    _, valid, test = (np.maximum((share * lengths).astype(np.int64), 1) for share in shares)
    enough = lengths - test - valid >= 1
    late = np.where(enough, ends - test, ends)
    early = np.where(enough, late - valid, ends)
    held = (targets(dataset, early, late, which), targets(dataset, late, ends, which))
    assert (early > first).all()
    return Split(dataset, early, *held, untested=late)


def by_users(
    dataset: Dataset, shares: tuple[float, float, float], which: Which = "last", seed: int = 0
) -> Split:
    """Strong generalisation: some users are trained on, others validate, others are tested.

    Of a user who is held out each event but the first may be a target, as ``which`` says.
    """
    first, ends = dataset.offsets[:-1], dataset.offsets[1:]
    able = np.flatnonzero(ends - first > 1)
    shuffled = np.random.default_rng(seed).permutation(able)
    n_test, n_valid = (max(1, round(share * len(able))) for share in (shares[2], shares[1]))
    part = np.zeros(dataset.n_users, np.int8)
    part[shuffled[:n_test]], part[shuffled[n_test : n_test + n_valid]] = 2, 1
    return _whole_users(dataset, part, which, seed)


def by_sessions(dataset: Dataset, days: float, which: Which = "successive") -> Split:
    """Tests on the sessions, which are users here, that end in the last days of the data.

    Those of as many days before validate, and the others are trained on (arXiv 1511.06939).
    """
    over = dataset.times[np.maximum(dataset.offsets[1:] - 1, 0)]
    ago = (over.max() - over) / (days * DAY)
    return _whole_users(dataset, np.select([ago < 1, ago < 2], [2, 1], 0), which)


def as_given(dataset: Dataset, which: Which = "successive") -> Split:
    """Takes the parts that the data name: of each user training, then validation, then test."""
    assert dataset.parts is not None
    early, late = (_prefix(dataset, dataset.parts <= part) for part in (0, 1))
    test = targets(dataset, late, dataset.offsets[1:], which)
    valid = targets(dataset, early, late, which)
    return Split(dataset, early, valid, test, _unknown(dataset, late), late)


def _whole_users(dataset: Dataset, part: NDArray[np.integer], which: Which, seed: int = 0) -> Split:
    """Trains on the users of part 0, validates on those of 1 and tests on those of 2: (U,)."""
    first, ends = dataset.offsets[:-1], dataset.offsets[1:]
    valid, test = (
        targets(dataset, np.where(part == n, first + 1, ends), ends, which, seed=seed)
        for n in (1, 2)
    )
    untested = np.where(part == 2, first, ends)
    return Split(dataset, np.where(part > 0, first, ends), valid, test, untested=untested)


def _unknown(dataset: Dataset, late: Ints) -> int:
    """Counts the users whose events are all test events, from ``late`` (U,) on."""
    first, ends = dataset.offsets[:-1], dataset.offsets[1:]
    return int(np.count_nonzero((late == first) & (ends > late)))


def _until(dataset: Dataset, cut: int) -> Ints:
    """Returns the first event of each user that is after a time: (U,)."""
    return _prefix(dataset, dataset.times <= cut)


def _prefix(dataset: Dataset, inside: NDArray[np.bool_]) -> Ints:
    """Returns where the first events of each user end that are inside: (U,)."""
    before = np.concatenate([[0], np.cumsum(inside)])
    counts = before[dataset.offsets[1:]] - before[dataset.offsets[:-1]]
    ends: Ints = dataset.offsets[:-1] + counts
    return ends


def _some_users(dataset: Dataset, able: Ints, share: float, seed: int) -> NDArray[np.bool_]:
    """Draws a share of the users that can be drawn: (U,)."""
    chosen = np.zeros(dataset.n_users, bool)
    n = max(1, round(share * len(able))) if len(able) else 0
    chosen[np.random.default_rng(seed).choice(able, n, replace=False)] = True
    return chosen
