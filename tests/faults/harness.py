"""A study in which a fault is caused, and what must hold after it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from seqtune.state import all_told, load_state, told
from seqtune.storage import Folder
from seqtune.study.store import open_study, storage_url

ROOT = Path(__file__).parents[2]
MARK = "SEQTUNE_FAULT"  # in the environment of all that a study starts, to find it again
TRIALS, EPOCHS = 4, 30
Fault = Callable[..., None]  # what tells of one, for docs/reliability.md
ITSELF, RESUMED = "by itself", "with --resume"
# Trials of three seconds with a row for each epoch. The first ten are drawn by the seed alone, so
# that whatever happens to a study, its trials have the same values in the end.
SPACE = f"""
model: sasrec
fixed: {{embedding_size: 16, n_layers: 1, n_heads: 1, inner_size: 32,
         epochs: {EPOCHS}, patience: {EPOCHS}, eval_every: 1}}
space:
  learning_rate: {{low: 0.0003, high: 0.003, log: true}}
"""


class Driver:
    """The process of a command, in a session of its own, whose output goes to a file."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.mark = environment[MARK]
        self._log = folder / f"log-{uuid.uuid4().hex[:6]}"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All that it has printed."""
        return self._log.read_text(errors="replace")

    def until(self, condition: Callable[[], object], timeout: float = 240) -> None:
        """Waits for something to happen while it runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"it ended early\n{self.said}"
            assert time.monotonic() < end, f"it takes too long\n{self.said}"
            time.sleep(0.05)

    def ends(self, *codes: int, timeout: float = 240) -> str:
        """Waits for its end with one of the exit codes; returns what it said."""
        self.process.wait(timeout)
        assert self.process.returncode in (codes or (0,)), self.said
        return self.said

    def signal(self, number: int) -> None:
        """Signals the process alone."""
        self.process.send_signal(number)

    def processes(self, title: str = "") -> list[int]:
        """All processes of this study that are alive, with ``title`` in their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it has just ended, or is not ours
                if f"{MARK}={self.mark}".encode() not in (entry / "environ").read_bytes():
                    continue
                if title.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def one(self, title: str) -> int:
        """The process with ``title`` in its command line, once there is one."""
        self.until(lambda: self.processes(title))
        return self.processes(title)[0]


class Study:
    """The study ``mine`` below a folder: commands that run it, and what they have left."""

    def __init__(self, home: Path) -> None:
        self.home, self.storage = home, home / "results"
        self.started: list[Driver] = []
        self.environment: dict[str, str] = {}
        self.store = ""  # of MLflow, where it is not beside the study
        self.optuna = ""  # its database, where it is not in the study's folder
        (home / "space.yaml").write_text(SPACE)

    @property
    def folder(self) -> Path:
        """The study's own."""
        return self.storage / "mine"

    @property
    def going_on(self) -> list[str]:
        """The word that goes on with it, once there is something to go on with."""
        return ["--resume"] * (self.folder / "study.json").exists()

    def tune(self, *more: str, before: str = "", trials: int = TRIALS) -> Driver:
        """Starts ``seqtune tune``; ``before`` are words for a shell that starts it."""
        words = ["tune", "--model", "sasrec", "--data", "tiny", "--space", "space.yaml"]
        words += ["--name", "mine", "--scheduler", "none", "--trials", str(trials)]
        return self.run(*words, "--storage", str(self.storage), *more, before=before)

    def run(self, *words: str, before: str = "") -> Driver:
        """Starts ``seqtune WORDS``."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "platform"),
            "OMP_NUM_THREADS": "1",
            MARK: uuid.uuid4().hex,
        }
        line = [sys.executable, "-m", "seqtune", *words]
        if before:
            line = ["bash", "-c", f'{before}; exec "$@"', "bash", *line]
        self.started.append(Driver(line, self.home, environment | self.environment))
        return self.started[-1]

    def resume(self, *more: str) -> str:
        """Goes on with the study to its end; returns what was said."""
        return self.tune("--resume", *more).ends(0)

    def close(self) -> None:
        """Ends every process that is left."""
        for driver in self.started:
            for pid in [driver.process.pid, *driver.processes()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            driver.process.wait()

    # What is there

    def trials(self) -> dict[int, Any]:
        """Optuna's trials."""
        if not self.optuna and not (self.folder / "study.db").exists():
            return {}
        opened = open_study(self.optuna or storage_url(self.folder), "mine")
        found = opened.study.get_trials()
        opened.close()
        return {one.number: one for one in found}

    def rows(self, number: int) -> list[dict[str, Any]]:
        """What a trial's folder holds of its curve."""
        folder = Folder.at(self.folder / "trials" / f"{number:04d}")
        return [dict(row) for row in all_told(told(folder), load_state(folder))]

    def epochs(self, number: int) -> int:
        """How far a trial is."""
        rows = told(Folder.at(self.folder / "trials" / f"{number:04d}"))
        return int(rows[-1]["epoch"]) if rows else 0

    def ended(self) -> dict[int, tuple[float, int]]:
        """The value and the time of the last state of each trial that has ended well."""
        found = {}
        for number, value in self._values():
            state = self.folder / "trials" / f"{number:04d}" / "state.pt"
            found[number] = (value, state.stat().st_mtime_ns)
        return found

    def _values(self) -> list[tuple[int, float]]:
        """The values of complete trials, read past Optuna, which would write where it looks."""
        if self.optuna:
            trials = self.trials().items()
            return [(n, one.value) for n, one in trials if one.state.name == "COMPLETE"]
        try:
            with sqlite3.connect(f"file:{self.folder}/study.db?mode=ro", uri=True) as base:
                return base.execute(
                    "select number, value from trials natural join trial_values "
                    "where state = 'COMPLETE'"
                ).fetchall()
        except sqlite3.OperationalError:  # it is not there yet
            return []

    def runs(self) -> dict[str, tuple[str, dict[str, str]]]:
        """The status and tags of MLflow's runs, by number of the trial; "" is the study's."""
        from mlflow import MlflowClient

        store = self.store or f"sqlite:///{self.storage / 'mlflow.db'}"
        client = MlflowClient(store, registry_uri=store)
        experiment = client.get_experiment_by_name("mine")
        found = {}
        for run in client.search_runs([experiment.experiment_id]):
            number = run.data.tags.get("seqtune.trial", "")
            assert number not in found, f"trial {number} has two runs"
            found[number] = (run.info.status, run.data.tags)
        return found


def trained(driver: Driver, study: Study, trials: int = 1) -> None:
    """Waits until so many trials are done and another one is under way."""

    def yes() -> bool:
        done = len(study.ended()) >= trials
        return done and any(3 < study.epochs(n) < EPOCHS - 5 for n in range(TRIALS))

    driver.until(yes)


def whole(study: Study, values: dict[int, float], before: dict[int, tuple[float, int]]) -> None:
    """Everything is there once, and equals an undisturbed study's; what had ended was let be."""
    trials = study.trials()
    assert {n: one.state.name for n, one in trials.items()} == dict.fromkeys(
        range(TRIALS), "COMPLETE"
    )
    assert {n: one.value for n, one in trials.items()} == values
    ended = study.ended()
    assert {n: ended[n] for n in before} == before, "a trial that had ended was trained again"
    for number, trial in trials.items():
        rows = study.rows(number)
        assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    runs = study.runs()
    assert runs.keys() == {"", *map(str, range(TRIALS))}
    assert {status for status, _ in runs.values()} == {"FINISHED"}
    assert (study.folder / "champion" / "model.json").exists()
    nothing_runs(study)


def nothing_runs(study: Study, timeout: float = 120) -> None:
    """No process that the study has started is left."""
    end = time.monotonic() + timeout
    while left := [pid for driver in study.started for pid in driver.processes()]:
        if time.monotonic() > end:
            lines = [Path(f"/proc/{pid}/cmdline").read_bytes()[:100] for pid in left]
            raise AssertionError(f"still alive: {lines}")
        time.sleep(0.2)


def clean(said: str) -> None:
    """What a person reads has no traceback and nothing of Ray's."""
    for word in ("Traceback", "(raylet", "core_worker", " E ", "StackTrace", "ray::"):
        assert word not in said, said


@contextlib.contextmanager
def tmpfs(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size at a folder; skips where this user may mount none."""
    import pytest

    folder.mkdir()
    size = f"size={megabytes}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs a user who may mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def runs_in_mlflow(path: Path) -> list[str]:
    """How the runs in a database of MLflow have ended."""
    with sqlite3.connect(path) as store:
        return sorted(status for (status,) in store.execute("select status from runs"))
