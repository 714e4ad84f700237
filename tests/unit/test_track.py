"""What MLflow holds after a study, a crash, a resumed study, and a server that was away."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seqtune.errors import UserError
from seqtune.storage import Folder
from seqtune.track import Tracker, fetch, store_uri, tracker
from seqtune.track.champion import BY_HAND, ON_VALIDATION
from seqtune.track.undocumented import SEEN, deflated, view
from seqtune.track.writer import Writer

CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQLite store for all tests of this file: making one takes a second."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def open_tracker(store: str, tmp_path: Path, said: list[str], request: Any) -> Any:
    """Opens a tracker for this test's study; opened again, it is the study resumed."""

    def opened(uri: str = store) -> Tracker:
        name = request.node.name
        return Tracker(uri, name, f"{name}-id", tmp_path / "tracking.jsonl", say=said.append)

    return opened


def tell(study: Tracker, trials: int = 3, epochs: int = 4) -> None:
    study.start_study(
        {"model": "sasrec", "trials": trials},
        {"seqtune.git_commit": "abc123"},
        metric="ndcg@10",
        dimensions=["n_layers", "tau"],
    )
    for number in range(trials):
        study.trial_started(number, {"n_layers": number, "seed": 1})
        for epoch in range(1, epochs + 1):
            study.trial_result(number, epoch, row(number, epoch), time=1_000 + epoch)
        study.trial_ended(number, "finished", {"ndcg@10": value(number, 3), "epoch": 3})


def value(number: int, epoch: int) -> float:
    return 0.1 * number + (0.01 * epoch if epoch <= 3 else 0)  # best at epoch 3


def row(number: int, epoch: int) -> dict[str, Any]:
    return {
        "ndcg@10": np.float32(value(number, epoch)),
        "train_ce": 1.0 / epoch,
        "finished": False,
        "note": "not a number",
    }


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


class Pages:
    """What a test asks MLflow about one study."""

    def __init__(self, uri: str, experiment: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(uri, registry_uri=uri)
        self.experiment = self.client.get_experiment_by_name(experiment)
        runs = self.client.search_runs([self.experiment.experiment_id])
        self.studies = [run for run in runs if "seqtune.trial" not in run.data.tags]
        self.trials = {int(r.data.tags["seqtune.trial"]): r for r in runs if r not in self.studies}
        assert len(self.studies) + len(self.trials) == len(runs)

    def curve(self, number: int, metric: str) -> list[tuple[int, float, int]]:
        run_id = self.trials[number].info.run_id
        points = self.client.get_metric_history(run_id, metric)
        return sorted((p.step, round(p.value, 6), p.timestamp) for p in points)


@pytest.fixture
def pages(store: str, request: Any) -> Any:
    return lambda: Pages(store, request.node.name)


def test_a_study_is_a_parent_run_with_a_child_per_trial(
    open_tracker: Any,
    pages: Any,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    plots = Folder.at(tmp_path / "plots")
    plots.write("history.svg", b"<svg/>")
    study = open_tracker()
    tell(study)
    study.trial_started(3, {"n_layers": 9, "tau": 0.5})
    study.trial_ended(3, "failed", reason="the loss is not finite at step 12")
    study.trial_started(4, {"n_layers": 9})
    study.trial_result(4, 1, {"ndcg@10": 0.05})
    study.trial_ended(4, "pruned", {"ndcg@10": 0.05})
    study.trial_started(5, {"n_layers": 9})
    study.trial_ended(5, "unfinished", {"ndcg@10": 0.05})
    study.upload(plots, to="plots")
    study.upload(plots, ["history.svg"], trial=2)
    study.study_ended("finished", {"test/ndcg@10": 0.2})
    assert study.close()

    found = pages()
    (parent,) = found.studies
    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"model": "sasrec", "trials": "3"}
    assert parent.data.metrics == {"test/ndcg_10": 0.2}
    assert parent.data.tags["mlflow.source.git.commit"] == "abc123"
    files = found.client.list_artifacts(parent.info.run_id, "plots")
    assert [file.path for file in files] == ["plots/history.svg"]

    assert sorted(found.trials) == [0, 1, 2, 3, 4, 5]
    second = found.trials[2]
    assert second.info.run_name == "trial 002"
    assert second.info.status == "FINISHED"
    assert second.data.params == {"n_layers": "2", "seed": "1"}
    assert second.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert second.data.tags["seqtune.status"] == "finished"
    assert second.data.tags["seqtune.git_commit"] == "abc123"  # like the study's
    assert second.data.metrics == pytest.approx(
        {"ndcg_10": 0.2, "train_ce": 0.25, "best/ndcg_10": 0.23, "best/epoch": 3}
    )
    assert found.curve(2, "ndcg_10") == [
        (1, 0.21, 1_001_000),
        (2, 0.22, 1_002_000),
        (3, 0.23, 1_003_000),
        (4, 0.2, 1_004_000),
    ]
    assert [point[:2] for point in found.curve(2, "best/ndcg_10")][:3] == [
        (1, 0.21),
        (2, 0.22),
        (3, 0.23),
    ]
    listed = found.client.list_artifacts(second.info.run_id)
    assert [file.path for file in listed] == ["history.svg"]
    assert found.trials[3].info.status == "FAILED"
    assert found.trials[3].data.tags["seqtune.reason"] == "the loss is not finite at step 12"
    assert found.trials[4].info.status == "FINISHED"
    assert found.trials[4].data.tags["seqtune.status"] == "pruned"
    assert found.trials[5].info.status == "KILLED"  # time was up
    assert found.trials[5].data.tags["seqtune.status"] == "unfinished"

    assert said == []
    assert capfd.readouterr() == ("", "")  # MLflow and alembic keep quiet
    assert list((tmp_path / "cwd").iterdir()) == []  # and leave nothing behind
    assert not (tmp_path / "tracking.jsonl").exists()


def test_a_resumed_study_that_reports_its_past_again_changes_nothing(
    open_tracker: Any, pages: Any
) -> None:
    study = open_tracker()
    tell(study, trials=2)
    study.study_ended()
    assert study.close()
    before = pages()

    again = open_tracker()
    tell(again, trials=3)  # and one trial more
    again.study_ended()
    assert again.close()
    after = pages()
    assert len(after.studies) == 1
    assert sorted(after.trials) == [0, 1, 2]
    for number in (0, 1):
        assert after.trials[number].info == before.trials[number].info  # also the end time
        assert after.trials[number].data.metrics == before.trials[number].data.metrics
        for metric in ("ndcg_10", "train_ce", "best/ndcg_10"):
            assert after.curve(number, metric) == before.curve(number, metric)


def test_a_resumed_trial_continues_its_run(open_tracker: Any, pages: Any) -> None:
    study = open_tracker()
    tell(study, trials=1)
    study.trial_started(1, {"n_layers": 1})
    study.trial_result(1, 1, row(1, 1), time=1_001)
    study.trial_result(1, 2, row(1, 2), time=1_002)
    study.study_ended("interrupted")
    assert study.close()
    before = pages()
    assert before.studies[0].info.status == "KILLED"
    assert before.trials[1].info.status == "KILLED"
    assert before.trials[1].data.tags["seqtune.status"] == "interrupted"

    again = open_tracker()
    tell(again, trials=2)
    assert again.close()
    after = pages()
    assert after.studies[0].info.status == "RUNNING"
    assert after.trials[1].info.run_id == before.trials[1].info.run_id
    assert after.trials[1].info.status == "FINISHED"
    assert after.trials[1].data.tags["seqtune.status"] == "finished"
    assert [step for step, _, _ in after.curve(1, "ndcg_10")] == [1, 2, 3, 4]


def test_what_a_dead_driver_did_not_send_is_sent_by_the_next(
    open_tracker: Any, pages: Any, said: list[str], tmp_path: Path
) -> None:
    study = open_tracker(CLOSED)
    tell(study, trials=2)
    assert not study.close(timeout=0.5)
    assert study.links is None
    journal = tmp_path / "tracking.jsonl"
    assert len(said) == 2
    assert said[0].startswith(f"MLflow at {CLOSED} takes no records now (Connection refused)")
    assert f"13 records did not reach MLflow at {CLOSED}" in said[1]
    assert str(journal) in said[1]
    with journal.open("a") as file:
        file.write('{"do": "trial", "numb')  # the driver died here

    again = open_tracker()
    again.study_ended()
    assert again.close()
    found = pages()
    assert len(found.studies) == 1
    assert sorted(found.trials) == [0, 1]
    assert len(found.curve(1, "ndcg_10")) == 4
    assert found.trials[1].data.metrics["best/ndcg_10"] == pytest.approx(0.13)
    assert not journal.exists()


def test_mlflow_that_comes_back_gets_everything(
    open_tracker: Any, pages: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reachable = tracker.Writer, threading.Event()
    monkeypatch.setattr(tracker, "PAUSES", (0.01, 0.02))

    def connect(*given: Any) -> Any:
        if not reachable.is_set():
            raise ConnectionError("no route to host")
        return writer(*given)

    monkeypatch.setattr(tracker, "Writer", connect)
    late = open_tracker()
    tell(late, trials=1)
    wait_until(lambda: bool(said))
    assert not late.answers
    tell(late, trials=2)
    reachable.set()
    assert late.close()
    assert late.answers
    assert [text.partition(" (")[0].split(" ", 3)[3] for text in said] == [
        "takes no records now",
        "is back",
    ]
    assert sorted(pages().trials) == [0, 1]
    assert len(pages().curve(0, "ndcg_10")) == 4


def test_a_refused_record_is_said_and_the_others_arrive(
    open_tracker: Any, pages: Any, said: list[str]
) -> None:
    study = open_tracker()
    tell(study, trials=1)
    study.trial_result(0, 5, {"no;such*name": 1.0})
    study.upload(Folder.at("/does/not"), ["exist.svg"])
    tell(study, trials=2)
    assert study.settle(60)
    assert len(said) == 2
    assert "no;such*name" in said[0]
    assert "/does/not/exist.svg" in said[1]
    assert sorted(pages().trials) == [0, 1]
    assert study.close()


def test_a_damaged_line_of_the_journal_is_left_out(
    open_tracker: Any, pages: Any, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "tracking.jsonl").write_bytes(b'{"do": "trial", "numb\0\0\n')
    study = open_tracker()
    tell(study, trials=1)
    assert study.close()
    assert len(said) == 1
    assert said[0].startswith("MLflow refused a record, which is left out: ")
    assert sorted(pages().trials) == [0]


def test_a_run_that_vanished_from_the_store_is_made_again(
    open_tracker: Any, pages: Any, said: list[str]
) -> None:
    study = open_tracker()
    tell(study, trials=1)
    assert study.settle(30)
    found = pages()
    found.client.delete_run(found.trials[0].info.run_id)
    study.trial_result(0, 5, row(0, 5))
    assert study.close()
    assert said == []
    assert [step for step, _, _ in pages().curve(0, "ndcg_10")] == [5]


def test_a_deleted_experiment_comes_back_with_this_study_alone(
    open_tracker: Any, pages: Any, store: str, tmp_path: Path, request: Any, said: list[str]
) -> None:
    study = open_tracker()
    tell(study, trials=2)
    assert study.close()
    found = pages()
    found.client.delete_experiment(found.experiment.experiment_id)
    fresh = Tracker(store, request.node.name, "another", tmp_path / "other.jsonl", say=said.append)
    tell(fresh, trials=1)
    assert fresh.close()
    assert pages().experiment.lifecycle_stage == "active"
    assert sorted(pages().trials) == [0]  # not those that were deleted
    assert {run.data.tags["seqtune.study"] for run in pages().studies} == {"another"}

    found.client.delete_experiment(found.experiment.experiment_id)
    again = open_tracker()  # resumed, it finds its own
    tell(again, trials=3)
    assert again.close()
    assert said == []
    assert sorted(pages().trials) == [0, 1, 2]
    assert pages().trials[0].info.run_id == found.trials[0].info.run_id


def test_many_parameters_and_points_fit(open_tracker: Any, pages: Any) -> None:
    study = open_tracker()
    study.trial_started(0, {f"p{k}": k for k in range(230)})
    for step in range(1, 301):
        study.trial_result(0, step, {f"m{k}": k + step for k in range(8)})
    assert study.close()
    assert len(pages().trials[0].data.params) == 230
    assert len(pages().curve(0, "m7")) == 300


# The champion.


def test_the_champion_is_registered_once(
    open_tracker: Any,
    pages: Any,
    small_checkpoint: Folder,
    store: str,
    tmp_path: Path,
    said: list[str],
) -> None:
    import mlflow.pyfunc

    from seqtune import checkpoint

    for _ in range(2):
        study = open_tracker()
        tell(study, trials=2)
        study.champion(small_checkpoint, "shop", trial=1)
        assert study.close()
    assert said == []
    client = pages().client
    (version,) = client.search_model_versions("name = 'shop'")
    assert client.get_model_version_by_alias("shop", "champion").version == version.version
    assert version.run_id == pages().trials[1].info.run_id
    assert pages().studies[0].data.tags["seqtune.champion"] == "models:/shop/1"

    fetched = fetch("models:/shop@champion", store, tmp_path / "fetched")
    assert checkpoint.load(fetched).item_ids.tolist() == list(range(100, 120))

    folder = Path(version.source.removeprefix("file://"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pyc")]
    model = mlflow.pyfunc.load_model(str(folder))
    histories: list[Any] = [[100, 101], ["119", "x"], []]
    expected = checkpoint.load(small_checkpoint).recommend(histories, k=3)
    assert model.predict(histories, params={"k": 3}) == [r._asdict() for r in expected]
    assert len(model.predict([[100]])[0]["items"]) == 10
    assert model.metadata.get_params_schema().to_dict() == [
        {"name": "k", "default": 10, "shape": None, "type": "long"},
        {"name": "exclude_seen", "default": True, "shape": None, "type": "boolean"},
    ]


@pytest.fixture
def enter(
    store: str, small_checkpoint: Folder, tmp_path: Path, request: Any, said: list[str]
) -> Callable[..., Any]:
    """Runs a trial of a study, which is registered as the champion under the name of this test."""
    name = request.node.name

    def entered(value: float, trial: int = 0, study: str = "one", *, promoted: bool = False) -> Any:
        chosen = BY_HAND if promoted else ON_VALIDATION
        tracker = Tracker(store, name, f"{name}-{study}", tmp_path / "other.jsonl", say=said.append)
        tracker.start_study({}, {}, metric="ndcg@10", dimensions=[])
        tracker.trial_started(trial, {})
        tracker.trial_result(trial, 1, {"ndcg@10": value})
        tracker.trial_ended(trial, "finished", {"ndcg@10": value})
        tracker.champion(small_checkpoint, name, trial=trial, chosen=chosen)
        assert tracker.settle(60)
        registered = tracker.registered
        assert tracker.close()
        assert said == []
        return registered

    return entered


def test_the_alias_moves_to_a_better_model_alone(enter: Any, store: str, request: Any) -> None:
    from mlflow import MlflowClient

    name, client = request.node.name, MlflowClient(store, registry_uri=store)

    def held() -> str:
        return str(client.get_model_version_by_alias(name, "champion").version)

    first = enter(0.25)
    assert (first.uri, first.left, held()) == (f"models:/{name}@champion", "", "1")
    worse = enter(0.125, trial=1)
    assert (worse.uri, held()) == (f"models:/{name}/2", "1")
    assert worse.left == (
        f"{name}@champion stays version 1, which has ndcg@10 0.2500 on validation, where this one "
        f"has 0.1250; this study's best model is version 2 of {name}, and docs/serving.md has the "
        "command that gives it the alias"
    )
    again = enter(0.25)  # told again, a study changes nothing
    assert (again, held()) == (first, "1")
    assert enter(0.25, trial=2).left  # as good is not better
    better = enter(0.5, trial=3)
    assert (better.uri, better.left, held()) == (f"models:/{name}@champion", "", better.version)
    assert client.get_model_version(name, better.version).tags["seqtune.value"] == "0.5"
    by_hand = enter(0.125, trial=1, promoted=True)
    assert (by_hand.left, held()) == ("", worse.version)


def test_what_was_promoted_by_hand_stays(enter: Any, store: str, request: Any) -> None:
    name = request.node.name
    enter(0.125, promoted=True)
    assert f"{name}@champion stays version 1, which was promoted by hand;" in enter(0.5, 1).left


def test_a_name_belongs_to_its_study(enter: Any, store: str, request: Any) -> None:
    from mlflow import MlflowClient

    name, client = request.node.name, MlflowClient(store, registry_uri=store)
    enter(0.25)
    other = enter(0.5, study="two")
    assert (other.uri, other.left) == (f"models:/{name}-2@champion", "")
    assert int(client.get_model_version_by_alias(name, "champion").version) == 1
    assert enter(0.5, study="two") == other
    client.create_registered_model(f"{name}-3")  # somebody's own
    assert enter(0.125, study="three").name == f"{name}-4"


def test_a_study_and_its_model_are_described(
    open_tracker: Any, pages: Any, small_checkpoint: Folder, store: str
) -> None:
    tags = {
        "seqtune.model": "sasrec",
        "seqtune.data": "ratings.csv",
        "seqtune.protocol": "Leave-one-out: seen items are left out.",
        "seqtune.command": "seqtune tune --model sasrec",
    }
    study = open_tracker()
    study.start_study({}, tags, metric="ndcg@10", dimensions=["tau"])
    study.trial_started(0, {})
    assert study.settle(60)
    sentences = [
        "The model is sasrec and the data are ratings.csv.",
        "Leave-one-out: seen items are left out.",
        "The command was `seqtune tune --model sasrec`.",
    ]
    note = pages().studies[0].data.tags["mlflow.note.content"]
    assert [part for part in note.split("\n\n") if not part.startswith("The trials")] == sentences
    study.champion(small_checkpoint, "described", trial=0, verdict="Tuning gained nothing.")
    study.study_ended("finished", {"default/test/ndcg@10": 0.5}, "Tuning gained nothing.")
    assert study.close()

    found = pages()
    note = found.studies[0].data.tags["mlflow.note.content"]
    assert note.split("\n\n")[:2] == [sentences[0], "Tuning gained nothing."]
    assert found.studies[0].data.metrics == {"default/test/ndcg_10": 0.5}
    version = found.client.get_model_version("described", "1")
    about = "\n\n".join([sentences[0], "Tuning gained nothing.", *sentences[1:]])
    assert version.description == about
    (logged,) = found.client.search_logged_models([found.experiment.experiment_id])
    assert logged.tags["mlflow.note.content"] == about
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "described", "version": 1}]
    assert "-id. The alias" in found.client.get_registered_model("described").description


def test_a_champion_that_is_not_there_is_a_sentence(store: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models:/none@champion: not found in sqlite"):
        fetch("models:/none@champion", store, tmp_path)
    with pytest.raises(UserError, match="none: write models:/NAME@champion"):
        fetch("none", store, tmp_path)


# The store, the links and the view.


def test_the_store_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Folder.at("results")
    assert store_uri(None, storage) == f"sqlite:///{tmp_path}/results/mlflow.db"
    assert store_uri("sqlite:///my.db", storage) == f"sqlite:///{tmp_path}/my.db"
    assert store_uri("http://host:5000/", storage) == "http://host:5000"
    monkeypatch.setitem(sys.modules, "psycopg", ModuleType("psycopg"))
    assert store_uri("postgresql://me@host/db", storage) == "postgresql://me@host/db"
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"host/db: .*pip install 'seqtune\[postgres\]'"):
        store_uri("postgresql://me@host/db", storage)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert store_uri(None, storage) == "https://mlflow.example"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:runs")
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI=file:runs: not a store that MLflow"):
        store_uri(None, storage)
    with pytest.raises(UserError, match=r"^--tracking-uri mlruns: not a store that MLflow"):
        store_uri("mlruns", storage)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="--storage s3://bucket/x: no place for MLflow's SQLite"):
        store_uri(None, Folder.at("s3://bucket/x"))


def test_links_lead_to_the_view(open_tracker: Any, pages: Any, store: str) -> None:
    study = open_tracker()
    tell(study, trials=1)
    study.trial_started(1, {"n_layers": 3, "tau": 0.5})
    study.study_ended()
    assert study.close()
    found, links = pages(), study.links
    assert links.command == f"mlflow ui --backend-store-uri {store}"
    page = f"#/experiments/{found.experiment.experiment_id}/runs?workflowType=machine_learning"
    runs = f"http://127.0.0.1:5000/{page}"
    key = f"seqtune-{found.studies[0].info.run_id[:8]}"
    assert links.table == f"{runs}&viewStateShareKey={key}"
    assert links.charts == f"{links.table}&compareRunsMode=CHART"
    assert links.plain.startswith(f"{runs}&searchFilter=tags.%60mlflow.parentRunId%60%20%3D%20")
    note = found.experiment.tags["mlflow.note.content"]
    assert f"[the prepared view]({page}&viewStateShareKey={key}&compareRunsMode=CHART)" in note
    saved = json.loads(found.experiment.tags[f"mlflow.sharedViewState.{key}"])
    state = json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))
    assert state["orderByKey"] == "metrics.`best/ndcg_10`"
    # Trial 0 has no tau, so tau is a column of the table and no axis.
    assert "params.`tau`" in state["selectedColumns"]
    charts = {chart["type"]: chart for chart in state["compareRunCharts"]}
    assert charts["PARALLEL"]["selectedParams"] == ["n_layers"]
    lines = [c["metricKey"] for c in state["compareRunCharts"] if c["type"] == "LINE"]
    assert lines == ["ndcg_10", "train_ce"]


def test_a_view_survives_its_encoding() -> None:
    state = view("r", "hr_5", ["a", "b"], ["a"], [])
    packed = deflated(state)
    assert json.loads(zlib.decompress(base64.b64decode(packed.partition(";")[2]))) == state


def test_what_mlflow_does_not_document_was_seen_with_this_release() -> None:
    import mlflow

    assert mlflow.__version__ == SEEN, (
        "run tests/end_to_end/test_mlflow_view.py with Chromium, look at the page of a logged "
        "model, and set SEEN in track/undocumented.py to this release"
    )


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name == "mlflow"] == []


MAKES = """
import os, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from seqtune.track.writer import Writer

@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    if "ALTER TABLE" in statement:
        os.kill(os.getpid(), 9)

Writer(sys.argv[1], "shop", "shop-1")
"""


def test_a_driver_that_is_killed_leaves_no_half_of_a_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/results/mlflow.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", MAKES, uri], env=environment, check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "results" / "mlflow.db").exists()
    assert Writer(uri, "shop", "shop-1").experiment_id


def test_a_training_by_itself_is_one_run_with_its_curves(
    open_tracker: Any, store: str, request: Any
) -> None:
    for times in (1, 2):  # it is resumed, and tells its past again
        training = open_tracker()
        training.start_study({"seed": 1}, {"seqtune.model": "x"}, metric="ndcg@10", dimensions=[])
        for epoch in range(1, 3 * times):
            training.trial_result(None, epoch, row(0, epoch), time=1_000 + epoch)
        training.study_ended("finished", {"test/ndcg@10": 0.5})
        assert training.close()
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(request.node.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    curve = client.get_metric_history(run.info.run_id, "ndcg_10")
    assert [(point.step, round(point.value, 6)) for point in curve] == [
        (epoch, value(0, epoch)) for epoch in range(1, 6)
    ]
    assert run.data.metrics["best/ndcg_10"] == pytest.approx(value(0, 3))
    assert run.data.metrics["test/ndcg_10"] == 0.5
    assert "mlflow.sharedViewState" not in str(experiment.tags)
