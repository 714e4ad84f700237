"""``seqtune list``, ``status``, ``stop``, ``delete`` and ``ui``: studies, from any terminal."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.cli.ready import check_name, lasting
from seqtune.errors import UserError
from seqtune.options import RESULTS, command
from seqtune.storage import Folder, check_place
from seqtune.words import brief

if TYPE_CHECKING:
    from seqtune.study.shelf import Known


SHOWN = 10  # studies whose pages are linked
SHORT, WIDE = 20, 400  # characters: of a cell that is never broken, and of a line in a file


def complete_study(incomplete: str) -> list[str]:
    """Completes the name of a study of the usual storage folder."""
    found = sorted(path.parent.name for path in Path(RESULTS).glob("*/study.json"))
    return [name for name in found if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(help="Name of the study.", metavar="NAME", autocompletion=complete_study),
]
Names = Annotated[
    list[str],
    typer.Argument(help="Names of studies.", metavar="NAME...", autocompletion=complete_study),
]
Storage = Annotated[
    str,
    typer.Option(help="Look in this folder: a path, s3:// or gs://.", metavar="FOLDER"),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="Look for its runs in this MLflow server or store.",
        metavar="URI",
        show_default="a SQLite file in --storage",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", metavar="")]


def list_(storage: Storage = RESULTS, json_: AsJson = False) -> None:
    """Lists the studies in a storage folder: how each does, and the best that it has found."""
    from seqtune.study.shelf import age, all_studies

    found = all_studies(place_of(storage))
    if json_:
        print(json.dumps([_plain(one) for one in found], indent=2))
        return
    if not found:
        print(f"There are no studies in {Folder.at(place_of(storage)).uri}.")
        return
    rows = [
        [
            one.name,
            one.model,
            one.state,
            f"{one.ended}/{one.planned}",
            "-" if one.best is None else f"{one.metric} {one.best.value:.4f}",
            age(one.changed),
        ]
        for one in found
    ]
    show_table(["study", "model", "state", "trials", "best on validation", "last change"], rows)


def status(
    name: Name,
    storage: Storage = RESULTS,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every five seconds.", metavar="")
    ] = False,
    json_: AsJson = False,
) -> None:
    """Says how a study does, also while it runs in another terminal or on another machine."""
    from seqtune.study import shelf

    check_name("NAME", name)
    while True:
        known = shelf.find(name, place_of(storage))
        told = json.dumps(_plain(known), indent=2) if json_ else "\n".join(_status(known, storage))
        print(told)
        if not watch or known.state != shelf.RUNNING:
            return
        time.sleep(5)
        print()


def _status(known: Known, storage: str) -> list[str]:
    from seqtune.study import shelf
    from seqtune.study.identity import asked_options

    lines = [f"{known.name}: {known.model}, {known.state}"]
    if known.state == shelf.DAMAGED:
        return [lines[0], known.driver]
    if known.state == shelf.RUNNING:
        lines.append(f"run by {known.driver}")
    lines.append(f"{known.ended} of {known.planned} trials have ended ({known.counts() or 'none'})")
    if (best := known.best) is not None:
        where = f", epoch {best.epoch}" if best.epoch else ""
        which = f"trial {best.number}" + f" of {best.model}" * (len(known.models) > 1)
        lines.append(f"best: {which}, {known.metric} {best.value:.4f}{where}")
    if promoted := (known.report or {}).get("promoted"):
        lines.append(f"champion: trial {promoted['number']}, promoted by hand")
    if refreshes := (known.report or {}).get("refreshes"):
        lines.append(f"last refresh: {refreshes[-1]['sentence']}")
    if len(known.models) > 1:
        lines += [_model_line(known, model) for model in known.models]
    for row in known.trials:
        if row.status == "running":
            told = "-" if row.value is None else f"{row.value:.4f}, epoch {row.epoch}"
            lines.append(f"trial {row.number} runs: {known.metric} {told}")
    failed = [row for row in known.trials if row.status == "failed"]
    if failed:
        lines.append(f"trial {failed[-1].number} failed last: {failed[-1].reason}")
    if known.state == shelf.STOPPED and known.about is not None:
        asked = replace(asked_options(known.about), storage=storage, resume=True)
        lines.append(f"go on with: {command(asked, private=False)}")
    return lines


def _model_line(known: Known, model: str) -> str:
    n, best = sum(row.model == model for row in known.trials), known.best_of(model)
    reached = "none evaluated" if best is None else f"best {best.value:.4f} in trial {best.number}"
    return f"{model}: {n} trial{'s' * (n != 1)}, {reached}"


def stop(
    name: Name,
    storage: Storage = RESULTS,
    trial: Annotated[
        int | None, typer.Option(help="End this trial alone.", metavar="N", min=0)
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.", metavar="")
    ] = True,
) -> None:
    """Ends a running study in order, wherever it runs: it tests its best trial and reports."""
    from seqtune.study import shelf

    check_name("NAME", name)
    known = shelf.find(name, place_of(storage))
    if known.state != shelf.RUNNING:
        raise UserError(f"{name}: does not run ({known.state}), so there is nothing to stop")
    if trial is not None and trial not in {r.number for r in known.trials if r.status == "running"}:
        raise UserError(f"--trial {trial}: does not run; seqtune status {name} shows those that do")
    shelf.wish(known.folder, trial)
    if trial is not None:
        print(f"Trial {trial} of {name} ends after its next evaluation, as if it had been pruned.")
        return
    print(f"{name} was asked to stop; it tests its best trial and writes its report.")
    while wait and shelf.find(name, place_of(storage)).state == shelf.RUNNING:
        time.sleep(1)
    if wait:
        print(f"{name} has stopped. Its report: seqtune report {name}")


def delete(
    name: Name,
    storage: Storage = RESULTS,
    tracking_uri: TrackingUri = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.", metavar="")] = False,
) -> None:
    """Deletes a study: its folder, its runs in MLflow, and the versions of models that it made."""
    from seqtune.study import shelf
    from seqtune.study.identity import NAME
    from seqtune.track import forget, store_uri

    place = place_of(storage)
    known = shelf.find(name, place)
    if known.state == shelf.RUNNING:
        raise UserError(f"{name}: is run by {known.driver}; stop it first: seqtune stop {name}")
    about = shelf.whole(known)
    uri = store_uri(tracking_uri, Folder.at(place))
    if not yes:
        print(f"{name}: {known.model}, {known.ended} trials, in {known.folder.uri}")
        if not typer.confirm("Delete it, its runs in MLflow and its models?"):
            raise typer.Exit(1)
    gone = forget(uri, about.id)
    known.folder.delete(last=NAME)
    print(f"Deleted {known.folder.uri} and {gone} of MLflow.")


def ui(
    storage: Storage = RESULTS,
    port: Annotated[
        int, typer.Option(help="Listen on this port.", metavar="N", min=1, max=65535)
    ] = 5000,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the newest study in a browser.", metavar="")
    ] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Shows MLflow's pages of the studies in a storage folder, on this machine alone."""
    from seqtune.track import store_uri
    from seqtune.track.server import served, studies

    uri = store_uri(tracking_uri, Folder.at(place_of(storage)))
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(
            f"--storage {storage}: has no {Path(uri).name}, so no study was tracked there"
        )
    found = studies(uri)
    with served(uri, port) as (page, process):
        links = [(name, one.charts_at(page)) for name, one in found]
        for name, link in links[:SHOWN]:
            print(f"{name}\n  {link}")
        more = f" ({len(links) - SHOWN} more)" if len(links) > SHOWN else ""
        print(f"all studies{more}\n  {page}/#/experiments", flush=True)
        if open_:
            typer.launch(links[0][1] if links else page)
        if process is not None:
            print("Ctrl-C ends it.", flush=True)
            process.wait()


def place_of(storage: str) -> str:
    """Returns where studies are, checked; the default outlives a Ray job."""
    check_place("--storage", storage)
    return lasting(storage)


def _plain(known: Known) -> dict[str, Any]:
    best = known.best
    return {
        "name": known.name,
        "state": known.state,
        "driver": known.driver,
        "models": known.models,
        "metric": known.metric,
        "trials": [vars(row) for row in known.trials],
        "ended": known.ended,
        "planned": known.planned,
        "best": vars(best) if best else None,
        "changed": known.changed,
        "folder": known.folder.uri,
        "command": known.about.command if known.about else "",
    }


def show_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a table; long cells are broken into lines where a terminal is too narrow for them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title, column in zip(header, zip(*rows, strict=True), strict=True):
        table.add_column(title, no_wrap=max(map(len, column)) <= SHORT, overflow="fold")
    for row in rows:
        table.add_row(*(brief(cell) for cell in row))
    width = None if sys.stdout.isatty() else WIDE
    Console(highlight=False, width=width).print(table)
