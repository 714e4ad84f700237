"""Disks that are full: what waits, what is said, and that nothing is torn."""

from __future__ import annotations

import errno
import itertools
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seqtune import room
from seqtune.room import LEAST, Room, when_there_is_room
from seqtune.storage import Folder
from seqtune.track.journal import Journal


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PAUSES", (0.01, 0.02))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_finds_no_room_is_tried_again(number: int) -> None:
    tries = itertools.count(1)

    def write() -> int:
        if (nth := next(tries)) < 4:
            raise OSError(number, "no room")
        return nth

    assert when_there_is_room(write) == 4


def test_other_faults_are_no_reason_to_wait() -> None:
    def write() -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        when_there_is_room(write)


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(room, "PATIENCE", 0.05)
    with pytest.raises(OSError, match="no room"):
        when_there_is_room(write)


def test_a_file_is_written_when_there_is_room_again(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a disk without room")
    (tmp_path / ".state.pt.part").symlink_to("/dev/full")
    thread = threading.Thread(target=Folder.at(tmp_path).write, args=("state.pt", b"weights"))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    assert not (tmp_path / "state.pt").exists()
    (tmp_path / ".state.pt.part").unlink()
    thread.join(5)
    assert (tmp_path / "state.pt").read_bytes() == b"weights"


def test_a_full_disk_is_named_once_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trials" / "0007"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(bytes(2**20))
    needed = LEAST + 3 * 2**20
    free, said = [2 * needed], list[str]()

    def usage(path: Path) -> Any:
        assert path == tmp_path
        return SimpleNamespace(free=free[0])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with Room(tmp_path, 3, said.append, every=0.01):
        for left in (needed, needed - 1, 10, needed, 2 * needed - 1, 2 * needed):
            free[0] = left
            time.sleep(0.1)
    full, again = said
    assert full == (
        f"the disk of {tmp_path} has 4.0 MB left, and the study writes 4.0 MB at a time: what "
        "cannot be written waits for room"
    )
    assert again == f"there is room again on the disk of {tmp_path}"


class Tight:
    """A file that takes some bytes and then no more."""

    def __init__(self, file: Any, left: int) -> None:
        self.file, self.left = file, left

    def write(self, data: bytes) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "no room")
        taken = self.file.write(data[: self.left])
        self.left -= taken
        return int(taken)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_journal_on_a_full_disk_loses_and_tears_no_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    tight = Tight(journal._file, 10)
    journal._file = tight  # type: ignore[assignment]
    for line in (b"one 11\n", b"two 22\n", b"three\n"):
        journal.add(line)
    assert (tmp_path / "journal").read_bytes() == b"one 11\n"
    assert journal.take(9) == [b"one 11\n"]
    assert not journal.settle(0.1)
    tight.left = 1000
    journal.done(7)
    assert journal.take(9) == [b"two 22\n", b"three\n"]  # it looks again by itself
    journal.done(13)
    assert journal.settle(0)
    journal.close()
    assert journal.end() == 0


def test_lines_for_which_there_never_was_room_are_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal._file = Tight(journal._file, 8)  # type: ignore[assignment]
    journal.add(b"one 11\n")
    journal.add(b"two 22\n")
    journal.close()
    assert journal.end() == 2
    assert (tmp_path / "journal").read_bytes() == b"one 11\n"
