"""Trials that begin where others have stopped: who goes on, from whom, and with what."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from seqtune.cli.ready import ready
from seqtune.errors import UserError
from seqtune.options import StudyOptions
from seqtune.space import Space, load_space
from seqtune.study.heirs import Population, Stopped
from seqtune.study.samplers import CONTINUED, DRAWN, EVOLVED

SPACE = """
model: sasrec
space:
  embedding_size: {choice: [16, 32, 64]}
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
"""


@pytest.fixture
def space(tmp_path: Path) -> Space:
    file = tmp_path / "sasrec.yaml"
    file.write_text(SPACE)
    return load_space(file, "sasrec")


def trial(number: int, value: float | None, state: str = "PRUNED", **about: Any) -> FrozenTrial:
    attributes = {"model": "sasrec", "origin": DRAWN} | about
    attributes["params"] = {"embedding_size": 16, "learning_rate": 0.001 * (number + 1)}
    stored = create_trial(
        state=TrialState[state],
        value=value if state == "COMPLETE" else None,
        params={"learning_rate": 0.001 * (number + 1)},
        distributions={"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)},
        intermediate_values={} if value is None else {1: value},
        user_attrs=attributes,
    )
    stored.number = number
    return stored


# Those that go on


def test_the_best_of_those_that_were_stopped_goes_on_and_once() -> None:
    stopped = Stopped()
    for n, value in enumerate([0.1, 0.3, 0.2]):
        stopped.ended(trial(n, value))
    found = stopped.best()
    assert found is not None
    model, draft = found
    assert (model, draft.parent, draft.origin) == ("sasrec", 1, CONTINUED)
    assert draft.values == {"embedding_size": 16, "learning_rate": 0.002}
    stopped.goes_on(1)
    stopped.ended(trial(5, 0.9, origin=CONTINUED, parent=1))
    again = stopped.best()
    assert again is not None
    assert again[1].parent == 2


@pytest.mark.parametrize(
    "ended",
    [
        trial(1, 0.9, "COMPLETE"),
        trial(1, 0.9, "FAIL"),
        trial(1, None),
        trial(1, 0.9, over="parameters 9 > 8"),
        trial(1, 0.9, origin=EVOLVED, parent=0),
    ],
)
def test_nobody_else_goes_on(ended: FrozenTrial) -> None:
    stopped = Stopped()
    stopped.ended(ended)
    assert stopped.best() is None


# A population


def members(space: Space, *values: float | None, trials: int = 50) -> Population:
    population = Population(space, trials, seed=3)
    for n, value in enumerate(values):
        population.ended(trial(n, value, "PRUNED" if value is not None else "FAIL"))
    return population


def test_a_fifth_of_the_trials_is_a_generation(space: Space) -> None:
    assert [Population(space, n, 0).size for n in (50, 12, 10, 6)] == [10, 3, 2, 2]


def test_a_member_goes_on_from_itself_with_what_it_has(space: Space) -> None:
    draft = members(space, 0.1, 0.5, 0.4, 0.3, 0.2).next(7)
    assert draft is not None
    assert draft.follows == 0  # the worst: it takes over
    population = members(space, 0.2, 0.5, 0.4, 0.3, 0.1)
    draft = population.next(5)
    assert draft is not None
    assert (draft.parent, draft.follows, draft.origin) == (0, 0, EVOLVED)
    assert draft.values == {"embedding_size": 16, "learning_rate": 0.001}


def test_the_worst_takes_over_from_the_best_and_changes_real_numbers_alone(space: Space) -> None:
    found = set()
    for seed in range(20):
        population = Population(space, 50, seed)
        for n, value in enumerate([0.2, 0.5, 0.4, 0.3, 0.1]):
            population.ended(trial(n, value))
        for n in range(4):
            population.begun(n)
        draft = population.next(9)
        assert draft is not None
        assert (draft.parent, draft.follows) == (1, 4)
        assert draft.values["embedding_size"] == 16
        found.add(round(draft.values["learning_rate"], 10))
        assert draft.params["learning_rate"] == draft.values["learning_rate"]
    assert found == {0.0016, 0.0024}


def test_changed_numbers_stay_within_the_space(space: Space) -> None:
    population = Population(space, 50, 0)
    population.ended(trial(8, None, "FAIL"))
    population.ended(trial(9, 0.5))  # .01, the highest
    draft = population.next(10)
    assert draft is not None
    assert draft.values["learning_rate"] in (0.008, 0.01)


def test_one_that_has_ended_by_itself_has_nothing_to_go_on_with(space: Space) -> None:
    population = Population(space, 50, 3)
    population.ended(trial(0, 0.5, "COMPLETE"))
    assert population.next(10) is None
    assert population.runs(2)
    assert not population.runs(1)
    population.ended(trial(1, 0.4))
    draft = population.next(10)
    assert draft is not None
    assert (draft.parent, draft.follows) == (1, 0)
    assert draft.values["learning_rate"] != 0.002


def test_a_member_that_failed_takes_over_from_a_good_one(space: Space) -> None:
    population = members(space, 0.5, None, 0.4)
    population.begun(0)
    draft = population.next(10)
    assert draft is not None
    assert (draft.parent, draft.follows) == (0, 1)


def test_nobody_takes_over_from_one_beyond_a_limit(space: Space) -> None:
    population = members(space, 0.1, 0.2)
    population.ended(trial(2, 0.9, over="parameters 9 > 8"))
    population.begun(0)
    population.begun(1)
    draft = population.next(10)
    assert draft is not None
    assert (draft.parent, draft.follows) == (1, 2)


def test_the_newest_of_each_member_are_compared(space: Space) -> None:
    population = members(space, 0.9, 0.2, 0.3, 0.4)
    population.begun(0)
    population.ended(trial(4, 0.1, parent=0, follows=0, origin=EVOLVED))
    for n in (1, 2, 3):
        population.begun(n)
    draft = population.next(10)
    assert draft is not None
    assert (draft.parent, draft.follows) == (3, 4)  # and not trial 0, which is followed


def test_while_nobody_has_ended_nobody_goes_on(space: Space) -> None:
    population = Population(space, 50, 0)
    assert population.next(10) is None
    population.ended(trial(0, None, "FAIL"))
    assert population.next(10) is None
    population.ended(trial(1, math.nan, "FAIL"))
    assert population.next(10) is None
    population.ended(trial(2, 0.1))
    draft = population.next(10)
    assert draft is not None
    assert (draft.parent, draft.follows) == (2, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "sasrec,gru4rec"}, "takes over weights; give one --model alone"),
        ({"model": "stan"}, "takes over weights; give one --model alone, that is trained"),
        ({"also": ("coverage@10",)}, "leave a second --metric out"),
        ({"seeds": 3}, "with one seed; leave --seeds 3 out"),
        ({"refit": "all"}, "leave --refit all out"),
        ({"trials": 9}, "--trials 9: a population needs 10 trials or more, in 5 generations"),
    ],
)
def test_what_cannot_be_a_population(options: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {"model": "sasrec", "data": "tiny", "scheduler": "pbt"} | options
    with pytest.raises(UserError, match=re.escape(said)):
        ready(StudyOptions(**asked))


def test_a_population_runs_all_its_trials_and_keeps_their_weights() -> None:
    asked = StudyOptions("sasrec", data="tiny", scheduler="pbt", trials=30)
    assert asked.evolves
    assert asked.kept == 30
    assert not replace(asked, trials=None).settles
    assert ready(asked) == asked
