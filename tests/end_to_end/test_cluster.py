"""A job on a Ray cluster with token authentication, submitted from a clean folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A home of its own, with a token; none of Ray's settings here."""
    with tempfile.TemporaryDirectory(prefix="sq", dir="/tmp") as home:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))}
        yield kept | {
            "HOME": home,
            "RAY_AUTH_MODE": "token",
            "PATH": f"{BIN}{os.pathsep}{kept['PATH']}",
        }


@pytest.fixture(scope="module")
def head(environment: dict[str, str]) -> Iterator[str]:
    """Starts the head by our script; yields the address for jobs."""
    gcs, jobs, client = free_ports(3)
    home = environment["HOME"]
    words = [f"--port={gcs}", f"--dashboard-port={jobs}", f"--ray-client-server-port={client}"]
    words += ["--node-ip-address=127.0.0.1", "--num-cpus=2", f"--temp-dir={home}/ray"]
    with Path(home, "head.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(ROOT / "cluster" / "head.sh"), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 90
        while not listens(jobs):
            assert process.poll() is None, Path(home, "head.log").read_text()
            assert time.monotonic() < until, Path(home, "head.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{jobs}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def submit(
    environment: dict[str, str], head: str, folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    until = time.monotonic() + 120
    while True:
        done = subprocess.run(
            [BIN / "ray", "job", "submit", "--address", head, "--working-dir", ".", "--", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        # A head that has just started takes no jobs yet.
        if "No available agent" not in done.stderr or time.monotonic() > until:
            return done
        time.sleep(2)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone, as a person would submit it."""
    folder = tmp_path_factory.mktemp("clone") / "seqtune"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    return folder


def test_a_job_from_a_clean_folder_registers_its_champion(
    environment: dict[str, str], head: str, clean: Path, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    tune = ["python", "tune.py", "--model", "sasrec", "--data", "tiny", "--trials", "2"]
    tune += ["--set", "epochs=2", "--name", "job", "--storage", str(tmp_path)]
    done = submit(environment, head, clean, *tune)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/2] trial" in done.stdout
    assert f"results in {tmp_path}/job" in done.stdout
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
    version = client.get_model_version_by_alias("job", "champion")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert (tmp_path / "job" / "champion" / "model.safetensors").is_file()


def test_nobody_submits_without_the_token(
    environment: dict[str, str], head: str, clean: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("0" * 64)
    stranger = environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = submit(stranger, head, clean, "python", "-c", "print('let in')")
    assert done.returncode != 0
    assert "let in" not in done.stdout


def test_a_relative_folder_is_refused_in_a_job(
    environment: dict[str, str], head: str, clean: Path
) -> None:
    tune = ["python", "tune.py", "--model", "sasrec", "--data", "tiny", "--storage", "here"]
    done = submit(environment, head, clean, *tune)
    assert done.returncode != 0
    assert "--storage here: the working folder of a Ray job is temporary" in done.stdout
