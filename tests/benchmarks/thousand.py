"""A study of a thousand trivial trials: what each costs the driver, and what MLflow has in the end.

    python tests/benchmarks/thousand.py [--trials 1000] [--model stan] [--data tiny]

The study runs as ``seqtune tune`` runs it, with Ray, Optuna and MLflow. Meanwhile the CPU seconds
and the memory of its driver are read from ``/proc``, and the trials that have ended from Optuna's
database.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
TICKS = os.sysconf("SC_CLK_TCK")
PAUSE = 0.5  # seconds between two looks
SHARE = 10  # a tenth of the trials is compared with another tenth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--model", default="stan")
    parser.add_argument("--data", default="tiny")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        looks = watched(asked, Path(folder))
        runs = count(Path(folder) / "mlflow.db", "select count(*) from runs")
        size = (Path(folder) / "mlflow.db").stat().st_size / 1e6
    ended, cpu, memory = np.array(looks).T
    part = asked.trials // SHARE
    at = np.interp([part, 2 * part, asked.trials - part, asked.trials], ended, cpu)
    early, late = (at[1] - at[0]) / part, (at[3] - at[2]) / part
    held = np.interp([part, asked.trials], ended, memory)
    print(f"{asked.trials} trials of {asked.model} on {asked.data}")
    print(f"driver, CPU seconds a trial: {early:.3f} (trials {part} to {2 * part}), {late:.3f} at")
    print(f"the end: {late / early:.2f}x; memory {held[0]:.0f} to {held[1]:.0f} MB")
    print(f"MLflow has {runs} runs, in {size:.0f} MB")


def watched(asked: argparse.Namespace, folder: Path) -> list[tuple[float, float, float]]:
    """Runs the study; returns the ended trials, the driver's CPU seconds and its MB, over time."""
    words = ["-m", "seqtune", "tune", "--model", asked.model, "--data", asked.data]
    words += ["--trials", str(asked.trials), "--sampler", "random", "--name", "many"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *words, "--storage", str(folder)]
    looks = [(0.0, 0.0, 0.0)]
    with (folder / "log").open("wb") as log:
        driver = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
        while driver.poll() is None:
            time.sleep(PAUSE)
            try:
                stat = Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                break
            ended = count(
                folder / "many" / "study.db",
                "select count(*) from trials where state not in ('RUNNING', 'WAITING')",
            )
            megabytes = int(stat[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            if ended > looks[-1][0]:
                looks.append((ended, (int(stat[11]) + int(stat[12])) / TICKS, megabytes))
    if driver.wait():
        raise SystemExit((folder / "log").read_text())
    return looks


def count(database: Path, query: str) -> int:
    """Asks a database for a number; 0 where it is not there yet, or is being written."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as base:
            return int(base.execute(query).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


if __name__ == "__main__":
    main()
