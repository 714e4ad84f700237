"""One driver a study: what a driver holds while it runs, so that no second one starts.

``lease.json`` in the study's folder says who has it, in its first line, and counts the signs of
life of the holder, in its second. On one machine the kernel's lock on the file decides, which no
crash leaves behind. A holder on another machine is alive while it counts; no clock is compared.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from seqtune.errors import UserError
from seqtune.storage import Folder

NAME = "lease.json"
BEAT = 5.0  # seconds between signs of life
WATCH = 3 * BEAT + 1  # seconds without one, after which a holder elsewhere counts as dead
SETTLE = 1.0  # seconds after which an object store shows who wrote last
WIDTH = 12  # digits of the count, so that it is rewritten in its place, on a full disk too


class HeldError(UserError):
    """Somebody else has the lease."""


class LostError(UserError):
    """Somebody else took the lease, since this process gave no sign of life."""


@dataclass(frozen=True)
class Holder:
    """Who has a lease."""

    token: str  # another for each driver
    machine: str  # the same for all processes since a machine was started
    host: str
    pid: int
    user: str
    since: float  # seconds since 1970, for people

    @classmethod
    def me(cls) -> Holder:
        """Returns this process."""
        user = "somebody"
        with suppress(KeyError, OSError):  # a container may have no user name
            user = getpass.getuser()
        host = socket.gethostname()
        try:
            machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            machine = host
        return cls(uuid.uuid4().hex, machine, host, os.getpid(), user, time.time())

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"process {self.pid} of {self.user} on {self.host}, since {since}"


class Lease:
    """The lease of a folder, taken when it is made; it counts until it is released.

    ``say`` gets a line where a holder on another machine has to be watched for a while.

    Raises:
        HeldError: somebody else has it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Folder, say: Callable[[str], None] = print) -> None:
        self._folder, self._me, self._count = folder, Holder.me(), 0
        self._lost = ""  # who took it
        self._file: int | None = None
        if folder.local is not None:
            self._file = _locked(folder.local)
        try:
            self._take(say)
        except BaseException:
            if self._file is not None:
                os.close(self._file)
            raise
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises LostError where somebody else has taken the lease."""
        if self._lost:
            raise LostError(
                f"{self._folder.uri}: this process gave no sign of life for a while, and "
                f"{self._lost}, has taken the study over; it goes on there"
            )

    def release(self) -> None:
        """Gives the lease back; a folder that holds nothing else goes with it."""
        self._over.set()
        self._thread.join()
        if not self._lost:
            with suppress(OSError):
                self._folder.remove(NAME)
            if self._folder.local is not None:
                with suppress(OSError):  # it is not empty
                    self._folder.local.rmdir()
        if self._file is not None:
            os.close(self._file)

    def _take(self, say: Callable[[str], None]) -> None:
        held = self._read()
        holder = _holder(held)
        # On this machine the lock has shown that the holder is dead.
        if held and (self._file is None or (holder and holder.machine != self._me.machine)):
            who = str(holder or "somebody")
            say(f"waiting {WATCH:.0f} s to see whether {who}, is alive")
            until = time.monotonic() + WATCH
            while time.monotonic() < until:
                time.sleep(min(1.0, BEAT / 5))
                if self._read() != held:
                    raise HeldError(who)
        self._write()
        if self._file is None:
            time.sleep(SETTLE)
            winner = _holder(self._read())
            if winner is None or winner.token != self._me.token:
                raise HeldError(str(winner or "somebody"))

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):  # the next time, perhaps
                found = self._read()
                holder = _holder(found)
                if found and (holder is None or holder.token != self._me.token):
                    self._lost = str(holder or "somebody")
                    return
                self._count += 1
                self._write()

    def _read(self) -> bytes:
        if self._file is None:
            return self._folder.read(NAME) or b""
        return os.pread(self._file, 4096, 0)

    def _write(self) -> None:
        content = json.dumps(asdict(self._me)) + f"\n{self._count:0{WIDTH}d}\n"
        if self._file is None:
            self._folder.write(NAME, content.encode())
            return
        os.pwrite(self._file, content.encode(), 0)
        os.ftruncate(self._file, len(content.encode()))


def alive(folders: Sequence[Folder]) -> dict[str, str]:
    """Says who runs the studies of folders that somebody runs: URI -> holder.

    What a lock on this machine does not show is looked at twice, seconds apart.
    """
    found, counted = dict[str, str](), dict[str, tuple[Folder, bytes]]()
    for folder in folders:
        content = folder.read(NAME)
        if content is None:
            continue
        holder = _holder(content)
        who = str(holder or "somebody")
        if folder.local is not None and _is_locked(folder.local):
            found[folder.uri] = who
        elif folder.local is None or (holder and holder.machine != Holder.me().machine):
            counted[folder.uri] = folder, content
    if counted:
        time.sleep(BEAT + 1)
    for uri, (folder, before) in counted.items():
        if (now := folder.read(NAME)) is not None and now != before:
            found[uri] = str(_holder(now) or "somebody")
    return found


def _is_locked(folder: Path) -> bool:
    """Says whether a process of this machine holds the lease of a folder."""
    try:
        with (folder / NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _locked(folder: Path) -> int:
    """Returns the open lease of a folder, which is made, with the kernel's lock on it."""
    path = folder / NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(file, 4096, 0))
            os.close(file)
            raise HeldError(str(holder or "another process")) from None
        except OSError:  # a file system without locks: there the count decides
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # it was released, and so removed, between the two


def _holder(content: bytes) -> Holder | None:
    """Reads who has a lease; None where nobody can be made out."""
    try:
        return Holder(**json.loads(content.split(b"\n", 1)[0]))
    except (ValueError, TypeError):
        return None
