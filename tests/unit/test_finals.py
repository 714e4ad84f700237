"""When the trials have ended: who is best, whose weights are served, what is known of the rest."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import ray
import torch
from optuna.trial import TrialState, create_trial
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from seqtune import checkpoint, state
from seqtune.data import Dataset, Protocol
from seqtune.data.generate import make_preset
from seqtune.errors import Halted
from seqtune.floors import floors
from seqtune.limits import Judge
from seqtune.options import StudyOptions
from seqtune.results import Finalist, TrialRow
from seqtune.space.asked import ask_study
from seqtune.storage import Folder
from seqtune.study import counting, finals, loop
from seqtune.study.counting import Counting
from seqtune.study.importance import Importances
from seqtune.study.plan import Plan, trial_params
from seqtune.study.store import open_study, storage_url
from seqtune.survey import survey

TINY = make_preset("tiny")
SMALL: dict[str, Any] = {"embedding_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 16}
SMALL |= {"epochs": 1}


def row(number: int, value: float | None, status: str = "complete") -> TrialRow:
    return TrialRow(number, "sasrec", status, {}, value, 1, 1.0)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ((row(0, 0.1), row(1, 0.3), row(2, 0.2)), 1),
        ((row(0, 0.3), row(1, 0.3)), 0),  # the first of equals
        ((row(0, 0.1), row(1, 0.9, "failed"), row(2, 0.2, "pruned")), 2),
        ((row(0, 0.1), row(1, 0.5, "unfinished")), 1),
        ((row(0, None, "failed"), row(1, 0.2)), 1),
        ((row(0, 0.0), row(1, None, "failed")), 0),
        ((row(0, 0.0), row(1, 0.2)), 1),
        ((row(0, None, "failed"), row(1, 0.9, "failed")), None),
        ((), None),
    ],
)
def test_the_best_trial_is_the_first_with_the_largest_value_that_did_not_fail(
    rows: tuple[TrialRow, ...], best: int | None
) -> None:
    found = finals.best_trial(rows)
    assert (found.number if found else None) == best


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Runs Ray's tasks where they are asked for; returns the resources that they asked for."""
    asked: list[dict[str, Any]] = []

    def remote(**resources: Any) -> Any:
        asked.append(resources)
        return lambda function: SimpleNamespace(remote=function)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda one: one)
    return asked


class Ears:
    """A tracker that remembers which trials ended how."""

    def __init__(self) -> None:
        self.ended: list[tuple[Any, ...]] = []

    def upload(self, *_: Any, **__: Any) -> None: ...

    def trial_ended(self, number: int, status: str, best: Any, reason: str | None) -> None:
        self.ended.append((number, status, best))


def a_study(plan: Plan, ends: dict[int, tuple[TrialState, float]]) -> None:
    """Trains trials of other seeds, and stores how they ended."""
    opened = open_study(storage_url(str(plan.folder.local)), "study")
    for number, (end, value) in ends.items():
        params = SMALL | {"seed": number, "learning_rate": 0.001 * (number + 1)}
        built = trial_params("sasrec", params)
        loop.train_here(plan, built, plan.trial_folder(number), TINY, lambda row: None)
        opened.study.add_trial(
            create_trial(
                state=end,
                value=value if end == TrialState.COMPLETE else None,
                intermediate_values={1: value},
                user_attrs={"model": "sasrec", "params": params, "origin": "drawn"},
            )
        )
    opened.close()


def weights_of(plan: Plan, number: int) -> dict[str, torch.Tensor]:
    saved = state.load_state(plan.trial_folder(number))
    assert saved is not None
    return state.best_of(saved)["weights"]


def found_in(plan: Plan, tracker: Ears) -> finals.Finals:
    counting: Any = SimpleNamespace(floors=lambda: (), remarks=lambda: (), failed="")
    storage = storage_url(str(plan.folder.local))
    return finals.find_finals(plan, TINY, storage, "study", tracker, counting, Judge())  # type: ignore[arg-type]


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_champion_has_the_weights_of_the_best_trial(
    here: list[dict[str, Any]], tmp_path: Path, best: int
) -> None:
    plan = Plan("sasrec", "ndcg@10", Protocol.of(TINY), Folder.at(tmp_path), cpus=2)
    ends = {n: (TrialState.COMPLETE, 0.9 if n == best else 0.1) for n in range(3)}
    a_study(plan, ends)
    found = found_in(plan, Ears())
    assert found.finalists.keys() == {0, best}
    assert found.best is not None
    assert found.best.number == best
    champion = checkpoint.load(plan.folder / "champion")
    served, own = champion.model.state_dict(), weights_of(plan, best)
    assert all(torch.equal(served[name], own[name]) for name in own)
    assert champion.meta["trial"] == best
    assert champion.model.params.seed == best
    assert here == [{"num_cpus": 2, "num_gpus": 0, "max_retries": 2}]


@pytest.mark.parametrize("lost", ["torn", "missing"])
def test_weights_that_are_lost_are_trained_again(
    here: list[dict[str, Any]], tmp_path: Path, lost: str
) -> None:
    plan = Plan("sasrec", "ndcg@10", Protocol.of(TINY), Folder.at(tmp_path))
    a_study(plan, {0: (TrialState.COMPLETE, 0.1), 1: (TrialState.COMPLETE, 0.5)})
    whole, path = weights_of(plan, 1), tmp_path / "trials" / "0001" / "state.pt"
    if lost == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    found = found_in(plan, Ears())
    served = checkpoint.load(plan.folder / "champion").model.state_dict()
    assert all(torch.equal(served[name], whole[name]) for name in whole)
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"trial 1: {path} is {lost}")
    assert found.notes[0].endswith("its best weights have been trained again")
    assert (tmp_path / "trials" / "0001.aside-1").is_dir()


def test_what_had_not_ended_is_told_and_may_be_the_best(
    here: list[dict[str, Any]], tmp_path: Path
) -> None:
    plan = Plan("sasrec", "ndcg@10", Protocol.of(TINY), Folder.at(tmp_path))
    a_study(plan, {0: (TrialState.COMPLETE, 0.1), 1: (TrialState.WAITING, 0.5)})
    tracker = Ears()
    found = found_in(plan, tracker)
    assert [one.status for one in found.rows] == ["complete", "unfinished"]
    assert tracker.ended == [(1, "unfinished", {"ndcg@10": 0.5, "epoch": 1})]
    assert found.best is not None
    assert found.best.number == 1
    assert [trial.intermediate_values for trial in found.study.trials] == [{1: 0.1}, {1: 0.5}]


def test_the_result_sets_the_best_beside_the_defaults(
    here: list[dict[str, Any]], tmp_path: Path
) -> None:
    plan = Plan("sasrec", "ndcg@10", Protocol.of(TINY), Folder.at(tmp_path))
    a_study(plan, {0: (TrialState.COMPLETE, 0.1), 1: (TrialState.COMPLETE, 0.5)})
    given = {"valid_users": 20, "mask_seen": True, "seed": 4, "workers_per_trial": 1, "trials": 9}
    asked = ask_study(StudyOptions("sasrec", "tiny", storage=str(tmp_path), **given))
    result = finals.make_result(asked, TINY, plan, time.monotonic(), found_in(plan, Ears()))
    assert result.default is not None
    assert result.best is not None
    assert (result.default.number, result.best.number) == (0, 1)
    assert (result.model, result.data_name, result.metric) == ("sasrec", "tiny", "ndcg@10")
    assert result.protocol == plan.protocol.sentence(TINY)
    assert result.checkpoint == str(tmp_path / "champion")
    command = result.train_command
    assert command.startswith("seqtune train --model sasrec --data tiny ")
    for words in ("--valid-users 20", "--mask-seen", "--seed 4", "--set learning_rate=0.002"):
        assert words in command
    assert "--trials" not in command


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan("sasrec", "ndcg@7", Protocol(mask_seen=True), Folder.at(str(tmp_path)))


def result_of(rows: tuple[TrialRow, ...], plan: Plan, **asked: Any) -> Any:
    options = StudyOptions(model="sasrec", data="tiny", metric="ndcg@7", name="it", trials=6)
    study = replace(ask_study(options), **asked)
    tested = {
        one.number: Finalist(
            one.number, "sasrec", {}, {"ndcg@7": one.value or 0}, {}, np.ones(3, np.float32)
        )
        for one in (rows[0], finals.best_trial(rows))
        if one is not None and one.value is not None
    }
    found = Importances((), "It is too early.")
    best = finals.best_trial(rows)
    said, chosen = ("something went wrong",), {"sasrec": best} if best else {}
    ended = finals.Finals(rows, optuna.create_study(), found, tested, (), said, chosen)
    return finals.make_result(study, TINY, plan, time.monotonic() - 50, ended)


def test_a_study_that_time_cut_short(plan: Plan) -> None:
    rows = (row(0, 0.1), row(1, 0.2), row(2, 0.3, "unfinished"), row(3, None, "unfinished"))
    result = result_of(rows, plan)
    assert result.planned == 6
    assert result.notes == (
        "something went wrong",
        "time was up when 2 of 6 trials had ended; --resume goes on with the others",
    )
    assert result.best.number == 2
    assert result.unimportant == "It is too early."
    # Nothing ran when time was up.
    result = result_of(rows[:2], plan, time_budget=40.0)
    assert result.planned == 6
    assert "2 of 6 trials had ended" in result.notes[1]


def test_a_study_that_has_ended(plan: Plan) -> None:
    rows = tuple(row(number, 0.1 * number) for number in range(6))
    result = result_of(rows, plan, time_budget=40.0)
    assert result.planned == 6
    assert result.notes == ("something went wrong",)
    assert result.protocol == plan.protocol.sentence(TINY)
    # A space with four points has four trials.
    result = result_of(rows[:4], plan, time_budget=60.0)
    assert result.planned == 4
    assert result.notes == ("something went wrong",)


def test_pictures_show_whatever_reached_a_value() -> None:
    study = optuna.create_study(direction="maximize")
    for end, values in (
        (TrialState.PRUNED, {1: 0.1, 2: 0.3, 3: 0.2}),
        (TrialState.FAIL, {}),
        (TrialState.WAITING, {1: 0.4}),
    ):
        one = {"x": optuna.distributions.FloatDistribution(0, 1)}
        study.add_trial(
            create_trial(
                state=end,
                params={"x": 0.5},
                distributions=one,
                intermediate_values=values,
                user_attrs={"model": "sasrec"},
            )
        )
    shown = finals._shown(study).trials
    assert [trial.state.is_finished() for trial in shown] == [True] * 3
    assert [trial.values for trial in shown] == [[0.3], None, [0.4]]
    assert [trial.params for trial in shown] == [{"x": 0.5}] * 3
    assert shown[0].intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2}


@pytest.mark.parametrize("error", [OutOfMemoryError("no"), WorkerCrashedError()])
def test_a_test_that_the_machine_had_no_memory_for_is_made_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    slept: list[float] = []

    def get(job: Any) -> Any:
        if isinstance(job, Exception):
            raise job
        return job

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(time, "sleep", slept.append)
    jobs: Any = iter([error, error, "FINALIST"])
    assert finals._outcome(error, lambda: next(jobs)) == "FINALIST"
    assert slept == list(finals.PAUSES[:3])
    with pytest.raises(Halted, match="evaluation on test did not come to its end: "):
        finals._outcome(error, lambda: error)
    with pytest.raises(ValueError, match="our own"):
        finals._outcome(ValueError("our own"), lambda: pytest.fail("tried again"))


@pytest.mark.usefixtures("ray_local")
def test_the_floors_are_counted_beside_the_trials(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = floors(plan.protocol.split(TINY), mask_seen=True, metric="ndcg@7")
    counted = Counting(plan, ray.put(TINY))
    found, remarks = counted.floors(), counted.remarks()
    assert counted.done()
    known = survey(TINY, plan.protocol, "ndcg@7")
    assert remarks == tuple(known.remarks())
    assert any("later than the first test target" in remark for remark in remarks)
    assert counted.failed == ""
    assert [floor.name for floor in found] == [floor.name for floor in direct]
    assert [floor.test for floor in found] == [floor.test for floor in direct]
    assert "ndcg@7" in found[0].valid
    # The same where only what is seen is ranked differently: the study's protocol decides.
    ranked = Counting(replace(plan, protocol=Protocol(mask_seen=False)), ray.put(TINY)).floors()
    assert ranked[0].test != found[0].test

    def broken(plan: Plan, data: Dataset) -> None:
        time.sleep(2)
        raise MemoryError("too many items")

    monkeypatch.setattr(counting, "count", broken)
    counted = Counting(plan, ray.put(TINY))
    assert not counted.done()  # and it does not wait
    assert counted.floors() == ()
    assert "too many items" in counted.failed
    assert counted.remarks() == ()
