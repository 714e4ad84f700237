"""The searcher: Ray Tune asks it for trials and tells it results, Optuna keeps the study.

Optuna's storage is the only truth about a study: which trials there are, with what
hyperparameters, and how they ended. A trial is RUNNING from the moment it is handed to Tune, then
COMPLETE with its best value, PRUNED where the scheduler stopped it, or FAIL; one that had not ended
when the study did is WAITING. A driver that dies leaves its trials RUNNING; the next one, with
``resume``, hands out again what is RUNNING or WAITING.

Only a point that obeys the model's rules and is new becomes a trial, so numbers have no gaps and no
trial is void.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from seqtune.errors import UserError
from seqtune.limits import Judge
from seqtune.space import Space
from seqtune.storage import Folder
from seqtune.study import record
from seqtune.study.points import ENDED, Points
from seqtune.study.samplers import CONTINUED, Draft
from seqtune.study.store import (
    Opened,
    Running,
    best_epoch,
    expect,
    keep_spaces,
    let_rest,
    open_study,
    reopen,
)

Fits = Callable[[str, Mapping[str, Any]], bool]  # says of a model and a point whether it fits
DROPPED = {"storage", "say", "limit", "share", "enough", "past", "fits", "_opened"}  # by a pickle
DROPPED |= {"_handles", "_points"}
CONFIG = ("model", "origin", "params", "parent")  # attributes of a trial that Tune hands to it


class OptunaSearcher(Searcher):
    """Hands out the trials of an Optuna study.

    ``suggest`` returns ``{"number": 3, "model": "sasrec", "origin": "drawn", "params": {...}}``;
    ``parent``, the number of the trial from whose weights this one begins, if it does; and
    ``share``, the CPUs and GPUs of the trial, where these are not the same for all. A trainable
    reports ``epoch``, the metric, ``best`` (the best value so far), ``best_epoch``, and
    ``finished``, which is true in the last report of a trial that ended by itself; ``failed`` with
    a reason marks a trial as failed that reported instead of raising. ``train_seconds`` and
    ``eval_seconds`` say what a model has cost.

    Args:
        spaces: what is searched, a space for each model; ``Allocation`` says which is next.
        storage: URL of the database (``storage_url`` gives a local one). ``$NAME`` in it is read
            from the environment when the study is opened; the URL is never pickled, since it may
            hold a password.
        name: of the study.
        metric: key of the reports; larger is better.
        trials: how many trials the study has in the end, counting failed ones.
        budget: seconds that it may take.
        seed, sampler: of the draws.
        judge: says by which other keys of the reports a trial is judged.
        fits: says of a model and a point whether it keeps the limits on its size.
        evolves: the trials are generations of a population.
        continues: idle workers go on with trials that were stopped early.
        resume: go on with the trials that the storage holds. Interrupted ones are handed out again
            in their order, to continue; then new ones. ``past`` has those that had ended well.
        say: gets a line when the database has been away for long.
        folder: keeps a record of each trial, from which the database can be made anew.
        owner: the study's id, for those records.
    """

    _opened: Opened | None
    _handles: dict[int, Running]
    _points: Points

    def __init__(
        self,
        spaces: Sequence[Space],
        storage: str,
        name: str,
        *,
        metric: str,
        trials: int = 20,
        budget: float | None = None,
        seed: int = 0,
        sampler: str = "tpe",
        judge: Judge | None = None,
        fits: Fits = lambda model, values: True,
        evolves: bool = False,
        continues: bool = False,
        resume: bool = False,
        say: Callable[[str], None] | None = None,
        folder: Folder | None = None,
        owner: str = "",
    ) -> None:
        super().__init__(metric=metric, mode="max")
        self.spaces = {space.model: space for space in spaces}
        self.storage, self.name, self.say = storage, name, say
        self.trials, self.budget, self.resume = trials, budget, resume
        self.seed, self.sampler = seed, sampler
        self.judge, self.fits = judge or Judge((metric,)), fits
        self.evolves, self.continues = evolves, continues
        self.folder, self.owner = folder, owner
        self.limit: Callable[[], int] | None = None  # says how many trials may run now
        self.share: Callable[[], dict[str, float]] | None = None  # what the next trial gets
        self.enough: Callable[[], str] | None = None  # says why no other trial begins
        self.notes: list[str] = []  # what the user should know at the end
        self.past: list[FrozenTrial] = []  # that had ended well before the study was resumed
        self._again: list[int] | None = None  # numbers to hand out again; None: not opened yet
        self._numbers: dict[str, int] = {}  # Tune's id -> number, of trials to be told
        self._failed: dict[str, int] = {}  # the same, of trials that wait for their reason
        self._most, self._held_until = 0, 0.0  # trials at a time, until when
        self._began = time.monotonic()
        self._forget()

    # What Tune calls

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial's config, FINISHED, or None while trials are held back."""
        opened = self.open()
        self._tell_failed()
        if len(self._numbers) >= self._most and time.monotonic() < self._held_until:
            return None  # Tune asks again
        if self.limit is not None and len(self._numbers) >= self.limit():
            return None
        if self._again:
            stored = opened.study.get_trials(deepcopy=False)[self._again.pop(0)]
            number, about = stored.number, stored.user_attrs
            handle = self._handle(number)
            if about["tune_trial_id"] != trial_id:  # the dead driver's
                handle.trial.set_user_attr("tune_trial_id", trial_id)
        else:
            drawn = self._next()
            if drawn is None:
                waits = (self.evolves or self.continues) and self._busy
                return None if waits else Searcher.FINISHED
            number, about = self._create(opened, trial_id, *drawn)
        self._numbers[trial_id] = number
        config = {name: about[name] for name in CONFIG if name in about}
        share = {"share": self.share()} if self.share is not None else {}
        return {"number": number} | config | share

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Records the value of an epoch; one that was recorded before the driver died is kept."""
        if result.get("failed") or self.metric not in result:
            return
        running = self._handle(self._numbers[trial_id])
        epoch, value = int(result["epoch"]), float(result[self.metric])
        if epoch not in running.seconds:
            took = float(result.get("train_seconds", 0)) + float(result.get("eval_seconds", 0))
            running.seconds[epoch] = took
            measured = running.measured[epoch] = self.judge.measured(result)
            counts = -math.inf if self.judge.over(measured) else value
            self._points.allocation.evaluated(running.model, counts, took)
        if epoch not in running.reported:
            running.trial.report(value, epoch)
            running.reported[epoch] = value

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how a trial ended. Tune calls this once, after the last retry."""
        if error:  # told when the reason is known, which Tune gives to callbacks alone
            self._failed[trial_id] = self._numbers.pop(trial_id)
            return
        result = result or {}
        self.on_trial_result(trial_id, result)  # Tune left it out if it made the scheduler stop
        number = self._numbers.pop(trial_id)
        reported = self._handle(number).reported
        if result.get("failed") or not reported:
            reason = str(result.get("failed") or "ended without a report")
            self._tell(number, TrialState.FAIL, reason=reason)
        elif not result.get("finished"):
            self._tell(number, TrialState.PRUNED, best_epoch=best_epoch(reported) or 0)
        else:
            epoch = int(result.get("best_epoch") or best_epoch(reported) or 0)
            best = float(result["best"] if "best" in result else reported[epoch])
            if math.isfinite(best):
                self._tell(number, TrialState.COMPLETE, best, best_epoch=epoch)
            else:
                self._tell(number, TrialState.FAIL, reason=f"{self.metric} is {best}")

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Accepts the metric and mode of ``TuneConfig`` where they are the searcher's own."""
        return metric in (None, self.metric) and mode in (None, self.mode)

    def save(self, checkpoint_path: str) -> None:
        """Writes which of Tune's trials is which of Optuna's; everything else is in Optuna."""
        state = {"again": self._again, "numbers": self._numbers, "failed": self._failed}
        Path(checkpoint_path).write_text(json.dumps(state), encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        """Reads what ``save`` wrote."""
        state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        self._again = state["again"]
        self._numbers, self._failed = state["numbers"], state["failed"]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in DROPPED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.say, self.limit, self.share, self.enough, self.past = None, None, None, None, []
        self.fits = lambda model, values: True
        self.storage = ""  # to be set again before the study can be opened
        self._forget()

    # What the study calls

    def open(self) -> Opened:
        """Opens the Optuna study where it is not open yet, and makes it where there is none.

        Raises:
            UserError: the storage cannot be opened; there are trials already and ``resume`` was
                not asked for, or lacks some that have a folder; the search space is not the one
                that the study began with.
        """
        if self._opened is None:
            opened = self._open_study()
            stored = opened.study.get_trials(deepcopy=False)
            if self._again is None:
                expect(opened, len(stored), self.folder, resume=self.resume)
                keep_spaces(opened.study, self.spaces, begun=bool(stored))
                self._again = [t.number for t in stored if not t.state.is_finished()]
                self.past = [t for t in stored if t.state in ENDED]
            for trial in sorted(stored, key=lambda t: str(t.datetime_complete)):
                self._points.recall(trial)
            self._opened, self._began = opened, time.monotonic()
        return self._opened

    def hold_back(self, seconds: float = 600.0) -> None:
        """Has fewer trials run at a time than now, for a while: the machine has no memory left."""
        self._most = max(1, len(self._numbers) - 1)
        self._held_until = time.monotonic() + seconds

    def give_reason(self, trial_id: str, reason: str) -> None:
        """Says why a trial failed; to be called from the callback ``on_trial_error``."""
        number = self._failed.pop(trial_id, None)
        if number is not None:
            self._tell(number, TrialState.FAIL, reason=reason)

    def over(self, number: int, epoch: int) -> str:
        """Says which limits a trial is beyond, whose best epoch is given."""
        if not self.judge.limits:
            return ""
        if running := self._handles.get(number):
            return self.judge.over(running.measured.get(epoch, {}))
        stored = self.open().study.get_trials(deepcopy=False)[number]
        return str(stored.user_attrs.get("over", ""))

    def close(self, *, rest: bool = True) -> None:
        """Ends the work with the storage; to be called when Tune has returned or raised.

        Trials that did not end (time budget, Ctrl-C) are WAITING then, until ``resume`` continues
        them. Without ``rest`` they are left as they are.
        """
        if self._opened is None:
            return
        if rest:
            self._tell_failed()
            let_rest(self._opened)
        self._numbers.clear()
        self._opened.close()
        self._forget()

    # Inside

    def _forget(self) -> None:
        self._opened, self._handles = None, {}
        how = (self.trials, self.budget, self.seed, self.notes.append, self.sampler)
        judged = (self.judge, self.fits)
        self._points = Points(self.spaces, *how, *judged, evolves=self.evolves)

    @property
    def _busy(self) -> bool:
        """Whether a trial runs, beside those that go on because a worker was idle."""
        running = (self._handle(number).trial for number in self._numbers.values())
        return any(trial.user_attrs["origin"] != CONTINUED for trial in running)

    def _next(self) -> tuple[str, Draft] | None:
        """Returns the model and the point of the next trial; None where there is none now."""
        if not (self._points.complete or (self.enough and self.enough())):
            return self._points.draw(time.monotonic() - self._began)
        return self._points.stopped() if self.continues and self._busy else None

    def _create(
        self, opened: Opened, trial_id: str, model: str, draft: Draft
    ) -> tuple[int, dict[str, Any]]:
        """Stores a new trial, and returns its number and attributes."""
        about: dict[str, Any] = {"model": model, "params": draft.values, "origin": draft.origin}
        about |= {"tune_trial_id": trial_id}
        if draft.parent is not None:
            about |= {"parent": draft.parent, "follows": draft.follows}
        opened.study.enqueue_trial(draft.params, user_attrs=about)
        trial = opened.study.ask(fixed_distributions=draft.distributions)
        self._handles[trial.number] = Running(trial, {})
        self._keep(record.begun(trial))
        self._points.begun(about)
        return trial.number, about

    def _handle(self, number: int) -> Running:
        if number not in self._handles:
            self._handles[number] = reopen(self.open(), number)
        return self._handles[number]

    def _tell(
        self, number: int, state: TrialState, value: float | None = None, **attributes: Any
    ) -> None:
        running = self._handle(number)
        attributes["seconds"] = round(sum(running.seconds.values()), 3)
        measured = running.measured.get(attributes.get("best_epoch", 0), {})
        if measured:
            attributes |= {"measured": measured, "over": self.judge.over(measured)}
        for name, attribute in attributes.items():  # a finished trial takes no more of them
            running.trial.set_user_attr(name, attribute)
        for limit, excess in self.judge.constraints(measured).items():
            running.trial.set_constraint(limit, excess)
        told = self.open().study.tell(running.trial, value, state=state)
        self._keep(told)
        self._points.ended(told)
        del self._handles[number]

    def _keep(self, trial: FrozenTrial) -> None:
        if self.folder is not None:
            record.keep(self.folder / "trials" / f"{trial.number:04d}", self.owner, trial)

    def _open_study(self) -> Opened:
        try:
            return open_study(self.storage, self.name, self.say)
        except UserError as error:
            if self.folder is None or not self.resume or not self.storage.startswith("sqlite:"):
                raise
            anew = record.repair_command(self.folder)
            raise UserError(f"{error}; where it is damaged, make it anew: {anew}") from None

    def _tell_failed(self) -> None:
        for trial_id in list(self._failed):
            self.give_reason(trial_id, "unknown")
