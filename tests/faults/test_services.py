"""MLflow and PostgreSQL that are away, slow, or answer with errors."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness import ITSELF, RESUMED, Fault, Study, clean, trained, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


DEBIAN = "/usr/lib/postgresql"  # where its servers are, off the PATH


LENGTHS = ("transfer-encoding", "content-length", "connection")  # headers of one hop


class Proxy(ThreadingHTTPServer):
    """Stands before an MLflow server, and is as bad as it is told to be."""

    daemon_threads = True
    mode = "well"  # down, slow or failing

    def __init__(self, port: int) -> None:
        self.port = port  # of the server behind it
        super().__init__(("127.0.0.1", 0), Through)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Through(BaseHTTPRequestHandler):
    server: Proxy

    def answer(self) -> None:
        body = self.body()
        if self.server.mode == "down":
            self.connection.close()
            return
        if self.server.mode == "failing":
            self.send_error(500)
            return
        if self.server.mode == "slow":
            time.sleep(5)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in LENGTHS}
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        with contextlib.closing(behind):
            behind.request(self.command, self.path, body, kept)
            answer = behind.getresponse()
            content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in LENGTHS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        """What the request carries, whole or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def proxy(
    study: Study, mlflow_at: Callable[..., Any], free_port: int, tmp_path: Path
) -> Iterator[Proxy]:
    store = f"--backend-store-uri sqlite:///{tmp_path}/server.db"
    words = f"server --workers 1 {store} --artifacts-destination {tmp_path}/artifacts"
    with mlflow_at(free_port, words, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
        one = Proxy(free_port)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        study.store = f"http://127.0.0.1:{one.server_address[1]}"
        yield one
        one.shutdown()
        one.server_close()


def test_mlflow_is_away_for_half_a_minute(
    study: Study, values: dict[int, float], proxy: Proxy, fault: Fault
) -> None:
    driver = study.tune("--tracking-uri", study.store)
    driver.until(lambda: study.epochs(0) > 3)
    proxy.mode = "down"
    time.sleep(30)
    proxy.mode = "well"
    said = driver.ends(0)
    clean(said)
    assert said.count("takes no records now") == 1
    whole(study, values, {})
    fault("MLflow is away for 30 s", "its connections are cut", "one line each way", ITSELF)


def test_mlflow_takes_five_seconds_for_an_answer(
    study: Study, values: dict[int, float], proxy: Proxy, fault: Fault
) -> None:
    proxy.mode = "slow"
    said = study.tune("--tracking-uri", study.store).ends(0, timeout=500)
    clean(said)
    proxy.mode = "well"
    goes_on, before = ITSELF, study.ended()
    if (study.folder / "mlflow.journal").exists():  # what had not arrived is sent now
        goes_on = "it ends; --resume sends what MLflow has not had time for"
        clean(study.resume("--tracking-uri", study.store))
    whole(study, values, before)
    goes_on = "it ends; --resume sends what MLflow has not taken"
    fault("MLflow answers with errors", "500 to all", "a line, and what it lacks", goes_on)
    fault("MLflow is slow", "5 s for each answer", "what has not arrived yet", goes_on)


def test_mlflow_answers_with_errors(
    study: Study, values: dict[int, float], proxy: Proxy, fault: Fault
) -> None:
    driver = study.tune("--tracking-uri", study.store)
    driver.until(lambda: study.epochs(0) > 3)
    proxy.mode = "failing"
    said = driver.ends(0)
    clean(said)
    assert "records did not reach MLflow" in said
    before = study.ended()
    proxy.mode = "well"
    clean(study.resume("--tracking-uri", study.store))
    whole(study, values, before)


class Postgres:
    """A database of its own in a folder, owned by a user who is not root."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.user = folder, port, "nobody" if os.getuid() == 0 else ""
        folder.mkdir()
        if self.user:
            shutil.chown(folder, self.user)
            for parent in folder.parents[:-2]:
                parent.chmod(parent.stat().st_mode | 0o011)
        self.do("initdb", "-D", f"{folder}/data", "-U", "tuner", "--auth=trust", "--no-sync")

    def do(self, program: str, *words: str) -> None:
        found = shutil.which(program) or str(
            next(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
        )
        before = ["setpriv", f"--reuid={self.user}", "--clear-groups"] if self.user else []
        subprocess.run([*before, found, *words], cwd=self.folder, check=True, capture_output=True)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        log = f"{self.folder}/log"
        self.do("pg_ctl", "-D", f"{self.folder}/data", "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self.do("pg_ctl", "-D", f"{self.folder}/data", "-w", "-m", "immediate", "stop")


def lasting_port() -> int:
    """A port that nobody gets by chance while the database is away."""
    while True:
        port = random.randrange(20_000, 30_000)  # below those that Linux hands out
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def postgres(study: Study, tmp_path: Path) -> Iterator[Postgres]:
    pytest.importorskip("psycopg")
    if not shutil.which("initdb") and not [*Path(DEBIAN).glob("*/bin/initdb")]:
        pytest.skip("needs PostgreSQL")
    one = Postgres(tmp_path / "pg", lasting_port())
    one.start()
    study.optuna = f"postgresql+psycopg://tuner@127.0.0.1:{one.port}/postgres"
    study.environment = {"SEQTUNE_OPTUNA_STORAGE": study.optuna}
    yield one
    with contextlib.suppress(subprocess.CalledProcessError):
        one.stop()


@pytest.mark.parametrize("away", [0, 20])
def test_postgresql_is_restarted(
    study: Study, values: dict[int, float], postgres: Postgres, away: int, fault: Fault
) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    postgres.stop()
    time.sleep(away)
    postgres.start()
    clean(driver.ends(0))
    whole(study, values, before)
    name = f"is away for {away} s" if away else "is restarted"
    fault(f"Optuna's PostgreSQL {name}", "pg_ctl stop -m immediate, start", "nothing", ITSELF)


def test_secrets_are_nowhere(
    study: Study,
    values: dict[int, float],
    proxy: Proxy,
    postgres: Postgres,
    tmp_path: Path,
    fault: Fault,
) -> None:
    """A study is run, interrupted, resumed and ends, with secrets wherever one can put them."""
    secret = {
        name: f"s3cr3t{uuid.uuid4().hex}" for name in ("uri", "base", "key", "id", "password")
    }
    uri = f"http://someone:{secret['uri']}@127.0.0.1:{proxy.server_address[1]}"
    study.optuna = study.optuna.replace("tuner@", f"tuner:{secret['base']}@")
    study.environment = {
        "SEQTUNE_OPTUNA_STORAGE": study.optuna,
        "AWS_SECRET_ACCESS_KEY": secret["key"],
        "AWS_ACCESS_KEY_ID": secret["id"],
        "MLFLOW_TRACKING_USERNAME": "someone",
        "MLFLOW_TRACKING_PASSWORD": secret["password"],
        "TMPDIR": str(tmp_path / "t"),
    }
    (tmp_path / "t").mkdir()
    driver = study.tune("--tracking-uri", uri)
    trained(driver, study)
    before = study.ended()
    os.killpg(driver.process.pid, signal.SIGINT)
    said = driver.ends(130)
    said += study.resume("--tracking-uri", uri)
    whole(study, values, before)
    places = [tmp_path, Path(os.environ["RAY_TMPDIR"]), Path.home() / ".ray"]
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert any("session_" in str(path) for path in files), "Ray's logs are looked at too"
    assert any(path.name == "server.db" for path in files), "and so is MLflow"
    found = {
        (name, str(path))
        for path in files
        for content in [path.read_bytes()]
        for name, hidden in secret.items()
        if hidden.encode() in content
    }
    assert found == set()
    assert not [name for name, hidden in secret.items() if hidden in said]
    caused = "passwords and keys in addresses and in the environment"
    fault("secrets (no file, no line, no record has one)", caused, "*** in their place", RESUMED)
