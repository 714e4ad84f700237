"""Ranking metrics, computed from the ranks of held-out items.

A rank is 1 for the top of the list; ties count as half, so ranks may be fractions. Mostly one item
per user is held out, which makes recall equal to the hit rate and MAP equal to MRR; all are listed
under the names that people look for. Where several are looked for in one list, they are what they
are known as: NDCG is relative to a list that begins with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqtune.errors import UserError, nearest

Floats = NDArray[np.floating]
Ints = NDArray[np.integer[Any]]
Direction = Literal["higher", "lower", "neither"]
KS = (5, 10, 20)
HEAD = 0.8  # of all events: what the items of the head have


@dataclass(frozen=True, eq=False)
class Lists:
    """The ranks of held-out items where a list has several, or a user several lists."""

    ranks: Floats  # (M,)
    starts: Ints  # (Q,) the first item of each list
    users: Ints  # (Q,) whose list it is, in increasing order

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def sizes(self) -> Ints:
        """The number of items that are looked for in each list: (Q,)."""
        sizes: Ints = np.diff(self.starts, append=len(self.ranks))
        return sizes


Ranks = NDArray[np.float32] | Lists  # (U,) of the one item of each user, or of more


def as_held(ranks: Floats, users: Ints, starts: Ints) -> Ranks:
    """Returns ranks (M,) of the users (M,) with the starts (Q,) of their lists, plain if they are.

    Plain is what has one item in one list of each user.
    """
    if len(starts) == len(ranks) and (np.diff(users) > 0).all():
        return np.asarray(ranks, np.float32)
    return Lists(ranks, starts, users[starts])


@dataclass(frozen=True)
class Metric:
    """A metric at a cut-off: what one user contributes, given the rank of the held-out item.

    Of several items in a list the gains are put together by ``of_list``.
    """

    name: str
    gain: Callable[[Floats, int], Floats]  # (M,) ranks within the cut-off, k -> (M,)
    meaning: str  # of one user; beyond the cut-off all are 0
    of_list: Callable[[Floats, Lists, int], Floats]  # (M,) gains, 0 beyond the cut-off -> (Q,)
    shown: tuple[int, ...] = ()  # cut-offs at which a report's first table has it
    better: Direction = "higher"


@dataclass(frozen=True, eq=False)
class Shown:
    """What is recommended: Q lists of k items, of a catalogue of I."""

    top: Ints  # (Q, k) items 1..I, best first
    counts: Ints  # (I,) training events of each
    percentile: Floats  # (I,) of its popularity, 0 rarest and 1 most popular

    @cached_property
    def times(self) -> Ints:
        """In how many lists each item stands: (I,)."""
        return np.bincount(self.top.ravel(), minlength=len(self.counts) + 1)[1:]

    @property
    def tail(self) -> NDArray[np.bool_]:
        """The items beyond the most popular ones that have four fifths of all events: (I,)."""
        order = np.argsort(-self.counts, kind="stable")
        before = np.cumsum(self.counts[order]) - self.counts[order]
        tail = np.empty(len(order), bool)
        tail[order] = before >= HEAD * self.counts.sum()
        return tail


@dataclass(frozen=True)
class ListMetric:
    """A metric at a cut-off of what is recommended, whatever the held-out items are."""

    name: str
    value: Callable[[Shown], float]
    meaning: str
    better: Direction = "higher"


def _sum(gains: Floats, lists: Lists, k: int) -> Floats:
    """Adds the gains of each list up."""
    return np.add.reduceat(gains, lists.starts)


def _largest(gains: Floats, lists: Lists, k: int) -> Floats:
    """Takes the first item that is found."""
    return np.maximum.reduceat(gains, lists.starts)


def _of_ideal(gains: Floats, lists: Lists, k: int) -> Floats:
    """Divides by what a list has that begins with all its items, as far as k goes."""
    best = np.cumsum(1 / np.log2(np.arange(2, min(k, lists.sizes.max()) + 2)))
    ideal: Floats = best[np.minimum(lists.sizes, k) - 1]
    return _sum(gains, lists, k) / ideal


def _share(gains: Floats, lists: Lists, k: int) -> Floats:
    return _sum(gains, lists, k) / lists.sizes


def _average_precision(gains: Floats, lists: Lists, k: int) -> Floats:
    """Adds up the precision at each item that is found, and divides by what could be found."""
    of = np.repeat(np.arange(len(lists)), lists.sizes)
    order = np.lexsort((-gains, of))  # the first found first
    nth = np.arange(len(gains)) - np.repeat(lists.starts, lists.sizes) + 1
    return _sum(gains[order] * nth, lists, k) / np.minimum(lists.sizes, k)


RANK = (
    Metric(
        "ndcg",
        lambda r, k: 1 / np.log2(r + 1),
        "1 / log2(rank + 1), of several the sum over that of an ideal list: 1 for an ideal list.",
        _of_ideal,
        KS,
    ),
    Metric(
        "hr", lambda r, k: np.ones_like(r), "1 where an item is found (hit rate).", _largest, KS
    ),
    Metric("mrr", lambda r, k: 1 / r, "1 / rank of the first that is found.", _largest, (10,)),
    Metric("recall", lambda r, k: np.ones_like(r), "Found / held-out items.", _share),
    Metric("precision", lambda r, k: np.full_like(r, 1 / k), "Found items / k.", _sum),
    Metric(
        "map",
        lambda r, k: 1 / r,
        "Average precision: the mean precision at each item that could be found; of one, 1 / rank.",
        _average_precision,
    ),
)


def _gini(shown: Shown) -> float:
    shares = np.cumsum(np.sort(shown.times)) / shown.times.sum()
    return float(1 + 1 / len(shares) - 2 * shares.mean())


def _entropy(shown: Shown) -> float:
    shares = shown.times[shown.times > 0] / shown.times.sum()
    return float(-(shares * np.log2(shares)).sum())


def _information(shown: Shown) -> float:
    shares = (shown.counts + 1) / (shown.counts.sum() + len(shown.counts))
    return float(-np.log2(shares)[shown.top - 1].mean())


def _personal(shown: Shown) -> float:
    n, k = shown.top.shape
    shared = (shown.times * (shown.times - 1.0)).sum() / (k * n * max(n - 1, 1))
    return float(1 - shared)


LISTS = (
    ListMetric(
        "coverage",
        lambda shown: float((shown.times > 0).mean()),
        "Share of the catalogue that is among the first k of at least one user.",
    ),
    ListMetric(
        "popularity",
        lambda shown: float(shown.percentile[shown.top - 1].mean()),
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
        _entropy,
        "Shannon entropy, in bits, of the same: log2 of the catalogue's size where all are alike.",
    ),
    ListMetric(
        "tail",
        lambda shown: float(shown.tail[shown.top - 1].mean()),
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
)
COSTS = {
    "parameters": "Weights of the model.",
    "megabytes": "Size of its weights.",
    "ms_per_request": "Milliseconds in which it answers one user: the median of some.",
}
METRICS = {metric.name: metric for metric in RANK}
LIST_METRICS = {metric.name: metric for metric in LISTS}

# What a report shows first: with one held-out item per user the others are copies.
MAIN = tuple(f"{metric.name}@{k}" for metric in METRICS.values() for k in metric.shown)


def parse_metric(text: str, place: str = "--metric") -> tuple[str, int]:
    """Splits ``ndcg@10`` into its name and cut-off; anything else is a UserError."""
    name, _, k = text.lower().partition("@")
    if name not in METRICS:
        raise UserError(f"{place} {text}: no such metric{nearest(name, METRICS)}")
    if not (k.isascii() and k.isdigit()) or len(k) > 9 or int(k) < 1:
        raise UserError(f"{place} {text}: write a cut-off after the name, for example {name}@10")
    return name, int(k)


def check_measure(text: str, place: str) -> str:
    """Returns the name of what a trial can be judged by on validation.

    That is a metric of ranks or of lists at a cut-off, or what a model costs.

    Raises:
        UserError: there is nothing of that name.
    """
    name, _, k = text.partition("@")
    known = [*METRICS, *LIST_METRICS, *COSTS]
    if name not in known or (name in COSTS and k):
        raise UserError(f"{place} {text}: there is no such measure{nearest(name, known)}")
    if name not in COSTS:
        parse_metric(f"{RANK[0].name}@{k}" if name in LIST_METRICS else text, place)
    return text


def direction(metric: str) -> Direction:
    """Returns which values of ``ndcg@10``, ``popularity@5`` or ``parameters`` are better."""
    name = metric.partition("@")[0]
    return "lower" if name in COSTS else (METRICS | LIST_METRICS)[name].better


def ways(names: Iterable[str]) -> list[Literal["maximize", "minimize"]]:
    """Returns what Optuna shall do with each of these measures."""
    return ["minimize" if direction(name) == "lower" else "maximize" for name in names]


def per_list(metric: str, ranks: Floats | Lists) -> Floats:
    """Returns a metric such as ``ndcg@10`` of each list: (Q,)."""
    name, k = parse_metric(metric)
    each = np.asarray(ranks.ranks if isinstance(ranks, Lists) else ranks, dtype=np.float64)
    gains = np.where(each <= k, METRICS[name].gain(each, k), 0.0)
    return METRICS[name].of_list(gains, ranks, k) if isinstance(ranks, Lists) else gains


def per_user(metric: str, ranks: Floats | Lists) -> Floats:
    """Returns what each user contributes to a metric such as ``ndcg@10``: (U,).

    The metric is the mean over lists. Of users with several it is the mean of these contributions:
    the sum over a user's lists, times users / lists. They are what a test may take for independent.
    """
    values = per_list(metric, ranks)
    if not isinstance(ranks, Lists):
        return values
    _, first = np.unique(ranks.users, return_index=True)
    return np.add.reduceat(values, first) * (len(first) / len(values))


def compute(
    ranks: Floats | Lists, ks: Iterable[int] = KS, also: Iterable[str] = ()
) -> dict[str, float]:
    """Returns every metric of ranks at every cut-off, and those of ``also`` that are of ranks."""
    names = [f"{name}@{k}" for name in METRICS for k in ks]
    names += [name for name in also if name.partition("@")[0] in METRICS]
    return {name: float(per_list(name, ranks).mean()) for name in dict.fromkeys(names)}


def of_lists(top: Ints, popularity: Ints, ks: Iterable[int]) -> dict[str, float]:
    """Returns the metrics of recommended lists.

    ``top`` (Q, K) holds item ids 1..I, best first; ``popularity`` (I,) counts training events.
    """
    _, group, sizes = np.unique(popularity, return_inverse=True, return_counts=True)
    middle = np.cumsum(sizes) - (sizes + 1) / 2  # of the places of equally popular items, from 0
    percentile = middle[group] / max(len(popularity) - 1, 1)
    return {
        f"{metric.name}@{k}": metric.value(shown)
        for k, shown in ((k, Shown(top[:, :k], popularity, percentile)) for k in ks)
        for metric in LIST_METRICS.values()
    }


def cutoffs(names: Iterable[str]) -> list[int]:
    """Returns the cut-offs of those metrics that are of lists, in order."""
    parts = (name.partition("@") for name in names)
    return sorted({int(k) for name, _, k in parts if name in LIST_METRICS})


def mlflow_name(metric: str) -> str:
    """Returns the name under which MLflow accepts a metric: it rejects ``@``."""
    return metric.replace("@", "_")


def page() -> str:
    """Returns docs/metrics.md; a test compares the two."""
    head, _, intro = (__doc__ or "").partition("\n\n")
    both: list[Metric | ListMetric] = [*METRICS.values(), *LIST_METRICS.values()]
    rows = [f"| `{metric.name}@k` | {metric.meaning} | {metric.better} |" for metric in both]
    return "\n".join(
        [
            *("# Metrics", "", head, "", intro.strip(), ""),
            *("| name | of one user, or of all lists | better |", "|---|---|---|", *rows, ""),
            "The value of a rank metric is the mean over users, or over lists where a user has",
            "several ([protocols](protocols.md)); a list without a held-out item among the first k",
            "has 0. Those of all lists, from `coverage` on, are measured on test, and on",
            "validation where `--metric` or `--limit` asks for them.",
            "",
            f"Reports have k = {', '.join(map(str, KS))}; `--metric` takes any, for example",
            "`hr@50`. In MLflow the names have `_` for `@`, which it rejects.",
            "",
        ]
    )
