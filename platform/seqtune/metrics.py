"""Ranking metrics, computed from the ranks of held-out items.

A rank is 1 for the top of the list; ties count as half, so ranks may be fractions. Mostly one item
per user is held out, which makes recall equal to the hit rate and MAP equal to MRR; all are listed
under the names that people look for. Where several are looked for in one list, they are what they
are known as: NDCG is relative to a list that begins with all of them.

What is recommended, whatever the held-out items are, has metrics of its own (``lists``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seqtune.data.split import Held
from seqtune.errors import UserError, nearest
from seqtune.lists import LIST_METRICS, Direction, ListMetric
from seqtune.outside import imported, is_own

Floats = NDArray[np.floating]
Ints = NDArray[np.integer[Any]]
KS = (5, 10, 20)
WHOLE = 2**31  # the cut-off of a metric that has none
SAMPLED = "sampled_"  # begins the names of metrics against drawn items


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


def of_held(ranks: Floats, held: Held) -> Ranks:
    """Returns ranks (M,) as those of held-out items, plain where each user has one."""
    return as_held(ranks, held.users, held.lists)


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


@dataclass(frozen=True)
class WholeMetric:
    """A metric of the whole ranking, without a cut-off."""

    name: str
    value: Callable[[Lists, Ints], float]  # and how many items each is ranked among (M,)
    meaning: str
    better: Direction = "higher"


def _auc(lists: Lists, among: Ints) -> float:
    """Returns the mean share of pairs that are in order: a target before an item that is none."""
    of = np.repeat(np.arange(len(lists)), lists.sizes)
    order = np.lexsort((lists.ranks, of))
    nth = np.arange(len(order)) - np.repeat(lists.starts, lists.sizes)
    sizes = lists.sizes[of]
    others_below = among - lists.ranks[order] - (sizes - 1 - nth)
    share = np.maximum(others_below, 0) / np.maximum(among - sizes, 1)
    return float((np.add.reduceat(share, lists.starts) / lists.sizes).mean())


def _r_precision(lists: Lists, among: Ints) -> float:
    found = lists.ranks <= np.repeat(lists.sizes, lists.sizes)
    return float((np.add.reduceat(found, lists.starts, dtype=float) / lists.sizes).mean())


WHOLES = (
    WholeMetric(
        "auc",
        _auc,
        "Area under the ROC curve of one list: the share of the other items that are ranked below "
        "the held-out one.",
    ),
    WholeMetric(
        "r-precision",
        _r_precision,
        "Of R held-out items those that are among the first R; of one, the hit rate at 1.",
    ),
)
COSTS = {
    "parameters": "Weights of the model.",
    "megabytes": "Size of its weights.",
    "ms_per_request": "Milliseconds in which it answers one user: the median of some.",
}
METRICS = {metric.name: metric for metric in RANK}
WHOLE_METRICS = {metric.name: metric for metric in WHOLES}

# What a report shows first: with one held-out item per user the others are copies.
MAIN = tuple(f"{metric.name}@{k}" for metric in METRICS.values() for k in metric.shown)


def parse_metric(text: str, place: str = "--metric") -> tuple[str, int]:
    """Splits ``ndcg@10`` into its name and cut-off; one's own metric has none.

    Raises:
        UserError: there is no such metric, it has no cut-off, or one's own cannot be used.
    """
    if is_own(text):
        return own(text, place).name, WHOLE
    name, _, k = text.lower().partition("@")
    if name not in METRICS:
        if name.startswith(SAMPLED) or name in LIST_METRICS | WHOLE_METRICS:
            raise UserError(
                f"{place} {text}: is reported; no study can maximise it first; choose ndcg@10"
            )
        raise UserError(f"{place} {text}: no such metric{nearest(name, METRICS)}")
    if not (k.isascii() and k.isdigit()) or len(k) > 9 or int(k) < 1:
        raise UserError(f"{place} {text}: write a cut-off after the name, for example {name}@10")
    return name, int(k)


@cache
def own(text: str, place: str = "--metric") -> Metric:
    """Returns the metric that a function of one's own is: of ranks (M,), 1 is best, to gains (M,).

    Of several items in a list the mean counts. Larger is better.

    Raises:
        UserError: it cannot be imported, or does not make a number of each rank.
    """
    made = imported(text, place)

    def gain(ranks: Floats, k: int) -> Floats:
        try:
            gains = np.asarray(made(ranks), np.float64)
        except Exception as error:
            raise UserError(f"{place} {text}: failed ({error!r})") from error
        if gains.shape != ranks.shape or not np.isfinite(gains).all():
            raise UserError(
                f"{place} {text}: must make a finite number of each rank, and made {gains.shape} of"
                f" {ranks.shape}"
            )
        return gains

    gain(np.array([1.0, 2.5, 1000.0]), WHOLE)
    return Metric(text, gain, "", _share)


def check_measure(text: str, place: str) -> str:
    """Returns the name of what a trial can be judged by on validation.

    That is a metric of ranks or of lists at a cut-off, or what a model costs.

    Raises:
        UserError: there is nothing of that name.
    """
    if is_own(text):
        return own(text, place).name
    name, _, k = text.partition("@")
    known = [*METRICS, *LIST_METRICS, *COSTS]
    if name not in known or (name in COSTS and k):
        raise UserError(f"{place} {text}: there is no such measure{nearest(name, known)}")
    if name not in COSTS:
        parse_metric(f"{RANK[0].name}@{k}" if name in LIST_METRICS else text, place)
    return text


def direction(metric: str) -> Direction:
    """Returns which values of ``ndcg@10``, ``popularity@5`` or ``parameters`` are better."""
    name = metric.partition("@")[0].removeprefix(SAMPLED)
    if is_own(name):
        return "higher"
    known = METRICS | LIST_METRICS | WHOLE_METRICS
    return "lower" if name in COSTS else known[name].better


def ways(names: Iterable[str]) -> list[Literal["maximize", "minimize"]]:
    """Returns what Optuna shall do with each of these measures."""
    return ["minimize" if direction(name) == "lower" else "maximize" for name in names]


def per_list(metric: str, ranks: Floats | Lists) -> Floats:
    """Returns a metric such as ``ndcg@10`` of each list: (Q,)."""
    name, k = parse_metric(metric)
    one = own(name) if is_own(name) else METRICS[name]
    each = np.asarray(ranks.ranks if isinstance(ranks, Lists) else ranks, dtype=np.float64)
    gains = np.where(each <= k, one.gain(each, k), 0.0)
    return one.of_list(gains, ranks, k) if isinstance(ranks, Lists) else gains


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
    names += [name for name in also if is_own(name) or name.partition("@")[0] in METRICS]
    return {name: float(per_list(name, ranks).mean()) for name in dict.fromkeys(names)}


def whole(ranks: Ranks, among: Ints) -> dict[str, float]:
    """Returns the metrics of the whole ranking; ``among`` (M,) items each rank is."""
    lists = _as_lists(ranks)
    return {metric.name: metric.value(lists, among) for metric in WHOLES}


def sampled(ranks: Ranks, among: Ints, negatives: int, seed: int) -> dict[str, float]:
    """Returns what ranks would be worth among so many other items that are drawn at random.

    Of the items that are ranked above a target, a hypergeometric number is drawn (Krichene and
    Rendle, KDD 2020). Each target is ranked by itself.
    """
    each = _as_lists(ranks).ranks
    above = np.clip(np.ceil(each).astype(np.int64) - 1, 0, among - 1)
    drawn = np.minimum(negatives, among - 1)
    rng = np.random.default_rng(seed)
    places = 1.0 + rng.hypergeometric(above, among - 1 - above, drawn)
    names = [f"{name}@{k}" for name in ("ndcg", "hr", "mrr") for k in KS]
    return {f"{SAMPLED}{name}": float(per_list(name, places).mean()) for name in names}


def _as_lists(ranks: Ranks) -> Lists:
    if isinstance(ranks, Lists):
        return ranks
    each = np.arange(len(ranks))
    return Lists(np.asarray(ranks, np.float64), each, each)


def mlflow_name(metric: str) -> str:
    """Returns the name under which MLflow accepts a metric: it rejects ``@`` and ``:``."""
    return metric.replace("@", "_").replace(":", ".")


def page() -> str:
    """Returns docs/metrics.md; a test compares the two."""
    head, _, intro = (__doc__ or "").partition("\n\n")
    families: list[list[tuple[str, Metric | ListMetric | WholeMetric]]] = [
        [(f"{one.name}@k", one) for one in METRICS.values()],
        [(one.name, one) for one in WHOLES],
        [(f"{one.name}@k", one) for one in LIST_METRICS.values()],
    ]

    def table(of: str, family: int) -> list[str]:
        rows = [f"| `{name}` | {one.meaning} | {one.better} |" for name, one in families[family]]
        return [f"| name | {of} | better |", "|---|---|---|", *rows, ""]

    return "\n".join(
        [
            *("# Metrics", "", head, "", intro.strip().replace("``lists``", "below"), ""),
            *("## Where the held-out items are", "", *table("of one user", 0)),
            "The value of a rank metric is the mean over users, or over lists where a user has",
            "several ([protocols](protocols.md)); a list without a held-out item among the first k",
            f"has 0. Reports have k = {', '.join(map(str, KS))}; `--metric` takes any, for example",
            "`hr@50`. In MLflow the names have `_` for `@`, which it rejects.",
            "",
            *table("of the whole ranking, on test", 1),
            "`--sampled-metrics 100` adds `sampled_ndcg@k`, `sampled_hr@k` and `sampled_mrr@k` on",
            "test: each held-out item among 100 others that are drawn at random, as older papers",
            "have it. They are far higher than those among all items, may put models in another",
            "order (Krichene and Rendle, KDD 2020), and no study can maximise them.",
            "",
            "`--metric my_metrics:gain` takes a function of your own: of an array of ranks, of",
            "which 1 is best and ties have halves, it makes an array of what each is worth. More",
            "is better. The module is one that Python finds, or a file of the working folder:",
            "",
            "```python",
            "def gain(ranks):  # rank-biased precision",
            "    return 0.2 * 0.8 ** (ranks - 1)",
            "```",
            "",
            *("## What is recommended", "", *table("of all lists", 2)),
            "They are measured on test, and on validation where `--metric` or `--limit` asks for",
            "them.",
            "",
        ]
    )
