"""A study of three trials, as a person runs it: what it says, and what it leaves."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtune import checkpoint
from seqtune import state as files
from seqtune.data import leave_one_out
from seqtune.data.generate import make_preset
from seqtune.floors import floors
from seqtune.storage import Folder

SPACE = """
model: sasrec
fixed: {embedding_size: 16, n_layers: 1, n_heads: 1, inner_size: 32, epochs: 4}
space:
  learning_rate: {low: 0.001, high: 0.02, log: true}
  batch_size: {choice: [16, 128]}
  weight_decay: {choice: [0, 0.01]}
"""
SEARCHED = ("learning_rate", "batch_size", "weight_decay")
VALID_USERS = 150
PROTOCOL = (
    "Leave-one-out: the last item of 200 users is the test and the one before it validates for 150 "
    "of them, drawn with seed 0; each is ranked among all 60 items, and seen items are left out, "
    "since no user has an item twice."
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("study")
    (folder / "space.yaml").write_text(SPACE)
    words = ["--trials", "3", "--space", f"{folder}/space.yaml", "--valid-users", f"{VALID_USERS}"]
    return [*words, "--storage", f"{folder}/results"]


@pytest.fixture(scope="module")
def ended(tune: Callable[..., Any], words: list[str]) -> Any:
    """The study when it has ended well."""
    return tune(*words).ends(0)


@pytest.fixture
def study(ended: Any, words: list[str], study_at: type[Any]) -> Any:
    return study_at(Path(words[-1]) / "sasrec-tiny")


@pytest.fixture
def report(study: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study.folder / "report" / "report.json").read_text())
    return content


def test_nothing_but_the_study_is_told(ended: Any, study: Any) -> None:
    assert ended.err == ""
    (note, *head), said = ended.out.split("\n\n")[0].splitlines(), ended.out
    assert note == (
        "trial 0 runs the defaults with embedding_size 16, n_layers 1, n_heads 1, inner_size 32, "
        "epochs 4, which the search space fixes"
    )
    assert head[:4] == [
        "sasrec on tiny: 200 users, 60 items, 2,534 interactions",
        PROTOCOL,
        next(line for line in head if line.startswith("3 hyperparameters searched, 3 trials, ")),
        f"results in {study.folder}",
    ]
    line = r"\[[123]/3\] trial [012]( \(defaults\))?: (complete|pruned), ndcg@10 0\.\d{4}, \d epoch"
    (counting,) = (one for one in head if one.startswith("counting reaches ndcg@10 0."))
    (remark,) = (one for one in head if "later than the first test target" in one)
    trials = [one for one in head[4:] if one not in (counting, remark)]
    assert len(trials) == 3
    assert all(re.match(line, one) for one in trials), head
    noise = r"INFO|WARN|Warning|\(pid=|ray::|raylet|alembic|sqlalchemy|^\[[IW] |^\d{4}[-/]\d\d"
    assert not re.findall(noise, said, re.MULTILINE)


def test_the_best_is_shown_beside_the_defaults(ended: Any, report: dict[str, Any]) -> None:
    best, default = report["best"], report["default"]
    assert best["number"] > 0  # the space is made so that the defaults are not the best
    table = ended.out.partition("Best hyperparameters\n")[2].partition("\n\n")[0]
    assert re.search(rf"default +best \(trial {best['number']}\)", table)
    (rate,) = re.findall(r"learning_rate +(\S+) +(\S+)", table)
    assert float(rate[0]) == default["params"]["learning_rate"] == 0.001
    assert float(rate[1]) == pytest.approx(best["params"]["learning_rate"], rel=1e-3)
    assert all(name in table for name in SEARCHED)


def test_metrics_of_both_and_the_gain_are_shown(ended: Any, report: dict[str, Any]) -> None:
    best, default = report["best"], report["default"]
    names = ["ndcg@5", "ndcg@10", "ndcg@20", "hr@5", "hr@10", "hr@20", "mrr@10"]
    for who, one in (("default", default), ("best", best)):
        (shown,) = re.findall(rf"^ {who} +(0.+)$", ended.out, re.MULTILINE)
        values = [one["valid"]["ndcg@10"], *(one["test"][name] for name in names)]
        assert shown.split() == [f"{value:.4f}" for value in values]
    assert report["verdict"].startswith("Tuning ")
    assert report["verdict"] in " ".join(ended.out.split())


def test_the_floors_are_shown_and_the_champion_is_compared_with_them(
    ended: Any, report: dict[str, Any]
) -> None:
    data = make_preset("tiny")
    counted = floors(leave_one_out(data), mask_seen=not data.has_repeats)
    for floor, told in zip(counted, report["floors"], strict=True):
        assert told["test"] == floor.test
        (shown,) = re.findall(rf"^ {floor.name} +(0.+)$", ended.out, re.MULTILINE)
        assert shown.split()[2] == f"{floor.test['ndcg@10']:.4f}"
    against = report["against_floors"]
    assert against["floor"] == max(counted, key=lambda floor: floor.test["ndcg@10"]).name
    assert against["sentence"] in " ".join(ended.out.split())


def test_the_next_steps_are_shown(ended: Any, study: Any, report: dict[str, Any]) -> None:
    steps = [line.strip() for line in ended.out.partition("\nNext\n")[2].splitlines()]
    parent, _ = study.runs()
    place = f"/experiments/{parent.info.experiment_id}/runs?"
    serve = "mlflow models serve -m models:/sasrec-tiny@champion --env-manager local --port 5001"
    assert steps[1::2] == [
        str(study.folder / "report" / "report.html"),
        str(study.folder / "champion"),
        report["train_command"],
        f"MLFLOW_TRACKING_URI={study.store} {serve}",
        f"mlflow ui --backend-store-uri {study.store}",
        next(step for step in steps if step.startswith("http") and place in step),
        next(step for step in steps if step.startswith("http") and "searchFilter" in step),
        f"optuna-dashboard sqlite:///{study.folder / 'study.db'}",
    ]


def test_optuna_has_the_trials(study: Any, report: dict[str, Any]) -> None:
    trials = study.trials()
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert all(trial.state.is_finished() for trial in trials)
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    best = trials[report["best"]["number"]]
    assert max(best.intermediate_values.values()) == report["best"]["valid"]["ndcg@10"]
    assert study.tune_trials() == dict.fromkeys(("0000", "0001", "0002"), "TERMINATED")


def test_mlflow_has_a_run_of_the_study_and_one_of_each_trial(
    study: Any, report: dict[str, Any]
) -> None:
    parent, children = study.runs()
    assert sorted(children) == [0, 1, 2]
    tags = {"seqtune.data_fingerprint": make_preset("tiny").fingerprint, "seqtune.data": "tiny"}
    for run in (parent, *children.values()):
        assert run.info.status == "FINISHED"
        assert tags.items() <= run.data.tags.items()
        assert "seqtune.git_commit" in run.data.tags
        for library in ("torch", "ray", "optuna", "mlflow", "seqtune"):
            assert run.data.tags[f"seqtune.version.{library}"]
    assert parent.data.params["trials"] == "3"
    metrics = parent.data.metrics
    assert metrics["test/ndcg_10"] == report["best"]["test"]["ndcg@10"]
    assert metrics["default/test/ndcg_10"] == report["default"]["test"]["ndcg@10"]
    assert report["verdict"] in parent.data.tags["mlflow.note.content"]
    for number, one in enumerate(study.trials()):
        run = children[number]
        values = one.intermediate_values
        kept = {name: str(value) for name, value in one.user_attrs["params"].items()} | {
            "model": "sasrec"
        }
        assert run.data.params == kept
        assert run.data.metrics["best/ndcg_10"] == max(values.values())
        for curve in ("ndcg_10", "hr_10", "train_ce", "train_seconds"):
            assert study.steps(number, curve) == sorted(values)


def test_mlflow_has_the_ranks_and_the_report(study: Any) -> None:
    import pyarrow.parquet as pq

    client = study.client()
    parent, children = study.runs()
    dataset = make_preset("tiny")
    held = leave_one_out(dataset).valid.sample(VALID_USERS, seed=0)
    users = dataset.user_ids[held.users].tolist()
    for run in children.values():
        assert [one.path for one in client.list_artifacts(run.info.run_id)] == [
            "ranks.parquet",
            "seqtune.lock.json",
        ]
        place = Path(run.info.artifact_uri.removeprefix("file://")) / "ranks.parquet"
        table = pq.read_table(io.BytesIO(place.read_bytes()))
        assert table["user"].to_pylist() == users
        ranks = table["rank"].to_numpy()
        found = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()
        assert found == pytest.approx(run.data.metrics["best/ndcg_10"])
    names = {Path(one.path).name for one in client.list_artifacts(parent.info.run_id, "report")}
    tables = {
        "report.html",
        "report.md",
        "report.json",
        "ranks-best.parquet",
        "ranks-default.parquet",
    }
    assert tables == names
    tested = pq.read_table(study.folder / "report" / "ranks-best.parquet")
    assert tested["user"].to_pylist() == dataset.user_ids.tolist()  # the test is on all


def test_the_best_of_each_trial_is_on_disk_however_it_ended(study: Any) -> None:
    for number, one in enumerate(study.trials()):
        state = files.load_state(Folder.at(study.state(number).parent))
        assert state is not None
        best = state["best"]
        told = one.intermediate_values
        assert told[best["epoch"]] == best["metrics"]["ndcg@10"] == max(told.values())
        assert [row["epoch"] for row in study.history(number)] == sorted(told)


def test_the_champion_is_registered_and_recommends(study: Any, report: dict[str, Any]) -> None:
    version = study.client().get_model_version_by_alias("sasrec-tiny", "champion")
    assert version.run_id == study.runs()[1][report["best"]["number"]].info.run_id
    recommender = checkpoint.load(Folder.at(study.folder / "champion"))
    dataset = make_preset("tiny")
    history = dataset.item_ids[dataset.items[:3] - 1].tolist()
    (found,) = recommender.recommend([history], k=5)
    assert len(set(found.items)) == 5
    assert set(found.items) <= set(dataset.item_ids.tolist()) - set(history)
    assert found.scores == sorted(found.scores, reverse=True)


def test_the_train_command_repeats_the_best_trial(
    study: Any, report: dict[str, Any], start: Callable[..., Any], tmp_path: Path
) -> None:
    program, *words = shlex.split(report["train_command"])
    assert program == "seqtune"
    main = "from seqtune.cli import main; main()"
    trained = start("-c", main, *words, "--out", str(tmp_path)).ends(0)
    assert trained.err == ""
    meta = json.loads((tmp_path / "model.json").read_text())["meta"]
    epochs = {row["eval_every"] for row in study.history(report["best"]["number"])}
    assert epochs == {report["best"]["params"]["eval_every"]}  # which was automatic
    assert f" --valid-users {VALID_USERS}" in report["train_command"]
    assert meta["valid"] == report["best"]["valid"]
    assert meta["test"] == pytest.approx(report["best"]["test"])


@pytest.mark.slow
def test_names_are_not_taken_twice(tune: Callable[..., Any], ended: Any, words: list[str]) -> None:
    second = tune(*words)
    named = tune(*words, "--name", "sasrec-tiny")
    other = tune(*words, "--resume", "--name", "sasrec-tiny", data="demo")
    unknown = tune(*words, "--resume", "--name", "nobody")
    fewer = [word if word != str(VALID_USERS) else "99" for word in words]
    fewer = tune(*fewer, "--resume", "--name", "sasrec-tiny")
    second.until(lambda: f"results in {words[-1]}/sasrec-tiny-2\n" in second.out)
    second.signal(signal.SIGINT)
    second.ends(130)
    for command, sentence in (
        (named, "--name sasrec-tiny: this study exists; go on with --resume, or give another"),
        (other, "--resume: study 'sasrec-tiny' was started with another data"),
        (fewer, "--resume: study 'sasrec-tiny' was started with another validation (150 users"),
        (unknown, f"--resume: there is no study 'nobody' in {words[-1]}; leave --resume out"),
    ):
        command.ends(2)
        (line,) = command.err.splitlines()
        assert line.startswith(f"error: {sentence}")
    assert sorted(p.name for p in Path(words[-1]).iterdir() if p.is_dir()) == [
        "mlartifacts",
        "sasrec-tiny",
        "sasrec-tiny-2",
    ]


@pytest.mark.slow
def test_a_long_study_measures_how_many_trials_at_a_time_once(
    tune: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["--trials", "150", "--time-budget", "20m", "--storage", str(tmp_path)]
    said = []
    for more in ([], ["--resume"]):
        study = tune(*words, *more, data="demo")
        study.until(lambda: f"results in {tmp_path}/sasrec-demo\n" in study.out)  # noqa: B023
        study.signal(signal.SIGINT)
        study.ends(130)
        said.append(next(line for line in study.out.splitlines() if " at a time" in line))
        said.append((tmp_path / "sasrec-demo" / "study.json").read_text())
    if said[0].startswith("not measured") or "targets/s)" in said[0]:  # or one way alone
        pytest.skip(f"this machine is too busy to measure anything: {said[0]}")
    if len(os.sched_getaffinity(0)) > 1:
        form = r"150 trials, \d+ at a time, \d+ CPUs? each \(measured: [\d,]+ targets/s; \d+ x "
        assert re.search(form, said[0])
        share = json.loads(said[1])["share"]
        assert f" {share['concurrency']} at a time, {share['cpus']} CPU" in said[0]
    assert said[2:] == said[:2]  # another measurement would have found other numbers
