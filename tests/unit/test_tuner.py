"""What Ray Tune is told of deaths, and what it is kept from passing on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial

from seqtune.study import tuner
from seqtune.study.deaths import NO_MEMORY

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}


def test_a_death_by_the_memory_monitor_is_the_death_of_an_actor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, Exception]] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(("actor", error)))
    task: Any = SimpleNamespace(
        _tracked_actor=actor, _on_error=lambda _, error: told.append(("task", error))
    )
    manager = RayActorManager(SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    killed = OutOfMemoryError("Task was killed\nTop 10 memory users: ...")
    manager._actor_task_failed(tracked_actor_task=task, exception=killed)  # as Ray calls it
    assert [who for who, _ in told] == ["actor", "task"]
    for _, error in told:
        assert isinstance(error, RayActorError)
        assert str(error) == NO_MEMORY
    with pytest.raises(RuntimeError, match="unexpected"):  # any other death is Tune's own affair
        manager._actor_task_failed(tracked_actor_task=task, exception=ValueError("x"))


@pytest.mark.slow
def test_a_process_that_dies_as_it_takes_over_a_trial_is_one_failure(
    tmp_path: Path, ray_local: object
) -> None:
    class Mortal(tune.Trainable):
        """Dies once, when it has ended a trial and is given the next."""

        def step(self) -> dict[str, object]:
            return {"value": self.config["number"], "done": True}

        def reset_config(self, new_config: dict[str, object]) -> bool:
            died = tmp_path / "died"
            if not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

    results = tune.Tuner(
        Mortal,
        param_space={"number": tune.grid_search([0, 1, 2])},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    ).fit()
    assert (tmp_path / "died").exists()
    assert [(one.error, one.metrics and one.metrics["value"]) for one in results] == [
        (None, number) for number in range(3)
    ]


@pytest.mark.parametrize(("why", "counts"), [("its node has died. Node Id: 1", 0), ("it ran", 1)])
def test_a_machine_that_is_lost_is_no_failure_of_its_trial(
    monkeypatch: pytest.MonkeyPatch, why: str, counts: int
) -> None:
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(error))
    task: Any = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager = RayActorManager(SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    lost = RayActorError(error_msg=f"The actor died because {why}")
    manager._actor_task_failed(tracked_actor_task=task, exception=lost)
    trial = Trial("__fake", stub=True)
    trial._handle_ray_actor_error(told[0])  # type: ignore[arg-type]
    assert trial.num_failures == counts


def test_the_keys_are_where_they_are_looked_for() -> None:
    code = "from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE as names; print(names)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(repr(name) in said.stdout for name in KEYS)


@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"])
def test_keys_of_object_stores_stay_out_of_the_runtime_environment_of_trials(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    names = KEYS | {"RAY_CHDIR_TO_TRIAL_DIR"}
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", names)
    tuner.keep_keys_private()
    assert {"RAY_CHDIR_TO_TRIAL_DIR"} == class_cache.ENV_VARS_TO_PROPAGATE


def test_a_trial_that_ended_as_the_study_was_stopped_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Optuna hears of an end before all others, and a signal may come in between."""
    states = ("COMPLETE", "COMPLETE", "PRUNED", "WAITING", "FAIL")
    trials = [
        SimpleNamespace(number=number, state=TrialState[name]) for number, name in enumerate(states)
    ]
    found = SimpleNamespace(study=SimpleNamespace(get_trials=lambda deepcopy: trials))
    told: list[tuple[int, str]] = []
    messenger: Any = SimpleNamespace(
        told={0}, retell=lambda one, rows, replayed: told.append((one.number, rows))
    )
    monkeypatch.setattr(tuner, "curve", lambda plan, one: (f"rows of {one.number}", ""))
    searcher: Any = SimpleNamespace(
        open=lambda: found, close=lambda rest: told.append((-1, f"rest {rest}"))
    )
    for lost in (False, True):
        tuner._leave(searcher, messenger, SimpleNamespace(), lost=lost)  # type: ignore[arg-type]
    assert told == [(1, "rows of 1"), (2, "rows of 2"), (-1, "rest True"), (-1, "rest False")]
