"""Ranking metrics, computed from the rank of each user's held-out item.

A rank is 1 for the top of the list; ties count as half, so ranks may be fractions. One item per
user is held out, which makes recall equal to the hit rate and MAP equal to MRR; all are listed
under the names that people look for. Every metric here is better when higher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtune.errors import UserError, nearest

Floats = NDArray[np.floating]
KS = (5, 10, 20)


class Metric(NamedTuple):
    """A metric at a cut-off: what one user contributes, given the rank of the held-out item."""

    gain: Callable[[Floats, int], Floats]  # (U,) ranks within the cut-off, k -> (U,)
    meaning: str


METRICS: dict[str, Metric] = {
    "ndcg": Metric(
        lambda r, k: 1 / np.log2(r + 1),
        "1 / log2(rank + 1) within the first k, else 0: the ideal list has the item on top.",
    ),
    "hr": Metric(
        lambda r, k: np.ones_like(r), "Share of users whose item is among the first k (hit rate)."
    ),
    "mrr": Metric(lambda r, k: 1 / r, "1 / rank within the first k, else 0."),
    "recall": Metric(
        lambda r, k: np.ones_like(r), "Found items / held-out items; one is held out, so it is hr."
    ),
    "precision": Metric(lambda r, k: np.full_like(r, 1 / k), "Found items / k."),
    "map": Metric(
        lambda r, k: 1 / r, "Mean average precision, over the one held-out item: equal to mrr."
    ),
}

LIST_METRICS = {
    "coverage": "Share of the catalogue that appears in the first k of at least one user.",
    "popularity": "Mean popularity percentile (0 rarest, 1 most popular) of the first k items.",
}


def parse_metric(text: str, place: str = "--metric") -> tuple[str, int]:
    """Splits ``ndcg@10`` into its name and cut-off; anything else is a UserError."""
    name, _, k = text.lower().partition("@")
    if name not in METRICS:
        raise UserError(f"{place} {text}: no such metric{nearest(name, METRICS)}")
    if not k.isdigit() or int(k) < 1:
        raise UserError(f"{place} {text}: write a cut-off after the name, for example {name}@10")
    return name, int(k)


def per_user(metric: str, ranks: Floats) -> Floats:
    """Returns what each user contributes to a metric such as ``ndcg@10``: (U,) -> (U,)."""
    name, k = parse_metric(metric)
    ranks = np.asarray(ranks, dtype=np.float64)
    return np.where(ranks <= k, METRICS[name].gain(ranks, k), 0.0)


def compute(ranks: Floats, ks: Iterable[int] = KS, also: str | None = None) -> dict[str, float]:
    """Returns every metric at every cut-off, and the metric ``also`` where it is not among them."""
    names = [f"{name}@{k}" for name in METRICS for k in ks]
    if also is not None and also not in names:
        names.append(also)
    return {name: float(per_user(name, ranks).mean()) for name in names}


def of_lists(
    top: NDArray[np.integer], popularity: NDArray[np.integer], ks: Iterable[int]
) -> dict[str, float]:
    """Returns coverage and popularity bias of recommended lists.

    ``top`` (U, K) holds item ids 1..I, best first; ``popularity`` (I,) counts training events.
    """
    order = np.argsort(np.argsort(popularity, kind="stable"), kind="stable")
    percentile = order / max(len(popularity) - 1, 1)
    result = {}
    for k in ks:
        first = top[:, :k]
        result[f"coverage@{k}"] = len(np.unique(first)) / len(popularity)
        result[f"popularity@{k}"] = float(percentile[first - 1].mean())
    return result


def mlflow_name(metric: str) -> str:
    """Returns the name under which MLflow accepts a metric: it rejects ``@``."""
    return metric.replace("@", "_")


def page() -> str:
    """Returns docs/metrics.md; a test compares the two."""
    head, _, intro = (__doc__ or "").partition("\n\n")
    lines = [
        "# Metrics",
        "",
        head,
        "",
        intro.strip(),
        "",
        "| name | of one user, or of all lists |",
    ]
    lines += [
        "|---|---|",
        *(f"| `{name}@k` | {metric.meaning} |" for name, metric in METRICS.items()),
    ]
    lines += [f"| `{name}@k` | {meaning} |" for name, meaning in LIST_METRICS.items()]
    cut_offs = ", ".join(map(str, KS))
    lines += [
        "",
        f"Reports have k = {cut_offs}; `--metric` takes any, for example `hr@50`. In MLflow",
    ]
    lines += [
        "the names have `_` for `@`, which it rejects. `coverage` and `popularity` are measured"
    ]
    lines += ["on test alone, and popularity has no better direction.", ""]
    return "\n".join(lines)
