"""Trials and trainings that several workers share, under Ray Train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TRAIN = ["-c", "from seqtune.cli import main; main()", "train", "--model", "sasrec"]


def test_a_study_whose_trials_have_two_workers(
    tune: Callable[..., Any], tmp_path: Path, study_at: type[Any]
) -> None:
    words = ["--workers-per-trial", "2", "--trials", "4", "--concurrency", "1"]
    command = tune(*words, "--set", "epochs=3", "--storage", f"{tmp_path}/results").ends(0, 500)
    assert command.err == ""
    assert "4 trials, 1 at a time, 1 CPU for each of 2 workers" in command.out
    study = study_at(tmp_path / "results" / "sasrec-tiny")
    trials = study.trials()
    assert len(trials) == 4
    assert trials[0].state.name == "COMPLETE"
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    parent, children = study.runs()
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    for number, trial in enumerate(trials):
        told = sorted(trial.intermediate_values)
        assert study.epochs(number) == told
        assert study.steps(number) == told
    seconds = [(one.datetime_complete - one.datetime_start).total_seconds() for one in trials[1:]]
    assert max(seconds) < 5, "the workers of the first trial stay for the others"
    assert " --workers 2" in command.out  # of the command that trains the best again
    assert study.client().get_model_version_by_alias("sasrec-tiny", "champion")


def test_two_workers_train_as_one_does(start: Callable[..., Any], tmp_path: Path) -> None:
    words = [*TRAIN, "--data", "tiny", "--set", "epochs=3", "--set", "eval_every=1"]
    words += ["--set", "dropout_prob=0"]
    found = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        command = start(*words, "--workers", workers, "--out", str(folder)).ends(0, 300)
        assert command.err == ""
        epochs = [line.split()[1] for line in command.out.splitlines() if line.startswith("epoch")]
        assert epochs == ["1", "2", "3"]
        found.append(json.loads((folder / "model.json").read_text())["meta"])
    one, two = found
    assert two["valid"] == pytest.approx(one["valid"], abs=1e-5)
    assert two["test"] == pytest.approx(one["test"], abs=1e-5)
    assert one["valid"]["hr@10"] > 0.3
