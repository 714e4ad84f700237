"""A training that MLflow has, run again: the command ``seqtune rerun``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from seqtune.data import Protocol, Reading, load
from seqtune.errors import DamagedError, UserError
from seqtune.meter import TimeIsUp
from seqtune.state import Row
from seqtune.storage import Folder
from seqtune.study import lock as locks
from seqtune.study.lock import Lock
from seqtune.study.loop import fresh_start, train_here
from seqtune.study.plan import Plan, trial_params
from seqtune.track import fetch_file


@dataclass(frozen=True)
class Rerun:
    """What a training reached then, and what it reaches now, at the epoch that was best then."""

    lock: Lock
    now: dict[str, float]
    changed: dict[str, tuple[str, str]]  # what it was made with -> then, now

    @property
    def same(self) -> bool:
        """Whether every metric is the same to the last digit."""
        return self.now == self.lock.valid

    @property
    def sentence(self) -> str:
        """Says whether it is the same, and what may be the reason where it is not."""
        metric, epoch = self.lock.metric, self.lock.epoch
        value = self.lock.valid[metric]
        if self.same:
            n = len(self.now)
            return f"The same numbers: {metric} {value:.6f} at epoch {epoch}, and all {n} metrics."
        changed = ", ".join(f"{name} ({a} then, {b} now)" for name, (a, b) in self.changed.items())
        why = (
            f"it was made with other {changed}" if changed else "nothing that is known has changed"
        )
        return (
            f"Other numbers: {metric} was {value:.6f} at epoch {epoch}, and now is "
            f"{self.now[metric]:.6f}; {why}."
        )


def rerun(
    run: str,
    uri: str,
    out: Folder,
    *,
    data: str | None = None,
    note: Callable[[str], None] = print,
    report: Callable[[Row, str], None] = lambda row, metric: None,
) -> Rerun:
    """Trains again what a run of MLflow has trained, until its best epoch, into ``out``.

    Args:
        run: the id of the run, of a trial or of a training.
        uri: of MLflow.
        out: gets the state of the training; empty.
        data: where the interactions are now; None: where they were.
        note: gets what a person should know.
        report: gets each evaluation, and the metric that says which is best.

    Raises:
        UserError: there is no such run, or it has no lock, or the data are other ones, or it began
            with the weights of another.
    """
    lock = _lock_of(run, uri)
    source = data or lock.data["data"]
    dataset = load(source, **asdict(Reading.of(lock.data)))
    if dataset.fingerprint != lock.fingerprint:
        raise UserError(
            f"{'--data' if data else run}: {source} holds other interactions than those of the run "
            f"(fingerprint {dataset.fingerprint}, then {lock.fingerprint})"
        )
    threads = int(lock.made_with["threads"])
    now = locks.made_with(threads)
    changed = {n: (v, now[n]) for n, v in lock.made_with.items() if n in now and v != now[n]}
    if lock.workers > 1:
        changed["workers"] = (str(lock.workers), "1")
    for what, (then, value) in changed.items():
        note(f"{what} was {then} then, and is {value} now")
    fresh_start(threads)
    plan = Plan(lock.model, lock.metric, Protocol(**lock.protocol), out)
    rows: list[Row] = []

    def told(row: Row) -> None:
        rows.append(row)
        report(row, lock.metric)

    def stop(targets: int) -> None:
        if rows and rows[-1]["epoch"] >= lock.epoch:
            raise TimeIsUp

    with suppress(TimeIsUp):
        params = trial_params(lock.model, lock.params)
        train_here(plan, params, out, dataset, told, stepped=stop)
    there = next((row for row in rows if row["epoch"] == lock.epoch), rows[-1])
    return Rerun(lock, there["metrics"], changed)


def _lock_of(run: str, uri: str) -> Lock:
    name = f"{run}/{locks.NAME}"
    try:
        lock = locks.read(name, fetch_file(uri, run, locks.NAME))
    except DamagedError as error:
        raise UserError(str(error)) from None
    if lock.parent is not None:
        raise UserError(
            f"{run}: began with the weights of trial {lock.parent} of its study, and so cannot be "
            "run again by itself; run the study again"
        )
    if not lock.valid:
        raise UserError(f"{run}: was never evaluated, so there is nothing to compare with")
    return lock
