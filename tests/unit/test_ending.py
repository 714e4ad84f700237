"""When a study has enough."""

from __future__ import annotations

from typing import Any

import pytest

from seqtune.cli.ready import ready
from seqtune.errors import UserError
from seqtune.options import StudyOptions, parse_goal
from seqtune.study.ending import Ending


def ending(**asked: Any) -> Ending:
    return Ending(StudyOptions("sasrec", **asked))


def test_a_study_without_wishes_never_has_enough() -> None:
    one = ending()
    for _ in range(50):
        one.evaluated(0.9)
        one.ended(0, "failed", None, "drawn")
        one.ended(0, "pruned", 0.1, "drawn")
    assert (one.reason, one.enough, one.stop_all()) == ("", "", False)


def test_a_goal_ends_it_at_once() -> None:
    one = ending(goal="ndcg@10=0.06")
    one.evaluated(0.0599)
    assert not one.stop_all()
    one.evaluated(0.0601)
    assert one.stop_all()
    one.evaluated(0.07)  # the reason stays what it was
    assert one.reason == "ndcg@10 0.0601 has reached the goal, 0.06,"
    assert one.enough == ""


def test_patience_counts_trials_since_the_best_one() -> None:
    one = ending(patience_trials=2)
    for status, best in (("complete", 0.1), ("pruned", 0.1), ("failed", None), ("complete", 0.2)):
        one.ended(0, status, best, "drawn")
        assert one.enough == ""
    one.ended(0, "pruned", 0.2, "drawn")
    assert one.enough == ""
    one.ended(0, "pruned", 0.05, "drawn")
    assert one.enough == "2 trials after the best one none was better,"
    assert not one.stop_all()  # what runs comes to its end


def test_failures_are_counted_in_all() -> None:
    one = ending(max_failed=2)
    for status in ("failed", "complete", "failed"):
        assert one.enough == ""
        one.ended(0, status, None if status == "failed" else 0.1, "drawn")
    assert one.reason == "2 trials had failed"


@pytest.mark.parametrize("text", ["ndcg@10", "0.06", "ndcg@10=much", "ndcg@10=nan", "=", ""])
def test_what_is_no_goal(text: str) -> None:
    with pytest.raises(UserError, match="write a metric and its value, as ndcg@10"):
        parse_goal(text)


def test_a_goal_is_of_the_metric_of_the_study() -> None:
    assert parse_goal("hr@5 = 0.2") == ("hr@5", 0.2)
    assert ready(StudyOptions("sasrec", goal="ndcg@10=0.1")).goal == "ndcg@10=0.1"
    with pytest.raises(UserError, match="the study maximises ndcg@10, not hr@5"):
        ready(StudyOptions("sasrec", goal="hr@5=0.1"))
