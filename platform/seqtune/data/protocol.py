"""The protocol of an evaluation: who is held out, who validates, and which items compete."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from seqtune.data.dataset import Dataset
from seqtune.data.split import Split, leave_one_out


@dataclass(frozen=True)
class Protocol:
    """What makes two numbers comparable, beside the data and the metric.

    It is made once, from the options and the data, and carried; whoever needs the split asks it.
    """

    mask_seen: bool  # whether items that the user had before are left out of the ranking
    valid_users: int | None = None  # how many users validate; None: all
    seed: int = 0  # of the choice of these users

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        mask_seen: bool | None = None,
        valid_users: int | None = None,
        seed: int = 0,
    ) -> Protocol:
        """Makes a protocol; ``mask_seen`` None leaves seen items out unless users repeat items."""
        masked = not dataset.has_repeats if mask_seen is None else mask_seen
        return cls(masked, valid_users, seed)

    def split(self, dataset: Dataset) -> Split:
        """Holds out the last two events of each user, for validation of ``valid_users`` alone."""
        split = leave_one_out(dataset)
        if self.valid_users is None:
            return split
        return replace(split, valid=split.valid.sample(self.valid_users, self.seed))

    def facts(self) -> dict[str, str]:
        """Returns what two studies must share to be compared, each in a few words."""
        n = self.valid_users
        some = "all users" if n is None else f"{n} user{'' if n == 1 else 's'} of seed {self.seed}"
        seen = "left out" if self.mask_seen else "ranked"
        return {"split": "leave-one-out", "validation": some, "seen items": seen}

    def sentence(self, dataset: Dataset) -> str:
        """Says the whole protocol, with the figures on which it rests."""
        n_test = int(np.count_nonzero(np.diff(dataset.offsets) >= 3))
        who = f"{n_test:,} users" + (" with at least 3" if n_test < dataset.n_users else "")
        some = self.valid_users is not None and self.valid_users < n_test
        few = f" for {self.valid_users:,} of them, drawn with seed {self.seed}" if some else ""
        return (
            f"Leave-one-out: the last item of {who} is the test and the one before it validates"
            f"{few}; each is ranked among all {dataset.n_items:,} items, and "
            f"{self._seen(dataset)}."
        )

    def _seen(self, dataset: Dataset) -> str:
        """Says what happens to seen items, and why: an option, where the data suggest the other."""
        n, rows = dataset.n_repeats, dataset.n_interactions
        fact = "no user has an item twice"
        if n:
            share, repeats = _percent(n / rows), "repeats" if n == 1 else "repeat"
            fact = f"{n:,} of {rows:,} rows ({share}) {repeats} an item that the user had before"
        if self.mask_seen:
            reason = f"as --mask-seen says, although {fact}" if n else f"since {fact}"
            return f"seen items are left out, {reason}"
        if not n:
            return f"seen items are ranked too, as --rank-seen says, although {fact}"
        if copies := dataset.n_copies:
            part = "" if copies == n else f" {copies:,} of them"
            fact += f",{part} at the same time, as a copied row does (--mask-seen leaves them out)"
        return f"seen items are ranked too, since {fact}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"
