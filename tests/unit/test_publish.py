"""What the report says of MLflow: what really happened there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqtune.results import Finalist, StudyResult
from seqtune.study import publish
from seqtune.track import Links, Registered

LINKS = Links("sqlite:////results/mlflow.db", "1", "0123456789abcdef", "seqtune-01234567")
SERVE = "MLFLOW_TRACKING_URI=sqlite:////results/mlflow.db mlflow models serve -m "


def finalist(number: int) -> Finalist:
    value = 0.25 * (number + 1)
    ranks = np.ones(3, dtype=np.float32)
    return Finalist(number, {}, {"ndcg@10": value}, {"ndcg@10": value / 2}, ranks)


@pytest.fixture
def result() -> StudyResult:
    known: dict[str, Any] = {
        "name": "shop",
        "model": "sasrec",
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
