"""What is killed, interrupted, diverged or away, and how the study goes on."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

N, EPOCHS = 3, 40
SPACE = """
model: sasrec
fixed:
  {embedding_size: 16, n_layers: 1, n_heads: 1, inner_size: 32,
   epochs: 40, patience: 40, eval_every: 1} # a row for each epoch, whatever it costs
space:
  learning_rate: {low: 0.0003, high: 0.003, log: true}
"""
DIVERGING = """
model: gru4rec
fixed: {hidden_size: 8, epochs: 10, batch_size: 16, weight_decay: 1} # 10 * 1: weights grow
space:
  learning_rate: {choice: [0.001, 0.002, 10]}
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Trials long enough to be caught while they run, all of one length."""
    (tmp_path / "space.yaml").write_text(SPACE)
    words = ["--space", f"{tmp_path}/space.yaml", "--storage", f"{tmp_path}/results"]
    return [*words, "--name", "study", "--trials", f"{N}", "--scheduler", "none"]


@pytest.fixture
def study(tmp_path: Path, study_at: type[Any]) -> Any:
    return study_at(tmp_path / "results" / "study")


def finished(study: Any) -> list[int]:
    histories = {number: study.history(number) for number in range(N)}
    return [number for number, rows in histories.items() if rows and rows[-1]["finished"]]


def underway(study: Any, most: int = EPOCHS - 1) -> list[int]:
    return [number for number in range(N) if 3 <= len(study.history(number)) <= most]


def assert_whole(study: Any) -> None:
    """All is there once: in Optuna, in Tune and in MLflow."""
    trials = study.trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * N
    assert set(study.tune_trials().values()) <= {"TERMINATED"}  # of the last driver alone
    parent, children = study.runs()
    assert sorted(children) == list(range(N))
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    epochs = list(range(1, EPOCHS + 1))
    for number, trial in enumerate(trials):
        rows = study.history(number)
        assert [row["epoch"] for row in rows] == epochs
        assert [row["step"] for row in rows] == [2 * epoch for epoch in epochs]  # 2 batches each
        assert sorted(trial.intermediate_values) == epochs
        assert trial.value == rows[-1]["best"] == max(row["metrics"]["ndcg@10"] for row in rows)
        assert study.steps(number) == epochs
        assert children[number].data.metrics["best/ndcg_10"] == trial.value
    version = study.client().get_model_version_by_alias("study", "champion")
    best = max(range(N), key=lambda number: trials[number].value)
    assert version.run_id == children[best].info.run_id


@pytest.mark.slow
def test_a_killed_driver_is_resumed(tune: Callable[..., Any], words: list[str], study: Any) -> None:
    first = tune(*words)
    half = EPOCHS // 2  # so that it is still underway when the signal arrives
    first.until(lambda: bool(finished(study)) and bool(underway(study, half)))
    first.process.kill()
    first.ends(-signal.SIGKILL)
    first.signal(signal.SIGKILL)  # what it leaves of Ray ends a little later by itself
    ended, running = finished(study), underway(study)
    assert ended
    assert running
    written = {number: study.state(number).stat().st_mtime_ns for number in ended}
    before = {number: study.history(number) for number in running}

    tune(*words, "--resume").ends(0)
    assert_whole(study)
    assert written == {number: study.state(number).stat().st_mtime_ns for number in ended}
    for number, rows in before.items():  # with their times: they were not trained again
        assert study.history(number)[: len(rows)] == rows


@pytest.mark.slow
def test_an_interrupted_study_says_how_to_go_on(
    tune: Callable[..., Any], start: Callable[..., Any], words: list[str], study: Any
) -> None:
    first = tune(*words)
    first.until(lambda: bool(underway(study)))
    first.signal(signal.SIGINT)
    first.ends(130)
    stopped, again = first.err.splitlines()
    assert stopped == "Stopped. Continue with:"
    parent, children = study.runs()
    assert {run.info.status for run in (parent, *children.values())} == {"KILLED"}
    before = {number: study.history(number) for number in underway(study)}
    assert before

    program, *rest = shlex.split(again)
    assert program == "python"
    start(*rest).ends(0)
    assert_whole(study)
    for number, rows in before.items():
        assert study.history(number)[: len(rows)] == rows


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process has started, directly or not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it has just ended
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
        yield from more


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_trial_whose_process_is_killed_is_tried_again(
    tune: Callable[..., Any], words: list[str], study: Any
) -> None:
    driver = tune(*words, "--concurrency", "1")
    driver.until(lambda: 0 in underway(study))
    actors = [p for p in descendants(driver.process.pid) if title(p).startswith("ray::Implicit")]
    assert len(actors) == 1
    os.kill(actors[0], signal.SIGKILL)
    before = study.history(0)
    assert 3 <= len(before) < EPOCHS
    driver.ends(0)
    assert driver.err == ""
    assert_whole(study)
    assert study.history(0)[: len(before)] == before


@pytest.mark.slow
def test_a_diverged_trial_fails_alone(
    tune: Callable[..., Any], words: list[str], study: Any, tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(DIVERGING)
    command = tune(*words, model="gru4rec").ends(0)
    assert command.err == ""
    trials = study.trials()
    (bad,) = [t for t in trials if t.user_attrs["params"]["learning_rate"] == 10]
    reason = bad.user_attrs["reason"]
    assert re.fullmatch(r"the loss is not finite at step \d+; try a smaller learning_rate", reason)
    assert bad.state.name == "FAIL"
    assert [t.state.name for t in trials if t is not bad] == ["COMPLETE"] * 2
    assert re.search(rf"\[\d/3\] trial {bad.number}: failed, .*{reason}", command.out)
    assert f"Trial {bad.number} failed: {reason}" in " ".join(command.out.split())
    _, children = study.runs()
    assert children[bad.number].info.status == "FAILED"
    assert children[bad.number].data.tags["seqtune.reason"] == reason
    assert [children[t.number].info.status for t in trials if t is not bad] == ["FINISHED"] * 2


@pytest.fixture
def mlflow_server(
    mlflow_at: Callable[..., Any], free_port: int, tmp_path: Path
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The address of an MLflow server, and a function that starts it."""
    store = f"--backend-store-uri sqlite:///{tmp_path}/server.db"
    words = f"server --workers 1 {store} --artifacts-destination {tmp_path}/artifacts"
    with contextlib.ExitStack() as servers:
        server = mlflow_at(free_port, words, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        yield f"http://127.0.0.1:{free_port}", lambda: servers.enter_context(server)


AWAY = "takes no records now (Connection refused); they are kept and sent when it is back"


@pytest.mark.slow
def test_an_mlflow_server_that_comes_late_gets_everything(
    tune: Callable[..., Any],
    words: list[str],
    study: Any,
    mlflow_server: tuple[str, Callable[[], Any]],
) -> None:
    uri, serve = mlflow_server
    command = tune(*words, "--tracking-uri", uri)
    command.until(lambda: bool(study.history(0)))
    serve()
    command.ends(0)
    assert command.out.count(f"MLflow at {uri} {AWAY}\n") == 1
    assert command.out.count(f"MLflow at {uri} is back\n") == 1
    study.store = uri
    assert_whole(study)
    assert not (study.folder / "mlflow.journal").exists()


@pytest.mark.slow
def test_an_mlflow_server_that_never_comes_costs_nothing(
    tune: Callable[..., Any],
    words: list[str],
    study: Any,
    mlflow_server: tuple[str, Callable[[], Any]],
) -> None:
    uri, serve = mlflow_server
    command = tune(*words, "--tracking-uri", uri).ends(0)
    assert command.err == ""
    assert command.out.count(AWAY) == 1
    assert "records did not reach MLflow" in command.out
    assert str(study.folder / "champion") in command.out
    assert "mlflow ui" not in command.out
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * N
    assert (study.folder / "mlflow.journal").read_text().count('"do": "result"') == N * EPOCHS

    serve()  # and what was kept is sent when the study is resumed
    tune(*words, "--tracking-uri", uri, "--resume").ends(0)
    study.store = uri
    assert_whole(study)
