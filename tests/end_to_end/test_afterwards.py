"""What is done with a study that has ended: another champion, a trial run again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow import MlflowClient

from seqtune.checkpoint import load
from seqtune.cli import afterwards, outcomes
from seqtune.errors import UserError
from seqtune.study import lock
from seqtune.track import fetch
from seqtune.track.moved import PLACES

pytestmark = pytest.mark.slow

SHORT = ["--set", "epochs=4", "--set", "embedding_size=16"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tune: Callable[..., Any]) -> Path:
    """Where a study of three trials lies."""
    place = tmp_path_factory.mktemp("shop")
    tune("--storage", str(place), "--name", "own", *SHORT, "--trials", "3").ends()
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
    afterwards.promote("own", other, str(shop), json_=True)
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

    afterwards.promote("own", best, str(shop))  # and back
    outcomes.best("own", str(shop), json_=True)
    told = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert told["trial"] == best
    assert card(Path(told["checkpoint"]))["meta"]["trial"] == best
    text = (study / "report" / "report.md").read_text()
    assert text.count("## Promoted by hand") == 1
    assert f"Trial {best} of sasrec, the best, is the champion again." in text


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
        afterwards.promote("own", trial, str(shop), **more)


def run_of(place: Path, name: str) -> Any:
    """A run of the study, and a client of its store."""
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    every = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(every, f"attributes.run_name = '{name}'")
    return run, client


def test_a_trial_is_run_again_to_the_last_digit(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, client = run_of(shop, "trial 001")
    assert run.data.metrics["system/cpu_percent"] > 0
    assert run.data.metrics["system/memory_peak_megabytes"] > 100
    afterwards.rerun(run.info.run_id, str(shop), json_=True)
    told = json.loads(capsys.readouterr().out)
    assert told["same"]
    assert told["changed"] == {}
    assert told["now"]["ndcg@10"] == run.data.metrics["best/ndcg_10"]
    afterwards.rerun(run.info.run_id, str(shop))  # where one was run before
    assert "The same numbers: ndcg@10" in capsys.readouterr().out

    kept = client.download_artifacts(run.info.run_id, lock.NAME, str(shop))
    other = json.loads(Path(kept).read_text())
    other["valid"]["ndcg@10"] += 0.001
    other["made_with"]["torch"] = "1.13"
    Path(kept).write_text(json.dumps(other))
    client.log_artifact(run.info.run_id, kept)
    with pytest.raises(typer.Exit) as exit_:
        afterwards.rerun(run.info.run_id, str(shop))
    assert exit_.value.exit_code == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "Other numbers: ndcg@10 was" in text
    assert "it was made with other torch (1.13 then, " in text


def test_a_training_is_run_again(shop: Path, start: Callable[..., Any]) -> None:
    words = ["--set", "epochs=3", "--set", "embedding_size=16", "--storage", str(shop)]
    root = Path(__file__).parents[2]
    entry = "import sys; sys.path.insert(0, sys.argv.pop(1)); from seqtune.cli import main; main()"
    program = ["-c", entry, str(root / "platform")]
    start(*program, "train", "--model", "gru4rec", "--data", "tiny", *words).ends()
    run, _ = run_of(shop, "gru4rec-tiny-train")
    again = start(*program, "rerun", run.info.run_id, "--storage", str(shop)).ends()
    assert "The same numbers: ndcg@10" in again.out


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("trial 000", {"data": "beauty"}, "beauty holds other interactions"),
        ("own", {}, "has no seqtune.lock.json"),
    ],
)
def test_what_cannot_be_run_again_is_refused(
    shop: Path, name: str, more: dict[str, str], sentence: str
) -> None:
    run, _ = run_of(shop, name)
    with pytest.raises(UserError, match=sentence):
        afterwards.rerun(run.info.run_id, str(shop), **more)


def test_the_best_on_some_data_over_all_studies(
    shop: Path, tune: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--name", "both", "--trials", "2", "--set", "max_seq_len=20", "--set", "epochs=2"]
    tune("--storage", str(shop), *both, model="fossil,stan").ends()
    outcomes.best(None, str(shop), data="tiny", json_=True)
    found = json.loads(capsys.readouterr().out)
    assert {(one["study"], one["model"]) for one in found} >= {
        ("own", "sasrec"),
        ("both", "fossil"),
        ("both", "stan"),
    }
    reached = [one["valid"]["ndcg@10"] for one in found]
    assert reached == sorted(reached, reverse=True)
    report = json.loads((shop / "both" / "report" / "report.json").read_text())
    for one in report["contenders"]:
        own = next(f for f in found if (f["study"], f["model"]) == ("both", one["best"]["model"]))
        assert own["test"]["ndcg@10"] == pytest.approx(one["best"]["test"]["ndcg@10"])
    client = MlflowClient(f"sqlite:///{shop / 'mlflow.db'}")
    logged = client.get_logged_model(found[0]["uri"].removeprefix("models:/"))
    assert {one.dataset_digest for one in logged.metrics} == {
        logged.tags["seqtune.data_fingerprint"]
    }
    run = client.get_run(logged.source_run_id)
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["tiny"]
    outcomes.best(None, str(shop), data="tiny")
    assert "Leave-one-out: the last item of 200 users" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        outcomes.best(None, str(shop), data="demo")
    with pytest.raises(UserError, match="name a study, or give --data"):
        outcomes.best(None, str(shop))


def test_a_folder_that_was_moved_serves_and_goes_on(
    shop: Path, tune: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved house"
    shop.rename(moved)
    try:
        outcomes.best("own", str(moved), json_=True)
        told = json.loads(capsys.readouterr().out)
        assert Path(told["checkpoint"]).is_relative_to(moved)
        store = f"sqlite:///{moved / 'mlflow.db'}"
        assert told["serve_command"].startswith(
            f"MLFLOW_TRACKING_URI='{store}' mlflow models serve"
        )
        found = load(fetch("models:/own@champion", store, tmp_path))
        assert len(found.recommend([[]], k=3)[0].items) == 3
        again = ["--name", "own", "--resume", "--trials", "4"]
        tune("--storage", str(moved), *SHORT, *again).ends()
        client = MlflowClient(store)
        (run,) = client.search_runs(
            [client.get_experiment_by_name("own").experiment_id], "tags.`seqtune.trial` = '3'"
        )
        assert run.info.artifact_uri.startswith(moved.as_uri())
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {lock.NAME}
        assert str(shop) not in sqlite_text(moved / "mlflow.db")
    finally:
        moved.rename(shop)


def sqlite_text(file: Path) -> str:
    """All places of artifacts that a store names."""
    with closing(sqlite3.connect(file)) as store:
        return " ".join(
            str(row)
            for table, column in PLACES
            for row in store.execute(f"SELECT {column} FROM {table}")
        )
