"""What it takes to prepare a data set that is larger than memory: time, and memory at its peak.

    python tests/benchmarks/prepare.py --rows 200000000 --folder /tmp/large

Makes interactions in parquet files (users and items by Zipf's law, in the order of time), prepares
them with ``seqtune data prepare``, and trains from the map for a while with ``seqtune bench``. Each
is a process of its own, whose peak of memory the system tells. ``--text`` makes ids of text.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

AT_A_TIME = 5_000_000


def main() -> None:
    """Prints a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000_000)
    parser.add_argument("--users", type=int, default=4_000_000)
    parser.add_argument("--items", type=int, default=500_000)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    made = given.folder / "made"
    if not made.exists():
        make(made, given.rows, given.users, given.items, given.text)
    size = sum(path.stat().st_size for path in made.iterdir())
    print(f"made {given.rows:,} rows, {size / 1e9:.1f} GB of parquet", flush=True)
    out = given.folder / "prepared"
    if not out.exists():
        measured("data", "prepare", "--data", str(made), "--out", str(out))
    measured("bench", "--model", "sasrec", "--data", str(out), "--seconds", "30", *SMALL)


SMALL = (
    "--set",
    "max_seq_len=50",
    "--set",
    "neg_samples=256",
    "--set",
    "loss_type=sampled_softmax",
)


def measured(*words: str) -> None:
    """Runs seqtune and prints what it took."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "seqtune", *words])
    _, status, used = os.wait4(process.pid, 0)
    took = time.monotonic() - began
    print(f"{words[0]}: {took:.0f} s, {used.ru_maxrss / 1e6:.2f} GB at most, {status=}", flush=True)


def make(folder: Path, rows: int, users: int, items: int, text: bool) -> None:
    """Writes the files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k, start in enumerate(range(0, rows, AT_A_TIME)):
        n = min(AT_A_TIME, rows - start)
        user = (users * rng.random(n) ** 2).astype(np.int64)
        item = (items * rng.random(n) ** 3).astype(np.int64)
        when = 1_500_000_000 + np.arange(start, start + n) // 10
        columns = [user, item, when]
        if text:
            columns[:2] = [pa.array(np.char.mod("u%08x", user)), pa.array(np.char.mod("i%x", item))]
        table = pa.table(columns, names=["user_id", "item_id", "timestamp"])
        pq.write_table(table, folder / f"part-{k:04d}.parquet")


if __name__ == "__main__":
    main()
