"""Where the time goes before two workers make their first step, and before they make the next.

    python tests/benchmarks/startup.py

Starts a Ray of its own and a group of two workers, as a trial of a study does, and trains SASRec on
``tiny`` twice, one epoch each. Prints the seconds between the events, by the clock of this machine.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqtune import cluster
from seqtune.data import Protocol, load
from seqtune.storage import Folder
from seqtune.study import workers
from seqtune.study.plan import Plan, trial_params


def main() -> None:
    """Prints a line for each part."""
    began = time.time()
    import ray

    with tempfile.TemporaryDirectory() as scratch, cluster.connected(2, dashboard=True):
        marks = {"a process starts, and Ray with its dashboard": began, "": time.time()}
        dataset, folder = load("tiny"), Folder.at(scratch)
        plan = Plan("sasrec", "ndcg@10", Protocol.of(dataset), folder, workers=2, most=2)
        place = f"{scratch}/marks"
        Path(place).mkdir()
        workers.work = timed(place)
        group = workers.Group(plan, ray.put(dataset))
        given = time.time()
        first = trained(group, folder / "first")
        again = time.time()
        second = trained(group, folder / "second")
        group.close()
        found = [json.loads(path.read_text()) for path in Path(place).iterdir()]
    made = max(one["made"] for one in found)
    entered = max(one["entered"] for one in found)
    for what, seconds in {
        "Ray and its dashboard start": marks[""] - began,
        "Ray Train's controller starts, and places the workers": made - given,
        "the workers load Python, Ray and torch, and meet each other": entered - made,
        "they load the model's code, train an epoch and evaluate it": first - entered,
        "in all, from the first trial's start to its first evaluation": first - given,
        "the second trial, from its start to its first evaluation": second - again,
    }.items():
        print(f"{seconds:5.1f} s  {what}")


def timed(place: str) -> Callable[[dict[str, Any]], None]:
    """Returns the workers' function, which first notes when its process was made, and the time."""

    def run(config: dict[str, Any]) -> None:
        import json
        import os
        import time
        from pathlib import Path

        from seqtune.study.workers import work

        ticks = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        made = time.time() - (up - ticks / os.sysconf("SC_CLK_TCK"))
        mark = {"made": made, "entered": time.time()}
        (Path(place) / str(os.getpid())).write_text(json.dumps(mark))
        work(config)

    return run


def trained(group: workers.Group, folder: Folder) -> float:
    """Trains for an epoch; returns the time of its evaluation."""
    times: list[float] = []
    params = trial_params("sasrec", {"epochs": 1})
    group.train(params, folder, lambda row: times.append(row["time"]), print)
    return times[0]


if __name__ == "__main__":
    main()
