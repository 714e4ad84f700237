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
        where = ["--out", str(folder), "--storage", str(tmp_path / "results")]
        command = start(*words, "--workers", workers, *where).ends(0, 300)
        assert command.err == ""
        epochs = [line.split()[1] for line in command.out.splitlines() if line.startswith("epoch")]
        assert epochs == ["1", "2", "3"]
        found.append(json.loads((folder / "model.json").read_text())["meta"])
    one, two = found
    assert two["valid"] == pytest.approx(one["valid"], abs=1e-5)
    assert two["test"] == pytest.approx(one["test"], abs=1e-5)
    assert one["valid"]["hr@10"] > 0.3
    for workers in ("1", "2"):
        run = run_of(f"sqlite:///{tmp_path}/results/mlflow.db", workers)
        assert run.info.status == "FINISHED"
        assert run.data.params["workers"] == f"{workers} workers"
        assert run.data.metrics["test/hr_10"] == pytest.approx(one["test"]["hr@10"], abs=1e-5)
        assert run.data.metrics["train_targets"] > 0


def run_of(uri: str, experiment: str) -> Any:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "ndcg_10")) == 3
    names = {file.path for file in client.list_artifacts(run.info.run_id, "checkpoint")}
    assert "checkpoint/model.safetensors" in names
    return run


def test_a_model_without_parameters_needs_no_workers(
    tune: Callable[..., Any], start: Callable[..., Any], tmp_path: Path
) -> None:
    stan = ["--storage", str(tmp_path)]
    said = tune("--workers-per-trial", "2", "--trials", "2", *stan, model="stan").ends(0).out
    alone = "stan has no parameters to train: one process does it, not several workers"
    assert alone in said
    assert "1 CPU each" in said
    words = ["-c", TRAIN[1], "train", "--model", "stan", "--data", "tiny", "--workers", "2:3"]
    assert alone in start(*words, *stan).ends(0).out
