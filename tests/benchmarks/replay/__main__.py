"""How good is a search? Recorded studies, replayed with our own searcher and scheduler.

    python tests/benchmarks/replay [--tables FOLDER] [--recorded FOLDER] [--quick] [--seeds 20]
        [--trials 20] [--workers 2] [--points 5] [--only NAME] [--samplers tpe random gp]
        [--forest] [--plot FILE.html] [--settled] [--portfolio]

``--tables`` holds the two public files that the page docs/search.md names. Nothing is trained: a
trial is the nearest unused setting of a table, and the clock is simulated. Regret is the part that
is missing to the best setting, of its distance to the median one: 0 is the best, 1 the median.
With ``--forest`` any point is answered, by a random forest of the settings, where that ranks
settings which it has not seen with .9 or more. ``--plot`` draws regret against trials and epochs.
``--settled`` shows what ``--until settled`` saves of 50 trials, and what it loses on test.
``--portfolio`` holds the defaults and the points that the other tables of a group give against a
whole study without points, and prints the ``start:`` section that all tables give together.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "platform"))

from simulate import Trace, simulate  # noqa: E402
from tables import Floats, Forest, Table, own, task_set, time_to_split  # noqa: E402

from seqtune.options import MOST_TRIALS  # noqa: E402
from seqtune.study.portfolio import greedy, scaled  # noqa: E402
from seqtune.study.settling import Settling  # noqa: E402
from seqtune.words import brief  # noqa: E402

SURE = 1.96  # errors, beyond which a loss is outside the 95 % interval
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
    parser.add_argument("--samplers", nargs="+", default=["tpe"])
    parser.add_argument("--forest", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--settled", action="store_true")
    parser.add_argument("--portfolio", action="store_true")
    asked = parser.parse_args()
    tables = [one for one in all_tables(asked) if asked.only in f"{one.group} {one.name}"]
    if asked.forest:
        tables = list(forests(tables))
    if not tables:
        raise SystemExit(f"no tables in {asked.tables} or {asked.recorded}; give --tables FOLDER")
    seeds = 2 if asked.quick else asked.seeds
    schedulers = ("none", "reach") if asked.quick else SCHEDULERS
    print(f"{asked.trials} trials, {asked.workers} workers, {seeds} seeds")
    if asked.settled:
        print_settled(tables, asked, seeds)
        return
    if asked.portfolio:
        print_portfolios(tables, asked, seeds)
        return
    print(f"{HEADER}\n|{'---|' * (HEADER.count('|') - 1)}")
    drawn: dict[str, list[tuple[Table, Trace]]] = {}
    for group in dict.fromkeys(one.group for one in tables):
        related = [one for one in tables if one.group == group]
        starts = {one.name: portfolio(one, related, asked.points) for one in related}
        for sampler, n in itertools.product(asked.samplers, (0, asked.points)):
            search = f"{n} points, then {sampler}" if n else sampler
            for scheduler in schedulers if len(related[0].epochs) > 1 else ("none",):
                how = {"sampler": sampler, "scheduler": scheduler}
                traces = [
                    (table, study(table, seed, asked, starts[table.name][:n], **how))
                    for table in related
                    for seed in range(seeds)
                ]
                found = [outcome(table, trace) for table, trace in traces]
                cells = [mean(column) for column in zip(*found, strict=True)]
                print(f"| {group} | {search} | {scheduler} | {' | '.join(cells)} |", flush=True)
                drawn[f"{group}: {search}, {scheduler}"] = traces
    if asked.plot is not None:
        draw(drawn, asked.plot)


def print_settled(tables: list[Table], asked: argparse.Namespace, seeds: int) -> None:
    """Prints how many of 50 trials a study runs until it has settled, and what it loses so.

    The loss is that on test of what validation chooses, in errors of the difference between two
    settings; it is inside the interval up to 1.96 of them.
    """
    asked.trials = MOST_TRIALS
    print(f"{MOST_TRIALS} trials at most, {asked.workers} workers, {seeds} seeds")
    print("| tables | search | trials | loss in errors | half saved | of these, inside |")
    print("|---|---|---|---|---|---|")
    for group in dict.fromkeys(one.group for one in tables):
        related = [t for t in tables if t.group == group and t.n > MOST_TRIALS]
        related = [table for table in related if table.error() > 0]
        for n in (0, asked.points) if related else ():
            starts = {one.name: portfolio(one, related, n) for one in related}
            found = []
            for table in related:
                of_seeds = [
                    settled(table, study(table, seed, asked, starts[table.name], scheduler="reach"))
                    for seed in range(seeds)
                ]
                found.append(np.mean(of_seeds, axis=0))
            trials, loss = np.stack(found).T
            half = trials <= MOST_TRIALS / 2
            inside = np.mean(loss[half] <= SURE) if half.any() else 0
            search = f"{n} points, then tpe" if n else "tpe"
            shares = f"{np.mean(half):.0%} | {inside:.0%}"
            print(f"| {group} | {search} | {trials.mean():.0f} | {loss.mean():.2f} | {shares} |")


def print_portfolios(tables: list[Table], asked: argparse.Namespace, seeds: int) -> None:
    """Prints what the defaults and points of the other tables reach, and what a study does."""
    print("| tables | left out | settings | defaults | and points | best trial of a study | best |")
    print(f"|{'---|' * 7}")
    for group in dict.fromkeys(one.group for one in tables):
        related = [one for one in tables if one.group == group and one.defaults is not None]
        for table in related if len(related) > 1 else ():
            chosen = portfolio(table, related, asked.points)
            valid, test = table.best()
            rows = [table.defaults, *(table.nearest(point, set()) for point in chosen)]
            best = max(rows, key=lambda row: valid[row])
            ends = [study(table, seed, asked, (), scheduler="reach") for seed in range(seeds)]
            found = np.mean([(one.valid[-1], one.test[-1]) for one in ends], axis=0)
            pairs = [(valid[row], test[row]) for row in (table.defaults, best)]
            pairs += [tuple(found), (valid.max(), test[valid.argmax()])]
            cells = " | ".join(f"{one:.4f}, {other:.4f}" for one, other in pairs)
            print(f"| {group} | {table.name} | {table.n} | {cells} |", flush=True)
        if len(related) > 1:
            print(f"\n{group}, from all of them:\nstart:")
            for point in portfolio(None, related, asked.points):
                words = [f"{n}: {brief(v)}" for n, v in point.items()]
                print(f"  - {{{', '.join(words)}}}")


def settled(table: Table, trace: Trace) -> tuple[float, float]:
    """Returns after how many trials a study has settled, and what the others would have won."""
    error = table.error()
    settling = Settling(MOST_TRIALS, "value", lambda one, other: error)
    ends, at = trace.ended, 0
    while at < len(ends):
        one, at = ends[at], at + 1
        if settling.ended(one.number, one.valid, drawn=one.drawn):
            break
    first, last = (max(some, key=lambda one: one.valid).test for some in (ends[:at], ends))
    return float(at), (last - first) / error


def all_tables(asked: argparse.Namespace) -> Iterator[Table]:
    readers = {"taskset-rnn.parquet": task_set, "time-to-split.parquet": time_to_split}
    for name, read in readers.items():
        if (asked.tables / name).exists():
            yield from read(asked.tables / name)
    if asked.recorded.is_dir():
        yield from own(asked.recorded)


def forests(tables: list[Table]) -> Iterator[Table]:
    """Yields those tables that a forest tells well, and prints how well."""
    for table in tables:
        try:
            made, found = Forest.of(table)
        except ValueError as error:
            print(f"left out: {error}")
        else:
            print(f"{table.group} {table.name}: a forest ranks unseen settings with {found:.3f}")
            yield made


def portfolio(table: Table | None, tables: list[Table], n: int) -> tuple[dict[str, Any], ...]:
    """Returns points that are chosen on the other tables of a group, of the same settings."""
    others = [one for one in tables if table is None or one.name != table.name]
    if not others:
        return ()
    size = min(one.n for one in others)
    values = scaled(np.stack([one.best()[0][:size] for one in others]))
    known = values[:, first] if (first := others[0].defaults) is not None else None
    return tuple(others[0].point(row) for row in greedy(values, n, known))


def study(
    table: Table,
    seed: int,
    asked: argparse.Namespace,
    points: tuple[dict[str, Any], ...],
    **how: str,
) -> Trace:
    """Replays a study; a forest has one that is its own, since it grows."""
    own = copy.copy(table)
    return simulate(
        own, seed=seed, portfolio=points, trials=asked.trials, workers=asked.workers, **how
    )


def outcome(table: Table, trace: Trace) -> tuple[float, float, float, float]:
    """Returns the regret on validation and on test, the epochs and the seconds of a study."""
    valid, test = regrets(table, trace)
    return float(valid[-1]), float(test[-1]), float(trace.epochs[-1]), trace.seconds[-1]


def regrets(table: Table, trace: Trace) -> tuple[Floats, Floats]:
    """Returns the regret on validation and on test after each evaluation."""
    valid, test = table.best()
    spans = [(values.max(), values.max() - np.median(values)) for values in (valid, test)]
    reached = (np.array(trace.valid), np.array(trace.test))
    both = [(top - found) / span for (top, span), found in zip(spans, reached, strict=True)]
    return both[0], both[1]


def draw(drawn: dict[str, list[tuple[Table, Trace]]], file: Path) -> None:
    """Draws the mean regret on validation against trials, epochs and seconds."""
    from plotly.subplots import make_subplots

    axes = ("trials", "epochs", "seconds")
    figure = make_subplots(1, len(axes), subplot_titles=[f"regret against {one}" for one in axes])
    for name, traces in drawn.items():
        for column, axis in enumerate(axes, start=1):
            most = float(np.median([getattr(trace, axis)[-1] for _, trace in traces]))
            grid = np.linspace(0, most, 60)
            lines = []
            for table, trace in traces:
                place = np.searchsorted(getattr(trace, axis), grid, side="right") - 1
                lines.append(np.where(place < 0, 1.0, regrets(table, trace)[0][place]))
            once = {"legendgroup": name, "showlegend": column == 1}
            figure.add_scatter(
                x=grid, y=np.mean(lines, axis=0), name=name, row=1, col=column, **once
            )
    figure.update_yaxes(range=[0, 1.2])
    figure.write_html(file, include_plotlyjs=True)
    print(f"drawn in {file}")


def mean(values: tuple[float, ...]) -> str:
    """Writes a mean with its standard error: ``.123 (.004)``."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    value = float(np.mean(values))
    if abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.3f} ({error:.3f})"


if __name__ == "__main__":
    main()
