"""The report and the champion, written into the study's folder and MLflow."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace

import optuna

from seqtune.data import Dataset
from seqtune.floors import logged
from seqtune.report.documents import to_json, to_markdown
from seqtune.report.verdict import verdict
from seqtune.results import BEST, StudyResult
from seqtune.state import held_file
from seqtune.storage import Folder
from seqtune.study.plan import Plan
from seqtune.track import Links, Registered, Tracker
from seqtune.track.champion import UNTESTED
from seqtune.track.store import shown

PORT = 5001  # of the server of recommendations: 5000 is that of MLflow's pages


def publish(
    result: StudyResult,
    dataset: Dataset,
    plan: Plan,
    tracker: Tracker,
    study: optuna.Study,
) -> StudyResult:
    """Writes the report into the study's folder and MLflow, and registers the champion.

    ``study`` is what the pictures show.
    """
    folder = plan.folder
    for one in result.contenders:
        place = folder / BEST / one.model if result.several else folder / "champion"
        tracker.finalist(place, one.best.number, one.best.valid, one.best.test)
    if result.best is not None:
        tracker.champion(folder / "champion", result.name, result.best.number, verdict(result))
    if result.best is not None and result.production:
        place, untested = Folder.at(result.production), "Trained on everything: it has no test."
        tracker.champion(place, result.name, result.best.number, untested, chosen=UNTESTED)
    if not tracker.settle(30) and tracker.answers:
        tracker.settle(120)  # a large checkpoint takes its time
    result = _told(result, tracker.links, tracker.registered)
    report = folder / "report"
    for name, content in _report_files(result, study):
        report.write(name, content)
    held = plan.protocol.split(dataset).test
    tested = {"default": result.default, "best": result.best}
    if result.several:
        tested |= {one.model: one.best for one in result.contenders}
    for name, finalist in tested.items():
        if finalist is not None:
            ranks = held_file(dataset, held, finalist.test_ranks)
            report.write(f"ranks-{name}.parquet", ranks)
    tracker.upload(report, to="report")
    tracker.study_ended("finished", _metrics(result), verdict(result))
    tracker.close(timeout=120 if tracker.answers else 5)  # it is away: do not wait again
    return result


def _told(result: StudyResult, links: Links | None, registered: Registered | None) -> StudyResult:
    """Adds where the study is in MLflow, and how its champion is registered there."""
    if links is None:
        return result
    result = replace(
        result,
        ui_command=links.command or "",
        view_link=links.charts,
        plain_link=links.plain,
    )
    if result.best is None:
        return result
    if registered is None:
        missing = "MLflow has not taken the champion, so it is not registered; --resume tries again"
        return replace(result, notes=(*result.notes, missing))
    serve = f"mlflow models serve -m {registered.uri} --env-manager local --port {PORT}"
    return replace(
        result,
        serve_command=f"MLFLOW_TRACKING_URI={shlex.quote(shown(links.uri))} {serve}",
        champion="" if registered.left else registered.name,
        notes=(*result.notes, registered.left) if registered.left else result.notes,
    )


def _metrics(result: StudyResult) -> dict[str, float]:
    """Returns what the run of the study shows: best trial, defaults, and what counting reaches."""
    both = [("", result.best), ("default/", result.default)]
    if result.several:
        both += [(f"{one.model}/", one.best) for one in result.contenders]
    return logged(result.floors) | {
        f"{whose}{part}/{name}": value
        for whose, finalist in both
        if finalist is not None
        for part, values in (("valid", finalist.valid), ("test", finalist.test))
        for name, value in values.items()
    }


def _report_files(result: StudyResult, study: optuna.Study) -> Iterator[tuple[str, bytes]]:
    from seqtune.report.page import to_html

    yield "report.md", to_markdown(result).encode()
    yield "report.json", json.dumps(to_json(result), indent=2).encode()
    yield "report.html", to_html(result, study).encode()
