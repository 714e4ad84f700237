"""A study on three machines, of which one dies, and then its driver: S3, PostgreSQL, a token.

Nothing is shared between the machines but what they reach over the network. Each has its keys in
the environment that Ray is started in.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEBIAN = Path("/usr/lib/postgresql")
TRIALS, EPOCHS = 4, 40


class Site:
    """All processes, the keys that they have, and one place for their files."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.gcs, self.jobs, self.agent, self.client, self.s3, self.sql, self.mlflow = ports
        self.secrets = {name: f"s3cr3t{uuid.uuid4().hex}" for name in ("key", "id", "database")}
        self.keys = {
            "AWS_ACCESS_KEY_ID": self.secrets["id"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["key"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def storage(self) -> str:
        return f"s3://shop/x?endpoint_override=127.0.0.1:{self.s3}&scheme=http&region=us-east-1"

    def environment(self, home: str) -> dict[str, str]:
        """What a shell on a machine has; nothing of it comes from the tests' own."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        place = self.folder / home
        place.mkdir(exist_ok=True)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        return {"HOME": str(place), "PATH": path, "TMPDIR": str(place)} | token

    def start(self, name: str, line: str, **environment: str) -> None:
        """Starts what stays."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                ["sh", "-c", f"exec {line}"],
                cwd=ROOT,
                env=self.environment(name) | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def machine(self, name: str, line: str) -> None:
        """Starts Ray on a machine, which has the keys and a temporary folder of its own."""
        folder = Path(tempfile.mkdtemp(prefix="so-", dir="/tmp"))  # short: Ray's sockets are there
        self.start(name, f"{line} --temp-dir {folder}", **self.keys)

    def kill(self, name: str) -> None:
        """Ends a machine with all that runs on it."""
        process = self.running.pop(name)
        mark = f"HOME={self.folder / name}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        process.wait()

    def run(self, line: str, code: int | None = 0) -> str:
        """Runs a line where a person works, who has no keys."""
        done = subprocess.run(
            line,
            shell=True,
            check=False,
            cwd=self.folder / "clone",
            env=self.environment("person")
            | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.jobs}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert code is None or done.returncode == code, f"{line}\n{done.stdout}"
        return done.stdout

    def submit(self, name: str, *more: str) -> None:
        study = f"python tune.py --model sasrec --data tiny --trials {TRIALS} --name far"
        study += f" --set epochs={EPOCHS} --set eval_every=1 --set patience={EPOCHS}"
        study += " --scheduler none --workers-per-trial 2 --gpus-per-trial 0.5 --max-failures 0"
        study += f" --storage '{self.storage}' --tracking-uri http://127.0.0.1:{self.mlflow}"
        self.run(f"cluster/submit.sh --no-wait --submission-id {name} -- {study} {' '.join(more)}")

    def log(self, job: str) -> str:
        return self.run(f"ray job logs {job}", code=None)

    def until(self, condition: Callable[[], Any], story: Callable[[], str]) -> Any:
        until = time.monotonic() + 200
        while not (found := condition()):
            assert time.monotonic() < until, story()
            time.sleep(0.5)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    pytest.importorskip("moto")
    pytest.importorskip("psycopg")
    if not (shutil.which("initdb") or [*DEBIAN.glob("*/bin/initdb")]):
        pytest.skip("needs PostgreSQL")
    import socket

    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(7)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in probes]
    folder = Path(tempfile.mkdtemp(prefix="sm-", dir="/tmp"))
    one = Site(folder, ports)
    (folder / "token").write_text(uuid.uuid4().hex * 2)
    (folder / "token").chmod(0o600)
    clone = ["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", str(folder / "clone")]
    subprocess.run(clone, check=True)
    try:
        start_services(one)
        yield one
    finally:
        for name in [*one.running]:
            one.kill(name)
        shutil.rmtree(folder, ignore_errors=True)


def start_services(site: Site) -> None:
    """Starts an S3 server, PostgreSQL, MLflow on both, and a head that does no work."""
    site.start("s3", f"{sys.executable} -m moto.server -H 127.0.0.1 -p {site.s3}")
    bucket = urllib.request.Request(f"http://127.0.0.1:{site.s3}/shop", method="PUT")
    site.until(lambda: answered(bucket), lambda: "no S3 server")
    start_postgres(site)
    database = (
        f"postgresql+psycopg://tuner:{site.secrets['database']}@127.0.0.1:{site.sql}/postgres"
    )
    site.start(
        "mlflow",
        f"mlflow server --workers 1 --port {site.mlflow} --backend-store-uri '{database}' "
        "--artifacts-destination s3://shop/mlflow",
        MLFLOW_S3_ENDPOINT_URL=f"http://127.0.0.1:{site.s3}",
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
        **site.keys,
    )
    ports = f"--port {site.gcs} --dashboard-port {site.jobs} --ray-client-server-port {site.client}"
    agent = f"--dashboard-agent-listen-port {site.agent} --min-worker-port 0 --max-worker-port 0"
    site.machine("head", f"cluster/head.sh --num-cpus 0 {ports} {agent}")
    for path, port in (("health", site.mlflow), ("api/version", site.jobs)):
        look = urllib.request.Request(f"http://127.0.0.1:{port}/{path}")
        look.add_header("Authorization", f"Bearer {(site.folder / 'token').read_text()}")
        site.until(lambda look=look: answered(look), lambda port=port: f"nobody at {port}")


def start_postgres(site: Site) -> None:
    found = shutil.which("initdb")
    place = Path(found).parent if found else next(DEBIAN.glob("*/bin"))
    data, password = site.folder / "sql", site.folder / "password"
    data.mkdir()
    password.write_text(site.secrets["database"])
    before = ""
    if os.getuid() == 0:  # it refuses root
        for path in (data, password):
            shutil.chown(path, "nobody")
        site.folder.chmod(0o711)
        before = "setpriv --reuid=nobody --clear-groups "
    make = f"{before}{place}/initdb -D {data} -U tuner --auth=scram-sha-256 --no-sync"
    subprocess.run(
        f"{make} --pwfile={password}", shell=True, check=True, capture_output=True, cwd="/"
    )
    password.unlink()
    options = f"-p {site.sql} -c listen_addresses=127.0.0.1 -k {data} -c fsync=off"
    site.start("postgres", f"{before}{place}/postgres -D {data} {options}")
    said = site.folder / "postgres.log"
    site.until(lambda: "ready to accept" in said.read_text(), said.read_text)


def answered(request: urllib.request.Request) -> bool:
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except OSError:
        return False
    return True


def test_a_study_outlives_a_machine_and_its_driver(site: Site, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    worker = f"cluster/worker.sh 127.0.0.1:{site.gcs} --num-cpus 2 --num-gpus 1"
    for name in ("one", "two"):
        site.machine(name, worker)
    site.submit("first")
    site.until(lambda: "[1/4]" in site.log("first"), lambda: site.log("first"))
    site.kill("one")
    site.machine("three", worker)
    time.sleep(5)
    (driver,) = drivers(site)
    os.kill(driver, signal.SIGKILL)
    failed = site.until(
        lambda: "failed" in site.run("ray job status first", code=None), lambda: site.log("first")
    )
    assert failed
    site.submit("again", "--resume")
    site.until(
        lambda: re.search("succeeded|failed", site.run("ray job status again", code=None)),
        lambda: site.log("again"),
    )
    said = site.log("again")
    assert f"[{TRIALS}/{TRIALS}]" in said, said
    assert "Traceback" not in site.log("first") + said

    uri = f"http://127.0.0.1:{site.mlflow}"
    client = MlflowClient(uri, registry_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("far").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    numbers = [run.data.tags.get("seqtune.trial", "") for run in runs]
    assert sorted(numbers) == ["", *map(str, range(TRIALS))]
    for run in runs:
        if "seqtune.trial" in run.data.tags:
            points = client.get_metric_history(run.info.run_id, "ndcg_10")
            assert sorted(point.step for point in points) == list(range(1, EPOCHS + 1))
    assert client.get_model_version_by_alias("far", "champion").run_id
    fetch = f"mlflow artifacts download -u models:/far@champion -d {tmp_path}/champion"
    site.run(f"MLFLOW_TRACKING_URI={uri} {fetch}")
    (weights,) = (tmp_path / "champion").rglob("model.safetensors")
    load = "from seqtune.checkpoint import load; from seqtune.storage import Folder; import sys"
    line = f"{load}; print(len(load(Folder.at(sys.argv[1])).item_ids))"
    told = site.run(f'PYTHONPATH=platform {sys.executable} -c "{line}" {weights.parent}')
    assert told.strip() == "60"

    # The S3 server itself writes down who asked.
    files = [path for path in site.folder.rglob("*") if path.is_file() and path.name != "s3.log"]
    files += [path for place in Path("/tmp").glob("so-*") for path in place.rglob("*")]
    told = said + site.log("first") + site.run("ray job list")
    kept = {path: content(path) for path in files if path.is_file()} | objects(site)
    assert any("session_" in str(path) for path in kept), "Ray's logs are looked at"
    assert any("study.json" in str(path) for path in kept), "and the bucket"
    for name, secret in site.secrets.items():
        assert secret not in told
        assert [path for path, inside in kept.items() if secret.encode() in inside] == [], name


def content(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def objects(site: Site) -> dict[str, bytes]:
    """All that lies in the bucket."""
    import boto3

    keys = {
        "aws_access_key_id": site.secrets["id"],
        "aws_secret_access_key": site.secrets["key"],
        "region_name": "us-east-1",
    }
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{site.s3}", **keys)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="shop")
    names = [one["Key"] for page in pages for one in page.get("Contents", ())]
    return {name: client.get_object(Bucket="shop", Key=name)["Body"].read() for name in names}


def drivers(site: Site) -> list[int]:
    """The processes of the study's driver."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ours = f"HOME={site.folder}".encode() in (entry / "environ").read_bytes()
            if ours and words[1:2] == [b"tune.py"]:
                found.append(int(entry.name))
    return found
