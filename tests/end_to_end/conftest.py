"""Commands as a person starts them, and studies as they lie on disk and in MLflow."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 1500  # seconds: what takes twenty here took a quarter of an hour at a load of 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives these tests a time-out of their own: they start Ray, MLflow and whole studies."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(PATIENCE), append=False)


class Command:
    """A process with a session of its own, whose output goes to files."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.words, self._folder = words, folder
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                words,
                cwd=folder.parent,
                env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    def ends(self, code: int = 0, timeout: float = 1200) -> Command:
        """Waits for the end, and checks the exit code."""
        self.process.wait(timeout)
        assert self.process.returncode == code, f"{self.words}\n{self.out}\n{self.err}"
        return self

    def until(self, condition: Callable[[], bool], timeout: float = 1200) -> None:
        """Waits for something to happen while the process runs."""
        until = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended early\n{self.out}\n{self.err}"
            assert time.monotonic() < until, f"took too long\n{self.out}\n{self.err}"
            time.sleep(0.05)

    def signal(self, number: int) -> None:
        """Signals the process and all it has started, as Ctrl-C in a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts ``python WORDS``; relative paths are below a folder of the test module."""
    folder = tmp_path_factory.mktemp("commands")
    started: list[Command] = []

    def run(*words: str) -> Command:
        own = folder / f"{len(started)}"
        own.mkdir()
        started.append(Command([sys.executable, *words], own))
        return started[-1]

    yield run
    for command in started:
        command.signal(signal.SIGKILL)
        command.process.wait()


@pytest.fixture(scope="module")
def tune(start: Callable[..., Command]) -> Callable[..., Command]:
    """Starts ``python tune.py WORDS`` with a model and data that take little time."""

    def run(*words: str, model: str = "sasrec", data: str = "tiny") -> Command:
        return start(str(ROOT / "tune.py"), "--model", model, "--data", data, *words)

    return run


class Study:
    """What a study has left."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self.folder, self.name = folder, folder.name
        self.store = store or f"sqlite:///{folder.parent / 'mlflow.db'}"

    def state(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}" / "state.pt"

    def history(self, number: int) -> list[dict[str, Any]]:
        """What a trial has reported."""
        from seqtune.state import all_told, load_state, told
        from seqtune.storage import Folder

        folder = Folder.at(self.state(number).parent)
        return all_told(told(folder), load_state(folder))

    def epochs(self, number: int) -> list[int]:
        return [row["epoch"] for row in self.history(number)]

    def trials(self) -> list[Any]:
        """Optuna's trials."""
        from seqtune.study import store

        opened = store.open_study(store.storage_url(self.folder), self.name)
        found = opened.study.get_trials()
        opened.close()
        return found

    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.store, registry_uri=self.store)

    def runs(self) -> tuple[Any, dict[int, Any]]:
        """MLflow's run of the study, and those of its trials by number."""
        client = self.client()
        experiment = client.get_experiment_by_name(self.name)
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
        by_number = {int(run.data.tags["seqtune.trial"]): run for run in children}
        assert len(by_number) == len(children), "a trial has two runs"
        return parent, by_number

    def steps(self, number: int, metric: str = "ndcg_10") -> list[int]:
        """The steps of a trial's curve in MLflow."""
        run = self.runs()[1][number]
        history = self.client().get_metric_history(run.info.run_id, metric)
        return sorted(point.step for point in history)

    def tune_trials(self) -> dict[str, str]:
        """Tune's trials by name, with their status, as it last wrote them."""
        import json

        newest = max((self.folder / "tune").glob("experiment_state-*.json"))
        saved = [json.loads(trial) for trial, _ in json.loads(newest.read_text())["trial_data"]]
        return {Path(one["relative_logdir"]).name: one["status"] for one in saved}


@pytest.fixture
def study_at() -> type[Study]:
    """Gives ``Study``: tests cannot import from here."""
    return Study
