"""How the process of a trial died, in a sentence.

An exception says it itself. A process that crashes writes why into its trial's folder, while it
still can: Ray knows only that it has gone. One that is killed from outside leaves nothing.
"""

from __future__ import annotations

import faulthandler
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from seqtune.storage import Folder

CRASH = "crash.txt"
NO_MEMORY = (
    "the machine ran out of memory, and Ray's memory monitor ended the process of the trial; a "
    "smaller batch_size, embedding_size or max_seq_len, or a lower --concurrency, would fit"
)
MONITORED = "due to the node running low on memory"  # in the first of Ray's 60 lines
NODE_LOST = "because its node has died"  # as Ray 2.60.0 says of an actor
LOST = "the machine that it ran on was lost"
KILLED = "was killed from outside (SIGKILL), or by the system for memory"
WORKERS = re.compile(
    r"^\[Rank ([\d,]+) Error Snippet\]:\n(.*?)(?=^\[Rank |\Z)", re.DOTALL | re.MULTILINE
)
SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Bus error": "SIGBUS",
    "Aborted": "SIGABRT",
    "Floating-point exception": "SIGFPE",  # since Python 3.12
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}


@contextmanager
def noted(folder: Folder, rank: int | None = None) -> Iterator[None]:
    """Has a crash of this process within the block written into the folder, where it is local.

    ``rank`` is that of one of several workers.
    """
    if folder.local is None:
        yield
        return
    folder.local.mkdir(parents=True, exist_ok=True)
    path = folder.local / _crash(rank)
    with path.open("w") as file:
        faulthandler.enable(file, all_threads=False)
        try:
            yield
        finally:
            faulthandler.enable(all_threads=False)  # as Ray has it
    path.unlink()


def _crash(rank: int | None) -> str:
    return CRASH if rank is None else CRASH.replace(".", f"-{rank}.")


def reason(error: str, folder: Folder) -> str:
    """Returns what a trial died of, by what Tune has written and what lies in its folder.

    Tune writes one death after another; the last one is meant. Ray Train tells of each worker that
    has failed: where one has died, the others fail because they miss it.
    """
    error, rank, who = error.rpartition("Failure # ")[2], None, "the process of the trial"
    if workers := WORKERS.findall(error):
        ranks, error = next((one for one in workers if _died(one[1])), workers[0])
        rank = int(ranks.partition(",")[0])
        who = f"the process of worker {rank} of the trial"
    if NODE_LOST in error:
        return LOST
    if not _died(error):
        return last_line(error)
    with suppress(OSError):
        left = (folder.read(_crash(rank)) or b"").decode(errors="replace")
        if said := re.match(r"Fatal Python error: (.+)", left):
            frame = re.search(r'File "(.+)", line (\d+) in (\S+)', left)
            where = f", in {frame[3]} ({frame[1]}, line {frame[2]})" if frame else ""
            name = f" ({SIGNALS[said[1]]})" if said[1] in SIGNALS else ""
            return f"{who} crashed: {said[1]}{name}{where}"
    return f"{who} {KILLED}"


def _died(error: str) -> bool:
    return "died unexpectedly" in error or "worker process has died" in error


def last_line(error: object) -> str:
    """Returns the last line of a traceback: the exception and its message."""
    if MONITORED in str(error):
        return no_memory(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the process of the trial ended"


def no_memory(error: str) -> str:
    """Returns what to say of what Ray's memory monitor has ended, with the memory that it had."""
    used = re.search(r"memory used[=:] ?([\d.]+) ?Gi?B", error, re.IGNORECASE)  # as Ray 2.60.0 says
    return NO_MEMORY + (f"; it had {used[1]} GB" if used else "")
