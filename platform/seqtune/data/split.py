"""Leave-one-out: the last event of a user is the test target, the one before it validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtune.data.dataset import Dataset
from seqtune.errors import UserError

AT_A_TIME = 2**24  # events that are counted: they are copied for it


class Held(NamedTuple):
    """Events that a model is asked to predict.

    The target is ``items[event]`` and the history everything of the user before it,
    ``items[offsets[user]:event]``: the history of a test target holds the validation item.
    """

    users: NDArray[np.int64]  # (M,) in increasing order
    events: NDArray[np.int64]  # (M,) index of the target in Dataset.items

    def sample(self, n: int, seed: int) -> Held:
        """Returns the events of ``n`` users, or of all where there are not more.

        The seed alone says which users; they stay in their order.
        """
        if n >= len(self.users):
            return self
        some = np.random.default_rng(seed).choice(len(self.users), n, replace=False)
        some.sort()
        return Held(self.users[some], self.events[some])


@dataclass(frozen=True, eq=False)
class Split:
    """Which events train a model and which are held out."""

    dataset: Dataset
    train_end: NDArray[np.int64]  # (U,) user u trains on events offsets[u] .. train_end[u] - 1
    valid: Held
    test: Held

    def counts(self) -> NDArray[np.int64]:
        """Returns the number of training events of each item: (I,)."""
        data, ends = self.dataset, self.dataset.offsets[1:]
        counts = np.zeros(data.n_items + 1, np.int64)
        for start in range(0, data.n_interactions, AT_A_TIME):
            counts += np.bincount(data.items[start : start + AT_A_TIME], minlength=len(counts))
        for back in range(1, int((ends - self.train_end).max(initial=0)) + 1):
            held = (ends - back)[ends - back >= self.train_end]
            counts -= np.bincount(data.items[held], minlength=len(counts))
        return counts[1:]


def leave_one_out(dataset: Dataset) -> Split:
    """Holds out the last two events of every user with at least three.

    Users with fewer than three events, where a filter let them in, are trained on and not
    evaluated. Raises UserError where no user has three.
    """
    ends = dataset.offsets[1:]
    lengths = np.diff(dataset.offsets)
    users = np.flatnonzero(lengths >= 3)
    if not len(users):
        longest = lengths.max(initial=0)
        raise UserError(
            f"{dataset.name}: no user has three interactions (the most is {longest}), and each "
            "needs at least three: to train, to validate and to test; is --user-col right?"
        )
    train_end = np.where(lengths >= 3, ends - 2, ends)
    return Split(dataset, train_end, Held(users, ends[users] - 2), Held(users, ends[users] - 1))
