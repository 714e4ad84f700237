"""``seqtune list``, ``status``, ``best`` and the like: studies, from any terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.cli.ready import check_name, lasting
from seqtune.errors import UserError
from seqtune.options import RESULTS
from seqtune.storage import Folder, check_place
from seqtune.words import brief, written

if TYPE_CHECKING:
    from seqtune.study.shelf import Known


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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", metavar="")]


def list_(storage: Storage = RESULTS, json_: AsJson = False) -> None:
    """Lists the studies in a storage folder: how each does, and the best that it has found."""
    from seqtune.study.shelf import age, all_studies

    found = all_studies(_place(storage))
    if json_:
        print(json.dumps([_plain(one) for one in found], indent=2))
        return
    if not found:
        print(f"There are no studies in {Folder.at(_place(storage)).uri}.")
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
    _table(["study", "model", "state", "trials", "best on validation", "last change"], rows)


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
        known = shelf.find(name, _place(storage))
        print(json.dumps(_plain(known), indent=2) if json_ else "\n".join(_status(known)))
        if not watch or known.state != shelf.RUNNING:
            return
        time.sleep(5)
        print()


def _status(known: Known) -> list[str]:
    from seqtune.study import shelf

    lines = [f"{known.name}: {known.model}, {known.state}"]
    if known.state == shelf.DAMAGED:
        return [lines[0], known.driver]
    if known.state == shelf.RUNNING:
        lines.append(f"run by {known.driver}")
    lines.append(f"{known.ended} of {known.planned} trials have ended ({known.counts() or 'none'})")
    if (best := known.best) is not None:
        where = f", epoch {best.epoch}" if best.epoch else ""
        lines.append(f"best: trial {best.number}, {known.metric} {best.value:.4f}{where}")
    for row in known.trials:
        if row.status == "running":
            told = "-" if row.value is None else f"{row.value:.4f}, epoch {row.epoch}"
            lines.append(f"trial {row.number} runs: {known.metric} {told}")
    failed = [row for row in known.trials if row.status == "failed"]
    if failed:
        lines.append(f"trial {failed[-1].number} failed last: {failed[-1].reason}")
    if known.state == shelf.STOPPED and known.about is not None:
        lines.append(f"go on with: {known.about.command} --resume")
    return lines


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
    known = shelf.find(name, _place(storage))
    if known.state != shelf.RUNNING:
        raise UserError(f"{name}: does not run ({known.state}), so there is nothing to stop")
    if trial is not None and trial not in {r.number for r in known.trials if r.status == "running"}:
        raise UserError(f"--trial {trial}: does not run; seqtune status {name} shows those that do")
    shelf.wish(known.folder, trial)
    if trial is not None:
        print(f"Trial {trial} of {name} ends after its next evaluation, as if it had been pruned.")
        return
    print(f"{name} was asked to stop; it tests its best trial and writes its report.")
    while wait and shelf.find(name, _place(storage)).state == shelf.RUNNING:
        time.sleep(1)
    if wait:
        print(f"{name} has stopped. Its report: seqtune report {name}")


def best(name: Name, storage: Storage = RESULTS, json_: AsJson = False) -> None:
    """Prints the best trial of a study: its hyperparameters, what it reaches, its checkpoint."""
    from seqtune.study import shelf

    known = shelf.find(name, _place(storage))
    shelf.whole(known)
    if known.best is None:
        raise UserError(f"{name}: no trial has been evaluated yet")
    tested = (known.report or {}).get("best") or {}
    tested = tested if tested.get("number") == known.best.number else {}
    found: dict[str, Any] = {
        "study": name,
        "model": known.model,
        "trial": known.best.number,
        "params": tested.get("params") or known.best.params,
        "valid": tested.get("valid") or {known.metric: known.best.value},
        "test": tested.get("test") or {},
        "checkpoint": known.report["checkpoint"] if tested and known.report else "",
        "train_command": known.report["train_command"] if tested and known.report else "",
    }
    if json_:
        print(json.dumps(found, indent=2))
        return
    valid = found["valid"].get(known.metric)
    which = f"trial {found['trial']} of {known.model}"
    print(f"{name}: {which}, {known.metric} {valid:.4f} on validation")
    if found["test"]:
        print(f"on test: {', '.join(f'{n} {v:.4f}' for n, v in _main(known, found['test']))}")
    else:
        print("on test: not known before the study ends")
    print("hyperparameters:")
    for param, value in found["params"].items():
        print(f"  {param}: {written(value)}")
    for what, line in (("checkpoint", "checkpoint"), ("train it again", "train_command")):
        if found[line]:
            print(f"{what}: {found[line]}")


def report(name: Name, storage: Storage = RESULTS, json_: AsJson = False) -> None:
    """Prints the report of a study that has ended."""
    from seqtune.study import shelf

    known = shelf.find(name, _place(storage))
    shelf.whole(known)
    content = (known.folder / "report").read("report.json" if json_ else "report.md")
    if content is None:
        raise UserError(
            f"{name}: has no report yet ({known.state}); seqtune status {name} says how it does"
        )
    if json_ or not sys.stdout.isatty():
        print(content.decode())
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(content.decode()))


def compare(names: Names, storage: Storage = RESULTS, json_: AsJson = False) -> None:
    """Compares the champions of studies on test, where data, protocol and metric are the same."""
    from seqtune.study.comparison import compared

    if len(names) < 2:
        raise UserError("NAME...: name two studies or more")
    if len(set(names)) < len(names):
        raise UserError("NAME...: a study is named twice")
    found = compared(names, _place(storage))
    if json_:
        print(json.dumps(found.plain(), indent=2))
        return
    _table(found.header, found.rows)
    print(found.verdict)


def export(
    name: Name,
    out: Annotated[str, typer.Option(help="Write this file.", metavar="FILE")],
    what: Annotated[
        str,
        typer.Option(help="Write its trials, curves, or leaderboard.", metavar="WHAT"),
    ] = "trials",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv, parquet or latex; else by the name of FILE.", metavar="FORMAT"
        ),
    ] = None,
    storage: Storage = RESULTS,
) -> None:
    """Writes the trials of a study, their curves or its leaderboard as a table."""
    from seqtune.study.tables import write

    n = write(name, _place(storage), what, out, format_)
    print(f"{n:,} rows are in {out}")


def delete(
    name: Name,
    storage: Storage = RESULTS,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="Look for its runs in this MLflow server or store.",
            metavar="URI",
            show_default="a SQLite file in --storage",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.", metavar="")] = False,
) -> None:
    """Deletes a study: its folder, its runs in MLflow, and the versions of models that it made."""
    from seqtune.study import shelf
    from seqtune.track import forget, store_uri

    place = _place(storage)
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
    known.folder.delete()
    print(f"Deleted {known.folder.uri} and {gone} of MLflow.")


def ui(
    storage: Storage = RESULTS,
    port: Annotated[int, typer.Option(help="Listen on this port.", metavar="N", min=1)] = 5000,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser.", metavar="")
    ] = False,
) -> None:
    """Shows MLflow's pages of the studies in a storage folder, on this machine alone."""
    from seqtune.track import store_uri
    from seqtune.track.store import quiet

    uri = store_uri(None, Folder.at(_place(storage)))
    page = uri if uri.startswith("http") else f"http://127.0.0.1:{port}"
    print(f"{page}/#/experiments shows all studies; Ctrl-C ends it", flush=True)
    if open_:
        typer.launch(page)
    if uri.startswith("http"):
        return
    quiet()
    mlflow = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    words = ["ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    os.execvp(mlflow, ["mlflow", *words])


def _place(storage: str) -> str:
    check_place("--storage", storage)
    return lasting(storage)


def _plain(known: Known) -> dict[str, Any]:
    best = known.best
    return {
        "name": known.name,
        "state": known.state,
        "driver": known.driver,
        "model": known.model,
        "metric": known.metric,
        "trials": [vars(row) for row in known.trials],
        "ended": known.ended,
        "planned": known.planned,
        "best": vars(best) if best else None,
        "changed": known.changed,
        "folder": known.folder.uri,
        "command": known.about.command if known.about else "",
    }


def _main(known: Known, values: dict[str, float]) -> list[tuple[str, float]]:
    from seqtune.report.verdict import main_metrics

    return [(name, values[name]) for name in main_metrics(known.metric, values)]


def _table(header: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for n, title in enumerate(header):
        table.add_column(title, no_wrap=n != 1, overflow="fold")
    for row in rows:
        table.add_row(*(brief(cell) for cell in row))
    Console(highlight=False).print(table)
