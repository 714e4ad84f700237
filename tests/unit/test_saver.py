"""States are written beside training, and a row is told when the state before it is on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtune.errors import DamagedError
from seqtune.state import Saver, load_state
from seqtune.storage import Folder


class Disk:
    """Takes as long as the test wants, and notes what happens."""

    def __init__(self) -> None:
        self.done, self.notes = threading.Event(), list[str]()

    def write(self, state: dict[str, Any]) -> None:
        assert self.done.wait(20)
        self.notes.append(f"written {state['epoch']}")

    def tell(self, row: dict[str, Any]) -> None:
        self.notes.append(f"told {row['epoch']}")


@pytest.fixture
def disk() -> Disk:
    return Disk()


def row(epoch: int, finished: bool = False) -> dict[str, Any]:
    return {"epoch": epoch, "finished": finished}


def soon(disk: Disk) -> None:
    """Lets the disk write a little later."""
    threading.Timer(0.2, disk.done.set).start()


def until(saver: Saver, condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        saver.proceed()
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("never came")


def test_a_row_waits_for_its_state_and_training_does_not(disk: Disk) -> None:
    with Saver(disk.write, disk.tell) as saver:
        saver.save({"epoch": 1})
        saver.report(row(1))
        saver.report(row(2))
        saver.proceed()
        assert disk.notes == []
        disk.done.set()
        until(saver, lambda: "told 2" in disk.notes)
        assert disk.notes == ["written 1", "told 1", "told 2"]
        saver.report(row(3))  # nothing to wait for
        assert disk.notes[-1] == "told 3"


def test_a_state_waits_for_the_row_before_it(disk: Disk) -> None:
    with Saver(disk.write, disk.tell) as saver:
        saver.save({"epoch": 1})
        saver.report(row(1))
        soon(disk)
        saver.save({"epoch": 2})
        assert disk.notes[:2] == ["written 1", "told 1"]


def test_the_last_row_is_told_at_once(disk: Disk) -> None:
    with Saver(disk.write, disk.tell) as saver:
        saver.save({"epoch": 1})
        soon(disk)
        saver.report(row(1, finished=True))
        assert disk.notes == ["written 1", "told 1"]


def test_ranks_that_tell_together_wait(disk: Disk) -> None:
    with Saver(disk.write, disk.tell, wait=True) as saver:
        saver.save({"epoch": 1})
        soon(disk)
        saver.report(row(1))
        assert disk.notes == ["written 1", "told 1"]


def test_what_is_being_written_is_on_disk_when_training_fails(disk: Disk) -> None:
    def fails() -> None:
        with Saver(disk.write, disk.tell) as saver:
            saver.save({"epoch": 1})
            saver.report(row(1))
            soon(disk)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert disk.notes == ["written 1"]


@pytest.mark.parametrize("moment", ["step", "save", "end"])
def test_an_error_in_writing_is_raised_and_the_row_never_told(disk: Disk, moment: str) -> None:
    def full(state: dict[str, Any]) -> None:
        raise OSError("no space left on device")

    def go_on(saver: Saver) -> None:
        saver.report(row(1))  # where the thread has been quick
        if moment == "save":
            saver.save({"epoch": 2})
        elif moment == "end":
            saver.report(row(2, finished=True))
        else:
            until(saver, lambda: False)

    with Saver(full, disk.tell) as saver:
        saver.save({"epoch": 1})
        with pytest.raises(OSError, match="no space left"):
            go_on(saver)
    assert disk.notes == []


def test_noise_in_place_of_a_state_is_a_sentence(tmp_path: Path) -> None:
    """A pickle of noise fails in as many ways as there are bytes: each is the same to a person."""
    folder, noise = Folder.at(tmp_path), np.random.default_rng(0)
    for number in range(300):
        folder.write("state.pt", noise.bytes(200 + number))
        with pytest.raises(DamagedError, match=r"state\.pt is torn or no state"):
            load_state(folder)
