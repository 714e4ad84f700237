"""Gives wrong input to the command line, in this process, and judges the answer."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from seqtune.errors import UserError

PATIENCE = 4  # seconds of waiting, on a busy machine
LONGEST = 300 + len("error: ")
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")


class Started(BaseException):
    """The input was accepted: a training, or Ray, would have started."""


def started(*_: Any, **__: Any) -> NoReturn:
    raise Started


def late(*_: Any) -> NoReturn:
    """Ends a case that waits."""
    raise TimeoutError


def answer(*words: str) -> tuple[Any, str]:
    """Runs a command line; returns its exit status and what it said on stderr."""
    from seqtune.cli import app

    said = io.StringIO()
    arguments, sys.argv = sys.argv, ["seqtune", *words]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            app.main()
    except SystemExit as end:
        return end.code, said.getvalue()
    finally:
        sys.argv = arguments


def judged(world: Path, name: str, words: list[str]) -> str | None:
    """Returns what is wrong with the answer to a command line; None where nothing is."""
    before, began = inventory(world), time.process_time()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        status, said = answer(*words)
    except Started:
        return f"{name}: accepted"
    except BaseException as error:
        return f"{name}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    seconds = time.process_time() - began
    left = inventory(world) - before
    faults = [
        f"exit {status}" * (status != 2),
        f"{seconds:.1f} s" * (seconds > 1),
        f"{len(said)} characters"
        * (len(said.strip()) > LONGEST * (3 if " things are wrong" in said else 1)),
        "control characters" * bool(RAW.search(said)),
        "several lines" * ("\n" in said.strip()),
        "nothing said" * (not said.strip()),
        f"left {sorted(left)[:3]}" * bool(left),
    ]
    wrong = "; ".join(filter(None, faults))
    return f"{name}: {wrong}: {said[:200]!r}" if wrong else None


def refused(name: str, call: Callable[[], object]) -> str | None:
    """Returns what is wrong with how a call refuses its input; None where nothing is."""
    began = time.process_time()
    try:
        call()
    except UserError as error:
        said, seconds = str(error), time.process_time() - began
        if len(said) > LONGEST or RAW.search(said) or seconds > 1:
            return f"{name}: {len(said)} characters, {seconds:.1f} s: {said[:200]!r}"
        return None
    except BaseException as error:
        return f"{name}: {type(error).__name__}: {str(error)[:200]}"
    return f"{name}: accepted"


def inventory(world: Path) -> set[str]:
    """Returns all files and folders, but for what Python itself keeps."""
    return {str(path.relative_to(world)) for path in world.rglob("*")}


def report(wrong: Iterable[str | None]) -> None:
    """Fails with all that was wrong in a group of cases."""
    found = [one for one in wrong if one]
    assert not found, f"{len(found)} cases:\n" + "\n".join(found)
