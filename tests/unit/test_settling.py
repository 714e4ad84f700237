"""When further trials would add nothing that counts."""

from __future__ import annotations

import numpy as np
import pytest

from seqtune.options import StudyOptions
from seqtune.study.ending import Ending
from seqtune.study.settling import DRAWN, FEWEST, Settling, still_to_gain


@pytest.mark.parametrize(("n", "rel"), [(10, 0.5), (40, 0.35), (100, 0.25)])
def test_the_gain_is_that_of_further_draws(n: int, rel: float) -> None:
    rng = np.random.default_rng(0)
    told, true = [], []
    for _ in range(3000):
        values = rng.exponential(1.0, n + 10)
        told.append(still_to_gain(values[:n].tolist(), values[:n].max(), 1) * 10)
        true.append(np.maximum(values[n:] - values[:n].max(), 0).sum())
    assert np.mean(told) == pytest.approx(np.mean(true), rel=rel)


def test_start_points_far_above_what_is_drawn_leave_nothing_to_gain() -> None:
    drawn = [0.1, 0.2, 0.15, 0.12, 0.18]
    assert still_to_gain(drawn, 0.2, 10) > 0.04
    assert still_to_gain(drawn, 0.9, 10) < 1e-6
    assert still_to_gain([0.1, 0.1, 0.1], 0.1, 10) == 0
    assert still_to_gain([0.1], 0.1, 10) == np.inf


def settle(values: list[float | None], error: float | None, most: int = 50, first: int = 1) -> str:
    settling = Settling(most, "ndcg@10", lambda one, other: error)
    said = [
        settling.ended(number, value, drawn=number >= first) for number, value in enumerate(values)
    ]
    assert not any(said[:-1])
    return said[-1]


def test_a_study_settles_when_the_gain_is_below_the_error() -> None:
    flat: list[float | None] = [0.1, 0.3, 0.25, 0.2, 0.22, 0.18, 0.15, 0.12]
    said = settle(flat, 10.0)
    assert said.startswith("the study has settled after 8 trials: 10 more would add 0.")
    assert said.endswith("the error of the difference between the two best (10.0000)")
    assert settle(flat, 1e-6) == ""
    assert settle(flat, None) == ""  # whose ranks are lost


def test_nothing_is_settled_by_a_few_trials() -> None:
    assert settle([0.1] * (FEWEST - 1), 9.0) == ""
    assert settle([0.1, *[None] * 9], 9.0) == ""
    assert settle([0.1] * FEWEST, 9.0, first=FEWEST - DRAWN + 1) == ""
    assert settle([0.1, 0.2] * 4, 9.0, most=8) == ""  # it has come to its end anyway


def test_it_compares_the_two_best() -> None:
    seen: list[tuple[int, int]] = []

    def error(one: int, other: int) -> float:
        seen.append((one, other))
        return 9.0

    settling = Settling(50, "ndcg@10", error)
    for number, value in enumerate([0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.1, 0.1]):
        settling.ended(number, value, drawn=number > 0)
    assert seen == [(1, 4)]


def test_no_other_trial_begins_in_a_study_that_has_settled() -> None:
    options = StudyOptions("sasrec")
    ending = Ending(options, Settling(50, "ndcg@10", lambda one, other: 9.0))
    for number in range(FEWEST):
        ending.ended(number, "complete", 0.1 + 0.01 * number, "drawn" if number else "default")
    assert ending.enough == ending.settled != ""
    assert ending.reason == ""  # it has come to its end
    assert not ending.stop_all()


@pytest.mark.parametrize(
    ("asked", "settles", "most"),
    [
        ({}, True, 50),
        ({"trials": 20}, False, 20),
        ({"trials": 20, "until": "settled"}, True, 20),
        ({"until": "trials"}, False, 50),
        ({"model": "sasrec,gru4rec"}, False, 50),
        ({"also": ("coverage@10",)}, False, 50),
    ],
)
def test_who_settles(asked: dict[str, object], settles: bool, most: int) -> None:
    options = StudyOptions(**({"model": "sasrec"} | asked))  # type: ignore[arg-type]
    assert (options.settles, options.most) == (settles, most)
