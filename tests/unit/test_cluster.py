"""Joining Ray, short of Ray: addresses where nobody is, folders that vanish, what others use."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from seqtune import cluster
from seqtune.errors import Halted, UserError
from seqtune.versions import git_commit


@pytest.fixture(params=["SEQTUNE_JOB", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
def job(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv(request.param, "{}")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:{port}", "cannot join this Ray cluster (Connection refused)"),
        ("http://127.0.0.1:8265", "not the address of a Ray head; write HOST:PORT"),
        ("ray://127.0.0.1:10001", "not the address of a Ray head; write HOST:PORT"),
    ],
)
def test_an_address_without_a_head_is_a_sentence(
    address: str, sentence: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.format(port=free_port)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as refused, cluster.connected():
        pass
    assert str(refused.value).startswith(f"RAY_ADDRESS={address}: {sentence}")


def test_a_port_that_somebody_listens_on_is_left_to_ray(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        cluster._knock(f"127.0.0.1:{free_port}")
    cluster._knock("auto")


def test_a_pulse_that_stops_is_an_end_that_can_be_resumed() -> None:
    told: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    pulse = cluster.Pulse({"Ray's head": place}, 0.5, told.append)
    pulse.GRACE = 0.5
    time.sleep(1.5)
    pulse.check()
    listener.close()
    time.sleep(2.5)
    with pytest.raises(Halted, match="Ray's head has ended, and nothing runs without it"):
        pulse.check()
    time.sleep(1)
    assert told == ["Ray's head has ended, and nothing runs without it"]


def test_a_pulse_that_was_noticed_needs_no_rescue() -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = listener.getsockname()
    pulse = cluster.Pulse({"Ray's head": place}, 0.1, told.append)
    time.sleep(1.5)
    with pytest.raises(Halted):
        pulse.check()
    pulse.stop("nobody")
    time.sleep(0.3)
    assert told == []


def test_what_libraries_write_to_stderr_goes_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "own_scratch", lambda: tmp_path)
    with cluster._aside():
        os.write(2, b"a page of state\n")
        (log,) = tmp_path.iterdir()
        assert log.read_text() == "a page of state\n"
        assert log.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.iterdir())
    with contextlib.suppress(RuntimeError), cluster._aside():
        os.write(2, b"why\n")
        raise RuntimeError
    assert [log.read_text() for log in tmp_path.iterdir()] == ["why\n"]
    os.write(2, b"a sentence\n")
    assert capfd.readouterr().err == "a sentence\n"


def test_what_ray_says_of_workers_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    for _ in range(2):  # it is done once
        cluster._tame()
    data = {"ip": "x", "pid": "raylet", "lines": ["a worker died"], "job": None, "is_err": False}
    worker.print_to_stdstream(data, ignore_prefix=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("a worker died") == 1


def test_what_a_ray_has_started_ends_with_it() -> None:
    def start(mark: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {cluster.MARK: mark}
        words = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
        one = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE)
        assert one.stdout is not None
        one.stdout.readline()
        return one

    with start("ours") as ours, start("other") as other:
        cluster._end_all("ours")
        assert ours.wait(5) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("given", "lasting"),
    [
        ("results", "/shared/results"),
        ("../results", "/shared/results"),
        ("sqlite:///mlflow.db", "sqlite:////shared/mlflow.db"),
    ],
)
@pytest.mark.usefixtures("job")
def test_a_job_writes_nothing_into_its_temporary_folder(given: str, lasting: str) -> None:
    with pytest.raises(UserError) as refused:
        cluster.check_lasting("--there", given)
    assert str(refused.value).startswith(f"--there {given}: the working folder of a Ray job is")
    assert str(refused.value).endswith(f"for example --there {lasting}")


LASTING = [
    None,
    "/results",
    "~/results",
    "s3://results",
    "sqlite:////mlflow.db",
    "http://host:5000",
]


@pytest.mark.parametrize("given", LASTING)
@pytest.mark.usefixtures("job")
def test_a_job_writes_where_it_lasts(given: str | None) -> None:
    cluster.check_lasting("--there", given)


def test_outside_of_jobs_a_relative_path_is_fine() -> None:
    cluster.check_lasting("--there", "results")


def test_the_commit_of_a_copy_is_what_its_sender_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQTUNE_GIT_COMMIT", "abc123+")
    assert git_commit() == "abc123+"


def test_a_token_is_made_that_its_owner_alone_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    cluster.keep_token_private(make=False)  # a cluster has its own, or none
    assert not token.exists()
    cluster.keep_token_private(make=True)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    made = token.read_text()
    assert len(made) == 64
    cluster.keep_token_private(make=True)
    assert token.read_text() == made


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_token_that_others_can_reach_is_refused(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(UserError, match=f"{token}: others on this machine .*; chmod 600 {token} "):
        cluster.keep_token_private(make=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster.keep_token_private(make=False)


def test_sockets_of_ray_lie_where_their_paths_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for length, fits in ((30, True), (38, True), (40, False), (72, False)):
        monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "a" * (length - 5))
        assert (cluster._short_folder() is None) == fits, length
    short = cluster._short_folder()
    assert short == f"/tmp/seqtune-{os.getuid()}/ray"
    assert Path(short).parent.stat().st_mode & 0o077 == 0
    assert len(short + cluster.A_SOCKET) <= cluster.LONGEST_SOCKET
    monkeypatch.setenv("RAY_TMPDIR", "/var/short")
    assert cluster._short_folder() is None


LISTENS = "0A"  # a state in /proc/net/tcp
OWN = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
def test_nobody_else_can_reach_what_a_local_ray_listens_on(ray_local: object) -> None:
    import ray

    ray.get(ray.remote(lambda: 0).remote())  # so that there is a worker
    mark, mine = f"{cluster.MARK}={os.environ[cluster.MARK]}".encode(), str(os.getpid())
    lines = [
        line.split()
        for version in ("tcp", "tcp6")
        for line in Path("/proc/net", version).read_text().splitlines()[1:]
    ]
    hosts = {f"socket:[{one[9]}]": one[1].partition(":")[0] for one in lines if one[3] == LISTENS}
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if process.name == mine or mark in (process / "environ").read_bytes():
                name = (process / "comm").read_text().strip()
                files = [str(file.readlink()) for file in (process / "fd").iterdir()]
                found |= {(name, hosts[file]) for file in files if file in hosts}
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert {host for _, host in found} <= OWN, found
