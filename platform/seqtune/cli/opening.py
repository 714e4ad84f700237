"""``tune --open``: MLflow's pages of a study, in a browser, while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from seqtune.errors import UserError
from seqtune.storage import Folder

if TYPE_CHECKING:
    from seqtune.options import StudyOptions
    from seqtune.report.view import StudyView
    from seqtune.track import Links

PAUSE = 1.0  # seconds between two looks whether there is something to show


@contextmanager
def opened(options: StudyOptions, view: StudyView) -> Iterator[None]:
    """Opens the prepared view of the study once MLflow knows it, and shows it until the end."""
    over = threading.Event()
    thread = threading.Thread(target=_open, args=(options, view, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(30)


def _open(options: StudyOptions, view: StudyView, over: threading.Event) -> None:
    while not view.where:
        if over.wait(PAUSE):
            return
    from seqtune.study.identity import read_about
    from seqtune.track import store_uri
    from seqtune.track.server import free_port, served, studies

    about = read_about(Folder.at(view.where))
    uri = store_uri(options.tracking_uri, Folder.at(options.storage))
    found: list[tuple[str, Links]] = []
    while about is not None and not found:
        if over.wait(PAUSE):
            return
        try:
            found = studies(uri, about.id)
        except UserError:  # MLflow is away, or has no tables yet
            continue
    try:
        with served(uri, free_port()) as (page, _):
            link = found[0][1].charts_at(page)
            view.note(f"MLflow shows the trials, as long as the study runs, at\n{link}")
            typer.launch(link)
            over.wait()
    except UserError as error:
        view.note(f"--open: {error}")
