"""A database that is away: what is tried again, what is said, and when a study stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DataError, OperationalError

from seqtune.errors import Halted
from seqtune.study import patient
from seqtune.study.patient import away
from seqtune.study.store import Opened, open_study

GONE = "server closed the connection unexpectedly"


def cut(kind: type[Exception] = OperationalError) -> StorageInternalError:
    """Returns what Optuna raises when a statement has failed."""
    error = StorageInternalError("An exception is raised during the commit. ... exceeding max")
    error.__cause__ = kind("UPDATE trials", {}, Exception(f"{GONE}\n  This probably means"))  # type: ignore[call-arg]
    return error


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(patient, "PAUSES", (0.0, 0.0))
    return []


@pytest.fixture
def opened(said: list[str]) -> Iterator[Opened]:
    found = open_study("sqlite://", "study", said.append)
    yield found
    found.close()


Fail = Callable[..., None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Makes a call of the database fail so many times, before or after it did its work."""

    def on(name: str, times: int, *, done: bool = False, error: Exception | None = None) -> None:
        plain, left = getattr(RDBStorage, name), [times]

        def call(*words: Any, **more: Any) -> Any:
            if not left[0]:
                return plain(*words, **more)
            left[0] -= 1
            if done:
                plain(*words, **more)
            raise error or cut()

        monkeypatch.setattr(RDBStorage, name, call)

    return on


def numbered(opened: Opened) -> list[int]:
    return [trial.number for trial in opened.study.get_trials(deepcopy=False)]


@pytest.mark.parametrize("done", [False, True])
def test_a_trial_whose_making_failed_is_made_once(opened: Opened, fail: Fail, done: bool) -> None:
    opened.study.enqueue_trial({}, user_attrs={"params": 1})
    fail("_create_new_trial", 2, done=done)
    opened.study.enqueue_trial({}, user_attrs={"params": 2})
    assert numbered(opened) == [0, 1]
    assert opened.study.trials[1].user_attrs == {"params": 2}


@pytest.mark.parametrize("done", [False, True])
def test_an_end_that_may_have_been_told_is_told_once(
    opened: Opened, fail: Fail, done: bool
) -> None:
    trial = opened.study.ask()
    fail("set_trial_state_values", 1, done=done)
    opened.study.tell(trial, 0.25)
    assert [(t.state, t.value) for t in opened.study.trials] == [(TrialState.COMPLETE, 0.25)]
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):  # not twice, for all that
        opened.study.tell(trial, 0.5)


def test_values_and_attributes_are_told_again(opened: Opened, fail: Fail, said: list[str]) -> None:
    trial = opened.study.ask()
    fail("set_trial_intermediate_value", 3)
    fail("set_trial_user_attr", 3, done=True)
    trial.report(0.5, step=1)
    trial.set_user_attr("best_epoch", 1)
    stored = opened.study.trials[0]
    assert (stored.intermediate_values, stored.user_attrs) == ({1: 0.5}, {"best_epoch": 1})
    assert said == []  # it was not long


def test_what_lasts_is_said_once_and_so_is_its_end(
    opened: Opened, fail: Fail, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient, "SILENT", -1.0)
    trial = opened.study.ask()
    fail("set_trial_user_attr", 5)
    trial.set_user_attr("x", 1)
    assert said == [
        f"Optuna's database does not answer ({GONE}); the study waits",
        "Optuna's database answers again",
    ]


def test_in_the_end_the_study_stops(opened: Opened, fail: Fail) -> None:
    trial = opened.study.ask()
    fail("set_trial_user_attr", 99)
    opened.storage.patience = 0.0
    with pytest.raises(Halted, match=rf"^Optuna's database has not answered for 0 s \({GONE}\)$"):
        trial.set_user_attr("x", 1)
    assert issubclass(Halted, KeyboardInterrupt)  # it can be resumed, as after Ctrl-C


def test_a_call_that_is_at_fault_itself_is_not_repeated(opened: Opened, fail: Fail) -> None:
    trial = opened.study.ask()
    fail("set_trial_user_attr", 1, error=cut(DataError))
    with pytest.raises(StorageInternalError):
        trial.set_user_attr("x", 1)
    assert away(ValueError("x")) == ""
    assert away(cut()) == GONE


def test_a_full_disk_is_waited_for_too(opened: Opened) -> None:
    cause = OperationalError("x", {}, Exception("database or disk is full"))  # type: ignore[call-arg]
    assert away(cause) == "database or disk is full"


def test_optuna_keeps_its_cache_in_front(opened: Opened) -> None:
    assert isinstance(opened.study._storage, optuna.storages._CachedStorage)
