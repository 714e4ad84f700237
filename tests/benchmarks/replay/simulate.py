"""A study on a table: our searcher and scheduler, and a clock that is simulated.

Syne Tune's simulator is the model (arXiv 2207.06940): what a trial reports are events in a queue,
at the times at which they would come, and the time that decisions really take is added.
"""

from __future__ import annotations

import heapq
import itertools
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from tables import Table

from seqtune.study import search
from seqtune.study.samplers import DRAWN
from seqtune.study.schedulers import REVIVES, Race, make_scheduler
from seqtune.study.search import OptunaSearcher
from seqtune.study.store import Opened

METRIC = "value"


class Ended(NamedTuple):
    """A trial that has ended."""

    number: int
    drawn: bool  # by the sampler
    valid: float  # its best value
    test: float  # there


@dataclass(frozen=True)
class Trace:
    """What a study had after each of its evaluations."""

    seconds: list[float]
    epochs: list[int]  # trained, by all trials
    trials: list[int]  # begun
    valid: list[float]  # the best so far
    test: list[float]  # that of the same
    ended: list[Ended]  # the trials in the order of their ends


class Memory(InMemoryStorage):
    """Optuna's storage in memory, with what the searcher asks of a database."""

    engine = SimpleNamespace(dispose=lambda: None)

    def remove_session(self) -> None:
        """There is none."""


def open_in_memory(storage: str, name: str, say: Any = None) -> Opened:
    """Takes the place of the study on disk, which would take most of the time."""
    memory: Any = Memory()
    study = optuna.create_study(storage=memory, study_name=name, direction="maximize")
    return Opened(study, memory)


search.open_study = open_in_memory
optuna.logging.set_verbosity(optuna.logging.WARNING)


def first_of(table: Table, seed: int) -> int:
    """Returns the setting of trial 0."""
    if table.defaults is not None:
        return table.defaults
    return int(np.random.default_rng(seed).integers(table.n))


def simulate(
    table: Table,
    *,
    trials: int = 20,
    workers: int = 2,
    seed: int = 0,
    scheduler: str = "reach",
    sampler: str = "tpe",
    patience: int = 10,
    portfolio: tuple[dict[str, Any], ...] = (),
) -> Trace:
    """Runs a study on a table; ``patience`` is in evaluations.

    Where nobody has declared defaults, trial 0 is any setting.
    """
    space = replace(table.space, start=table.point(first_of(table, seed)), portfolio=portfolio)
    how: dict[str, Any] = {"metric": METRIC, "trials": trials, "seed": seed, "sampler": sampler}
    how["continues"] = scheduler in REVIVES
    searcher = OptunaSearcher([space], "memory", "study", **how)
    race = make_scheduler(scheduler, [space.model])
    race.set_search_properties("best", "max")
    if isinstance(race, Race):
        race.popularity = lambda: table.popularity
    events: list[tuple[float, int, int, int]] = []  # when, order, trial, evaluation
    order, trace = itertools.count(), Trace([], [], [], [], [], [])
    rows: dict[int, int] = {}  # trial -> setting
    best_at: dict[int, int] = {}  # trial -> its best evaluation
    running: dict[int, Any] = {}  # as Tune has them
    controller = SimpleNamespace(get_live_trials=lambda: list(running.values()))
    best, tested, begun, epochs_spent = -np.inf, -np.inf, 0, 0.0

    def start(now: float) -> float:
        """Gives an idle worker its next trial; returns the seconds that this took."""
        nonlocal begun
        began = time.perf_counter()
        config = searcher.suggest(f"{begun}")
        if isinstance(config, dict):
            number, begun, first = config["number"], begun + 1, 0
            if (parent := config.get("parent")) is not None:
                rows[number], first = rows[parent], best_at[parent] + 1
            else:
                rows[number] = table.answer(config["params"], set(rows.values()))
            running[number] = SimpleNamespace(trial_id=f"{number}", config=config)
            race.on_trial_add(None, running[number])
            took = time.perf_counter() - began
            when = now + took + table.seconds[rows[number]]
            heapq.heappush(events, (when, next(order), number, first))
        return time.perf_counter() - began

    for _ in range(workers):
        start(0.0)
    while events:
        clock, _, number, at = heapq.heappop(events)
        row = rows[number]
        curve = table.valid[row]
        done = curve[: at + 1]
        top = best_at[number] = int(np.nanargmax(done))
        last = at + 1 == len(curve) or np.isnan(curve[at + 1]) or at - top >= patience
        epochs_spent += table.epochs[at] - (table.epochs[at - 1] if at else 0)
        if done[top] > best:
            best, tested = float(done[top]), float(table.test[row, top])
        result = {
            METRIC: float(curve[at]),
            "best": float(done[top]),
            "best_epoch": int(table.epochs[top]),
            "epoch": int(table.epochs[at]),
            "step": int(table.steps[row, at]),
            "finished": bool(last),
            "train_seconds": float(table.seconds[row]),
            "config": running[number].config,
        }
        began = time.perf_counter()
        searcher.on_trial_result(f"{number}", result)
        told = race.on_trial_result(controller, running[number], result)
        goes_on = told == "CONTINUE" and not last
        if not goes_on:
            drawn = running[number].config["origin"] == DRAWN
            trace.ended.append(Ended(number, drawn, float(done[top]), float(table.test[row, top])))
            searcher.on_trial_complete(f"{number}", result)
            del running[number]
        took = time.perf_counter() - began
        for values, value in (
            (trace.seconds, clock),
            (trace.epochs, int(epochs_spent)),
            (trace.trials, begun),
            (trace.valid, best),
            (trace.test, tested),
        ):
            values.append(value)
        if goes_on:
            heapq.heappush(events, (clock + took + table.seconds[row], next(order), number, at + 1))
        else:
            for _ in range(workers - len(running)):  # those that had nothing to do are asked again
                took += start(clock + took)
    searcher.close()
    return trace
