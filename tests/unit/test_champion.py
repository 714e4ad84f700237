"""When the trials have ended: which one is best, what is tested, and whose weights are served."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from optuna.trial import TrialState, create_trial

from seqtune import checkpoint, state
from seqtune.data import Protocol
from seqtune.data.generate import make_preset
from seqtune.options import StudyOptions
from seqtune.results import TrialRow
from seqtune.space.asked import ask_study
from seqtune.storage import Folder
from seqtune.study import finals, loop
from seqtune.study.plan import Plan, trial_params
from seqtune.study.store import open_study, storage_url

TINY = make_preset("tiny")
SMALL: dict[str, Any] = {"embedding_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 16}
SMALL |= {"epochs": 1}


def row(number: int, value: float | None, status: str = "complete") -> TrialRow:
    return TrialRow(number, status, {}, value, 1, 1.0)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ((row(0, 0.1), row(1, 0.3), row(2, 0.2)), 1),
        ((row(0, 0.3), row(1, 0.3)), 0),  # the first of equals
        ((row(0, 0.1), row(1, 0.9, "failed"), row(2, 0.2, "pruned")), 2),
        ((row(0, 0.1), row(1, 0.5, "unfinished")), 1),
        ((row(0, None, "failed"), row(1, 0.2)), 1),
        ((row(0, 0.0), row(1, None, "failed")), 0),
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
                user_attrs={"params": params},
            )
        )
    opened.close()


def weights_of(plan: Plan, number: int) -> dict[str, torch.Tensor]:
    saved = state.load_state(plan.trial_folder(number))
    assert saved is not None
    return state.best_of(saved)["weights"]


def found_in(plan: Plan, tracker: Ears) -> finals.Finals:
    counting: Any = SimpleNamespace(floors=lambda: (), failed="")
    storage = storage_url(str(plan.folder.local))
    return finals.find_finals(plan, TINY, storage, "study", tracker, counting)  # type: ignore[arg-type]


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
    assert [one.intermediate_values for one in found.study.trials] == [{1: 0.1}, {1: 0.5}]


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
