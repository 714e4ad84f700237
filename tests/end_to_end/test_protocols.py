"""Every split through a study, its resume after a kill, and recommendations from its champion."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

FLOORS = ("popularity", "markov", "decayed markov", "item-knn")
SMALL = ["--set", "embedding_size=8", "--set", "n_layers=1", "--set", "n_heads=1"]
SMALL += ["--set", "inner_size=16", "--set", "epochs=6", "--set", "eval_every=1"]
SPLITS = {
    "leave-2-out": "Leave-2-out",
    "time:0.8": "Global temporal split",
    "ratio:0.6,0.2,0.2": "Of each user's events",
    "users:0.7,0.15,0.15": "Of the users",
    "session:60": "Sessions of the last 60 days",
    "given": "The data say which events",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Users who come and go over a year, each with a habit; and a column of parts."""
    rng, rows = np.random.default_rng(0), []
    for user in range(150):
        begin, n = rng.integers(0, 300), rng.integers(3, 15)
        days = begin + np.sort(rng.integers(0, 60, n))
        items = (rng.integers(40) + np.arange(n)) % 40
        part = np.where(
            np.arange(n) < n - 2, "train", np.where(np.arange(n) < n - 1, "valid", "test")
        )
        when = pd.Timestamp("2024-01-01") + pd.to_timedelta(days * 86_400 + np.arange(n), "s")
        rows.append(pd.DataFrame({"user": user, "item": items, "time": when, "part": part}))
    path = tmp_path / "habits.csv"
    pd.concat(rows).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_a_study_by_a_split_is_killed_resumed_and_served(
    tune: Callable[..., Any],
    start: Callable[..., Any],
    study_at: type[Any],
    tmp_path: Path,
    file: Path,
    split: str,
) -> None:
    storage = ["--storage", str(tmp_path / "r")]
    alike = [*SMALL, "--trials", "3", "--seed", "1", "--concurrency", "1", *storage]
    by = ["--split-col", "part"] if split == "given" else ["--split", split]
    refit = {"session:60": ["--refit", "test"], "given": ["--refit", "all"]}
    words = [*alike, *by, "--name", "one", *refit.get(split, [])]

    def seqtune(*words: str) -> Any:
        return start("-m", "seqtune", *words)

    study = study_at(tmp_path / "r" / "one")
    first = tune(*words, data=str(file))
    first.until(lambda: bool(study.history(1)))
    first.signal(signal.SIGKILL)
    first.process.wait()
    said = tune(*words, "--resume", data=str(file)).ends().out
    assert SPLITS[split] in said
    report = json.loads((study.folder / "report" / "report.json").read_text())
    assert len(report["trials"]) == 3
    assert {one["name"] for one in report["floors"]} == set(FLOORS)
    ranks = pd.read_parquet(study.folder / "report" / "ranks-best.parquet")
    best = report["best"]["test"]
    if split.startswith(("leave-2", "ratio")):
        assert {"user", "history", "target", "rank"} == {*ranks.columns}
        found = ranks.assign(found=ranks["rank"] <= 10).groupby(["user", "history"])["found"]
        assert found.mean().mean() == pytest.approx(best["recall@10"])
    else:
        assert (ranks["rank"] <= 10).mean() == pytest.approx(best["hr@10"])
    out = tmp_path / "out.csv"
    champion = str(study.folder / "champion")
    seqtune("recommend", "--checkpoint", champion, "--data", str(file), "--out", str(out)).ends()
    assert set(pd.read_csv(out)["user"]) <= set(range(150))
    if split == "session:60":
        assert report["refitted"]["test"].keys() == best.keys()
        assert "trained once more on all that is before the test" in said
        assert "best, refitted" in said
        assert (study.folder / "refit" / "test" / "model.safetensors").exists()
    if split == "given":
        everything = str(study.folder / "refit" / "all")
        assert report["production"] == everything
        client = MlflowClient(f"sqlite:///{tmp_path}/r/mlflow.db")
        aliases = client.get_registered_model("one").aliases
        assert set(aliases) == {"champion", "production"}
        untested = client.get_model_version("one", aliases["production"])
        assert untested.tags["seqtune.chosen"].endswith("trained again on everything: no test")
        seqtune(
            "recommend", "--checkpoint", everything, "--data", str(file), "--out", f"{out}2.csv"
        ).ends()
    if split == "time:0.8":
        tune(*alike, "--name", "two", data=str(file)).ends()
        told = seqtune("compare", "one", "two", *storage).ends(2)
        assert "cannot be compared: they differ in split" in told.err
