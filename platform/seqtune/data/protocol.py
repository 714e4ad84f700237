"""The protocol of an evaluation: who is held out, who validates, and which items compete.

Nothing else asks how data are split: whoever needs the split, or a sentence about it, asks the
protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from seqtune.data import sentences
from seqtune.data import split as splits
from seqtune.data.dataset import Dataset
from seqtune.data.kinds import GIVEN, LEAVE_ONE_OUT, Kind, parse_split
from seqtune.data.split import Held, Split, Which
from seqtune.errors import UserError
from seqtune.words import counted

Validation = Literal["time", "users", "last"]
REPEATED = 0.01  # of validation targets that a user had before, from which on seen items compete
FEWEST = 4  # events of a user: one to learn from, its target, and the two that are held out
NO_CLOCK = (
    "the times of these data are numbers, which may be the positions in each history and not "
    "moments; if so, split by leave-one-out, ratio or users"
)
LOOKED_AT = 10_000  # validation targets, to see whether users repeat items


@dataclass(frozen=True)
class Protocol:
    """What makes two numbers comparable, beside the data and the metric.

    It is made once, from the options and the data, and carried.
    """

    mask_seen: bool  # whether items that the user had before are left out of the ranking
    valid_users: int | None = None  # how many users validate; None: all
    seed: int = 0  # of the choice of users, and of random targets
    split_by: str = LEAVE_ONE_OUT
    targets: str = ""  # which events of a held-out span; empty: as usual with the split
    validation: Validation = "time"  # of a split by time
    cold_users: bool = False  # whether users are evaluated of whom nothing is known before
    cold_items: bool = True  # whether targets count whose item no training event has
    refit: Literal["", "test", "all"] = ""  # train until the test, or on everything
    sampled: int | None = None  # so many drawn items, against which the test is done once more

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        mask_seen: bool | None = None,
        valid_users: int | None = None,
        seed: int = 0,
        **how: Any,
    ) -> Protocol:
        """Makes a protocol.

        ``mask_seen`` None leaves seen items out, unless validation asks for them again: of its
        targets one in a hundred, or more, is an item that the user had before.
        """
        protocol = cls(True if mask_seen is None else mask_seen, valid_users, seed, **how)
        if mask_seen is None and dataset.has_repeats:
            share = repeated(dataset, protocol.split(dataset).valid)
            protocol = replace(protocol, mask_seen=share < REPEATED)
        return protocol

    def split(self, dataset: Dataset) -> Split:
        """Holds events out; those of ``valid_users`` alone validate."""
        kind = parse_split(self.split_by)
        if kind.name == GIVEN and dataset.parts is None:
            raise UserError(f"--split {GIVEN}: name the column that says it with --split-col")
        split = MADE[kind.name](self, dataset, kind)
        if not self.cold_items:
            valid, test = (held.take(~split.cold_items(held)) for held in (split.valid, split.test))
            split = replace(split, valid=valid, test=test)
        if (ranked := dataset.candidates) is not None:
            valid, test = (
                held.take(ranked[dataset.items[held.events] - 1])
                for held in (split.valid, split.test)
            )
            unranked = len(split.test.users) - len(test.users)
            split = replace(split, valid=valid, test=test, unranked=unranked)
        if self.refit:
            until = split.untested if self.refit == "test" else dataset.offsets[1:]
            assert until is not None
            split = replace(split, train_end=until)
        if self.valid_users is None:
            return split
        return replace(split, valid=split.valid.sample(self.valid_users, self.seed))

    @property
    def which(self) -> Which:
        """Which events of a span that is held out are targets."""
        return self.targets or parse_split(self.split_by).which  # type: ignore[return-value]

    def needs_clock(self, dataset: Dataset) -> bool:
        """Says whether times of different users are compared which tell an order alone."""
        by_clock = parse_split(self.split_by).name in ("time", "session")
        return by_clock and dataset.clock == "order"

    def check(self, dataset: Dataset, place: str) -> None:
        """Raises UserError where nothing could be learnt, validated or tested."""
        split, by = self.split(dataset), f"--split {self.split_by}"
        if self.needs_clock(dataset):
            by += f"; {NO_CLOCK}"
        if (split.train_end - dataset.offsets[:-1]).max(initial=0) < 2:
            if self.split_by == LEAVE_ONE_OUT:
                raise UserError(
                    f"{place}: no user has more than {FEWEST - 1} events, of which the last two "
                    f"are held out; at least one user needs {FEWEST}"
                )
            raise UserError(f"{place}: no user trains on two events by {by}")
        for what, held in (("validates", split.valid), ("is tested", split.test)):
            if not len(held.users):
                raise UserError(f"{place}: nobody {what} by {by}")

    def reachable(self, dataset: Dataset) -> float | None:
        """Returns the best HR@10 that any model can reach on test; None where nobody knows.

        It is known of generated data, for the last item of each user.
        """
        return dataset.best_hit_10 if self.split_by == LEAVE_ONE_OUT else None

    def facts(self) -> dict[str, str]:
        """Returns what two studies must share to be compared, each in a few words."""
        n = self.valid_users
        some = "all users" if n is None else f"{n} user{'' if n == 1 else 's'} of seed {self.seed}"
        seen = "left out" if self.mask_seen else "ranked"
        how = [self.split_by]
        if self.split_by != LEAVE_ONE_OUT:
            how.append(f"{self.which} targets")
            how += [f"validation by {self.validation}"] * self.split_by.startswith("time")
            drawn = self.which == "random" or "users" in (self.validation, self.split_by[:5])
            how += [f"seed {self.seed}"] * drawn
        how += ["cold users too"] * self.cold_users + ["no cold items"] * (not self.cold_items)
        return {"split": ", ".join(how), "validation": some, "seen items": seen}

    def sentence(self, dataset: Dataset) -> str:
        """Says the whole protocol, with the figures on which it rests."""
        split, kind = self.split(dataset), parse_split(self.split_by)
        share = repeated(dataset, split.valid) if dataset.has_repeats else None
        made = sentences.Made(
            split,
            kind,
            self.which,
            cuts_of(dataset, kind) if kind.name == "time" else (0, 0),
            self.validation,
            None if self.valid_users is None else (self.valid_users, self.seed),
        )
        usual = self.mask_seen == ((share or 0.0) < REPEATED)
        seen = sentences.of_seen(mask=self.mask_seen, usual=usual, share=share)
        cold = sentences.of_cold(split, kind, items=self.cold_items)
        among = f"each is ranked among all {dataset.n_items:,} items"
        if dataset.candidates is not None:
            n, left = int(dataset.candidates.sum()), counted(split.unranked, "test target")
            among = f"each is ranked among {n:,} of {dataset.n_items:,} items ({left} of others)"
        if self.sampled is not None:
            others = counted(self.sampled, "item")
            cold += (
                f" On test, metrics named sampled rank it among {others} drawn at random, which is "
                "much easier."
            )
        return f"{sentences.said(made)}; {among}, and {seen}.{cold}"


Make = Callable[[Protocol, Dataset, Kind], Split]


def cuts_of(dataset: Dataset, kind: Kind) -> tuple[int, int]:
    """Returns the last millisecond of training, and that of validation.

    Where one is named, training has the same share of what is before it, or nine tenths.
    """
    if len(kind.cuts) == 2:
        return kind.cuts[0] - 1, kind.cuts[1] - 1
    late = kind.cuts[0] - 1 if kind.cuts else splits.quantile(dataset, kind.numbers[-1])
    of = None if len(kind.numbers) == 2 else late
    return splits.quantile(dataset, kind.numbers[0] if kind.numbers else 0.9, of), late


def _by_time(protocol: Protocol, dataset: Dataset, kind: Kind) -> Split:
    return splits.by_time(
        dataset,
        cuts_of(dataset, kind),
        protocol.which,
        validation=protocol.validation,
        seed=protocol.seed,
        cold=protocol.cold_users,
    )


def _shares(kind: Kind) -> tuple[float, float, float]:
    train, valid, test = kind.numbers
    return train, valid, test


MADE: dict[str, Make] = {
    LEAVE_ONE_OUT: lambda p, data, kind: splits.leave_one_out(data),
    "leave-N-out": lambda p, data, kind: splits.leave_out(data, int(kind.numbers[0]), p.which),
    "time": _by_time,
    "ratio": lambda p, data, kind: splits.by_ratio(data, _shares(kind), p.which),
    "users": lambda p, data, kind: splits.by_users(data, _shares(kind), p.which, p.seed),
    "session": lambda p, data, kind: splits.by_sessions(data, kind.numbers[0], p.which),
    "given": lambda p, data, kind: splits.as_given(data, p.which),
}


def repeated(dataset: Dataset, held: Held) -> float:
    """Returns the share of targets that the user had before, among so many at most."""
    n = len(held.users)
    step = max(1, n // LOOKED_AT)
    first, ends = dataset.offsets[held.users], held.ends
    had = [
        bool((dataset.items[first[row] : ends[row]] == dataset.items[held.events[row]]).any())
        for row in range(0, n, step)
    ]
    return float(np.mean(had)) if had else 0.0
