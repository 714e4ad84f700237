"""``seqtune promote``, ``rerun`` and ``refresh``: what is done with a study that has ended."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from seqtune.cli.mistakes import say
from seqtune.cli.studies import AsJson, Name, Storage, TrackingUri, place_of
from seqtune.options import RESULTS
from seqtune.storage import Folder

Moved = Annotated[
    str | None,
    typer.Option(
        help="Read the interactions here.", metavar="FILE", show_default="where they were"
    ),
]
STAYS, NOTHING_NEW = 3, 4  # how refresh ends where the champion stays


def promote(
    name: Name,
    trial: Annotated[int, typer.Option(help="Promote this trial.", metavar="N", min=0)],
    storage: Storage = RESULTS,
    data: Moved = None,
    tracking_uri: TrackingUri = None,
    json_: AsJson = False,
) -> None:
    """Makes another trial the champion: tests it, writes its checkpoint, moves the alias."""
    from seqtune.study.promote import promote

    place = place_of(storage)
    found = promote(name, place, trial, data=data, tracking_uri=tracking_uri, say=say)
    if json_:
        own = {n: v for n, v in vars(found.finalist).items() if n != "test_ranks"}
        registered = vars(found.registered) if found.registered else None
        own |= {"checkpoint": found.checkpoint, "registered": registered}
        print(json.dumps(own | {"sentence": found.sentence}, indent=2))
        return
    print(found.sentence)
    print(f"checkpoint: {found.checkpoint}")
    if found.registered:
        print(f"registered as {found.registered.uri}")
    else:
        print("MLflow has not taken it; promote it again when MLflow answers")


def rerun(
    run: Annotated[str, typer.Argument(help="Id of a run in MLflow.", metavar="RUN_ID")],
    storage: Storage = RESULTS,
    data: Moved = None,
    tracking_uri: TrackingUri = None,
    json_: AsJson = False,
) -> None:
    """Trains again what a run of MLflow has trained, and says whether the numbers are the same."""
    from seqtune.report.scripted import silent_console
    from seqtune.report.view import TrainView
    from seqtune.study.rerun import rerun
    from seqtune.track import store_uri

    root = Folder.at(place_of(storage))
    out = root / "reruns" / run
    if out.names():
        out.set_aside()
    view = TrainView("", silent_console() if json_ else None)
    found = rerun(
        run, store_uri(tracking_uri, root), out, data=data, note=view.note, report=view.told
    )
    if json_:
        told = {"same": found.same, "then": found.lock.valid, "now": found.now}
        print(json.dumps(told | {"changed": found.changed, "epoch": found.lock.epoch}, indent=2))
    else:
        print(found.sentence)
    if not found.same:
        raise typer.Exit(1)


def refresh(
    name: Name,
    data: Annotated[
        str, typer.Option(help="Read all interactions, with the newer ones, here.", metavar="FILE")
    ],
    storage: Storage = RESULTS,
    warm: Annotated[
        bool,
        typer.Option(
            "--warm/--cold", help="Begin with the champion's weights, or with random ones."
        ),
    ] = True,
    tracking_uri: TrackingUri = None,
    json_: AsJson = False,
) -> None:
    """Trains the champion on with newer data; it changes where that is better beyond chance.

    Ends with 0 where the challenger takes over, 3 where the champion stays, and 4 where nothing
    is newer.
    """
    from seqtune.report.scripted import silent_console
    from seqtune.report.view import TrainView
    from seqtune.study.refresh import refresh

    view = TrainView("", silent_console() if json_ else None)
    found = refresh(
        name,
        place_of(storage),
        data,
        warm=warm,
        tracking_uri=tracking_uri,
        say=say if json_ else view.note,
        report=view.told,
    )
    if found is None:
        line = "No user has an interaction that is newer than those which the champion knows."
        print(json.dumps({"moved": False, "sentence": line}, indent=2) if json_ else line)
        raise typer.Exit(NOTHING_NEW)
    if json_:
        print(json.dumps(vars(found) | {"sentence": found.sentence}, indent=2))
    else:
        print(found.sentence)
        print(f"checkpoint of the champion: {found.checkpoint}")
        if found.registered:
            print(f"registered as {found.registered}")
    if not found.moved:
        raise typer.Exit(STAYS)
