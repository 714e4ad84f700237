"""Optuna's database, waited for while it is away or has no room."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from seqtune.errors import Halted

PAUSES = (0.2, 5.0)  # seconds between two tries: first, longest
SILENT = 30.0  # seconds that are not worth a word
PATIENCE = 1800.0  # seconds after which the study stops, to be resumed
LAST = 5.0  # seconds, where the study is about to end anyway


class PatientStorage(RDBStorage):
    """A database whose calls are tried again while it is away; they may all be repeated.

    It is patient from the moment that somebody gives it a ``say``, which gets one line when the
    database has been away for long, and one when it is back. Raises Halted after ``patience``
    seconds.
    """

    say: Callable[[str], None] | None = None
    patience = PATIENCE

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        create, tries = super()._create_new_trial, 0

        def once() -> FrozenTrial:
            nonlocal tries
            tries += 1
            if tries > 1 and template_trial is not None:
                # The answer that was lost may be that the trial is there: nobody else makes one.
                stored = self.get_all_trials(study_id, deepcopy=False)
                if stored and stored[-1].user_attrs == template_trial.user_attrs:
                    return stored[-1]
            return create(study_id, template_trial)

        found: FrozenTrial = self.patiently(once)
        return found

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Sets how a trial is; where an answer was lost, it may be so already."""
        set_it, tries = super().set_trial_state_values, 0

        def once() -> bool:
            nonlocal tries
            tries += 1
            try:
                return set_it(trial_id, state, values)
            except UpdateFinishedTrialError:
                if tries > 1 and self.get_trial(trial_id).state == state:
                    return True
                raise

        changed: bool = self.patiently(once)
        return changed

    def patiently(self, call: Callable[..., Any], *words: Any, **more: Any) -> Any:
        """Makes a call again while the database is away."""
        began, pause, told = time.monotonic(), PAUSES[0], False
        while True:
            try:
                found = call(*words, **more)
            except Exception as error:
                reason = away(error)
                if self.say is None or not reason:
                    raise
                waited = time.monotonic() - began
                if waited > self.patience:
                    raise Halted(
                        f"Optuna's database has not answered for {waited:.0f} s ({reason})"
                    ) from error
                if waited > SILENT and not told:
                    self.say(f"Optuna's database does not answer ({reason}); the study waits")
                    told = True
                time.sleep(pause)
                pause = min(2 * pause, PAUSES[1])
            else:
                if told and self.say is not None:
                    self.say("Optuna's database answers again")
                return found


def away(error: BaseException) -> str:
    """Says why trying again may help; empty where the call itself is at fault."""
    from sqlalchemy.exc import InterfaceError, InternalError, OperationalError

    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, OperationalError | InterfaceError | InternalError):
        return ""
    return str(cause.orig or cause).strip().splitlines()[0][:120]


def _patient(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(RDBStorage, name))
    def call(self: PatientStorage, *words: Any, **more: Any) -> Any:
        return self.patiently(getattr(super(PatientStorage, self), name), *words, **more)

    return call


for _name in (  # what Optuna's cache asks of a database, beside the two above
    *("create_new_study", "get_all_studies", "get_study_directions", "get_study_id_from_name"),
    *("get_study_name_from_id", "get_study_system_attrs", "get_study_user_attrs", "get_trial"),
    *("get_trial_id_from_study_id_trial_number", "set_study_system_attr", "set_study_user_attr"),
    *("set_trial_intermediate_value", "set_trial_system_attr", "set_trial_user_attr"),
    *("_get_best_trial_id", "_get_trials", "_set_trial_param"),
):
    setattr(PatientStorage, _name, _patient(_name))
