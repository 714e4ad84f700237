"""What changes a study that has ended: who holds it meanwhile, and what its report says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from seqtune.errors import UserError
from seqtune.report.page import with_banner
from seqtune.results import BEST, CHECKPOINT_FILES
from seqtune.storage import Folder
from seqtune.study.identity import taken_over
from seqtune.study.lease import HeldError, Lease
from seqtune.study.shelf import RUNNING, Known

REPORT = ["report.html", "report.json", "report.md"]  # the files that change


def check_tested(known: Known, otherwise: str) -> dict[str, Any]:
    """Returns the report of a study that does not run and has a champion.

    Raises:
        UserError: it runs, or has none; ``otherwise`` says what cannot be without one.
    """
    if known.state == RUNNING:
        raise UserError(f"{known.name}: is run by {known.driver}; wait until it has ended")
    if not known.report or not known.report.get("best"):
        raise UserError(
            f"{known.name}: has no tested champion yet ({known.state}), so there is nothing that "
            f"{otherwise}"
        )
    return known.report


@contextmanager
def held(known: Known) -> Iterator[None]:
    """Keeps others from the study."""
    try:
        lease = Lease(known.folder)
    except HeldError as held:
        raise UserError(f"{known.name}: is run by {held}; wait until it has ended") from None
    try:
        yield
    finally:
        lease.release()


def keep_best(known: Known) -> None:
    """Copies the checkpoint of the best trial, which had none but the champion's.

    To be called before another takes the champion's place, and any number of times.
    """
    assert known.report is not None
    to = known.folder / BEST / known.report["model"]
    if known.report.get("promoted") or taken_over(known.report) or "model.json" in to.names():
        return
    copy_checkpoint(known.folder / "champion", to)


def copy_checkpoint(source: Folder, to: Folder) -> None:
    """Copies a checkpoint; ``model.json`` comes last, as in every complete one."""
    for name in CHECKPOINT_FILES:
        to.write(name, source.read(name) or b"")


def amend(folder: Folder, more: dict[str, Any], title: str, sentences: list[str]) -> None:
    """Adds to a study's report, in the place of what stood under the same title before.

    The last sentence stands above all else on the page.
    """
    content = json.loads(folder.read("report.json") or b"{}") | more
    folder.write("report.json", json.dumps(content, indent=2).encode())
    head, _, rest = (folder.read("report.md") or b"").decode().partition(f"\n## {title}\n")
    _, mark, after = rest.partition("\n## ")
    text = "\n\n".join(sentences)
    folder.write("report.md", f"{head}\n## {title}\n\n{text}\n{mark}{after}".encode())
    page = (folder.read("report.html") or b"").decode()
    folder.write("report.html", with_banner(page, sentences[-1]).encode())
