"""What one head carries: a study with many trials at a time that train nothing.

    python tests/benchmarks/head.py 10 100 400

For each number a Ray of this machine is made to believe in as many CPUs, and as many trials run at
a time. A trial is a process of its own, as ever, but in place of training it sleeps and reports:
ten evaluations, one every ``--every`` seconds, each with all metrics of a real one. Search,
Optuna's SQLite, MLflow's, the callbacks and the folders are those of any study.

Prints for each number: evaluations a second, the CPU seconds of this process (the driver) for each
trial, how long an evaluation waits until the driver has dealt with it, what MLflow still had to
write at the end, and for how long, and the memory of driver and of a trial's process.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from seqtune import metrics
from seqtune.options import StudyOptions
from seqtune.space.asked import ask_study
from seqtune.study import events, study, trial

ROWS = 10  # evaluations of a trial


class DoneError(Exception):
    """The search is over; finals would have nothing to test."""


def sleeps(every: float) -> Any:
    """Returns what a trial does."""
    names = [f"{name}@{k}" for name in metrics.METRICS for k in metrics.KS]

    def run(config: dict[str, Any], plan: Any, data: list[Any]) -> None:
        import time

        from ray import tune

        for epoch in range(1, ROWS + 1):
            time.sleep(every)
            value = 0.1 + 0.001 * epoch + 0.0001 * config["number"]
            row = dict.fromkeys(names, value) | {"train_ce": 1.0, "train_seconds": every}
            row |= {"epoch": epoch, "step": epoch, "best": value, "best_epoch": epoch}
            row |= {"train_targets": 1, "eval_seconds": 0.0, "time": time.time()}
            tune.report(row | {"finished": epoch == ROWS})

    return run


def main() -> None:
    """Prints a line for each number of trials at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[10, 100, 400])
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--rounds", type=float, default=2.0, help="trials for each at a time")
    given = parser.parse_args()
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(size, int(size * given.rounds), given.every, Path(folder)), flush=True)


def measure(size: int, trials: int, every: float, folder: Path) -> str:
    """Runs one study; returns what it took in a line."""
    waits: list[float] = []
    memory: list[float] = []
    evaluated = events.Messenger._evaluated
    searched: dict[str, float] = {}

    def note(self: Any, number: int, result: dict[str, Any]) -> None:
        waits.append(time.time() - result["time"])
        evaluated(self, number, result)
        if len(waits) == 3 * size:
            memory.extend(processes())

    def over(plan: Any, data: Any, storage: str, name: str, tracker: Any, counting: Any) -> None:
        searched.update(cpu=cpu() - began[1], wall=time.monotonic() - began[0])
        started = time.monotonic()
        tracker.settle(600)
        searched["late"] = time.monotonic() - started
        raise DoneError

    events.Messenger._evaluated = note  # type: ignore[method-assign]
    trial.run, study.find_finals = sleeps(every), over  # type: ignore[assignment]
    options = StudyOptions(
        "sasrec",
        data="tiny",
        trials=trials,
        concurrency=size,
        cpus_per_trial=1,
        scheduler="none",
        storage=str(folder),
        set=("epochs=10",),
    )
    began = time.monotonic(), cpu()
    with contextlib.suppress(DoneError):
        study.run(ask_study(options), Silent())  # type: ignore[arg-type]
    events.Messenger._evaluated = evaluated  # type: ignore[method-assign]
    slow = sorted(waits)[int(0.95 * len(waits))]
    each = 1000 * searched["cpu"] / trials
    return (
        f"{size} at a time, {trials} trials: {searched['wall']:.0f} s, "
        f"{len(waits) / searched['wall']:.1f} evaluations/s, "
        f"{each:.0f} ms of the driver's CPU for each trial, an evaluation waits "
        f"{statistics.median(waits):.2f} s (one in twenty {slow:.2f} s or more), MLflow is "
        f"{searched['late']:.1f} s late, driver {memory[0]:.0f} MB, a trial "
        f"{statistics.median(memory[1:]):.0f} MB"
    )


class Silent:
    """A view that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def cpu() -> float:
    """Returns the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def processes() -> list[float]:
    """Returns MB of this process, and of some of its trials: what each has for itself alone."""
    trials = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if b"ray::ImplicitFunc" in (entry / "cmdline").read_bytes():
                trials.append(private(entry))
    return [private(Path("/proc/self")), *trials[:20]]


def private(process: Path) -> float:
    """Returns the MB that a process shares with no other."""
    lines = (process / "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


if __name__ == "__main__":
    main()
