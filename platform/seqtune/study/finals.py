"""When the trials have ended: which one is best, and what the finalists reach on test."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray

from seqtune.data import Dataset
from seqtune.options import StudyOptions, TrainOptions, command
from seqtune.results import Finalist, StudyResult, TrialRow
from seqtune.space import Space
from seqtune.storage import Folder
from seqtune.study import final
from seqtune.study.importance import importances
from seqtune.study.plan import Plan
from seqtune.study.store import close_study, trial_rows
from seqtune.words import written

if TYPE_CHECKING:
    import optuna


class Finals:
    """What is known when the trials have ended: all of them, and two of them tested."""

    def __init__(self, study: optuna.Study) -> None:
        self.rows = [
            replace(row, status="unfinished") if row.status == "running" else row
            for row in trial_rows(study)
        ]
        self.importances: dict[str, float] = {}
        self.curves = {
            t.number: sorted(t.intermediate_values.items())
            for t in study.get_trials(deepcopy=False)
        }
        self.finalists: dict[int, Finalist] = {}

    @property
    def best(self) -> TrialRow | None:
        """The trial with the best validation value; the earliest of equals."""
        known = [row for row in self.rows if row.value is not None and row.status != "failed"]
        return max(known, key=lambda row: (row.value or 0, -row.number), default=None)


def find_finals(study: optuna.Study, plan: Plan, data: Any) -> Finals:
    """Evaluates the best trial and the defaults on test, once, on a machine like a trial's."""
    finals = Finals(study)
    chosen = finals.best
    numbers = {row.number for row in finals.rows if row.number == 0 and row.value is not None}
    numbers |= {chosen.number} if chosen else set()
    champion = plan.folder / "champion"
    test = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=2)(final.test)
    params = {row.number: dict(row.params) for row in finals.rows}
    jobs = {
        n: test.remote(
            plan, n, params[n], data, champion if chosen and n == chosen.number else None
        )
        for n in numbers
    }
    finals.importances = importances(study)  # while the tests run
    close_study(study)
    finals.finalists = {number: ray.get(job) for number, job in jobs.items()}
    return finals


def make_result(
    options: StudyOptions,
    space: Space,
    dataset: Dataset,
    folder: Folder,
    began: float,
    finals: Finals,
) -> StudyResult:
    """Puts together what the study has to say; the links are not known yet."""
    best = finals.best
    chosen = finals.finalists[best.number] if best else None
    unfinished = sum(row.status == "unfinished" for row in finals.rows)
    notes = [f"time was up before {unfinished} trials had ended; --resume continues them"]
    return StudyResult(
        name=options.study,
        model=options.model,
        data_name=dataset.name,
        metric=options.metric,
        trials=tuple(finals.rows),
        default=finals.finalists.get(0),
        best=chosen,
        importances=finals.importances,
        searched=tuple(d.name for d in space.dimensions),
        seconds=time.monotonic() - began,
        checkpoint=(folder / "champion").uri if chosen else "",
        train_command=_train_command(options, chosen) if chosen else "",
        ui_command="",
        view_link="",
        serve_command="",
        best_hit_10=dataset.best_hit_10,
        notes=tuple(notes if unfinished else ()),
        baseline=options.baseline,
    )


def _train_command(options: StudyOptions, best: Finalist) -> str:
    names = ("model", "data", "user_col", "item_col", "time_col", "min_user", "min_item")
    own = ("mask_seen", "metric", "valid_users", "seed")
    shared = {name: getattr(options, name) for name in (*names, *own)}
    chosen = tuple(f"{k}={written(v)}" for k, v in best.params.items() if k != "seed")
    return command(TrainOptions(**shared, set=chosen, workers=options.workers_per_trial))
