"""What is lost of a study is made anew from what is left: the command ``seqtune repair``."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from seqtune.errors import DamagedError, UserError
from seqtune.schema import checked
from seqtune.storage import Folder, refusing
from seqtune.study import record
from seqtune.study.identity import ABOUT, About, read_about, write_about
from seqtune.study.lease import HeldError, Lease
from seqtune.study.samplers import DRAWN
from seqtune.study.store import Opened, open_study, optuna_storage


def repair(name: str, storage: str) -> list[str]:
    """Makes ``study.json`` anew from ``study.db``, or the other way round from the trials' folders.

    What cannot be believed is set aside, never deleted. Returns a sentence for each thing done.

    Raises:
        UserError: there is no such study, it runs, or both files are lost.
    """
    folder = Folder.at(storage) / name
    with refusing(f"--storage {storage}"):
        found = folder.names()
    if not found:
        raise UserError(f"{name}: there is no study of that name in {Folder.at(storage).uri}")
    try:
        lease = Lease(folder, print)
    except HeldError as held:
        raise UserError(f"{name}: the study is run by {held}; wait until it ends") from None
    try:
        about, damage = _about(folder)
        opened, done = _opened(folder, name)
        try:
            if about is None:
                about = _about_of(opened, folder, damage)
                done.append(f"study.json has been made anew from Optuna's database{damage}")
            done += _complete(opened, folder, about)
        finally:
            opened.close()
    finally:
        lease.release()
    return done


def fetch(folder: Folder, name: str, about: About | None) -> None:
    """Makes the copy of Optuna's database anew that a study in an object store has here.

    The records in its trials' folders are the truth; ``about`` is None where the study is new.
    """
    storage = optuna_storage(folder)
    if folder.local is not None or not storage.startswith("sqlite:///"):
        return
    Path(storage.removeprefix("sqlite:///")).unlink(missing_ok=True)
    if about is not None:
        opened = open_study(storage, name)
        try:
            _complete(opened, folder, about)
        finally:
            opened.close()


def _about(folder: Folder) -> tuple[About | None, str]:
    """Returns what the study is and, where its file cannot be believed, why."""
    try:
        return read_about(folder), ""
    except DamagedError as error:
        return None, f" ({error})"


def _about_of(opened: Opened, folder: Folder, damage: str) -> About:
    kept = opened.study.user_attrs.get(ABOUT)
    if kept is None:
        raise UserError(
            f"{folder.uri}: study.json and the trials of Optuna's database are both lost{damage}; "
            "start the study again under another --name"
        )
    about: About = checked("Optuna's database", About, json.dumps(kept).encode())
    write_about(folder, about)
    return about


def _opened(folder: Folder, name: str) -> tuple[Opened, list[str]]:
    """Opens Optuna's database; a local one that is damaged is set aside first."""
    storage = optuna_storage(folder)
    try:
        return open_study(storage, name), []
    except UserError as error:
        if not storage.startswith("sqlite:///"):
            raise
        path = Path(storage.removeprefix("sqlite:///"))
        number = 1
        while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
            number += 1
        path.rename(aside)
        done = f"study.db could not be read ({error}); it is kept as {aside.name}"
        return open_study(storage, name), [done]


def _complete(opened: Opened, folder: Folder, about: About) -> list[str]:
    """Adds the trials that Optuna lacks, and what it has to know of the study."""
    if ABOUT not in opened.study.user_attrs:
        opened.study.set_user_attr("spaces", about.spaces)
        opened.study.set_user_attr(ABOUT, asdict(about))
    stored, lost = len(opened.study.get_trials(deepcopy=False)), []
    numbers = range(stored, max(record.numbers(folder / "trials"), default=-1) + 1)
    for number in numbers:
        trial, why = _read(folder / "trials" / f"{number:04d}", about, number)
        if why:
            lost.append(f"trial {number} counts as failed: {why}")
        opened.study.add_trial(trial)
    added = [f"{len(numbers)} trials have been added to Optuna's database"] if numbers else []
    return added + lost


def _read(folder: Folder, about: About, number: int) -> tuple[FrozenTrial, str]:
    """Returns a trial as its folder has it; as a failed one, and why, where that is lost."""
    try:
        trial = record.read(folder, about.id)
        if trial is not None and trial.number == number:
            return trial, ""
        why = f"{folder / record.NAME} is missing, or of another trial"
    except DamagedError as error:
        why = str(error)
    now = datetime.now()
    failed = FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState.FAIL,
        value=None,
        params={},
        distributions={},
        user_attrs={
            "model": next(iter(about.spaces)),  # as likely as any other
            "params": {},
            "origin": DRAWN,
            "reason": "its files were lost",
            "tune_trial_id": "",
        },
        system_attrs={},
        intermediate_values={},
        datetime_start=now,
        datetime_complete=now,
    )
    return failed, why
