"""What happens when a trial starts, is evaluated and ends, and while none can run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import FrozenTrial
from ray import tune

from seqtune.errors import DamagedError
from seqtune.machines import described, machines, needs
from seqtune.report.view import StudyView
from seqtune.state import curves
from seqtune.study import deaths, lock
from seqtune.study.cards import OUT, Sharing
from seqtune.study.counting import Counting
from seqtune.study.ending import Ending
from seqtune.study.gauges import Gauges
from seqtune.study.plan import Plan
from seqtune.study.search import OptunaSearcher
from seqtune.study.store import STATUS
from seqtune.study.weights import Weights
from seqtune.track import Tracker


class Watch(Protocol):
    """What may end a study at any moment."""

    def check(self) -> None:
        """Raises what ends it."""


class Waiting:
    """Says, every few minutes in which no trial can run, what is missing."""

    FIRST, AGAIN = 60.0, 300.0  # seconds

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan, self._say = plan, say
        self._next = time.monotonic() + self.FIRST

    def look(self, trials: list[Any]) -> None:
        """Is called each time that Tune has gone once around its loop."""
        now = time.monotonic()
        runs = any(trial.status == "RUNNING" for trial in reversed(trials))  # one of the newest
        if runs or not any(trial.status == "PENDING" for trial in trials):
            self._next = now + self.FIRST
        elif now >= self._next:
            self._next = now + self.AGAIN
            share, there = needs(self._plan.cpus, self._plan.gpus), described(machines())
            self._say(f"no trial runs: the next waits for {share} free on one machine ({there})")


class Messenger(tune.Callback):
    """Passes what Tune reports on to the view, to MLflow and, for reasons, to the searcher."""

    def __init__(
        self,
        searcher: OptunaSearcher,
        plan: Plan,
        view: StudyView,
        tracker: Tracker,
        watches: Sequence[Watch],
        counting: Counting,
        weights: Weights,
        gauges: Gauges,
        ending: Ending,
        sharing: Sharing | None = None,
    ) -> None:
        self.sharing = sharing
        self.watches, self.weights, self.gauges = watches, weights, gauges
        self.ending = ending
        self.counting: Counting | None = counting  # until all is told
        self.metric, self.spaces = plan.metric, searcher.spaces
        self.searcher, self.plan, self.view, self.tracker = searcher, plan, view, tracker
        self.waiting = Waiting(plan, view.note)
        self.told = set[int]()  # trials whose end was told

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; a resumed study makes its own

    def check(self) -> None:
        """Raises what ends the study at this moment, if anything does."""
        for watch in self.watches:
            watch.check()

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Tune has gone once around its loop."""
        self.check()
        self.waiting.look(trials)
        if self.counting is not None and self.counting.done():
            self.view.floors_counted(self.counting.floors())
            for remark in self.counting.remarks():
                self.view.note(f"{remark}.")
            self.counting = None

    def retell(
        self, trial: FrozenTrial, rows: list[dict[str, Any]], *, replayed: bool = True
    ) -> None:
        """Tells of a trial that had ended before the study was resumed, and of its curve.

        MLflow is told again: the driver may have died before it could. A person reads of it again
        unless it is ``replayed``.
        """
        number, last, about = trial.number, rows[-1] if rows else {}, trial.user_attrs
        self._started(number, about)
        for row in rows:
            self._evaluated(number, row | {"replayed": True})
        ended = STATUS[trial.state]
        self._ended(number, about["model"], about["origin"], ended, last, replayed=replayed)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial starts, or starts again after a crash."""
        config = trial.config
        self._started(config["number"], config)

    def _started(self, number: int, about: Mapping[str, Any]) -> None:
        model, params, origin = about["model"], about["params"], about["origin"]
        names = {dimension.name for dimension in self.spaces[model].dimensions}
        searched = {name: value for name, value in params.items() if name in names}
        several = len(self.spaces) > 1
        parent = about.get("parent")
        self.view.trial_started(number, searched, origin, model if several else "", parent)
        tags = {"seqtune.model": model, "seqtune.origin": origin}
        tags |= {} if parent is None else {"seqtune.parent": f"{parent}"}
        self.tracker.trial_started(number, params | {"model": model}, tags)
        self.gauges.started(number)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial was evaluated."""
        if "note" in result:
            self.view.note(f"trial {trial.config['number']}: {result['note']}")
        if self.sharing is not None and "gpu_bytes" in result:
            self._note_if(self.sharing.seen(result["gpu_bytes"]))
        if "epoch" in result:  # else it says why a trial failed, or what was wrong before it starts
            self._evaluated(trial.config["number"], result)

    def _evaluated(self, number: int, result: dict[str, Any]) -> None:
        epoch, within = result["epoch"], not self.searcher.judge.over(result)
        self.view.trial_result(
            number, epoch, result[self.metric], result["best"] if within else None
        )
        self.gauges.evaluated(result)
        if within:
            self.ending.evaluated(result["best"])
        if "time" in result:  # else it is Optuna's, and MLflow had it
            self.tracker.trial_result(number, epoch, curves(result), time=result["time"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has ended by itself, or the scheduler has stopped it."""
        reason = str(trial.last_result.get("failed", ""))
        ended = (
            "failed" if reason else "complete" if trial.last_result.get("finished") else "pruned"
        )
        self._ended(*_who(trial), ended, trial.last_result, reason)
        _lighten(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has died, and is tried again.

        What the memory monitor has ended is tried once more, whatever ``--max-failures`` allows:
        it may take as much again. And fewer trials run at a time for a while. So it is with a trial
        that found no memory on a GPU which it shares.
        """
        reason = self._reason(trial)
        full = OUT in reason
        if reason.startswith(deaths.NO_MEMORY) or full:
            trial.max_failures = trial.num_failures
            self.searcher.hold_back()
        if full and self.sharing is not None:
            self._note_if(self.sharing.fewer())
        self.view.note(f"trial {trial.config['number']}: {reason}; it goes on from its last state")

    def _note_if(self, line: str) -> None:
        if line:
            self.view.note(line)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has failed for good."""
        reason = self._reason(trial)
        self.searcher.give_reason(trial.trial_id, reason)
        self._ended(*_who(trial), "failed", trial.last_result, reason)
        _lighten(trial)

    def _reason(self, trial: Any) -> str:
        # Tune's get_error looks into the storage, where the file comes after this call.
        written = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        return deaths.reason(written, self.plan.trial_folder(trial.config["number"]))

    def _ended(
        self,
        number: int,
        model: str,
        origin: str,
        status: str,
        last: dict[str, Any],
        reason: str = "",
        replayed: bool = False,
    ) -> None:
        best = last.get("best") if status != "failed" else None
        over = self.searcher.over(number, last.get("best_epoch", 0)) if best is not None else ""
        if over:
            best, reason = None, over
        self.told.add(number)
        self.view.trial_ended(number, status, best, reason, replayed=replayed)
        track_end(self.tracker, self.plan, number, status, best, last.get("best_epoch"), reason)
        self.weights.ended(number, model, best)
        self.gauges.ended(number, status)
        self.ending.ended(number, status, best, origin)


def _lighten(trial: Any) -> None:
    """Drops what Tune keeps of each metric of a trial that has ended: 75 kB that nobody reads."""
    trial.run_metadata.metric_analysis.clear()
    trial.run_metadata.metric_n_steps.clear()


def _who(trial: Any) -> tuple[int, str, str]:
    """Returns the number of one of Tune's trials, its model, and where its point comes from."""
    return trial.config["number"], trial.config["model"], trial.config["origin"]


def track_end(
    tracker: Tracker,
    plan: Plan,
    number: int,
    status: str,
    best: float | None,
    epoch: int | None,
    reason: str = "",
) -> None:
    """Tells MLflow how a trial ended."""
    folder = plan.trial_folder(number)
    if best is not None:
        with suppress(DamagedError):  # whoever goes on with the trial sets its folder aside
            lock.complete(folder, plan.metric)
        if names := [one for one in ("ranks.parquet", lock.NAME) if one in folder.names()]:
            tracker.upload(folder, names, trial=number)
    found = {} if best is None else {plan.metric: best, "epoch": epoch}
    ended = "finished" if status == "complete" else status
    tracker.trial_ended(number, ended, found, reason or None)
