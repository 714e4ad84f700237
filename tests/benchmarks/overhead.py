"""What a trial of a study costs beside its training and evaluation.

    python tests/benchmarks/overhead.py [--data tiny] [--trials 12] [--epochs 5] [--repeat 1]

Runs ``python tune.py`` twice, with one trial at a time and with one per CPU, and reads what the
study has left. The overhead of a trial is the time from the end of the trial before it in the same
actor to its own end, less the seconds that it reports as training and evaluation. The first trial
of each actor is left out: it waits for a process and for torch. It prints seconds per trial.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "platform"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="tiny")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1)
    asked = parser.parse_args()
    print(f"sasrec on {asked.data}, {asked.trials} trials of at most {asked.epochs} epochs")
    for _ in range(asked.repeat):
        for concurrency in (1, len(os.sched_getaffinity(0))):
            with tempfile.TemporaryDirectory() as scratch:
                print(measure(asked, concurrency, Path(scratch)), flush=True)


def measure(asked: argparse.Namespace, concurrency: int, storage: Path) -> str:
    """Runs one study and returns a line about it."""
    load = os.getloadavg()[0]
    words = [f"{ROOT}/tune.py", "--model", "sasrec", "--data", asked.data, "--name", "overhead"]
    words += ["--trials", str(asked.trials), "--set", f"epochs={asked.epochs}"]
    words += ["--concurrency", str(concurrency), "--storage", str(storage)]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    spent = overheads(storage / "overhead", concurrency)
    return (
        f"{concurrency} at a time: {statistics.fmean(spent):.2f} s per trial (median "
        f"{statistics.median(spent):.2f}, most {max(spent):.2f}, of {len(spent)} trials); "
        f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


def overheads(folder: Path, concurrency: int) -> list[float]:
    """Returns the overhead of each trial after the first of each actor.

    The driver's own times count: Optuna notes when a trial was handed out and when it had ended.
    """
    from seqtune import search, trial
    from seqtune.storage import Folder

    study = search.open_study(search.storage_url(folder), "overhead")
    trials = study.get_trials()
    search.close_study(study)
    free: list[Any] = []  # when each actor became free
    spent = []
    for one in sorted(trials, key=lambda one: one.datetime_start):
        rows = trial.history(Folder.at(folder / "trials" / f"{one.number:04d}"))
        worked = sum(row["train_seconds"] + row["eval_seconds"] for row in rows)
        if len(free) < concurrency:
            free.append(one.datetime_complete)
            continue
        before = min(free)
        free.remove(before)
        free.append(one.datetime_complete)
        spent.append((one.datetime_complete - before).total_seconds() - worked)
    return spent


if __name__ == "__main__":
    main()
