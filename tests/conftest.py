"""What every test gets: an environment of its own, one thread, and Ray or MLflow on request."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

# What would reach the tests from the person's shell, and change what they measure.
FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI")


def pytest_configure(config: pytest.Config) -> None:
    """Sets the environment of the tests and of all that they start; puts it back at the end.

    Ray keeps its sessions and, since 2.60, an access token under the home folder and /tmp: here
    both go to a folder of this run. Its path is short, because Ray's sockets lie in it and a
    socket's path has at most 107 bytes.
    """
    home = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    (home / "auth_token").write_text(secrets.token_hex(32))
    (home / "auth_token").chmod(0o600)

    environment = pytest.MonkeyPatch()
    config.add_cleanup(environment.undo)
    for name in FOREIGN:
        environment.delenv(name, raising=False)
    environment.setenv("RAY_AUTH_TOKEN_PATH", str(home / "auth_token"))
    environment.setenv("RAY_TMPDIR", str(home))
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    environment.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    environment.setenv("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Lets SQLite leave it to the system when to write: faster, and safe but for a power cut."""

    def relax(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    yield
    event.remove(Engine, "connect", relax)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips the slow tests for which .ci/run has no time left."""
    until = float(os.environ.get("SLOW_TESTS_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip("no time left for slow tests (SLOW_TESTS_UNTIL)")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keeps torch, where a test has loaded it, on one thread: same sums on every machine."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs in this process, for the tests of one module."""
    from seqtune.cluster import connected

    # Ray leaves its choices in the environment, where the next tests would inherit them.
    with mock.patch.dict(os.environ), connected(cpus=2):
        yield


def find_port() -> int:
    """Finds a TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on now."""
    return find_port()


@pytest.fixture(scope="module")
def module_port() -> int:
    """The same for the tests of one module together."""
    return find_port()


@pytest.fixture(scope="module")
def mlflow_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Gives ``mlflow_at(port, WORDS, **environment)``: MLflow's command, while the block runs.

    The block begins when the server answers, and at its end all processes of the server end.
    """

    @contextlib.contextmanager
    def serve(port: int, words: str, **environment: str) -> Iterator[str]:
        folder, uri = tmp_path_factory.mktemp("mlflow"), f"http://127.0.0.1:{port}"
        command = f"-m mlflow {words} --port {port}".split()
        scripts = str(Path(sys.executable).parent)  # MLflow starts uvicorn by its name
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=inherited | {"PATH": f"{scripts}:{os.environ['PATH']}"} | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until = time.monotonic() + 90
            while not _answers(f"{uri}/health"):
                said = (folder / "log").read_text()
                assert time.monotonic() < until, f"the server takes too long\n{said}"
                assert server.poll() is None, f"the server ended\n{said}"
                time.sleep(0.1)
            yield uri
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    return serve


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:  # an error of urllib, or none that it names
        return False
    return True


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a checkpoint: a small SASRec, not trained, of the items 100 to 119."""
    import numpy as np
    import torch

    from seqtune import checkpoint
    from seqtune.model import model_class
    from seqtune.storage import Folder

    kind = model_class("sasrec")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.Params(embedding_size=8, max_seq_len=4), 20, 3)
    folder = Folder.at(tmp_path_factory.mktemp("best"))
    card = checkpoint.Card(
        model="sasrec",
        params=model.params,
        n_users=3,
        item_ids=np.arange(100, 120),
        popularity=np.arange(20),
        mask_seen=True,
    )
    checkpoint.save(folder, model.state_dict(), card)
    return folder
