"""What the report says of MLflow: what really happened there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtune.data import Protocol
from seqtune.data.generate import make_preset
from seqtune.results import Finalist, StudyResult
from seqtune.storage import Folder
from seqtune.study import publish
from seqtune.study.plan import Plan
from seqtune.track import Links, Registered

LINKS = Links("sqlite:////results/mlflow.db", "1", "0123456789abcdef")
SERVE = "MLFLOW_TRACKING_URI=sqlite:////results/mlflow.db mlflow models serve -m "


def finalist(number: int) -> Finalist:
    value = 0.25 * (number + 1)
    ranks = np.ones(3, dtype=np.float32)
    return Finalist(number, "sasrec", {}, {"ndcg@10": value}, {"ndcg@10": value / 2}, ranks)


@pytest.fixture
def result() -> StudyResult:
    known: dict[str, Any] = {
        "name": "shop",
        "models": ("sasrec",),
        "data_name": "ratings",
        "metric": "ndcg@10",
        "protocol": "Leave-one-out.",
        "trials": (),
        "default": finalist(0),
        "best": finalist(1),
        "importances": {},
        "searched": (),
        "planned": 2,
        "seconds": 1.0,
        "checkpoint": "/results/shop/champion",
        "train_command": "seqtune train",
    }
    return StudyResult(**known)


def test_the_champion_is_named_where_the_alias_moved(result: StudyResult) -> None:
    found = publish._told(result, LINKS, Registered("shop", "2"))
    assert (found.champion, found.notes) == ("shop", ())
    assert found.serve_command.startswith(f"{SERVE}models:/shop@champion ")


def test_an_alias_that_stayed_is_a_note_and_the_version_is_served(result: StudyResult) -> None:
    found = publish._told(result, LINKS, Registered("shop", "2", "shop@champion stays version 1"))
    assert (found.champion, found.notes) == ("", ("shop@champion stays version 1",))
    assert found.serve_command.startswith(f"{SERVE}models:/shop/2 ")


def test_a_champion_that_mlflow_did_not_take_is_not_called_registered(result: StudyResult) -> None:
    found = publish._told(result, LINKS, None)
    assert (found.champion, found.serve_command) == ("", "")
    assert found.notes == (
        "MLflow has not taken the champion, so it is not registered; --resume tries again",
    )
    assert publish._told(result, None, None) == result  # MLflow never answered


def test_the_run_of_the_study_has_the_best_beside_the_defaults(result: StudyResult) -> None:
    assert publish._metrics(result) == {
        "valid/ndcg@10": 0.5,
        "test/ndcg@10": 0.25,
        "default/valid/ndcg@10": 0.25,
        "default/test/ndcg@10": 0.125,
    }


@pytest.mark.parametrize(
    ("links", "answers", "waits"),
    [(LINKS, True, [30, 120]), (None, False, [30]), (LINKS, False, [30])],
)
def test_a_champion_that_is_long_on_its_way_is_waited_for(
    result: StudyResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    links: Links | None,
    answers: bool,
    waits: list[float],
) -> None:
    told: list[tuple[Any, ...]] = []
    waited: list[float] = []

    class Ears:
        registered = None

        def __init__(self) -> None:
            self.links, self.answers = links, answers

        def settle(self, timeout: float) -> bool:
            waited.append(timeout)
            return False

        def __getattr__(self, name: str) -> Any:
            return lambda *words, **more: told.append((name, *words, more))

    monkeypatch.setattr(publish, "_report_files", lambda *_: [("report.md", b"# All")])
    data = make_preset("tiny")
    plan = Plan("sasrec", "ndcg@10", Protocol.of(data), Folder.at(tmp_path))
    users = len(plan.protocol.split(data).test.users)
    ranks = np.ones(users, dtype=np.float32)
    result = replace(result, default=None, best=replace(finalist(1), test_ranks=ranks))
    publish.publish(result, data, plan, Ears(), None)  # type: ignore[arg-type]
    assert waited == waits
    champion, upload, ended, closed = told
    assert champion[:4] == ("champion", plan.folder / "champion", "shop", 1)
    assert upload == ("upload", plan.folder / "report", {"to": "report"})
    assert ended[:2] == ("study_ended", "finished")
    assert closed == ("close", {"timeout": 120 if answers else 5})
    report = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert report == ["ranks-best.parquet", "report.md"]
