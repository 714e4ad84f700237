"""What two workers save that exchange the rows of a large table in use, and not the whole table.

    python tests/benchmarks/exchange.py --data xl

Trains SASRec with sampled negatives in two processes with one thread each, which share every batch
by gloo on this machine: with row-sparse gradients and with dense ones in turn, three times each,
and prints the medians of the milliseconds of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from seqtune import optimizer, train
from seqtune.data import load, protocol_of
from seqtune.meter import TimeIsUp
from seqtune.options import TrainOptions
from seqtune.state import Home
from seqtune.study.plan import trial_params

WARM_UP, STEPS, TURNS = 3, 25, 3
VALUES = {"loss_type": "sampled_softmax", "neg_samples": 256, "max_seq_len": 50}
VALUES |= {"neg_sharing": "batch", "batch_size": 128}


def main() -> None:
    """Prints a line for each way, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="xl")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory() as folder:
        words = (given.data, given.workers, folder)
        mp.start_processes(work, words, nprocs=given.workers, start_method="spawn")
        found = torch.load(Path(folder) / "found.pt")
    for name, times in found.items():
        print(f"{name}: {statistics.median(times):.0f} ms a step")
    both = [statistics.median(times) for times in found.values()]
    print(f"dense / row-sparse: {both[1] / both[0]:.2f}")


def work(rank: int, data: str, workers: int, folder: str) -> None:
    """One of the workers."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=workers)
    options = TrainOptions("sasrec", data=data)
    dataset = load(data)
    split = protocol_of(options, dataset, 0).split(dataset)
    found: dict[str, list[float]] = {"row-sparse": [], "dense": []}
    for _ in range(TURNS):
        for name, large in (("row-sparse", optimizer.LARGE_TABLE), ("dense", 10**12)):
            usual, optimizer.LARGE_TABLE = optimizer.LARGE_TABLE, large
            found[name].append(step(split, rank, workers))
            optimizer.LARGE_TABLE = usual
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")


def step(split: Any, rank: int, workers: int) -> float:
    """Returns the milliseconds of a step."""
    made: list[float] = []

    def stepped(targets: int) -> None:
        made.append(time.perf_counter())
        if len(made) > WARM_UP + STEPS:
            raise TimeIsUp

    home = Home(rank=rank, world_size=workers, stepped=stepped)
    with contextlib.suppress(TimeIsUp):
        train.train("sasrec", trial_params("sasrec", VALUES), split, home)
    return 1000 * (made[-1] - made[WARM_UP]) / STEPS


if __name__ == "__main__":
    main()
