"""The report and the champion, written into the study's folder and MLflow."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna

from seqtune.data import Dataset
from seqtune.report.documents import to_json, to_markdown
from seqtune.results import StudyResult
from seqtune.state import ranks_file
from seqtune.study.plan import Plan
from seqtune.track import Links, Tracker
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
    if result.best is not None:
        tracker.champion(folder / "champion", result.name, result.best.number)
    links = _wait_for_links(tracker)
    if links is not None:
        model = f"models:/{result.name}@champion"
        serve = f"mlflow models serve -m {model} --env-manager local --port {PORT}"
        result = replace(
            result,
            ui_command=links.command or "",
            view_link=links.charts,
            plain_link=links.plain,
            serve_command=f"MLFLOW_TRACKING_URI={shown(links.uri)} {serve}" if result.best else "",
            champion=result.name if result.best else "",
        )
    report = folder / "report"
    for name, content in _report_files(result, study):
        report.write(name, content)
    users = dataset.user_ids[plan.protocol.split(dataset).test.users]
    for name, finalist in (("default", result.default), ("best", result.best)):
        if finalist is not None:
            ranks = ranks_file(users, finalist.test_ranks)
            report.write(f"ranks-{name}.parquet", ranks)
    tracker.upload(report, to="report")
    tested = result.best.test if result.best else {}
    tracker.study_ended("finished", {f"test/{name}": value for name, value in tested.items()})
    tracker.close(timeout=120 if links else 5)  # it never answered: do not wait for it again
    return result


def _wait_for_links(tracker: Tracker, seconds: float = 30) -> Links | None:
    end = time.monotonic() + seconds
    while tracker.links is None and time.monotonic() < end:
        time.sleep(0.05)
    return tracker.links


def _report_files(result: StudyResult, study: optuna.Study) -> Iterator[tuple[str, bytes]]:
    from seqtune.report.plots import plots

    yield "report.md", to_markdown(result).encode()
    yield "report.json", json.dumps(to_json(result), indent=2).encode()
    with tempfile.TemporaryDirectory() as scratch:
        for picture in plots(result, study, Path(scratch)):
            yield picture.name, picture.read_bytes()
