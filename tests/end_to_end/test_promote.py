"""Another champion than the best: its checkpoint, its report, and its alias in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from seqtune.cli import outcomes
from seqtune.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tune: Callable[..., Any]) -> Path:
    """Where a study of three trials lies."""
    place = tmp_path_factory.mktemp("shop")
    short = ["--set", "epochs=4", "--set", "embedding_size=16", "--trials", "3"]
    tune("--storage", str(place), "--name", "own", *short).ends()
    return place


def card(folder: Path) -> Any:
    return json.loads((folder / "model.json").read_text())


def test_it_is_what_serves_and_says_how_it_was_chosen(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = shop / "own"
    report = json.loads((study / "report" / "report.json").read_text())
    best = report["best"]["number"]
    other = next(one["number"] for one in report["trials"] if one["number"] != best)
    before = card(study / "champion")
    assert before["meta"]["chosen"] == "on validation"
    outcomes.promote("own", other, str(shop), json_=True)
    told = json.loads(capsys.readouterr().out)
    assert told["number"] == other
    assert told["registered"]["left"] == ""
    after = card(study / "champion")
    assert after["meta"]["trial"] == other
    assert after["meta"]["test"] == told["test"] != before["meta"]["test"]
    assert after["meta"]["chosen"].startswith("by hand")
    assert card(study / "best" / "sasrec") == before  # the best keeps a checkpoint

    store = f"sqlite:///{shop / 'mlflow.db'}"
    client = MlflowClient(store, registry_uri=store)
    version = client.get_model_version_by_alias("own", "champion")
    assert str(version.version) == told["registered"]["version"]
    assert version.tags["seqtune.chosen"] == "by hand"

    outcomes.promote("own", best, str(shop))  # and back
    outcomes.best("own", str(shop), json_=True)
    told = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert told["trial"] == best
    assert card(Path(told["checkpoint"]))["meta"]["trial"] == best
    text = (study / "report" / "report.md").read_text()
    assert text.count("## Promoted by hand") == 1
    assert f"Trial {best} of sasrec was promoted by hand" in text


@pytest.mark.parametrize(
    ("trial", "more", "sentence"),
    [
        (7, {}, "--trial 7: own has trials 0 to 2"),
        (1, {"data": "beauty"}, "--data: the study was made with another data"),
    ],
)
def test_what_cannot_be_is_refused(
    shop: Path, trial: int, more: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        outcomes.promote("own", trial, str(shop), **more)
