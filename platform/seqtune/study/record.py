"""What a trial's folder says of the trial: ``trial.json``, from which study.db can be made anew.

It is written when a trial is made and when it has ended, and holds what Optuna holds of it.
"""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, Trial, TrialState
from typing_extensions import TypedDict

from seqtune.errors import DamagedError
from seqtune.options import RESULTS
from seqtune.schema import FORMAT, checked
from seqtune.storage import Folder

NAME = "trial.json"


class _Record(TypedDict):
    format: int
    owner: str  # the study's id
    number: int
    state: str
    value: float | None
    sampled: dict[str, Any]  # what Optuna drew
    distributions: dict[str, str]
    attributes: dict[str, Any]  # params, and how it ended
    constraints: dict[str, float]  # limit -> by how much it is exceeded
    reported: dict[str, float]  # epoch -> value
    start: str | None
    complete: str | None


def keep(folder: Folder, owner: str, trial: FrozenTrial) -> None:
    """Writes a trial into its folder."""
    record = _Record(
        format=FORMAT,
        owner=owner,
        number=trial.number,
        state=trial.state.name,
        value=trial.value,
        sampled=trial.params,
        distributions={n: distribution_to_json(one) for n, one in trial.distributions.items()},
        attributes=trial.user_attrs,
        constraints=trial.constraints,
        reported={str(epoch): value for epoch, value in trial.intermediate_values.items()},
        start=trial.datetime_start.isoformat() if trial.datetime_start else None,
        complete=trial.datetime_complete.isoformat() if trial.datetime_complete else None,
    )
    folder.write(NAME, json.dumps(record).encode())


def read(folder: Folder, owner: str = "") -> FrozenTrial | None:
    """Reads a trial; None where its folder has no record. One that had not ended waits.

    Raises:
        DamagedError: the record is torn, or of another study.
    """
    content = folder.read(NAME)
    if content is None:
        return None
    place = f"{folder / NAME}"
    record: _Record = checked(place, _Record, content)
    if owner and record["owner"] != owner:
        raise DamagedError(f"{place} belongs to another study")
    try:
        return _trial(record)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{place} is damaged: {str(error)[:120]}") from None


def _trial(record: _Record) -> FrozenTrial:
    ended = (state := TrialState[record["state"]]).is_finished()
    start, complete = (
        datetime.fromisoformat(at) if at and ended else None
        for at in (record["start"], record["complete"])
    )
    trial = FrozenTrial(
        number=record["number"],
        trial_id=record["number"],
        state=state if ended else TrialState.WAITING,
        value=record["value"] if ended else None,
        params=record["sampled"],
        distributions={
            name: json_to_distribution(one) for name, one in record["distributions"].items()
        },
        user_attrs=record["attributes"],
        system_attrs={},
        intermediate_values={int(epoch): value for epoch, value in record["reported"].items()},
        datetime_start=start,
        datetime_complete=complete,
    )
    for limit, excess in record["constraints"].items():
        trial.set_constraint(limit, excess)
    return trial


def numbers(trials: Folder) -> list[int]:
    """Returns the numbers of the trials that have a folder, in order."""
    return sorted(int(name) for name in trials.names() if name.isdecimal())


def repair_command(folder: Folder) -> str:
    """Returns the command that makes a study's lost files anew."""
    words, root = ["seqtune", "repair", folder.name], folder.parent
    return shlex.join(words if root == Folder.at(RESULTS) else [*words, "--storage", root.uri])


def begun(trial: Trial) -> FrozenTrial:
    """Returns what is kept of a trial that has just been handed out."""
    return FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=TrialState.RUNNING,
        value=None,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs={},
        intermediate_values={},
        datetime_start=trial.datetime_start,
        datetime_complete=None,
    )
