"""The journal: what the driver has told, on disk until MLflow has it."""

from __future__ import annotations

import errno
import threading
from collections import deque
from pathlib import Path

from seqtune.room import FULL

PAUSE = 2.0  # seconds after which there may be room for what waits


class Journal:
    """Lines of a local file: the driver adds them at the end, a thread takes them from the start.

    What is not done when the process ends stays in the file, and the next journal on the file
    begins with it. While the disk is full lines are kept in memory, in their order.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._changed = threading.Condition()
        self._closing = self._ended = False
        self._file = path.open("a+b", buffering=0)
        # A crash may have cut the last line short.
        self._size, self._done = path.read_bytes().rfind(b"\n") + 1, 0
        self._file.truncate(self._size)
        self._late: deque[bytes] = deque()  # lines for which there was no room

    def add(self, line: bytes) -> None:
        """Writes a line, or keeps it until there is room; raises OSError for any other reason."""
        with self._changed:
            self._late.append(line)
            self._catch_up()

    def _catch_up(self) -> None:
        try:
            while self._late:
                if self._file.write(self._late[0]) != len(self._late[0]):
                    raise OSError(errno.ENOSPC, "a part of the line was written")
                self._size += len(self._late.popleft())
                self._changed.notify_all()
        except OSError as error:
            self._file.truncate(self._size)
            if error.errno not in FULL:
                self._late.popleft()
                raise

    def take(self, limit: int) -> list[bytes]:
        """Returns the first lines that are not done, waiting for some; none when all is over."""
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._size > self._done or self._closing, PAUSE if self._late else None
            ):
                self._catch_up()
            if self._ended or self._size == self._done:
                return []
        lines: list[bytes] = []
        with self.path.open("rb") as file:
            file.seek(self._done)
            while len(lines) < limit and file.tell() < self._size:
                lines.append(file.readline())
        return lines

    def done(self, length: int) -> None:
        """Marks so many bytes as done; when all are, the file starts anew."""
        with self._changed:
            self._done += length
            if self._done == self._size and not self._ended:
                self._file.truncate(0)
                self._done = self._size = 0
            self._changed.notify_all()

    def rest(self, pause: float, least: float) -> None:
        """Waits between two tries; only ``least`` seconds once the driver wants to leave."""
        with self._changed:
            if self._closing:
                self._changed.wait_for(lambda: self._ended, least)
            else:
                self._changed.wait_for(lambda: self._closing, pause)

    def settle(self, timeout: float) -> bool:
        """Waits until all lines are done, at most ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._done == self._size and not self._late, timeout
            )

    def close(self) -> None:
        """Says that no line follows: ``take`` waits no longer."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def end(self) -> int:
        """Closes the file, and removes it where nothing is left; returns the lines that are."""
        with self._changed:
            self._ended = True
            self._catch_up()
            left = self.path.read_bytes()[self._done :].count(b"\n") + len(self._late)
            self._changed.notify_all()
        self._file.close()
        if not left:
            self.path.unlink(missing_ok=True)
        return left
