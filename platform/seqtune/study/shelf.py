"""Studies as they lie in their folders, for whoever can read these: which, and how they do.

Nothing here needs Ray or Optuna's database, and nothing waits for a driver.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from seqtune.errors import DamagedError, UserError, nearest
from seqtune.limits import Judge
from seqtune.results import TrialRow, best_trial
from seqtune.state import told
from seqtune.storage import Folder, refusing
from seqtune.study import record
from seqtune.study.identity import About, asked_options, read_about
from seqtune.study.lease import alive
from seqtune.study.store import trial_row
from seqtune.words import models_text

RUNNING, STOPPED, ENDED, DAMAGED = "running", "stopped", "ended", "damaged"
OVER = ("complete", "pruned", "failed")
WISHES = "wishes"  # the folder of what is asked of a study, see wishes.py
STOP, STOP_TRIAL = "stop", "stop-trial-"  # its files


@dataclass(frozen=True)
class Known:
    """A study, as far as its folder tells."""

    name: str
    folder: Folder
    state: str  # running, stopped, ended or damaged
    about: About | None  # None where it is damaged
    driver: str  # who runs it, or what is damaged
    trials: tuple[TrialRow, ...]
    report: dict[str, Any] | None  # report.json; None until there is one
    changed: float | None  # seconds since 1970 when a trial began or ended last

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are tuned."""
        return tuple(self.about.same.get("model", "?").split(",")) if self.about else ("?",)

    @property
    def model(self) -> str:
        """The same, as people read it."""
        return models_text(self.models)

    @property
    def metric(self) -> str:
        """What is maximised on validation."""
        return self.about.same.get("metric", "?") if self.about else "?"

    @property
    def planned(self) -> int:
        """The trials that it shall have."""
        most = asked_options(self.about).most if self.about else 0
        return max(most, len(self.trials))

    @property
    def ended(self) -> int:
        """The trials that have ended."""
        return sum(row.status in OVER for row in self.trials)

    @property
    def best(self) -> TrialRow | None:
        """The trial that was chosen when the study ended, or is the best on validation so far."""
        tested = (self.report or {}).get("best") if self.state != RUNNING else None
        chosen = (row for row in self.trials if tested and row.number == tested["number"])
        return next(chosen, None) or best_trial(self.trials, self._judge)

    def best_of(self, model: str) -> TrialRow | None:
        """Returns the best trial of one of its models."""
        return best_trial([row for row in self.trials if row.model == model], self._judge)

    @property
    def _judge(self) -> Judge | None:
        return Judge.asked(asked_options(self.about)) if self.about else None

    def counts(self) -> str:
        """Says how its trials do: ``11 complete, 8 pruned, 1 running``."""
        by_status = Counter(row.status for row in self.trials)
        return ", ".join(f"{n} {status}" for status, n in by_status.items())


def all_studies(storage: str) -> list[Known]:
    """Returns the studies in a storage folder, the newest last.

    Raises:
        UserError: the folder cannot be read.
    """
    root = Folder.at(storage)
    with refusing(f"--storage {storage}"):
        folders = list(_studies(root))
    drivers = alive(folders)
    found = [_known(folder, drivers.get(folder.uri, "")) for folder in folders]
    return sorted(found, key=lambda one: one.changed or 0)


def find(name: str, storage: str) -> Known:
    """Returns one study.

    Raises:
        UserError: there is none of that name; it says which name is near.
    """
    root = Folder.at(storage)
    with refusing(f"--storage {storage}"):
        there = (root / name).read("study.json") is not None
    if not there:
        with refusing(f"--storage {storage}"):
            names = [folder.name for folder in _studies(root)]
        hint = nearest(name, names) or (f"; there are: {', '.join(names)}" if names else "")
        raise UserError(f"{name}: there is no study of that name in {root.uri}{hint}")
    folder = root / name
    return _known(folder, alive([folder]).get(folder.uri, ""))


def wish(study: Folder, trial: int | None = None) -> None:
    """Asks a study to end in order, or to end one of its trials as if it had been pruned."""
    (study / WISHES).write(STOP if trial is None else f"{STOP_TRIAL}{trial}", b"")


def whole(known: Known) -> About:
    """Returns what a study is.

    Raises:
        UserError: its files are damaged; it says how to make them anew.
    """
    if known.about is None:
        raise UserError(f"{known.driver}; make it anew: {record.repair_command(known.folder)}")
    return known.about


def _studies(root: Folder) -> Iterator[Folder]:
    for name in root.names():
        with suppress(NotADirectoryError):  # there are files too
            if (root / name).read("study.json") is not None:
                yield root / name


def _known(folder: Folder, driver: str) -> Known:
    try:
        about = read_about(folder)
        trials = tuple(_trials(folder, bool(driver)))
    except DamagedError as error:
        return Known(folder.name, folder, DAMAGED, None, str(error), (), None, None)
    content = (folder / "report").read("report.json")
    report: dict[str, Any] | None = json.loads(content) if content else None
    rows = tuple(row for row, _ in trials)
    times = [at for _, at in trials if at is not None]
    changed = max(times, default=None)
    known = Known(folder.name, folder, RUNNING, about, driver, rows, report, changed)
    if driver:
        return known
    is_over = report is not None and known.ended >= report.get("planned", 0)
    return replace(known, state=ENDED if is_over else STOPPED)


def _trials(folder: Folder, running: bool) -> Iterator[tuple[TrialRow, float | None]]:
    """Yields each trial, and when it began or ended."""
    for number in record.numbers(folder / "trials"):
        place = folder / "trials" / f"{number:04d}"
        stored = record.read(place)
        if stored is None:
            continue  # it has not begun
        ended = stored.state.is_finished()
        rows = [] if ended else _told(place)
        best = max(rows, key=lambda row: (row["best"], -row["epoch"]), default=None)
        at = stored.datetime_complete or stored.datetime_start
        row = trial_row(stored)
        if not ended:
            row = replace(
                row,
                status="running" if running else "unfinished",
                value=best["best"] if best else None,
                epoch=rows[-1]["epoch"] if rows else None,
            )
        yield row, at.timestamp() if at else (rows[-1]["time"] if rows else None)


def _told(place: Folder) -> list[Any]:
    try:
        return list(told(place))
    except DamagedError:  # the trial will set it aside
        return []


def age(seconds: float | None) -> str:
    """Says how long ago something was: ``3 hours``."""
    if seconds is None:
        return "-"
    past = max(0.0, time.time() - seconds)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if past >= length:
            n = int(past // length)
            return f"{n} {unit}{'s' * (n > 1)}"
    return "now"
