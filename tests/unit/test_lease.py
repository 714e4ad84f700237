"""One driver a study: the lease of a folder, against real processes and against other machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from seqtune import storage
from seqtune.storage import Folder
from seqtune.study import lease as room
from seqtune.study.lease import NAME, HeldError, Lease, LostError

HOLD = """
import sys, time
from seqtune import storage
from seqtune.storage import Folder
from seqtune.study.lease import Lease
Lease(Folder.at(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "study")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.05), ("WATCH", 0.5), ("SETTLE", 0.2)):
        monkeypatch.setattr(room, name, seconds)


@pytest.fixture
def other(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease."""
    words = [sys.executable, "-c", HOLD, folder.uri]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def elsewhere(folder: Folder, count: int = 7) -> bytes:
    """Returns the lease of a driver on another machine."""
    who = {"token": "t", "machine": "m", "host": "far", "pid": 5, "user": "ann", "since": 0.0}
    return f"{json.dumps(who)}\n{count:012d}\n".encode()


def test_a_lease_is_taken_once_and_leaves_nothing(folder: Folder) -> None:
    lease = Lease(folder)
    with pytest.raises(HeldError, match=f"^process {os.getpid()} of .* on .*, since 2"):
        Lease(folder)
    lease.check()
    lease.release()
    assert folder.local is not None
    assert not folder.local.exists()
    Lease(folder).release()


def test_a_folder_that_holds_something_stays(folder: Folder) -> None:
    lease = Lease(folder)
    folder.write("study.json", b"{}")
    lease.release()
    assert folder.names() == ["study.json"]


def test_another_process_holds_it_until_it_dies(
    folder: Folder, other: subprocess.Popen[str]
) -> None:
    began = time.monotonic()
    with pytest.raises(HeldError, match=f"^process {other.pid} of "):
        Lease(folder)
    assert time.monotonic() - began < 1
    other.send_signal(signal.SIGKILL)
    other.wait()
    Lease(folder).release()


def test_of_many_at_once_one_has_it(folder: Folder) -> None:
    together, leases = threading.Barrier(8), []

    def take() -> None:
        together.wait()
        try:
            leases.append(Lease(folder))
        except HeldError:
            return

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(leases) == 1
    leases[0].release()


@pytest.mark.usefixtures("quick")
def test_a_driver_on_another_machine_is_alive_while_it_counts(folder: Folder) -> None:
    folder.write(NAME, elsewhere(folder))
    said: list[str] = []
    counting = threading.Timer(
        0.1, lambda: (folder.local or Path()).joinpath(NAME).write_bytes(elsewhere(folder, 8))
    )
    counting.start()
    with pytest.raises(HeldError, match="process 5 of ann on far, since 19"):
        Lease(folder, said.append)
    counting.join()
    assert said == [
        "waiting 0 s to see whether process 5 of ann on far, since 1970-01-01 00:00, is alive"
    ]
    lease = Lease(folder, said.append)  # it counts no more
    lease.check()
    lease.release()


@pytest.mark.usefixtures("quick")
def test_who_gave_no_sign_of_life_and_was_replaced_is_told(folder: Folder) -> None:
    lease = Lease(folder)
    lease.check()
    (folder.local or Path()).joinpath(NAME).write_bytes(elsewhere(folder))
    eventually(lambda: bool(lease._lost))
    with pytest.raises(LostError, match="has taken the study over"):
        lease.check()
    lease.release()
    assert folder.read(NAME) == elsewhere(folder)  # it is another's


@pytest.mark.usefixtures("quick")
def test_it_counts(folder: Folder) -> None:
    lease = Lease(folder)

    def count() -> int:
        return int((folder.read(NAME) or b"").split(b"\n")[1])

    before = count()
    eventually(lambda: count() >= before + 3)
    lease.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n0\n", b'{"token": 1}\n', b"\xff" * 90])
def test_a_damaged_lease_of_nobody_is_taken(content: bytes, folder: Folder) -> None:
    folder.write(NAME, content)
    lease = Lease(folder)
    lease.check()
    lease.release()


@pytest.mark.usefixtures("quick")
def test_without_locks_the_count_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    remote = Folder("s3://shop/study")
    (tmp_path / "study").mkdir()
    store = fs.LocalFileSystem(), str(tmp_path)
    monkeypatch.setattr(storage, "_filesystem", lambda root: store)  # in place of a bucket
    lease = Lease(remote)
    with pytest.raises(HeldError, match=f"^process {os.getpid()} of "):
        Lease(remote, lambda line: None)
    lease.release()
    assert remote.read(NAME) is None
