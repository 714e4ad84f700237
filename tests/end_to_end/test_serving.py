"""The champion of a study answers over HTTP, where seqtune itself is not installed."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqtune import checkpoint
from seqtune.checkpoint import Recommender
from seqtune.storage import Folder
from seqtune.track import Tracker

Post = Callable[[object], tuple[int, Any]]


@pytest.fixture(scope="module")
def recommender(small_checkpoint: Folder) -> Recommender:
    return checkpoint.load(small_checkpoint)


@pytest.fixture(scope="module")
def post(
    small_checkpoint: Folder,
    tmp_path_factory: pytest.TempPathFactory,
    module_port: int,
    mlflow_at: Callable[..., Any],
) -> Iterator[Post]:
    """Registers the champion, and serves it with MLflow's own command."""
    folder = tmp_path_factory.mktemp("served")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    said: list[str] = []
    tracker = Tracker(store, "shop", "shop-1", folder / "tracking.jsonl", say=said.append)
    tracker.start_study({}, {}, metric="ndcg@10", dimensions=[])
    tracker.trial_started(0, {})
    tracker.champion(small_checkpoint, "shop", trial=0)
    tracker.study_ended()
    assert tracker.close(), said

    def invoke(body: object) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{module_port}/invocations"
        asked = urllib.request.Request(url, json.dumps(body).encode())
        asked.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read())

    words = "models serve -m models:/shop@champion --env-manager local"
    with mlflow_at(module_port, words, MLFLOW_TRACKING_URI=store):
        yield invoke


def test_histories_are_answered_like_in_python(post: Post, recommender: Recommender) -> None:
    histories: list[Any] = [[100, 101, 102], ["119", 7, "x"], [], [105] * 9]
    status, answer = post({"inputs": histories})
    assert status == 200
    expected = recommender.recommend(histories)
    assert [row["items"] for row in answer["predictions"]] == [r.items for r in expected]
    assert [row["note"] for row in answer["predictions"]] == [r.note for r in expected]
    scores = [row["scores"] for row in answer["predictions"]]
    assert scores == [pytest.approx(r.scores, abs=1e-5) for r in expected]
    assert answer["predictions"][1]["note"] == "2 of 3 items are unknown: 7, 'x'"


def test_parameters_say_how_many_and_whether_again(post: Post, recommender: Recommender) -> None:
    asked = {"inputs": [[100]], "params": {"k": 20, "exclude_seen": False}}
    (row,) = post(asked)[1]["predictions"]
    assert sorted(row["items"]) == list(range(100, 120))
    (row,) = post({"inputs": [[100]], "params": {"k": 20}})[1]["predictions"]
    assert sorted(row["items"]) == list(range(101, 120))  # as this model was evaluated


def test_a_mistake_leaves_nothing_behind(post: Post) -> None:
    assert post({"inputs": [[100]], "params": {"top_k": 3}})[0] == 400
    assert [post({"inputs": [[100]], "params": {"k": 2}})[0] for _ in range(8)] == [200] * 8


def test_the_request_on_the_page_is_understood(post: Post) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (body,) = re.findall(r"-d '(.*)'", page)
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    status, answer = post(json.loads(body))
    assert status == 200
    for row, row_shown in zip(answer["predictions"], json.loads(shown)["predictions"], strict=True):
        assert row.keys() == row_shown.keys()
        assert len(row["items"]) == len(row_shown["items"]) == len(row_shown["scores"])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"inputs": [[100]], "params": {"k": 0}}, "k: must be a whole number of at least 1, not 0"),
        ({"inputs": [100]}, "Expected list, but got int"),
        (
            {"inputs": [[100]], "params": {"top_k": 3, "k": 2}},
            "params: there is no 'top_k'; there are: exclude_seen, k",
        ),
        (
            {"inputs": [[100]], "params": {"exclud_seen": True}},
            "params: there is no 'exclud_seen'; did you mean 'exclude_seen'?",
        ),
    ],
)
def test_a_mistake_is_a_sentence(post: Post, body: object, sentence: str) -> None:
    status, answer = post(body)
    assert status == 400
    assert sentence in answer["message"]
