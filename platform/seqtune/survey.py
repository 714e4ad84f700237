"""What is in a data set, and what a protocol makes of it: the command ``seqtune data FILE``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtune import metrics
from seqtune.data import Dataset, Protocol, Split
from seqtune.data.protocol import NO_CLOCK
from seqtune.data.split import within
from seqtune.floors import CHAIN, Floor, floors, rank
from seqtune.words import counted

TOP = 0.01  # of the items, whose part of all events is told
MUCH = 0.2  # a share from which on a fact is worth a word

Facts = dict[str, Any]


@dataclass(frozen=True)
class Survey:
    """What is known of a data set."""

    dataset: Dataset
    protocol: Protocol
    split: Split
    floors: tuple[Floor, ...]
    shuffled: float  # what the decayed chain reaches on histories without their order
    metric: str

    @property
    def order(self) -> float:
        """The part of the decayed chain's value that is lost when histories are shuffled."""
        chain = next(one for one in self.floors if one.name == CHAIN.name)
        whole = chain.test[self.metric]
        return 1 - self.shuffled / whole if whole else 0.0

    @cached_property
    def facts(self) -> Facts:
        """All figures, as JSON has them."""
        return sizes(self.dataset) | {
            "protocol": self.protocol.sentence(self.dataset),
            **held_out(self.dataset, self.split),
            "order": {f"{self.metric} lost by shuffling": self.order},
            "floors": {
                one.name: {self.metric: one.test[self.metric], "seconds": one.seconds}
                for one in self.floors
            },
        }

    def remarks(self) -> Iterator[str]:
        """Yields what somebody should know who reads results on these data."""
        facts = self.facts
        if self.protocol.needs_clock(self.dataset):
            yield f"The split compares times of different users, and {NO_CLOCK}"
        if (share := facts["later than the first test target"]) > MUCH:
            yield (
                f"{share:.0%} of the training events are later than the first test target: a model "
                "is trained on what was not known then; --split time:0.9 has none of that"
            )
        if (share := facts["tied with the event before"]) > MUCH:
            yield (
                f"{share:.0%} of the test targets have the time of the event before them, so that "
                "the order of the file decides which is the target"
            )
        if self.order < MUCH:
            yield (
                f"A chain of items loses {max(self.order, 0):.0%} when histories are shuffled: "
                "their order says little here, and a sequential model has little to learn from it"
            )
        if (share := facts["cold test items"]) > MUCH / 2:
            yield f"{share:.0%} of the test targets are of items that no training event has"


def survey(
    dataset: Dataset,
    protocol: Protocol,
    metric: str,
    seed: int = 0,
    counted: Sequence[Floor] | None = None,
) -> Survey:
    """Counts everything, but for floors that are known; it takes seconds, and no torch."""
    split, seen = protocol.split(dataset), protocol.mask_seen

    def without_order() -> float:
        mixed = shuffled(split, seed)
        ranks = rank(mixed, mixed.test, CHAIN, CHAIN.table(mixed), mask_seen=seen)
        return metrics.compute(ranks, also=[metric])[metric]

    with ThreadPoolExecutor(1) as beside:
        left = beside.submit(without_order)
        found = counted or floors(split, mask_seen=seen, metric=metric)
    return Survey(dataset, protocol, split, tuple(found), left.result(), metric)


def sizes(dataset: Dataset) -> Facts:
    """Returns how many there are, and how they spread."""
    lengths = np.diff(dataset.offsets)
    counts = np.sort(np.bincount(dataset.items, minlength=dataset.n_items + 1)[1:])[::-1]
    n = dataset.n_interactions
    shares = np.cumsum(counts[::-1]) / n  # of the rarest items
    gini = 1 + 1 / len(counts) - 2 * float(shares.mean())
    first, last = (_day(int(when)) for when in (dataset.times.min(), dataset.times.max()))
    top = max(1, round(TOP * len(counts)))
    groups = {
        name: int(np.count_nonzero(dataset.groups == k))
        for k, name in enumerate(dataset.group_names)
    }
    return {
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": n,
        "density": n / dataset.n_users / dataset.n_items,
        "events per user": _spread(lengths),
        "events per item": _spread(counts),
        "times": dataset.clock,
        "first": first,
        "last": last,
        "repeated": dataset.n_repeats / n,
        "of the top 1 % of items": float(counts[:top].sum() / n),
        "gini": gini,
    } | ({"groups": groups} if groups else {})


def held_out(dataset: Dataset, split: Split) -> Facts:
    """Returns what is held out, and what about that is doubtful."""
    test, valid = split.test, split.valid
    learnt = split.train_end - dataset.offsets[:-1]
    first_target = dataset.times[test.events].min()
    _, events = within(dataset.offsets[:-1], split.train_end)
    tied = dataset.times[test.events] == dataset.times[test.ends - 1]
    return {
        "training events": int(learnt.sum()),
        "validation targets": len(valid.events),
        "test targets": len(test.events),
        "test users": len(np.unique(test.users)),
        "cold users": split.cold_users,
        "cold test items": float(split.cold_items(test).mean()),
        "later than the first test target": float((dataset.times[events] > first_target).mean()),
        "tied with the event before": float(tied.mean()),
    }


def shuffled(split: Split, seed: int = 0) -> Split:
    """Returns the split with the events before the first test target of each user in any order."""
    dataset = split.dataset
    ends = dataset.offsets[1:].copy()
    lists = split.test.take(split.test.lists)
    np.minimum.at(ends, lists.users, lists.ends)
    rng = np.random.default_rng(seed)
    row, events = within(dataset.offsets[:-1], ends)
    items = dataset.items.copy()
    items[events] = dataset.items[events[np.lexsort((rng.random(len(row)), row))]]
    return replace(split, dataset=replace(dataset, items=items))


def _spread(counts: NDArray[np.integer[Any]]) -> dict[str, float]:
    quarter, middle, three = np.percentile(counts, [25, 50, 75])
    return {
        "least": int(counts.min()),
        "quarter": float(quarter),
        "median": float(middle),
        "three quarters": float(three),
        "most": int(counts.max()),
        "mean": float(counts.mean()),
    }


def _day(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M}"


def rows(found: Survey) -> Iterator[tuple[str, str]]:
    """Yields what a person reads of the figures: what it is, and how much."""
    facts = found.facts
    yield "users", f"{facts['users']:,}"
    yield "items", f"{facts['items']:,}"
    yield "interactions", f"{facts['interactions']:,} ({facts['density']:.2%} of all pairs)"
    for whose in ("user", "item"):
        of = facts[f"events per {whose}"]
        half = f"half between {of['quarter']:,.0f} and {of['three quarters']:,.0f}"
        all_of = f"{of['least']:,} to {of['most']:,}, {half}, mean {of['mean']:,.1f}"
        yield f"events per {whose}", all_of
    when = {"order": ", of which the order alone means something", "days": ", in days"}
    yield "from, to", f"{facts['first']} to {facts['last']}{when.get(facts['times'], '')}"
    yield "repeated", f"{facts['repeated']:.1%} of events are of an item that the user had before"
    top = f"the top 1 % of items have {facts['of the top 1 % of items']:.0%} of events"
    yield "popularity", f"{top} (Gini {facts['gini']:.2f})"
    if "groups" in facts:
        yield "groups", ", ".join(f"{name} {n:,}" for name, n in facts["groups"].items())
    tested = counted(facts["test targets"], "test target")
    yield "held out", f"{tested} of {counted(facts['test users'], 'user')}"
    shares = {
        "leakage": ("later than the first test target", "of training is later than the first"),
        "ties": ("tied with the event before", "of test targets have the time of the event before"),
        "cold": ("cold test items", "of test targets are of items without a training event"),
    }
    for name, (fact, words) in shares.items():
        yield name, f"{facts[fact]:.1%} {words}" + " test target" * (name == "leakage")
    lost = f"a decayed Markov chain loses {found.order:.0%} of {found.metric}"
    yield "order", f"{lost} when histories are shuffled"
