"""A champion that is trained on with newer interactions: who serves afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from mlflow import MlflowClient

from seqtune.checkpoint import load
from seqtune.cli import afterwards, outcomes, studies
from seqtune.errors import UserError
from seqtune.report.view import TrainView
from seqtune.storage import Folder
from seqtune.study import refresh as refreshing

pytestmark = pytest.mark.slow

USERS, LENGTH, ITEMS = 200, 8, 30
NOTHING = "No user has an interaction that is newer than those which the champion knows."
SHORT = ["--set", "epochs=3", "--set", "embedding_size=16", "--trials", "2"]


def events(first: int, shift: int = 0) -> pd.DataFrame:
    """Eight interactions of each user from a day on: who takes an item takes the next one then."""
    start = np.random.default_rng(first).integers(ITEMS, size=USERS)
    steps = np.arange(LENGTH)
    items = (start[:, None] + steps) % ITEMS + shift
    days = pd.to_datetime("2026-01-01") + pd.to_timedelta(first + steps, unit="D")
    return pd.DataFrame(
        {
            "user": np.repeat(np.arange(USERS), LENGTH),
            "item": items.ravel(),
            "time": np.tile(days, USERS),
        }
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tune: Callable[..., Any]) -> Path:
    """Where a study lies, and files: its data alone, and with newer ones."""
    place = tmp_path_factory.mktemp("refreshed")
    old = events(0)
    files = {
        "old": old,
        "same": pd.concat([old, events(20).groupby("user").head(1)]),
        "other": pd.concat([old, events(20, shift=ITEMS)]),
        "more": pd.concat([old, events(40, shift=2 * ITEMS)]),
        "later": pd.concat([old, events(50)]),
        "strange": events(60, shift=1000),
    }
    for name, frame in files.items():
        frame.to_csv(place / f"{name}.csv", index=False)
    tune("--storage", str(place), "--name", "own", *SHORT, data=str(place / "old.csv")).ends()
    return place


@pytest.fixture
def refresh(shop: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Refreshes, and returns the exit code and what was printed."""

    def run(file: str, **more: Any) -> tuple[int, Any]:
        code = 0
        capsys.readouterr()
        try:
            afterwards.refresh("own", str(shop / f"{file}.csv"), str(shop), json_=True, **more)
        except typer.Exit as end:
            code = end.exit_code
        return code, json.loads(capsys.readouterr().out)

    return run


def test_who_serves_after_a_refresh(
    shop: Path,
    refresh: Callable[..., Any],
    tune: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    study, store = shop / "own", f"sqlite:///{shop / 'mlflow.db'}"
    client = MlflowClient(store, registry_uri=store)
    champion = (study / "champion" / "model.safetensors").read_bytes()

    code, told = refresh("old")
    assert (code, told["moved"]) == (4, False)
    assert not (study / "refreshes").exists()

    code, told = refresh("same")
    assert (code, told["moved"], told["n"], told["unknown"]) == (3, False, USERS, 0)
    assert told["sentence"].startswith("The champion stays; the challenger was trained with ")
    assert (study / "champion" / "model.safetensors").read_bytes() == champion
    assert str(client.get_model_version_by_alias("own", "champion").version) == "1"

    code, told = refresh("other", warm=False)
    assert (code, told["moved"], told["n"], told["unknown"]) == (0, True, USERS, USERS)
    assert told["challenger"] > told["champion"] == 0
    assert told["sentence"].startswith("The challenger, trained with ")
    found = load(Folder.at(study / "champion"))
    assert found.meta["chosen"] == "on newer data"
    assert len(found.item_ids) == 2 * ITEMS
    assert (study / "best" / "sasrec" / "model.safetensors").read_bytes() == champion
    version = client.get_model_version_by_alias("own", "champion")
    assert (told["registered"], str(version.version)) == ("models:/own@champion", "2")
    assert version.tags["seqtune.chosen"] == "on newer data"
    run = client.get_run(version.run_id)
    assert run.info.run_name == "refresh 2"
    assert run.data.metrics["refresh/challenger/ndcg_10"] == pytest.approx(told["challenger"])
    assert client.get_metric_history(run.info.run_id, "ndcg_10")

    text = (study / "report" / "report.md").read_text()
    assert text.count("## Refreshed") == 1
    assert "1. The champion stays" in text
    assert "2. The challenger, trained with" in text
    page = (study / "report" / "report.html").read_text()
    assert "2. The challenger, trained with" in page.partition("<h1>")[0]
    studies.status("own", str(shop))
    assert "last refresh: The challenger, trained" in capsys.readouterr().out
    outcomes.best(None, str(shop), data=str(shop / "other.csv"), json_=True)
    assert [one["study"] for one in json.loads(capsys.readouterr().out)] == ["own"]

    with pytest.raises(UserError, match="its champion was trained on newer data"):
        afterwards.promote("own", 0, str(shop))
    again = ["--storage", str(shop), "--name", "own", *SHORT, "--resume"]
    assert "was trained on newer data" in tune(*again, data=str(shop / "old.csv")).ends(2).err

    assert refresh("other")[0] == 4
    with pytest.raises(UserError, match="the champion knows none of its 30 items"):
        refresh("strange")


def test_one_that_dies_once_it_has_decided_is_finished_by_the_next(
    shop: Path, refresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    study = shop / "own"
    champion = (study / "champion" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(refreshing, "copy_checkpoint", dies)
        with pytest.raises(KeyboardInterrupt):
            refresh("more")
    assert (study / "champion" / "model.safetensors").read_bytes() == champion
    assert refresh("more") == (4, {"moved": False, "sentence": NOTHING})
    found = load(Folder.at(study / "champion"))
    assert found.meta["data"] == "more"
    store = f"sqlite:///{shop / 'mlflow.db'}"
    client = MlflowClient(store, registry_uri=store)
    tags = client.get_model_version_by_alias("own", "champion").tags
    assert tags["seqtune.data"].endswith("more.csv")
    report = json.loads((study / "report" / "report.json").read_text())
    assert report["refreshes"][-1]["moved"]


def test_one_that_is_interrupted_in_training_goes_on(
    shop: Path, refresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def told(_: Any, row: Any, metric: str = "") -> None:
        rows.append(row["epoch"])
        if len(rows) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainView, "told", told)
    with pytest.raises(KeyboardInterrupt):
        refresh("later")
    assert refresh("later")[0] in (0, 3)
    assert (rows.count(1), rows[-1]) == (1, 3)  # the first epoch was not trained again
