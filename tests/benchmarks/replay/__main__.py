"""How good is a search? Recorded studies, replayed with our own searcher and scheduler.

    python tests/benchmarks/replay [--tables FOLDER] [--recorded FOLDER] [--quick] [--seeds 20]
        [--trials 20] [--workers 2] [--points 5] [--only NAME]

``--tables`` holds the two public files that the page docs/search.md names. Nothing is trained: a
trial is the nearest unused setting of a table, and the clock is simulated. Regret is the part that
is missing to the best setting, of its distance to the median one: 0 is the best, 1 the median.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "platform"))

from simulate import simulate  # noqa: E402
from tables import Table, own, task_set, time_to_split  # noqa: E402

from seqtune.study.portfolio import greedy, scaled  # noqa: E402

SCHEDULERS = ("none", "reach", "asha", "hyperband", "median")
HEADER = "| tables | search | scheduler | regret, validation | regret, test | epochs | seconds |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=Path, default=Path("tables"))
    parser.add_argument("--recorded", type=Path, default=Path(__file__).parent / "recorded")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    tables = [one for one in all_tables(asked) if asked.only in f"{one.group} {one.name}"]
    if not tables:
        raise SystemExit(f"no tables in {asked.tables} or {asked.recorded}; give --tables FOLDER")
    seeds = 2 if asked.quick else asked.seeds
    schedulers = ("none", "reach") if asked.quick else SCHEDULERS
    print(f"{asked.trials} trials, {asked.workers} workers, {seeds} seeds")
    print(f"{HEADER}\n|{'---|' * (HEADER.count('|') - 1)}")
    for group in dict.fromkeys(one.group for one in tables):
        related = [one for one in tables if one.group == group]
        starts = {one.name: portfolio(one, related, asked.points) for one in related}
        for search in ("TPE", f"{asked.points} points, then TPE"):
            for scheduler in schedulers if len(related[0].epochs) > 1 else ("none",):
                found = [
                    outcome(table, scheduler, seed, asked, starts[table.name] * (search != "TPE"))
                    for table in related
                    for seed in range(seeds)
                ]
                cells = [mean(column) for column in zip(*found, strict=True)]
                print(f"| {group} | {search} | {scheduler} | {' | '.join(cells)} |", flush=True)


def all_tables(asked: argparse.Namespace) -> Iterator[Table]:
    readers = {"taskset-rnn.parquet": task_set, "time-to-split.parquet": time_to_split}
    for name, read in readers.items():
        if (asked.tables / name).exists():
            yield from read(asked.tables / name)
    if asked.recorded.is_dir():
        yield from own(asked.recorded)


def portfolio(table: Table, tables: list[Table], n: int) -> tuple[dict[str, Any], ...]:
    """Returns points that are chosen on the other tables of a group, of the same settings."""
    others = [one for one in tables if one.name != table.name]
    if not others:
        return ()
    size = min(one.n for one in others)
    values = scaled(np.stack([one.best()[0][:size] for one in others]))
    known = values[:, table.defaults] if table.defaults is not None else None
    return tuple(others[0].point(row) for row in greedy(values, n, known))


def outcome(
    table: Table,
    scheduler: str,
    seed: int,
    asked: argparse.Namespace,
    points: tuple[dict[str, Any], ...],
) -> tuple[float, float, float, float]:
    """Returns the regret on validation and on test, the epochs and the seconds of a study."""
    how = {"trials": asked.trials, "workers": asked.workers, "scheduler": scheduler}
    trace = simulate(table, seed=seed, portfolio=points, **how)
    valid, test = table.best()
    regrets = [
        float((values.max() - found) / (values.max() - np.median(values)))
        for values, found in ((valid, trace.valid[-1]), (test, trace.test[-1]))
    ]
    return regrets[0], regrets[1], float(trace.epochs[-1]), trace.seconds[-1]


def mean(values: tuple[float, ...]) -> str:
    """Writes a mean with its standard error: ``.123 (.004)``."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    value = float(np.mean(values))
    if abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.3f} ({error:.3f})"


if __name__ == "__main__":
    main()
