"""From a file with columns and ids of its own to recommendations that a join finds."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path


def seqtune(folder: Path, *words: str) -> str:
    command = [sys.executable, "-c", "from seqtune.cli import main; main()", *words]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_columns_and_ids_come_back(tmp_path: Path) -> None:
    songs = ["007", '"Heroes (live)', '"Odd Al" Band', "b, c", 'Live at 7"', "e", "f"]
    rows = [
        (f"u{user}", f"{1_700_000_000 + 60 * step}", songs[(user + step) % 7])
        for user in range(20)
        for step in range(6)
    ]
    lines = ["listener\tmoment\ttitle", *("\t".join(row) for row in rows)]
    (tmp_path / "plays.tsv").write_text("\n".join(lines))
    columns = ("--user-col", "listener", "--item-col", "title", "--time-col", "moment")
    fast = ("--set", "epochs=1", "--set", "embedding_size=8", "--out", "model")
    said = seqtune(tmp_path, "train", "--model", "sasrec", "--data", "plays.tsv", *columns, *fast)
    assert "20 users, 7 items, 120 interactions (listener, title, moment)" in " ".join(said.split())
    files = ("--checkpoint", "model", "--data", "plays.tsv", "--out", "top.csv", "--k", "2")
    assert "for 20 users in top.csv" in seqtune(tmp_path, "recommend", *files)
    with (tmp_path / "top.csv").open(newline="") as file:
        top = list(csv.DictReader(file))
    assert {row["user"] for row in top} == {f"u{user}" for user in range(20)}
    assert {row["item"] for row in top} <= set(songs)
