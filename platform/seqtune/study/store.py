"""The Optuna study on disk: which trials there are, and how they ended."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from seqtune.errors import Halted, UserError
from seqtune.results import TrialRow
from seqtune.space import Space
from seqtune.storage import Folder, make_whole, own_scratch
from seqtune.study import record
from seqtune.study.patient import LAST, PatientStorage

OPTUNA_STORAGE = "SEQTUNE_OPTUNA_STORAGE"  # a database URL, for studies whose driver may move
STATUS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "unfinished",  # it had not ended when the study did
}


@dataclass(frozen=True)
class Opened:
    """An Optuna study, and the database that it lies in."""

    study: optuna.Study
    storage: PatientStorage

    def close(self) -> None:
        """Closes the connections to the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()


def optuna_storage(folder: Folder) -> str:
    """Returns where the Optuna study of a folder is: a database of the environment, or a file.

    That of a folder in an object store is a copy on this machine: ``repair.fetch`` makes it.
    """
    if OPTUNA_STORAGE in os.environ:
        return f"${OPTUNA_STORAGE}"  # read when the study is opened: it may hold a password
    if folder.local is None:
        return storage_url(own_scratch() / hashlib.sha256(folder.uri.encode()).hexdigest()[:16])
    return storage_url(folder.local)


def storage_url(folder: str | Path) -> str:
    """Returns the URL of the local default, one SQLite file in the study's folder."""
    return f"sqlite:///{Path(folder).expanduser().resolve() / 'study.db'}"


def open_study(storage: str, name: str, say: Callable[[str], None] | None = None) -> Opened:
    """Opens a study, and makes it where there is none.

    Once it is open, a database that is away is waited for, and ``say`` gets a line about it.

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
            make_whole(Path(url.database), _make_tables)
        database = _connect(url.render_as_string(hide_password=False))
        study = optuna.create_study(
            storage=database,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),  # never asked: points come from Draws
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
        missing = "; pip install 'seqtune[postgres]'" if isinstance(error, ImportError) else ""
        raise UserError(f"{shown} cannot be opened: {cause}{missing}") from None
    database.say = say or (lambda line: None)
    return Opened(study, database)


def _connect(address: str) -> PatientStorage:
    # A connection that a restart of the database has cut is replaced before it is used.
    return PatientStorage(address, engine_kwargs={"pool_pre_ping": True})


def _make_tables(path: Path) -> None:
    _connect(f"sqlite:///{path}").engine.dispose()


@dataclass
class Running:
    """A trial that Tune runs, and what it has reported: epoch -> value, and -> seconds."""

    trial: Trial
    reported: dict[int, float]
    seconds: dict[int, float] = field(default_factory=dict)
    measured: dict[int, dict[str, float]] = field(default_factory=dict)  # the same of all measures

    @property
    def model(self) -> str:
        """The model that it trains."""
        return str(self.trial.user_attrs["model"])


def reopen(opened: Opened, number: int) -> Running:
    """Returns a stored trial to report to, as RUNNING, and what it has reported.

    Optuna has no public way to go on with a trial of another process; this one was seen to work
    with Optuna 5.0.0.
    """
    stored = opened.study.get_trials(deepcopy=False)[number]
    if stored.state == TrialState.WAITING:
        opened.storage.set_trial_state_values(stored._trial_id, TrialState.RUNNING)
    return Running(Trial(opened.study, stored._trial_id), dict(stored.intermediate_values))


def expect(opened: Opened, stored: int, folder: Folder | None, *, resume: bool) -> None:
    """Closes a study whose trials are not those that are expected, and raises UserError.

    A new one has none, and one that is resumed all those that have a folder.
    """
    if stored and not resume:
        opened.close()
        raise UserError(
            f"study {opened.study.study_name!r} exists and has {stored} trial{'s' * (stored > 1)}; "
            "go on with --resume, or give another --name"
        )
    number = max(record.numbers(folder / "trials"), default=-1) + 1 if folder else 0
    if folder and number > stored:
        opened.close()
        raise UserError(
            f"Optuna's database holds {stored} trials, and the study's folder those "
            f"up to number {number - 1}; name the database of the study in {OPTUNA_STORAGE}, "
            f"or make it anew: {record.repair_command(folder)}"
        )


def let_rest(opened: Opened) -> None:
    """Lets the trials that run wait until the study goes on, and so show as what they are.

    A database that is away is not waited for: a trial that was left running goes on as well. As in
    ``reopen``, their ids are not public; seen to work with Optuna 5.0.0.
    """
    opened.storage.patience = LAST
    with suppress(Halted):
        for stored in opened.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            opened.storage.set_trial_state_values(stored._trial_id, TrialState.WAITING)


def keep_spaces(study: optuna.Study, spaces: Mapping[str, Space], begun: bool) -> None:
    """Stores the space of each model with a new study; raises where a begun one has others."""
    now = json.loads(json.dumps({model: space.as_dict() for model, space in spaces.items()}))
    if not begun:
        study.set_user_attr("spaces", now)
        return
    before = study.user_attrs["spaces"]
    if before.keys() != now.keys():
        raise UserError(
            f"study {study.study_name!r} is of model {','.join(before)}, not {','.join(now)}; "
            "give another --name"
        )
    changed = {  # fixed, or searched
        f"{spaces[model].prefix}{name}"
        for model in now
        for part in ("fixed", "space")
        for name in before[model][part].keys() | now[model][part].keys()
        if before[model][part].get(name) != now[model][part].get(name)
    }
    if changed:
        raise UserError(
            f"study {study.study_name!r} was started with another search space "
            f"({', '.join(sorted(changed))} changed); restore it, or give another --name"
        )


def best_epoch(reported: Mapping[int, float]) -> int | None:
    """Returns the first epoch with the largest value; None where no value is finite."""
    finite = {epoch: value for epoch, value in reported.items() if math.isfinite(value)}
    return max(finite, key=lambda epoch: (finite[epoch], -epoch)) if finite else None


def best_value(stored: FrozenTrial) -> float | None:
    """Returns the largest value that a trial reported; None where it reported none."""
    if stored.state == TrialState.COMPLETE:
        return stored.value
    epoch = best_epoch(stored.intermediate_values)
    return None if epoch is None else stored.intermediate_values[epoch]


def trial_rows(study: optuna.Study) -> list[TrialRow]:
    """Returns the trials as plain rows, in their order.

    The value is the best one that a trial reported, for pruned trials as well.
    """
    return [trial_row(stored) for stored in study.get_trials(deepcopy=False)]


def trial_row(stored: FrozenTrial) -> TrialRow:
    """Returns a stored trial as a plain row; its value is the best one that it reported."""
    value = best_value(stored)
    reported = stored.intermediate_values
    return TrialRow(
        number=stored.number,
        model=stored.user_attrs["model"],
        status=STATUS[stored.state],
        params=stored.user_attrs["params"],
        value=value,
        epoch=next((epoch for epoch in sorted(reported) if reported[epoch] == value), None),
        seconds=stored.duration.total_seconds() if stored.duration else None,
        reason=stored.user_attrs.get("reason", ""),
        origin=stored.user_attrs["origin"],
        parent=stored.user_attrs.get("parent"),
        measured=stored.user_attrs.get("measured", {}),
        over=stored.user_attrs.get("over", ""),
    )
