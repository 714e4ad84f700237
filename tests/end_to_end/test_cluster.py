"""Jobs on a Ray cluster with a token, as cluster/README.md has them, from a clean folder.

The code that is submitted bears a version of its own: what it leaves can only come from the upload,
also where seqtune is installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
UPLOADED = "0.0.0+uploaded"
TUNE = "python tune.py --model sasrec --data tiny"


@dataclass
class Site:
    """A clean folder to submit from, a cluster and an MLflow server."""

    home: Path  # ~, with the token
    checkout: Path
    results: Path
    ray: Path  # the folder of the head's Ray
    jobs: str  # where jobs are submitted
    mlflow: str

    @property
    def environment(self) -> dict[str, str]:
        """What a newcomer's shell has; nothing of it comes from the tests' own."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        api = {"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": self.jobs}
        return {"HOME": str(self.home), "PATH": path} | api

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text()

    def run(self, line: str, code: int = 0, **environment: str) -> str:
        """Runs a line of shell in the clean folder; returns what it printed."""
        done = subprocess.run(
            line,
            shell=True,
            check=False,
            cwd=self.checkout,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        assert done.returncode == code, f"{line}\n{done.stdout}"
        return done.stdout

    def log(self, job: str) -> list[str]:
        """What a job printed, without what Ray prints before it."""
        printed = self.run(f"ray job logs {job}").splitlines()
        starts = [n for n, line in enumerate(printed) if line.startswith("Running entrypoint")]
        return printed[starts[0] + 1 :] if starts else []

    def metrics(self) -> str:
        """What Prometheus would read from the head."""
        found = self.ray / "prom_metrics_service_discovery.json"
        places = [place for group in json.loads(found.read_text()) for place in group["targets"]]
        pages = []
        for place in places:
            with contextlib.suppress(OSError):
                pages.append(urllib.request.urlopen(f"http://{place}/metrics").read().decode())
        return "\n".join(pages)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Starts all by the files in cluster/, on ports and in a folder of its own."""
    # Ray's sockets lie in it, and a socket's path has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    gcs, jobs, agent, client, mlflow = free_ports(5)
    site = Site(
        folder / "home",
        folder / "seqtune",
        folder / "results",
        folder / "r",
        f"http://127.0.0.1:{jobs}",
        f"http://127.0.0.1:{mlflow}",
    )
    site.home.mkdir()
    clean_checkout(site.checkout)
    head = f"cluster/head.sh --num-cpus 2 --temp-dir {folder}/r --port {gcs}"
    ports = f"--dashboard-agent-listen-port {agent} --ray-client-server-port {client}"
    workers = "--min-worker-port 0 --max-worker-port 0"
    with (
        service(site, f"{head} --dashboard-port {jobs} {ports} {workers}", "Ray runtime started"),
        service(site, f"cluster/mlflow.sh {folder}/mlflow --port {mlflow}", "startup complete"),
    ):
        yield site
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(n: int) -> list[int]:
    """Finds ports that nothing listens on now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def clean_checkout(folder: Path) -> None:
    """Copies what the repository has, makes it a repository, and marks its version."""
    for name in ("platform", "search_spaces", "cluster", "tune.py", ".gitignore"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        folder.mkdir(exist_ok=True)
        copy(source, folder / name)
    package = folder / "platform" / "seqtune" / "__init__.py"
    text, n = re.subn(r'__version__ = ".*"', f'__version__ = "{UPLOADED}"', package.read_text())
    assert n == 1
    package.write_text(text)
    (folder / "seqtune-results").mkdir()
    (folder / "seqtune-results" / "large").write_bytes(os.urandom(3_000_000))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def service(site: Site, line: str, ready: str) -> Iterator[None]:
    """Runs what stays until it is stopped; goes on when it has printed that it is ready."""
    log = site.home / (line.split()[0].replace("/", "-") + ".log")
    environment = {k: v for k, v in site.environment.items() if not k.startswith("RAY")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            f"exec {line}",
            shell=True,
            cwd=site.checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: ready in log.read_text(), log.read_text, process)
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(45)  # a head lets its machine finish for half a minute
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(
    condition: Callable[[], bool],
    story: Callable[[], object],
    process: subprocess.Popen[bytes] | None = None,
    timeout: float = 600,
) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, story()
        assert time.monotonic() < until, story()
        time.sleep(0.2)


def status_of_jobs_page(site: Site, token: str | None) -> int:
    request = urllib.request.Request(f"{site.jobs}/api/jobs/")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def test_nobody_gets_in_without_the_token(site: Site) -> None:
    token = site.home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0, "others can read the token"
    assert status_of_jobs_page(site, None) == 401
    assert status_of_jobs_page(site, "0" * 64) == 403
    assert status_of_jobs_page(site, site.token) == 200
    submit = f"ray job submit --working-dir . -- {TUNE}"
    for environment, reason in (
        ({"HOME": "/nonexistent", "RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"HOME": "/nonexistent"}, "couldn't find an authentication token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
    ):
        assert reason in site.run(submit, code=1, **environment)


def test_the_champion_of_a_job_is_in_mlflow(site: Site, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    study = f"{TUNE} --set epochs=2 --trials 3 --name shop --tracking-uri {site.mlflow}"
    printed = site.run(f"ray job submit --submission-id shop --working-dir . -- {study}")
    assert "Job 'shop' succeeded" in printed
    assert (
        "11 hyperparameters searched, 3 trials, 2 at a time, more as machines join, 1 CPU each"
        in printed
    )
    lines = site.log("shop")
    results = site.home / "seqtune-results" / "shop"  # a job's own folder would not last
    assert f"results in {results}" in lines
    assert lines[0] == "sasrec on tiny: 200 users, 60 items, 2,534 interactions"
    assert re.findall(r"^\[.*?\]", "\n".join(lines), re.MULTILINE) == ["[1/3]", "[2/3]", "[3/3]"]
    assert [one for one in lines if re.search("ray|warn|traceback", one, re.IGNORECASE)] == []

    client = MlflowClient(site.mlflow, registry_uri=site.mlflow)
    version = client.get_model_version_by_alias("shop", "champion")
    runs = client.search_runs([client.get_experiment_by_name("shop").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert version.run_id in {run.info.run_id for run in runs}

    # Written by a worker of the cluster, with the code that was uploaded.
    about = json.loads((results / "champion" / "model.json").read_text())
    assert about["meta"]["versions"]["seqtune"] == UPLOADED

    out = tmp_path / "champion"
    download = f"mlflow artifacts download -u models:/shop@champion -d {out}"
    site.run(download, MLFLOW_TRACKING_URI=site.mlflow)
    assert list(out.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("leave-2-out", "Leave-2-out"),
        ("time:0.8 --targets successive", "Global temporal split"),
        ("ratio:0.6,0.2,0.2", "Of each user's events"),
        ("users:0.7,0.15,0.15", "Of the users"),
        ("session:7", "Sessions of the last 7 days"),
    ],
)
def test_a_job_by_a_split_of_ones_own_metric(site: Site, split: str, said: str) -> None:
    name = split.partition(":")[0]
    own = site.checkout / "own_gains.py"
    own.write_text("def gain(ranks):\n    return 0.9**ranks\n")
    study = f"{TUNE} --set epochs=2 --trials 2 --name {name} --split {split}"
    study += f" --metric own_gains:gain --storage {site.results}"
    site.run(f"ray job submit --submission-id {name} --working-dir . -- {study}")
    own.unlink()
    assert said in "".join(site.log(name))
    report = json.loads((site.results / name / "report" / "report.json").read_text())
    assert [trial["status"] for trial in report["trials"]] == ["complete", "complete"]
    assert 0 < report["best"]["test"]["own_gains:gain"] <= 0.9
    assert len(report["floors"]) == 4


def figures(site: Site, study: str) -> set[str]:
    """The figures that the head tells of a study; those of earlier ones linger."""
    tags = (f'study="{study}"', 'metric="ndcg@10"')
    lines = [line for line in site.metrics().splitlines() if all(tag in line for tag in tags)]
    found = {re.split(r"[{ ]", line)[0] for line in lines}
    return {name.removeprefix("ray_seqtune_") for name in found}


def test_a_stopped_job_goes_on(site: Site) -> None:
    from mlflow import MlflowClient

    study = f"{TUNE} --name halves --storage {site.results} --tracking-uri {site.mlflow}"
    submit = "ray job submit --no-wait --working-dir ."
    site.run(f"{submit} --submission-id first -- {study} --trials 40")
    wait_until(lambda: "[1/40]" in "".join(site.log("first")), lambda: site.log("first"))
    named = {"best", "targets_total", "trials"}
    wait_until(lambda: figures(site, "halves") == named, site.metrics)
    assert "Job 'first' was stopped" in site.run("ray job stop first")
    said = site.log("first")
    assert "Stopped. Continue with:" in said
    again = said[-1]
    assert again.startswith("python tune.py ")
    assert again.endswith(" --resume")

    client = MlflowClient(site.mlflow, registry_uri=site.mlflow)
    experiment = client.get_experiment_by_name("halves").experiment_id
    assert "KILLED" in {run.info.status for run in client.search_runs([experiment])}

    ended = sum(bool(re.match(r"\[\d", line)) for line in said)
    n = ended + 3  # two ran, and one had been drawn for a machine that may join
    printed = site.run(
        f"ray job submit --working-dir . -- {again.replace('--trials 40', f'--trials {n}')}"
    )
    assert f"[{n}/{n}]" in printed
    assert f"[{ended}/{n}]" not in printed  # what had ended did not run again
    assert {run.info.status for run in client.search_runs([experiment])} == {"FINISHED"}
    assert client.get_model_version_by_alias("halves", "champion").run_id


def test_the_upload_has_the_code_and_the_commit_alone(site: Site) -> None:
    commit = site.run("git rev-parse HEAD").strip()
    # Ray writes its own first line a little late: it stands below what a faster job prints.
    look = "sh -c 'sleep 1 && ls -A && printenv SEQTUNE_GIT_COMMIT'"
    site.run(f"cluster/submit.sh --submission-id look -- {look}")
    *files, told = site.log("look")
    assert told == commit
    assert sorted(files) == [".gitignore", "cluster", "platform", "search_spaces", "tune.py"]


def test_a_job_names_a_place_that_lasts(site: Site) -> None:
    printed = site.run(f"ray job submit --working-dir . -- {TUNE} --storage here", code=1)
    assert "error: --storage here: the working folder of a Ray job is temporary" in printed
    (job,) = re.findall(r"Job '(\w+)' submitted", printed)
    assert len(site.log(job)) == 1
