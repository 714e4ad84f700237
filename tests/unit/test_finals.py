"""The end of a study without one: who is best, what is known of the rest, what counting reaches."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import ray
from optuna.trial import TrialState, create_trial

from seqtune.data import Dataset, Protocol
from seqtune.data.generate import make_preset
from seqtune.floors import floors
from seqtune.options import StudyOptions
from seqtune.results import Finalist, TrialRow
from seqtune.space.asked import ask_study
from seqtune.storage import Folder
from seqtune.study import counting
from seqtune.study.counting import Counting
from seqtune.study.finals import Finals, _shown, best_trial, make_result
from seqtune.study.importance import Importances
from seqtune.study.plan import Plan


def row(number: int, value: float | None, status: str = "complete") -> TrialRow:
    return TrialRow(number, status, {}, value, 1, None if status == "unfinished" else 2.0)


@pytest.fixture(scope="module")
def tiny() -> Dataset:
    return make_preset("tiny")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan("sasrec", "ndcg@7", Protocol(mask_seen=True), Folder.at(str(tmp_path)))


def result_of(rows: tuple[TrialRow, ...], plan: Plan, data: Dataset, **asked: Any) -> Any:
    options = StudyOptions(model="sasrec", data="tiny", metric="ndcg@7", name="it", trials=6)
    study = replace(ask_study(options), **asked)
    tested = {
        one.number: Finalist(one.number, {}, {"ndcg@7": one.value or 0}, {}, np.ones(3, np.float32))
        for one in (rows[0], best_trial(rows))
        if one is not None and one.value is not None
    }
    found = Importances((), "It is too early.")
    finals = Finals(rows, optuna.create_study(), found, tested, (), ("something went wrong",))
    return make_result(study, data, plan, time.monotonic() - 50, finals)


def test_a_failed_trial_never_wins_and_the_first_of_equals_does() -> None:
    rows = (row(0, 0.1), row(1, 0.9, "failed"), row(2, 0.3, "pruned"), row(3, 0.3), row(4, None))
    best = best_trial(rows)
    assert best is not None
    assert best.number == 2
    assert best_trial((row(0, None, "failed"), row(1, 0.9, "failed"))) is None


def test_a_study_that_time_cut_short(plan: Plan, tiny: Dataset) -> None:
    rows = (row(0, 0.1), row(1, 0.2), row(2, 0.3, "unfinished"), row(3, None, "unfinished"))
    result = result_of(rows, plan, tiny)
    assert result.planned == 6
    assert result.notes == (
        "something went wrong",
        "time was up when 2 of 6 trials had ended; --resume goes on with the others",
    )
    assert result.best.number == 2
    assert result.unimportant == "It is too early."
    # Nothing ran when time was up.
    result = result_of(rows[:2], plan, tiny, time_budget=40.0)
    assert result.planned == 6
    assert "2 of 6 trials had ended" in result.notes[1]


def test_a_study_that_has_ended(plan: Plan, tiny: Dataset) -> None:
    rows = tuple(row(number, 0.1 * number) for number in range(6))
    result = result_of(rows, plan, tiny, time_budget=40.0)
    assert result.planned == 6
    assert result.notes == ("something went wrong",)
    assert result.protocol == plan.protocol.sentence(tiny)
    # A space with four points has four trials.
    result = result_of(rows[:4], plan, tiny, time_budget=60.0)
    assert result.planned == 4
    assert result.notes == ("something went wrong",)


def test_pictures_show_whatever_reached_a_value() -> None:
    study = optuna.create_study(direction="maximize")
    for state, values in (
        (TrialState.PRUNED, {1: 0.1, 2: 0.3, 3: 0.2}),
        (TrialState.FAIL, {}),
        (TrialState.WAITING, {1: 0.4}),
    ):
        one = {"x": optuna.distributions.FloatDistribution(0, 1)}
        study.add_trial(
            create_trial(
                state=state, params={"x": 0.5}, distributions=one, intermediate_values=values
            )
        )
    shown = _shown(study).trials
    assert [trial.state.is_finished() for trial in shown] == [True] * 3
    assert [trial.values for trial in shown] == [[0.3], None, [0.4]]
    assert [trial.params for trial in shown] == [{"x": 0.5}] * 3
    assert shown[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2}


@pytest.mark.usefixtures("ray_local")
def test_the_floors_are_counted_beside_the_trials(
    plan: Plan, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = floors(plan.protocol.split(tiny), mask_seen=True, metric="ndcg@7")
    counted = Counting(plan, ray.put(tiny))
    found = counted.floors()
    assert counted.done()
    assert counted.failed == ""
    assert [floor.name for floor in found] == [floor.name for floor in direct]
    assert [floor.test for floor in found] == [floor.test for floor in direct]
    assert "ndcg@7" in found[0].valid
    # The same where only what is seen is ranked differently: the study's protocol decides.
    ranked = Counting(replace(plan, protocol=Protocol(mask_seen=False)), ray.put(tiny)).floors()
    assert ranked[0].test != found[0].test

    def broken(plan: Plan, data: Dataset) -> None:
        raise MemoryError("too many items")

    monkeypatch.setattr(counting, "count", broken)
    counted = Counting(plan, ray.put(tiny))
    assert counted.floors() == ()
    assert "too many items" in counted.failed
