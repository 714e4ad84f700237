"""Disks that are full: who writes waits for room, and somebody says so."""

from __future__ import annotations

import errno
import heapq
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

FULL = (errno.ENOSPC, errno.EDQUOT)
PAUSES = (0.2, 5.0)  # seconds between two tries: first, longest
PATIENCE = 1800.0  # seconds after which the writer gives up
LEAST = 2**20  # bytes below which a disk is called full, beside what trials write at a time
LOOKED_AT = 4  # trials, the newest, whose states say how much that is

T = TypeVar("T")


def when_there_is_room(write: Callable[[], T]) -> T:
    """Returns what ``write`` does, which is called again while its disk is full.

    Raises:
        OSError: the disk has been full for half an hour, or something else is wrong.
    """
    began, pause = time.monotonic(), PAUSES[0]
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL or time.monotonic() - began > PATIENCE:
                raise
        time.sleep(pause)
        pause = min(2 * pause, PAUSES[1])


class Room:
    """Says, while a block runs, when the disk of a study is full, and when it no longer is.

    Args:
        folder: of the study.
        at_a_time: trials that may write a state in the same moment.
        say: gets a line.
    """

    def __init__(
        self, folder: Path, at_a_time: int, say: Callable[[str], None], every: float = 2.0
    ) -> None:
        self._folder, self._at_a_time, self._say, self._every = folder, at_a_time, say, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="room", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        full = False
        while not self._over.wait(self._every):
            with suppress(OSError):  # the next time, perhaps
                free, wanted = shutil.disk_usage(self._folder).free, self._wanted()
                if not full and free < wanted:
                    self._say(
                        f"the disk of {self._folder} has {free / 2**20:.1f} MB left, and the study "
                        f"writes {wanted / 2**20:.1f} MB at a time: what cannot be written waits "
                        "for room"
                    )
                if full and free >= 2 * wanted:
                    self._say(f"there is room again on the disk of {self._folder}")
                full = free < wanted or (full and free < 2 * wanted)

    def _wanted(self) -> int:
        """Returns the bytes that are written at a time: a state of each trial that runs."""
        sizes = [0]
        trials = self._folder / "trials"
        if trials.is_dir():
            for name in heapq.nlargest(LOOKED_AT, (one.name for one in trials.iterdir())):
                with suppress(OSError):
                    sizes.append((trials / name / "state.pt").stat().st_size)
        return LEAST + self._at_a_time * max(sizes)
