"""``seqtune best``, ``report``, ``compare`` and ``export``: what studies have found."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqtune.cli.flags import complete_model
from seqtune.cli.mistakes import say
from seqtune.cli.studies import (
    AsJson,
    Name,
    Names,
    Storage,
    TrackingUri,
    complete_study,
    place_of,
    show_table,
)
from seqtune.errors import UserError, nearest
from seqtune.options import RESULTS
from seqtune.outside import lowered
from seqtune.storage import Folder
from seqtune.words import written

if TYPE_CHECKING:
    from seqtune.results import TrialRow
    from seqtune.study.shelf import Known

SHOWN = 10  # models of a protocol


def best(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of the study.", metavar="[NAME]", autocompletion=complete_study),
    ] = None,
    storage: Storage = RESULTS,
    model: Annotated[
        str | None,
        typer.Option(
            help="Of several models, look at this one.",
            metavar="NAME",
            autocompletion=complete_model,
            show_default="the best",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Show the best of all studies on these interactions.", metavar="FILE"),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="With --data, rank by this metric.", metavar="NAME@K")
    ] = "ndcg@10",
    tracking_uri: TrackingUri = None,
    json_: AsJson = False,
) -> None:
    """Prints the best trial of a study, or with --data the best models of all studies."""
    from seqtune.study import shelf

    if (name is None) == (data is None):
        raise UserError("best: name a study, or give --data FILE for the best of all studies")
    if data is not None:
        _best_on(data, place_of(storage), lowered(metric), tracking_uri, as_json=json_)
        return
    assert name is not None
    known = shelf.find(name, place_of(storage))
    shelf.whole(known)
    if model is not None and model not in known.models:
        raise UserError(f"--model {model}: is not in {name}{nearest(model, known.models)}")
    row = known.best if model is None else known.best_of(model)
    if row is None:
        raise UserError(f"{name}: no trial{f' of {model}' if model else ''} has been evaluated yet")
    found = _best(known, row)
    if json_:
        print(json.dumps(found, indent=2))
    else:
        _show_best(known, found)


def _show_best(known: Known, found: dict[str, Any]) -> None:
    valid = found["valid"].get(known.metric)
    which = f"trial {found['trial']} of {found['model']}"
    print(f"{known.name}: {which}, {known.metric} {valid:.4f} on validation")
    if found["test"]:
        print(f"on test: {', '.join(f'{n} {v:.4f}' for n, v in _main(known, found['test']))}")
    else:
        print("on test: not known before the study ends")
    print("hyperparameters:")
    for param, value in found["params"].items():
        print(f"  {param}: {written(value)}")
    for what, line in (
        ("checkpoint", "checkpoint"),
        ("serve it", "serve_command"),
        ("train it again", "train_command"),
    ):
        if found[line]:
            print(f"{what}: {found[line]}")


def _best_on(source: str, storage: str, metric: str, uri: str | None, *, as_json: bool) -> None:
    """Prints the finalists of all studies on some data, best first, for each protocol."""
    from seqtune.data import load
    from seqtune.metrics import parse_metric
    from seqtune.track import best_of, store_uri

    parse_metric(metric)
    dataset = load(source)
    found = best_of(store_uri(uri, Folder.at(storage)), dataset.fingerprint, metric)
    if as_json:
        print(json.dumps([vars(one) for one in found], indent=2))
        return
    if not found:
        print(f"No study has a tested model on {dataset.name} (fingerprint {dataset.fingerprint}).")
        raise typer.Exit(1)
    for protocol in dict.fromkeys(one.protocol for one in found):
        own = [one for one in found if one.protocol == protocol]
        print(f"{protocol}\n")
        rows = [
            [
                one.model,
                one.study,
                f"{one.valid[metric]:.4f}",
                f"{one.test.get(metric, float('nan')):.4f}",
                one.uri,
            ]
            for one in own[:SHOWN]
        ]
        show_table(["model", "study", f"{metric}, validation", "test", "checkpoint"], rows)
        if len(own) > SHOWN:
            print(f"and {len(own) - SHOWN} more; --json shows all")


def _best(known: Known, row: TrialRow) -> dict[str, Any]:
    """Returns what is known of a trial, with its test where it is the best of its model."""
    from seqtune.results import BEST
    from seqtune.study.identity import taken_over

    told = known.report or {}
    all_tested = [told.get("best"), *(one["best"] for one in told.get("contenders", []))]
    tested: dict[str, Any] = next(
        (one for one in all_tested if one and one["number"] == row.number), {}
    )
    is_best = bool(tested) and told["best"]["number"] == row.number
    champion = told.get("promoted") or told.get("best") or {}
    is_champion = bool(tested) and champion["number"] == row.number and not taken_over(told)
    place = known.folder / "champion" if is_champion else known.folder / BEST / row.model
    return {
        "study": known.name,
        "model": row.model,
        "trial": row.number,
        "params": tested.get("params") or row.params,
        "valid": tested.get("valid") or {known.metric: row.value},
        "test": tested.get("test") or {},
        "checkpoint": place.uri if tested else "",
        "train_command": told["train_command"] if is_best else "",
        "serve_command": _serve(known, told.get("serve_command", "")) if is_champion else "",
    }


def _serve(known: Known, command: str) -> str:
    """Returns the command that serves the champion, from where the study is now."""
    from seqtune.track import store_uri

    store, *words = shlex.split(command) or [""]
    was = store.removeprefix("MLFLOW_TRACKING_URI=sqlite:///")
    if was == store or known.folder.local is None or Path(was).exists():
        return command
    store = shlex.quote(store_uri(None, known.folder.parent))
    return f"MLFLOW_TRACKING_URI={store} {shlex.join(words)}"


def report(name: Name, storage: Storage = RESULTS, json_: AsJson = False) -> None:
    """Prints the report of a study that has ended."""
    from seqtune.study import shelf

    known = shelf.find(name, place_of(storage))
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
    found = compared(names, place_of(storage))
    if json_:
        print(json.dumps(found.plain(), indent=2))
        return
    show_table(found.header, found.rows)
    print(found.verdict)


def portfolio(
    names: Names,
    storage: Storage = RESULTS,
    model: Annotated[
        str | None,
        typer.Option(
            help="Of several models, choose for this one.",
            metavar="NAME",
            autocompletion=complete_model,
            show_default="the one that they share",
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Choose so many points.", metavar="N", min=1)] = 5,
    json_: AsJson = False,
) -> None:
    """Chooses points of earlier studies with which the next one should start, for a space file."""
    from seqtune.study.portfolio import portfolio

    found = portfolio(names, place_of(storage), model, points)
    if json_:
        print(json.dumps(vars(found), indent=2))
        return
    print(found.yaml)
    for name, share in found.reached.items():
        say(f"{name}: the best of these points reaches {100 * share:.1f} % of the best known there")


def export(
    name: Name,
    out: Annotated[
        str | None,
        typer.Option(
            help="Write this file.", metavar="FILE", show_default="NAME-WHAT.csv, or as --format"
        ),
    ] = None,
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

    n, file = write(name, place_of(storage), what, out, format_)
    print(f"{n:,} rows are in {file}")


def _main(known: Known, values: dict[str, float]) -> list[tuple[str, float]]:
    from seqtune.report.verdict import main_metrics

    return [(name, values[name]) for name in main_metrics(known.metric, values)]
