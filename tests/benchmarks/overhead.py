"""What a study costs beside the training and evaluation of its trials.

    python tests/benchmarks/overhead.py [--data tiny] [--trials 20] [--epochs 5] [--repeat 1]
        [--set NAME=VALUE ...] [--concurrency 1 2]

Runs ``python tune.py`` with one trial at a time, then with one per CPU (or as ``--concurrency``
says; 0 leaves the choice to seqtune), and reads what the study has left.

The overhead of a trial is the time from the end of the trial before it in the same actor to its
own end, less the seconds that it reports as training and evaluation. The first trial of each actor
is left out: it waits for a process and for torch.

The wall time has three parts: start-up until Optuna hands out the first trial, the trials, and
what follows the end of the last one. CPU is what the study's processes used while trials ran, of
all CPUs there are; "busy" leaves out the end, where fewer trials are left than fit.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray  # noqa: F401 - it carries psutil, and makes it importable

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "platform"))
CPUS = len(os.sched_getaffinity(0))
psutil = importlib.import_module("psutil")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="tiny")
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, CPUS])
    asked = parser.parse_args()
    print(
        f"{asked.model} on {asked.data}, {asked.trials} trials of at most {asked.epochs} epochs, "
        f"{CPUS} CPUs"
    )
    for _ in range(asked.repeat):
        for concurrency in asked.concurrency:
            with tempfile.TemporaryDirectory() as scratch:
                print(measure(asked, concurrency, Path(scratch)), flush=True)


def measure(asked: argparse.Namespace, concurrency: int, storage: Path) -> str:
    """Runs one study and returns lines about it."""
    load = os.getloadavg()[0]
    words = [f"{ROOT}/tune.py", "--model", asked.model, "--data", asked.data, "--name", "overhead"]
    words += ["--trials", str(asked.trials), "--storage", str(storage)]
    for one in (f"epochs={asked.epochs}", *asked.set):
        words += ["--set", one]
    if concurrency:
        words += ["--concurrency", str(concurrency)]
    began = time.time()
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) as study:
        usage = Usage(study.pid)
        said, _ = study.communicate()
    ended = time.time()
    usage.stop()
    if study.returncode:
        raise SystemExit(f"the study ended with {study.returncode}\n{said}")
    chosen = next(line for line in said.splitlines() if " at a time" in line)
    at_a_time = int(chosen.partition(" at a time")[0].split()[-1])
    trials = ended_trials(storage / "overhead")
    first = min(one.datetime_start.timestamp() for one in trials)
    ends = sorted(one.datetime_complete.timestamp() for one in trials)
    spent = overheads(storage / "overhead", trials, at_a_time)
    worked = sum(work(storage / "overhead", one.number) for one in trials)
    mean, median = statistics.fmean(spent), statistics.median(spent)
    return f"""{chosen}
  overhead {mean:.2f} s per trial (median {median:.2f}, most {max(spent):.2f}, of {len(spent)})
  wall {ended - began:.1f} s: start-up {first - began:.1f}, trials {ends[-1] - first:.1f}, \
closing {ended - ends[-1]:.1f}; training and evaluation {worked:.1f} s of trial time
  CPU {usage.between(first, ends[-1])} while trials ran, \
{usage.between(first, ends[-at_a_time])} while busy
  load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"""


class Usage:
    """Follows the CPU seconds of a process and of all that it has started."""

    def __init__(self, pid: int) -> None:
        self.samples: list[tuple[float, float, float]] = []  # when, CPU seconds, idle of all CPUs
        self._seen: dict[tuple[int, float], float] = {}
        self._pid, self._stopped = pid, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def between(self, start: float, end: float) -> str:
        """Returns the shares of all CPUs that the study used and that nobody used."""
        when, used, idle = np.array(self.samples).T
        own, free = (
            float(np.interp(end, when, seconds) - np.interp(start, when, seconds))
            / ((end - start) * CPUS)
            for seconds in (used, idle)
        )
        return f"{own:.0%} (idle {free:.0%}, others {max(1 - own - free, 0):.0%})"

    def _follow(self) -> None:
        while not self._stopped.wait(0.2):
            try:
                root = psutil.Process(self._pid)
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for one in family:
                try:
                    spent = one.cpu_times()
                    self._seen[one.pid, one.create_time()] = spent.user + spent.system
                except psutil.Error:  # it has ended; what it had used until then counts
                    continue
            idle = psutil.cpu_times().idle
            self.samples.append((time.time(), sum(self._seen.values()), idle))


def ended_trials(folder: Path) -> list[Any]:
    """Returns Optuna's trials. It notes when the driver handed one out, and when it had ended."""
    from seqtune.study import store

    opened = store.open_study(store.storage_url(folder), "overhead")
    trials = opened.study.get_trials()
    opened.close()
    return [one for one in trials if one.datetime_complete]


def work(folder: Path, number: int) -> float:
    """Returns the seconds that a trial reports as training and evaluation."""
    from seqtune.state import told
    from seqtune.storage import Folder

    rows = told(Folder.at(folder / "trials" / f"{number:04d}"))
    return sum(row["train_seconds"] + row["eval_seconds"] for row in rows)


def overheads(folder: Path, trials: list[Any], concurrency: int) -> list[float]:
    """Returns the overhead of each trial after the first of each actor."""
    free: list[Any] = []  # when each actor became free
    spent = []
    for one in sorted(trials, key=lambda one: one.datetime_start):
        if len(free) >= concurrency:
            before = min(free)
            free.remove(before)
            gap = (one.datetime_complete - before).total_seconds()
            spent.append(gap - work(folder, one.number))
        free.append(one.datetime_complete)
    return spent


if __name__ == "__main__":
    main()
