"""Two studies at once, looked at, stopped and taken away from other terminals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

SEQTUNE = [sys.executable, "-c", "from seqtune.cli import main; main()"]


@pytest.fixture
def seqtune(tmp_path: Path) -> Callable[..., str]:
    """Runs a command in a terminal of its own."""

    def run(*words: str, code: int = 0) -> str:
        where = ["--storage", str(tmp_path)]
        done = subprocess.run(
            [*SEQTUNE, *words, *where], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def test_the_page_of_a_study_opens_in_a_browser_while_it_runs(
    tune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, opened = tmp_path / "xdg-open", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}.part\nmv {opened}.part {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    words = ["--storage", str(tmp_path), "--name", "shown", "--scheduler", "none", "--open"]
    study = tune(*words, "--trials", "40", "--set", "epochs=40")
    study.until(opened.exists)
    link = opened.read_text().strip()
    assert f"as long as the study runs, at\n{link}" in study.out
    page = link.partition("#")[0]
    with urllib.request.urlopen(page, timeout=30) as answer:
        assert b"MLflow" in answer.read()
    study.signal(signal.SIGINT)
    study.ends(130)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(page, timeout=5)


def test_a_goal_ends_a_study_and_it_may_go_on(tune: Callable[..., Any], tmp_path: Path) -> None:
    words = ["--storage", str(tmp_path), "--name", "mine", "--concurrency", "1", "--trials", "4"]
    words += ["--set", "epochs=4", "--set", "embedding_size=16", "--scheduler", "none"]
    said = tune(*words, "--goal", "ndcg@10=0.0001").ends(0).out
    assert re.search(r"ndcg@10 0\.\d{4} has reached the goal, 0\.0001,\s+when 0 of 4 trials", said)
    assert (tmp_path / "mine" / "champion" / "model.json").exists()
    said = tune(*words, "--resume", "--patience-trials", "1").ends(0).out
    assert "1 trials after the best one none was better" in said or "4 trials in" in said
    again = tune(*words, "--resume").ends(0).out
    assert "4 trials in" in again


def test_two_studies_are_watched_and_one_is_stopped_from_a_third_terminal(
    tune: Callable[..., Any], seqtune: Callable[..., str], tmp_path: Path
) -> None:
    words = ["--storage", str(tmp_path), "--scheduler", "none", "--concurrency", "1"]
    long = tune(*words, "--name", "long", "--trials", "30", "--set", "epochs=40")
    long.until(lambda: "[1/30]" in long.out)
    short = tune(*words, "--name", "short", "--trials", "2", "--set", "epochs=3", model="gru4rec")
    assert json.loads(seqtune("status", "long", "--json"))["state"] == "running"
    said = seqtune("status", "long")
    assert f"run by process {long.process.pid} of " in said
    assert " runs: ndcg@10 " in said
    short.ends(0)
    states = {one["name"]: one["state"] for one in json.loads(seqtune("list", "--json"))}
    assert states == {"long": "running", "short": "ended"}

    running = [
        trial["number"]
        for trial in json.loads(seqtune("status", "long", "--json"))["trials"]
        if trial["status"] == "running"
    ]
    seqtune("stop", "long", "--trial", str(running[-1]))
    long.until(lambda: status_of(seqtune, running[-1]) in ("pruned", "complete"))
    said = seqtune("stop", "long")
    assert "long has stopped." in said
    said = " ".join(long.ends(0).out.split())
    assert "Note: it was asked to stop when " in said
    assert "--resume goes on with the others" in said
    assert "Accuracy" in said

    assert seqtune("report", "long").startswith("# sasrec on tiny")
    found = json.loads(seqtune("best", "long", "--json"))
    assert Path(found["checkpoint"], "model.safetensors").exists()
    assert found["test"]["ndcg@10"] > 0
    said = seqtune("compare", "long", "short")
    assert re.search("is best: every other is surely below|cannot be told from", said)
    for what, name in (("trials", "x.csv"), ("curves", "x.parquet"), ("leaderboard", "x.tex")):
        seqtune("export", "long", "--what", what, "--out", str(tmp_path / name))
    curves = pd.read_parquet(tmp_path / "x.parquet")
    assert {"trial", "epoch", "ndcg@10", "train_ce"} <= set(curves.columns)

    again = tune(*words, "--name", "long", "--trials", "3", "--set", "epochs=40", "--resume")
    assert "asked to stop" not in again.ends(0).out, "what was asked of an earlier driver is over"

    assert "model versions of MLflow" in seqtune("delete", "short", "--yes")
    assert "short" not in seqtune("list")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert {one.name for one in client.search_experiments()} == {"Default", "long"}
    assert {one.name for one in client.search_registered_models()} == {"long"}


def status_of(seqtune: Callable[..., str], number: int) -> str:
    trials = json.loads(seqtune("status", "long", "--json"))["trials"]
    return next(str(trial["status"]) for trial in trials if trial["number"] == number)
