"""A study of several models, whose driver is killed and which goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MODELS = "sasrec,stan,gru4rec"
ASKED = [
    "--trials",
    "9",
    "--name",
    "many",
    "--set",
    "epochs=6",
    "--set",
    "embedding_size=16",
    "--concurrency",
    "1",
]


def ended(study: Path) -> dict[int, dict[str, Any]]:
    """The records of trials that have ended, by number."""
    found = [json.loads(one.read_text()) for one in sorted(study.glob("trials/*/trial.json"))]
    return {one["number"]: one for one in found if one["state"] in ("COMPLETE", "PRUNED")}


def test_it_goes_on_after_its_driver_was_killed_and_ends_with_a_leaderboard(
    tmp_path: Path, tune: Callable[..., Any]
) -> None:
    place, study = ["--storage", str(tmp_path)], tmp_path / "many"
    driver = tune(*ASKED, *place, model=MODELS)
    driver.until(lambda: len(ended(study)) >= 4)
    driver.signal(signal.SIGKILL)
    driver.process.wait()
    before = ended(study)
    again = tune(*ASKED, *place, "--resume", model=MODELS).ends()
    after = ended(study)
    assert before.items() <= after.items()  # what had ended is as it was
    assert sorted(after) == list(range(9))
    models = [after[number]["attributes"]["model"] for number in range(9)]
    assert models[:3] == MODELS.split(",")  # the defaults of each come first

    assert "Leaderboard" in again.out
    report = json.loads((study / "report" / "report.json").read_text())
    best = [one["best"] for one in report["contenders"]]
    reached = [one["valid"]["ndcg@10"] for one in best]
    assert len(best) == 3
    assert reached == sorted(reached, reverse=True)
    assert report["best"]["number"] == best[0]["number"]
    assert [one["model"] for one in report["standings"]] == [one["model"] for one in best[1:]]
    for place_of, one in {"champion": best[0], **{f"best/{o['model']}": o for o in best}}.items():
        card = json.loads((study / place_of / "model.json").read_text())
        assert card["model"] == one["model"]
        assert card["meta"]["trial"] == one["number"]
        assert one["request_ms"] > 0
