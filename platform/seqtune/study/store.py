"""The Optuna study on disk: which trials there are, and how they ended."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from seqtune.errors import UserError
from seqtune.results import TrialRow
from seqtune.space import Space
from seqtune.storage import Folder

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
OPTUNA_STORAGE = "SEQTUNE_OPTUNA_STORAGE"  # a database URL, for studies whose driver may move
STATUS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def optuna_storage(folder: Folder) -> str:
    """Returns where the Optuna study of a folder is: a database of the environment, or a file.

    Raises:
        UserError: the folder is not on this machine, and the environment names no database.
    """
    if OPTUNA_STORAGE in os.environ:
        return f"${OPTUNA_STORAGE}"  # read when the study is opened: it may hold a password
    if folder.local is None:
        raise UserError(
            f"--storage {folder.uri}: Optuna's SQLite file needs a local folder; set "
            f"{OPTUNA_STORAGE} to a database, for example postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return storage_url(folder.local)


def storage_url(folder: str | Path) -> str:
    """Returns the URL of the local default, one SQLite file in the study's folder."""
    return f"sqlite:///{Path(folder).expanduser().resolve() / 'study.db'}"


def open_study(storage: str, name: str, mode: str = "max") -> optuna.Study:
    """Opens a study, and makes it where there is none; ``close_study`` closes it.

    Raises:
        UserError: the storage cannot be opened. The sentence does not show a password.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    assert storage, "a searcher that was unpickled needs its storage set again"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = "the Optuna storage"
    try:
        url = make_url(os.path.expandvars(storage))
        shown = f"the Optuna storage {url.render_as_string(hide_password=True)}"
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        return optuna.create_study(
            storage=optuna.storages.RDBStorage(url.render_as_string(hide_password=False)),
            study_name=name,
            direction=DIRECTIONS[mode],
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # never asked: points come from _draw
            pruner=optuna.pruners.NopPruner(),
        )
    except (
        SQLAlchemyError,
        ImportError,
        OSError,
        optuna.exceptions.StorageInternalError,
        RuntimeError,
    ) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"{shown} cannot be opened: {cause}") from None


def close_study(study: optuna.Study) -> None:
    """Closes the database connections of a study from ``open_study``."""
    study._storage.remove_session()
    database = getattr(study._storage, "_backend", None)
    if isinstance(database, optuna.storages.RDBStorage):
        database.engine.dispose()


def keep_space(study: optuna.Study, space: Space, begun: bool) -> None:
    """Stores the space with a new study; raises where a begun one has another."""
    now = json.loads(json.dumps(space.as_dict()))
    if not begun:
        study.set_user_attr("space", now)
        return
    before = study.user_attrs["space"]
    changed = sorted(
        name
        for part in ("fixed", "space")
        for name in before[part].keys() | now[part].keys()
        if before[part].get(name) != now[part].get(name)
    )
    if before["model"] != now["model"]:
        raise UserError(
            f"study {study.study_name!r} is of model {before['model']}, not {now['model']}; "
            "give another --name"
        )
    if changed:
        raise UserError(
            f"study {study.study_name!r} was started with another search space "
            f"({', '.join(changed)} changed); restore it, or give another --name"
        )


def best_epoch(reported: Mapping[int, float], mode: str) -> int | None:
    """Returns the first epoch with the best value; None where no value is finite."""
    sign = 1 if mode == "max" else -1
    finite = {epoch: sign * value for epoch, value in reported.items() if math.isfinite(value)}
    return max(finite, key=lambda epoch: (finite[epoch], -epoch)) if finite else None


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """Returns the trials as plain rows, in their order.

    The value is the best one that a trial reported, for pruned trials as well.
    """
    return [_row(stored, study.direction) for stored in study.get_trials()]


def _row(stored: FrozenTrial, direction: optuna.study.StudyDirection) -> TrialRow:
    value = _best_value(stored, direction)
    reported = stored.intermediate_values
    return TrialRow(
        number=stored.number,
        status=STATUS[stored.state],
        params=stored.user_attrs["params"],
        value=value,
        epoch=next((epoch for epoch in sorted(reported) if reported[epoch] == value), None),
        seconds=stored.duration.total_seconds() if stored.duration else 0.0,
        reason=stored.user_attrs.get("reason", ""),
    )


def _best_value(stored: FrozenTrial, direction: optuna.study.StudyDirection) -> float | None:
    if stored.state == TrialState.COMPLETE:
        return stored.value
    mode = "max" if direction == optuna.study.StudyDirection.MAXIMIZE else "min"
    epoch = best_epoch(stored.intermediate_values, mode)
    return None if epoch is None else stored.intermediate_values[epoch]
