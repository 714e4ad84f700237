"""The searcher: Ray Tune asks it for trials and tells it results, Optuna keeps the study.

Optuna's storage is the only truth about a study: which trials there are, with what
hyperparameters, and how they ended. A trial is RUNNING from the moment it is handed to Tune, then
COMPLETE with its best value, PRUNED where the scheduler stopped it, or FAIL. A driver that dies
leaves its trials RUNNING; the next one, with ``resume``, hands them out again.

Points are drawn in a scratch copy of the study in memory. Only a point that obeys the model's
rules and is new becomes a trial, so numbers have no gaps and no trial is void; and the draw for
trial n depends on the seed, n and the trials before, so a resumed study draws what an
uninterrupted one would have drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from ray.tune.search import Searcher

from seqtune.errors import UserError
from seqtune.space import Space
from seqtune.study.store import DIRECTIONS, STATUS, best_epoch, close_study, keep_space, open_study

DRAWS = 500  # tries for one new point: the first tenth by TPE, the others at random


@dataclass
class _Running:
    """A trial that Tune runs, and what it has reported: epoch -> value."""

    trial: Trial
    reported: dict[int, float]


class OptunaSearcher(Searcher):
    """Hands out the trials of an Optuna study.

    ``suggest`` returns ``{"number": 3, "params": {...}, "replay": ""}``. A trainable reports
    ``epoch``, the metric, ``best`` (the best value so far), ``best_epoch``, and ``finished``,
    which is true in the last report of a trial that ended by itself; ``failed`` with a reason
    marks a trial as failed that reported instead of raising.

    Args:
        space: what is searched.
        storage: URL of the database (``storage_url`` gives a local one). ``$NAME`` in it is read
            from the environment when the study is opened; the URL is never pickled, since it may
            hold a password.
        name: of the study.
        metric: key of the reports.
        mode: ``max`` or ``min``.
        trials: how many trials the study has in the end, counting failed ones.
        seed: of the sampler.
        resume: go on with the trials that the storage holds. All but the failed ones are handed
            out again in their order: finished ones with how they ended, ``"replay": "pruned"``
            (what they report is not recorded again), interrupted ones to continue; then new ones.
    """

    _study: optuna.Study | None
    _handles: dict[int, _Running]
    _taken: set[str]  # points that are trials already

    def __init__(
        self,
        space: Space,
        storage: str,
        name: str,
        *,
        metric: str,
        mode: str = "max",
        trials: int = 20,
        seed: int = 0,
        resume: bool = False,
    ) -> None:
        super().__init__(metric=metric, mode=mode)
        self.space, self.storage, self.name = space, storage, name
        self.trials, self.seed, self.resume = trials, seed, resume
        self.notes: list[str] = []  # what the user should know at the end
        self._again: list[int] | None = None  # numbers to hand out again; None: not opened yet
        self._numbers: dict[str, int] = {}  # Tune's id -> number, of trials to be told
        self._failed: dict[str, int] = {}  # the same, of trials that wait for their reason
        self._close()

    # What Tune calls

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial's config, or FINISHED."""
        study = self.open()
        self._tell_failed()
        if self._again:
            stored: FrozenTrial | None = study.get_trials(deepcopy=False)[self._again.pop(0)]
        else:
            stored = self._create(study, trial_id)
        if stored is None:
            return Searcher.FINISHED
        replay = STATUS[stored.state] if stored.state.is_finished() else ""
        if not replay:
            self._numbers[trial_id] = stored.number
            if stored.user_attrs["tune_trial_id"] != trial_id:  # the dead driver's
                self.annotate(trial_id, tune_trial_id=trial_id)
        return {"number": stored.number, "params": stored.user_attrs["params"], "replay": replay}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Records the value of an epoch; one that was recorded before the driver died is kept."""
        running = self._running(trial_id)
        if running is None or result.get("failed") or self.metric not in result:
            return
        epoch, value = int(result["epoch"]), float(result[self.metric])
        if epoch not in running.reported:
            running.trial.report(value, epoch)
            running.reported[epoch] = value

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells Optuna how a trial ended. Tune calls this once, after the last retry."""
        if trial_id not in self._numbers:
            return  # replayed
        if error:  # told when the reason is known, which Tune gives to callbacks alone
            self._failed[trial_id] = self._numbers.pop(trial_id)
            return
        result = result or {}
        self.on_trial_result(trial_id, result)  # Tune left it out if it made the scheduler stop
        number = self._numbers.pop(trial_id)
        reported = self._handle(number).reported
        if result.get("failed"):
            self._tell(number, TrialState.FAIL, reason=str(result["failed"]))
        elif not reported:
            self._tell(number, TrialState.FAIL, reason="ended without a report")
        elif not result.get("finished"):
            self._tell(number, TrialState.PRUNED, best_epoch=self._best_epoch(reported))
        else:
            best_epoch = int(result.get("best_epoch") or self._best_epoch(reported))
            best = float(result["best"] if "best" in result else reported[best_epoch])
            if math.isfinite(best):
                self._tell(number, TrialState.COMPLETE, best, best_epoch=best_epoch)
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
        dropped = ("storage", "_study", "_handles", "_taken")
        return {key: value for key, value in vars(self).items() if key not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.storage = ""  # to be set again before the study can be opened
        self._close()

    # What the study calls

    def open(self) -> optuna.Study:
        """Opens the Optuna study where it is not open yet, and makes it where there is none.

        Raises:
            UserError: the storage cannot be opened; there are trials already and ``resume`` was
                not asked for; the search space is not the one that the study began with.
        """
        if self._study is None:
            study = open_study(self.storage, self.name, self.mode)
            stored = study.get_trials(deepcopy=False)
            if self._again is None:
                if stored and not self.resume:
                    raise UserError(
                        f"study {self.name!r} exists and has {len(stored)} "
                        f"trial{'s' * (len(stored) > 1)}; go on with --resume, or give another "
                        "--name"
                    )
                keep_space(study, self.space, begun=bool(stored))
                self._again = [t.number for t in stored if t.state != TrialState.FAIL]
            self._taken = {self._identity(t.user_attrs["params"]) for t in stored}
            self._study = study
        return self._study

    def annotate(self, trial_id: str, **attributes: Any) -> None:
        """Keeps facts about a running trial, such as ``mlflow_run_id``, with its Optuna trial.

        Nothing happens for a replayed one, which keeps what it has. Call it from the thread that
        runs Tune.
        """
        running = self._running(trial_id)
        if running is not None:
            for name, value in attributes.items():
                running.trial.set_user_attr(name, value)

    def give_reason(self, trial_id: str, reason: str) -> None:
        """Says why a trial failed; to be called from the callback ``on_trial_error``."""
        number = self._failed.pop(trial_id, None)
        if number is not None:
            self._tell(number, TrialState.FAIL, reason=reason)

    def close(self, resumable: bool = True) -> None:
        """Ends the work with the storage; to be called when Tune has returned or raised.

        Trials that did not end (time budget, Ctrl-C) stay RUNNING, so that ``resume`` continues
        them; with ``resumable=False`` they are told as failed.
        """
        study = self._study
        if study is None:
            return
        self._tell_failed()
        self._numbers.clear()
        if not resumable:
            for stored in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self._tell(stored.number, TrialState.FAIL, reason="the study was ended")
        close_study(study)
        self._close()

    # Inside

    def _close(self) -> None:
        self._study, self._handles, self._taken = None, {}, set()

    def _identity(self, values: Mapping[str, Any]) -> str:
        # All hyperparameters: n_layers=2 given and n_layers=2 by default are the same point.
        return self.space.build(values).model_dump_json()

    def _create(self, study: optuna.Study, trial_id: str) -> FrozenTrial | None:
        """Stores a new trial; None where the study has all its trials or the space no new point."""
        stored = study.get_trials(deepcopy=False)
        if len(stored) >= self.trials:
            return None
        drawn = self._draw(stored)
        if drawn is None:
            self.notes.append(
                f"the study ends after {len(stored)} of {self.trials} trials: {DRAWS} draws gave "
                "no point of the search space that is new and obeys the model's rules"
            )
            return None
        draft, values = drawn
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=draft.params,
                distributions=draft.distributions,
                user_attrs={"params": values, "tune_trial_id": trial_id},
            )
        )
        self._taken.add(self._identity(values))
        return study.get_trials(deepcopy=False)[-1]

    def _draw(self, stored: list[FrozenTrial]) -> tuple[Trial, dict[str, Any]] | None:
        seed = int(np.random.SeedSequence([self.seed, len(stored)]).generate_state(1)[0])
        scratch = optuna.create_study(
            direction=DIRECTIONS[self.mode], sampler=optuna.samplers.TPESampler(seed=seed)
        )
        scratch.add_trials(stored)
        if not stored:
            sampled = {d.name for d in self.space.dimensions}
            scratch.enqueue_trial({k: v for k, v in self.space.start.items() if k in sampled})
        for attempt in range(DRAWS):
            if attempt == DRAWS // 10:  # TPE insists on the best of a small space
                scratch.sampler = optuna.samplers.RandomSampler(seed=seed)
            draft = scratch.ask()
            values = self.space.suggest(draft)
            if self.space.allows(values) and self._identity(values) not in self._taken:
                return draft, values
            scratch.tell(draft, state=TrialState.FAIL)
        return None

    def _running(self, trial_id: str) -> _Running | None:
        number = self._numbers.get(trial_id)
        return None if number is None else self._handle(number)

    def _handle(self, number: int) -> _Running:
        if number not in self._handles:
            study = self.open()
            stored = study.get_trials(deepcopy=False)[number]
            trial = Trial(study, stored._trial_id)
            self._handles[number] = _Running(trial, dict(stored.intermediate_values))
        return self._handles[number]

    def _tell(
        self, number: int, state: TrialState, value: float | None = None, **attributes: Any
    ) -> None:
        trial = self._handle(number).trial
        for name, attribute in attributes.items():  # a finished trial takes no more of them
            trial.set_user_attr(name, attribute)
        self.open().tell(trial, value, state=state)
        del self._handles[number]

    def _tell_failed(self) -> None:
        for trial_id in list(self._failed):
            self.give_reason(trial_id, "unknown")

    def _best_epoch(self, reported: Mapping[int, float]) -> int:
        return best_epoch(reported, self.mode) or 0
