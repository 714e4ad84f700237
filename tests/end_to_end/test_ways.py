"""Every way to draw, to stop early, to limit and to end, killed and resumed: bit for bit the same.

With one trial at a time and a seed, a study that was killed comes to what it would have come to.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SPACE = """
model: sasrec
fixed: {n_layers: 1, n_heads: 1, inner_size: 16, max_seq_len: 10, epochs: 12, patience: 6,
        eval_every: 1}
space:
  embedding_size: {choice: [4, 8, 16, 32]}
  dropout_prob: {low: 0.1, high: 0.5, step: 0.1}
  learning_rate: {low: 0.0005, high: 0.05, log: true}
start:
  - {embedding_size: 16, learning_rate: 0.01}
"""
TRIALS = 8
KILLED = 3  # the trial that runs when the driver dies

SEARCHES = {
    "tpe, reach": ["--sampler", "tpe", "--scheduler", "reach"],
    "random, asha": ["--sampler", "random", "--scheduler", "asha"],
    "qmc, hyperband": ["--sampler", "qmc", "--scheduler", "hyperband"],
    "gp, median": ["--sampler", "gp", "--scheduler", "median"],
    "grid, size": ["--sampler", "grid", "--scheduler", "none", "--limit", "parameters<=2500"],
    "cma-es, patience": ["--sampler", "cma-es", "--patience-trials", "4"],
    "coverage": ["--limit", "coverage@10>=0.9", "--max-failed", "3"],
    "front": ["--metric", "ndcg@10", "--metric", "coverage@10", "--prefer", "coverage@10"],
    "settled": ["--until", "settled", "--trials", "20"],
    "goal": ["--goal", "ndcg@10=0.9", "--no-portfolio"],
    "pbt": ["--scheduler", "pbt", "--trials", "12", "--set", "epochs=30"],
    "seeds": ["--seeds", "2", "--sampler", "random"],
}


@pytest.mark.parametrize("how", SEARCHES)
def test_a_search_that_was_killed_comes_to_the_same(
    tune: Callable[..., Any], study_at: type[Any], tmp_path: Path, how: str
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    words = ["--space", f"{tmp_path}/space.yaml", "--concurrency", "1", "--seed", "3"]
    words += SEARCHES[how]
    words += [] if "--trials" in words else ["--trials", f"{TRIALS}"]
    whole, torn = (["--storage", f"{tmp_path}/{name}", "--name", "one"] for name in ("a", "b"))
    tune(*words, *whole).ends()
    expected = outcome(study_at(tmp_path / "a" / "one"))

    study = study_at(tmp_path / "b" / "one")
    first = tune(*words, *torn)
    first.until(lambda: bool(study.history(KILLED)))
    first.signal(signal.SIGKILL)
    first.process.wait()
    tune(*words, *torn, "--resume").ends()
    assert outcome(study) == expected
    assert_as_asked(how, study, expected)


def outcome(study: Any) -> dict[str, Any]:
    """What a study has found, without times."""
    report = json.loads((study.folder / "report" / "report.json").read_text())
    trials = [
        {name: one[name] for name in ("number", "status", "params", "value", "epoch", "over")}
        for one in report["trials"]
    ]
    for one in trials:
        one["params"].pop("eval_every", None)
    curves = [[row["metrics"] for row in study.history(one["number"])] for one in trials]
    best = report["best"]
    return {
        "trials": trials,
        "curves": curves,
        "best": best["number"],
        "test": best["test"],
        "raced": report["raced"],
        "measured": [one["measured"] for one in report["trials"]],
        "notes": report["notes"],
    }


def assert_as_asked(how: str, study: Any, found: dict[str, Any]) -> None:
    trials = found["trials"]
    if how == "grid, size":
        assert all(one["params"]["embedding_size"] <= 16 for one in trials[1:])
        assert all(one["status"] == "complete" for one in trials)
    if how == "coverage":
        beyond = [one["number"] for one in trials if one["over"]]
        assert found["best"] not in beyond
        states = [trial.constraints for trial in study.trials()]
        assert all(("coverage@10>=0.9" in one) for one in states)
        assert [n for n, one in enumerate(states) if one["coverage@10>=0.9"] > 0] == beyond
    if how == "front":
        folders = sorted(one.name for one in (study.folder / "front").iterdir())
        assert f"{found['best']:04d}" in folders
        coverage = [one.get("coverage@10", 0) for one in found["measured"]]
        assert coverage[found["best"]] == max(coverage)
    if how == "settled":
        assert len(trials) < 20
        assert "the study has settled after" in " ".join(found["notes"])
    if how == "seeds":
        assert found["raced"]["seeds"] == 2
        assert found["raced"]["runners"][0]["number"] == found["best"]
