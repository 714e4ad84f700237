"""A study whose MLflow server comes late, and the prepared view in a real browser.

The format of the view is not documented: this test tells when a release of MLflow changes it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from seqtune.storage import Folder
from seqtune.track import Links, Tracker, fetch

BEST = [0.5, 0.125, 0.75, 0.25]  # of each trial
RANKING = ["trial 002", "trial 000", "trial 003", "trial 001"]
pytestmark = pytest.mark.slow  # a server, and a browser that looks at its pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=2000,2400", "--dump-dom"),
]


@dataclass
class Studied:
    """What the tracker was told while no server was there, and what became of it."""

    uri: str
    links: Links
    said: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def studied(
    small_checkpoint: Folder,
    tmp_path_factory: pytest.TempPathFactory,
    module_port: int,
    mlflow_at: Callable[..., Any],
) -> Iterator[Studied]:
    """A study that ends before its server starts; the server stays for the tests."""
    folder = tmp_path_factory.mktemp("late")
    uri = f"http://127.0.0.1:{module_port}"
    said: list[str] = []
    tracker = Tracker(uri, "late", "late-1", folder / "tracking.jsonl", say=said.append)
    tell(tracker, small_checkpoint)
    until = time.monotonic() + 60
    while not said and time.monotonic() < until:
        time.sleep(0.05)  # it has noticed that nobody answers
    assert tracker.links is None
    store = f"--backend-store-uri sqlite:///{folder}/server.db"
    place = f"--artifacts-destination {folder}/artifacts"
    with mlflow_at(module_port, f"server --workers 1 --host 127.0.0.1 {store} {place}"):
        assert tracker.close(timeout=60)
        assert tracker.links is not None
        yield Studied(uri, tracker.links, said)


def tell(tracker: Tracker, best: Folder) -> None:
    tracker.start_study(
        {"model": "sasrec"}, {}, metric="ndcg@10", dimensions=["learning_rate", "n_layers"]
    )
    for number, value in enumerate(BEST):
        tracker.trial_started(number, {"learning_rate": 0.001 * (number + 1), "n_layers": number})
        for epoch in range(1, 5):
            row = {"ndcg@10": value * epoch**2 / 16, "train_ce": number + 1 / epoch}
            tracker.trial_result(number, epoch, row)
        tracker.trial_ended(number, "finished", {"ndcg@10": value})
    tracker.champion(best, "late", trial=2)
    tracker.study_ended()


def test_a_server_that_comes_late_gets_the_whole_study(studied: Studied, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    assert len(studied.said) == 2
    assert "takes no records now (Connection refused)" in studied.said[0]
    assert studied.said[1] == f"MLflow at {studied.uri} is back"
    client = MlflowClient(studied.uri)
    runs = client.search_runs([studied.links.experiment_id])
    numbers = [run.data.tags.get("seqtune.trial") for run in runs]
    assert sorted(n for n in numbers if n is not None) == ["0", "1", "2", "3"]
    assert numbers.count(None) == 1
    trial = next(run for run in runs if run.data.tags.get("seqtune.trial") == "2")
    history = client.get_metric_history(trial.info.run_id, "ndcg_10")
    points = sorted((p.step, p.value) for p in history)
    assert points == [(1, 0.046875), (2, 0.1875), (3, 0.421875), (4, 0.75)]
    found = fetch("models:/late@champion", studied.uri, tmp_path)
    assert found.names() == ["items.parquet", "model.json", "model.safetensors"]


def page(url: str, profile: Path, done: str) -> str:
    """Returns a page as the browser has built it, once the text ``done`` is in it.

    The browser's clock runs ahead while it waits for nothing, so that a budget of a minute
    takes seconds; a busy machine may need a second try.
    """
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    content = ""
    for budget in (30_000, 120_000):
        shown = subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--virtual-time-budget={budget}",
                url,
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        )
        content = shown.stdout
        if done in content:
            break
    return content


def test_the_table_shows_the_trials_best_first(studied: Studied, tmp_path: Path) -> None:
    content = page(studied.links.table, tmp_path, "0.75")
    assert re.findall(r"trial \d{3}", content) == RANKING
    columns = list(dict.fromkeys(re.findall(r'col-id="((?:metrics|params|tags)\.[^"]*)"', content)))
    assert sorted(columns) == [
        "metrics.`best/ndcg_10`",
        "params.`learning_rate`",
        "params.`n_layers`",
        "tags.`seqtune.status`",
    ]
    cells = r'id="cell-params.`n_layers`-\d+" class="ag-cell-value">([^<]*)<'
    assert re.findall(cells, content) == ["2", "0", "3", "1"]


def test_the_charts_show_curves_and_parallel_coordinates(studied: Studied, tmp_path: Path) -> None:
    content = page(studied.links.charts, tmp_path, 'class="parcoords"')
    assert list(dict.fromkeys(re.findall(r"trial \d{3}", content))) == RANKING
    parallel = content[content.index('class="parcoords"') :]
    axes = re.findall(r'class="dimension".*?class="label"[^>]*>([^<]*)<', parallel, re.DOTALL)
    assert axes == ["learning_rate", "n_layers", "best/ndcg_10"]
    for title in ("Curves", "Trials side by side", "learning_rate vs. best/ndcg_10", "train_ce"):
        assert title in content
    paths = set(re.findall(r'class="js-line"[^>]*d="([^"]*)"', content))
    curves = [path for path in paths if path.count("L") == 3]  # four epochs
    assert len(curves) >= 2 * len(BEST)  # of the metric and of the loss


def test_the_plain_list_shows_the_trials(studied: Studied, tmp_path: Path) -> None:
    content = page(studied.links.plain, tmp_path, RANKING[-1])
    assert set(re.findall(r"trial \d{3}", content)) == set(RANKING)
