"""Studies as their folders show them: which there are, how they do, and what is asked of them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

from seqtune.cli import studies
from seqtune.cli.app import app
from seqtune.errors import UserError
from seqtune.state import keep_told, ranks_file
from seqtune.storage import Folder
from seqtune.study import comparison, lease, record, shelf, tables
from seqtune.study.identity import About, write_about
from seqtune.study.wishes import Wishes

NOW, FAIL = datetime.now(), TrialState.FAIL
SAME = {"model": "sasrec", "metric": "ndcg@10", "split": "leave-one-out", "data": "abc"}


def trial(number: int, state: TrialState, value: Any = None, **reported: float) -> FrozenTrial:
    ended = state.is_finished()
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={},
        distributions={},
        user_attrs={
            "model": "sasrec",
            "params": {"n_layers": number},
            "origin": "drawn" if number else "default",
            "reason": "no memory" * (state == FAIL),
        },
        system_attrs={},
        intermediate_values={int(k.removeprefix("e")): v for k, v in reported.items()},
        datetime_start=NOW - timedelta(minutes=5),
        datetime_complete=NOW - timedelta(minutes=3) if ended else None,
    )


def row(epoch: int, value: float) -> Any:
    return {
        "epoch": epoch,
        "step": epoch,
        "losses": {"ce": 1.0},
        "metrics": {"ndcg@10": value},
        "best": value,
        "best_epoch": epoch,
        "time": NOW.timestamp(),
        "train_seconds": 1.0,
        "train_targets": 10,
        "eval_seconds": 0.1,
        "eval_every": 1,
        "finished": False,
    }


def make(root: Path, name: str, trials: list[FrozenTrial], **about: Any) -> Folder:
    """A study in its folder."""
    folder = Folder.at(root) / name
    same = SAME | about.pop("same", {})
    options = {"model": "sasrec", "name": name, "trials": 4} | about.pop("options", {})
    write_about(folder, About(f"{name}-id", f"seqtune tune --name {name}", same, options, **about))
    for one in trials:
        place = folder / "trials" / f"{one.number:04d}"
        record.keep(place, f"{name}-id", one)
        if one.state == TrialState.RUNNING:
            keep_told(place, [row(1, 0.3), row(2, 0.35)], f"{name}-id")
    return folder


def report(folder: Folder, value: float, planned: int = 4, seed: int = 0) -> None:
    """What a study leaves when it has ended."""
    rng = np.random.default_rng(seed)
    ranks = np.ceil(rng.random(200) ** 2 * 60 / value).astype(np.float32)
    test = {f"{m}@{k}": value for m in ("ndcg", "hr", "mrr") for k in (5, 10, 20)}
    tested = {"valid": {"ndcg@10": value + 0.01}, "test": test}
    best = {"number": 1, "model": "sasrec", "params": {"n_layers": 1}, **tested}
    best["megabytes"] = 0.25
    default = {"number": 0, "model": "sasrec", "params": {"n_layers": 0}, **tested}
    found = {
        "planned": planned,
        "best": best,
        "default": default,
        "contenders": [{"best": best, "default": default}],
        "floors": [{"name": "popularity", "valid": {"ndcg@10": 0.4}, "test": test}],
        "checkpoint": f"{folder.uri}/champion",
        "train_command": "seqtune train --model sasrec",
    }
    users = pd.Index(np.random.default_rng(1).permutation(200))  # in whatever order
    place = folder / "report"
    place.write("report.json", json.dumps(found).encode())
    place.write("report.md", b"# sasrec on x\n")
    place.write("ranks-best.parquet", ranks_file(np.asarray(users), ranks[np.asarray(users)]))


ALL_ENDED = [
    trial(0, TrialState.COMPLETE, 0.3, e1=0.2, e2=0.3),
    trial(1, TrialState.PRUNED, None, e1=0.4),
    trial(2, TrialState.FAIL),
    trial(3, TrialState.COMPLETE, 0.35, e1=0.35),
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A storage folder with an ended study, a stopped one, a damaged one, and other things."""
    report(make(tmp_path, "ended", ALL_ENDED), 0.5)
    make(tmp_path, "stopped", [ALL_ENDED[0], trial(1, TrialState.RUNNING)])
    make(tmp_path, "broken", [])
    (tmp_path / "broken" / "study.json").write_text("{")
    (tmp_path / "mlartifacts").mkdir()
    (tmp_path / "mlflow.db").write_bytes(b"")
    return tmp_path


@pytest.fixture
def runs(shop: Path) -> Iterator[None]:
    """Another process runs the study ``stopped``."""
    code = f"""
        import time
        from seqtune.storage import Folder
        from seqtune.study.lease import Lease
        lease = Lease(Folder.at({str(shop / "stopped")!r}))
        print("taken", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "taken\n"
        yield
        holder.kill()


def seqtune(*words: str, code: int = 0, answer: str | None = None) -> str:
    """Runs the command line in this process; returns what it printed."""
    done = CliRunner().invoke(app, list(words), input=answer)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_studies_are_listed_with_how_they_do(shop: Path) -> None:
    found = {one.name: one for one in shelf.all_studies(str(shop))}
    assert {name: one.state for name, one in found.items()} == {
        "ended": "ended",
        "stopped": "stopped",
        "broken": "damaged",
    }
    assert (found["ended"].ended, found["ended"].planned) == (4, 4)
    best = found["ended"].best
    assert best is not None
    assert (best.number, best.value, best.epoch, best.status) == (1, 0.4, 1, "pruned")
    assert found["ended"].counts() == "2 complete, 1 pruned, 1 failed"
    (running,) = [one for one in found["stopped"].trials if one.number == 1]
    assert (running.status, running.value, running.epoch) == ("unfinished", 0.35, 2)
    said = seqtune("list", "--storage", str(shop))
    assert [line.split()[:4] for line in said.splitlines()[2:]] == [
        ["broken", "?", "damaged", "0/0"],
        ["ended", "sasrec", "ended", "4/4"],
        ["stopped", "sasrec", "stopped", "1/4"],
    ]
    listed = json.loads(seqtune("list", "--json", "--storage", str(shop)))
    assert {one["name"] for one in listed} == set(found)
    (ended,) = [one for one in listed if one["name"] == "ended"]
    assert ended["best"]["params"] == {"n_layers": 1}


def test_an_empty_storage_has_no_studies(tmp_path: Path) -> None:
    assert "There are no studies in" in seqtune("list", "--storage", str(tmp_path / "nothing"))


def test_a_study_that_runs_elsewhere_is_seen_to(shop: Path, runs: None) -> None:
    said = seqtune("status", "stopped", "--storage", str(shop))
    assert "stopped: sasrec, running" in said
    assert "run by process " in said
    assert "1 of 4 trials have ended (1 complete, 1 running)" in said
    assert "best: trial 1, ndcg@10 0.3500, epoch 2" in said
    assert "trial 1 runs: ndcg@10 0.3500, epoch 2" in said
    other = lease.Lease(Folder.at(shop / "ended"))  # looking takes no lease away
    other.release()


def test_a_stopped_study_says_how_it_goes_on(shop: Path) -> None:
    said = seqtune("status", "stopped", "--storage", str(shop))
    own = f"--model sasrec --storage {shop} --trials 4 --name stopped --resume"
    assert f"go on with: seqtune tune {own}" in said
    assert "trial 2 failed last: no memory" in seqtune("status", "ended", "--storage", str(shop))
    assert "study.json" in seqtune("status", "broken", "--storage", str(shop))


def test_a_holder_on_another_machine_is_alive_while_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: beat())
    holder = json.dumps(vars(lease.Holder.me()) | {"machine": "other", "host": "far"})
    folder = Folder.at(tmp_path / "x")

    def beat() -> None:
        folder.write("lease.json", f"{holder}\n{after}\n".encode())

    for after in (0, 1):
        folder.write("lease.json", f"{holder}\n0\n".encode())
        assert bool(lease.alive([folder])) == bool(after)


def test_what_is_asked_of_a_study_reaches_its_driver(
    shop: Path, runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqtune.study.wishes.EVERY", 0.0)
    folder = Folder.at(shop / "stopped")
    shelf.wish(folder)  # of an earlier driver
    wishes = Wishes(folder)
    result = {"config": {"number": 1}}
    assert not wishes.stop_all()
    assert not wishes("id", result)
    said = seqtune("stop", "stopped", "--trial", "1", "--storage", str(shop))
    assert "Trial 1 of stopped ends after its next evaluation" in said
    assert wishes("id", result)
    assert not wishes("id", {"config": {"number": 0}})
    assert not wishes.stop_all()
    seqtune("stop", "stopped", "--no-wait", "--storage", str(shop))
    assert wishes.stop_all()
    assert wishes.stopped


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stop", "stopped"], "does not run (stopped)"),
        (["status", "stoped"], "did you mean 'stopped'?"),
        (["report", "stopped"], "has no report yet"),
        (["best", "broken"], "make it anew: seqtune repair broken"),
        (["compare", "ended"], "name two studies or more"),
        (["compare", "ended", "ended"], "named twice"),
        (["compare", "ended", "stopped"], "has no tested champion"),
        (["export", "ended", "--out", "x.doc"], "end it with .csv, .parquet or .tex"),
        (["export", "ended", "--out", "x.csv", "--what", "trial"], "did you mean 'trials'?"),
        (["export", "ended", "--out", "x", "--format", "tex"], "there is no such format"),
        (["export", "stopped", "--out", "x.csv", "--what", "leaderboard"], "nothing was tested"),
        (["list", "--storage", "xx://y"], "'xx' is no place for files"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(shop: Path, words: list[str], said: str) -> None:
    where = [] if "--storage" in words else ["--storage", str(shop)]
    done = CliRunner().invoke(app, [*words, *where])
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)


def test_a_running_trial_is_asked_for_by_a_number_that_runs(shop: Path, runs: None) -> None:
    done = CliRunner().invoke(app, ["stop", "stopped", "--trial", "0", "--storage", str(shop)])
    assert "--trial 0: does not run" in str(done.exception)
    done = CliRunner().invoke(app, ["delete", "stopped", "--yes", "--storage", str(shop)])
    assert "stop it first: seqtune stop stopped" in str(done.exception)


def test_the_best_trial_is_told_with_what_it_reaches(shop: Path) -> None:
    said = seqtune("best", "ended", "--storage", str(shop))
    assert "ended: trial 1 of sasrec, ndcg@10 0.5100 on validation" in said
    assert "on test: ndcg@5 0.5000" in said
    assert "n_layers: 1" in said
    assert "train it again: seqtune train" in said
    early = json.loads(seqtune("best", "stopped", "--json", "--storage", str(shop)))
    assert (early["trial"], early["test"], early["checkpoint"]) == (1, {}, "")


def test_a_report_is_printed_as_it_was_written(shop: Path) -> None:
    assert seqtune("report", "ended", "--storage", str(shop)).startswith("# sasrec on x")
    found = json.loads(seqtune("report", "ended", "--json", "--storage", str(shop)))
    assert found["best"]["number"] == 1


def test_studies_of_the_same_data_are_compared(tmp_path: Path) -> None:
    for name, value, seed in (("low", 0.2, 0), ("high", 0.5, 0), ("near", 0.49, 3)):
        report(make(tmp_path, name, ALL_ENDED, same={"model": name}), value, seed=seed)
    found = comparison.compared(["low", "near", "high"], str(tmp_path))
    assert [one.name for one in found.studies] == ["high", "near", "low"]
    assert found.against[1].difference < 0
    assert found.p_holm[1] < 0.001
    assert found.verdict.startswith("high has the highest ndcg@10, and cannot be told from near (")
    said = seqtune("compare", "low", "high", "--storage", str(tmp_path))
    assert "high is best: every other is surely below it on ndcg@10 (paired t-tests" in said
    plain = json.loads(seqtune("compare", "low", "high", "--json", "--storage", str(tmp_path)))
    assert plain["studies"][1]["p_holm"] < 0.001


def test_studies_of_other_data_or_protocols_are_not(tmp_path: Path) -> None:
    report(make(tmp_path, "one", ALL_ENDED), 0.5)
    report(make(tmp_path, "two", ALL_ENDED, same={"data": "xyz", "metric": "hr@10"}), 0.5)
    with pytest.raises(UserError) as refused:
        comparison.compared(["one", "two"], str(tmp_path))
    assert str(refused.value) == (
        "one and two cannot be compared: they differ in data (abc and xyz) and metric (ndcg@10 and "
        "hr@10)"
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_trials_and_curves_are_exported(shop: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"x.{kind}"
    said = seqtune("export", "ended", "--out", str(out), "--storage", str(shop))
    assert said == f"4 rows are in {out}\n"
    frame = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert frame["status"].tolist() == ["complete", "pruned", "failed", "complete"]
    assert frame["param:n_layers"].tolist() == [0, 1, 2, 3]
    words = ["--what", "curves", "--storage", str(shop)]
    seqtune("export", "stopped", "--out", str(out), *words)
    frame = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert frame[["trial", "epoch", "ndcg@10", "train_ce"]].to_numpy().tolist() == [
        [1, 1, 0.3, 1],
        [1, 2, 0.35, 1],
    ]


def test_a_table_has_a_name_of_its_own(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["export", "ended", "--storage", str(shop)]
    assert seqtune(*words) == "4 rows are in ended-trials.csv\n"
    seqtune(*words, "--format", "latex", "--what", "leaderboard")
    seqtune(*words, "--format", "parquet")
    files = {"ended-trials.csv", "ended-leaderboard.tex", "ended-trials.parquet"}
    assert files <= {path.name for path in tmp_path.iterdir()}


def test_a_leaderboard_is_a_table_for_a_paper(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.tex"
    words = ["--what", "leaderboard", "--storage", str(shop)]
    seqtune("export", "ended", "--out", str(out), *words)
    lines = out.read_text().splitlines()
    assert lines[0] == r"\begin{tabular}{l" + "r" * 5 + "}"
    assert lines[2] == r"system & valid ndcg@10 & ndcg@10 & hr@10 & mrr@10 & megabytes \\"
    assert lines[4].startswith(r"popularity & 0.4000 & \textbf{0.5000} & ")
    assert lines[6].startswith(r"sasrec (trial 1) & ")
    assert lines[6].endswith(r" & 0.2500 \\")
    assert lines[-1] == r"\end{tabular}"
    odd = pd.DataFrame({"a_b": ["50 % & more", "x"], "n@1": [1.0, float("nan")], "s": [2.0, 3.0]})
    assert tables.latex(odd).splitlines()[2:6] == [
        r"a\_b & n@1 & s \\",
        r"\midrule",
        r"50 \% \& more & \textbf{1} & 2 \\",
        r"x & -- & 3 \\",
    ]


def test_a_study_is_deleted_when_asked_twice(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def forget(uri: str, study: str) -> str:
        asked.append(study)
        return "3 runs and 1 model versions"

    monkeypatch.setattr("seqtune.track.forget", forget)
    words = ["delete", "ended", "--storage", str(shop)]
    assert "Delete it, its runs" in seqtune(*words, answer="n\n", code=1)
    assert (shop / "ended").exists()
    assert "3 runs and 1 model versions of MLflow" in seqtune(*words, answer="y\n")
    assert asked == ["ended-id"]
    assert not (shop / "ended").exists()


def test_names_are_completed_in_a_shell(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.parent)
    monkeypatch.setattr(studies, "RESULTS", str(shop))
    assert studies.complete_study("st") == ["stopped"]
    assert studies.complete_study("") == ["broken", "ended", "stopped"]


def test_ages_are_said_in_the_largest_unit() -> None:
    now = time.time()
    ages = [shelf.age(now - s) for s in (5, 70, 7300, 86400 * 3)]
    assert ages == ["now", "1 minute", "2 hours", "3 days"]
    assert shelf.age(None) == "-"


def test_of_several_models_each_has_its_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [
        replace_model(one, m) for one, m in zip(ALL_ENDED, ["stan", "caser"] * 2, strict=True)
    ]
    make(tmp_path, "many", trials, same={"model": "stan,caser"})
    run = CliRunner().invoke
    where = ["--storage", str(tmp_path)]
    told = run(app, ["status", "many", *where]).output
    assert "best: trial 1 of caser, ndcg@10 0.4000" in told
    assert "stan: 2 trials, best 0.3000 in trial 0" in told
    assert "caser: 2 trials, best 0.4000 in trial 1" in told
    own = json.loads(run(app, ["best", "many", "--model", "stan", "--json", *where]).output)
    assert (own["model"], own["trial"], own["valid"]) == ("stan", 0, {"ndcg@10": 0.3})
    with pytest.raises(UserError, match="--model sasrec: is not in many"):
        run(app, ["best", "many", "--model", "sasrec", *where], catch_exceptions=False)


def replace_model(one: FrozenTrial, model: str) -> FrozenTrial:
    """The same trial, of another model."""
    other = copy.deepcopy(one)
    other.user_attrs["model"] = model
    return other
