"""When the trials have ended: which one is best, and what the finalists reach on test."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

import optuna
import ray
from optuna.trial import TrialState
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from seqtune.data import Dataset
from seqtune.errors import Halted
from seqtune.floors import Floor
from seqtune.limits import Judge
from seqtune.machines import described, machines
from seqtune.options import StudyOptions, TrainOptions, command, shared
from seqtune.report.verdict import strongest
from seqtune.results import (
    BEST,
    FRONT,
    Choice,
    Contender,
    Finalist,
    Raced,
    StudyResult,
    TrialRow,
    best_trial,
    front,
)
from seqtune.space.asked import AskedStudy
from seqtune.storage import Folder
from seqtune.study import final
from seqtune.study.choice import MOST, choose, read_gains
from seqtune.study.counting import Counting
from seqtune.study.deaths import last_line
from seqtune.study.events import track_end
from seqtune.study.groups import groups
from seqtune.study.identity import tags
from seqtune.study.importance import Importances, importances
from seqtune.study.plan import Plan
from seqtune.study.samplers import EVOLVED
from seqtune.study.seeds import SeedRace
from seqtune.study.store import best_value, open_study, optuna_storage, trial_rows
from seqtune.track import Tracker
from seqtune.words import written

PAUSES = (2, 5, 10, 20, 40, 60, 60)  # seconds in which a machine may have memory again


@dataclass(frozen=True)
class Finals:
    """What is known when the trials have ended: all of them, and those of each model tested."""

    rows: tuple[TrialRow, ...]
    study: optuna.Study  # in memory, as its pictures show it
    importances: Importances
    finalists: dict[int, Finalist]  # by their number
    floors: tuple[Floor, ...]
    notes: tuple[str, ...]  # what went wrong, and what to know of the data
    chosen: Mapping[str, TrialRow]  # model -> its best trial, the best of all first
    judge: Judge = field(default_factory=Judge)
    choice: Choice | None = None  # how the best of all was chosen
    raced: Raced | None = None

    @property
    def best(self) -> Finalist | None:
        """The finalist of the trial that is best on validation."""
        return next((self.finalists[row.number] for row in self.chosen.values()), None)

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The best of each model, the best on validation first."""
        own = {model: [r for r in self.rows if r.model == model] for model in self.chosen}
        return tuple(
            Contender(
                best=self.finalists[row.number],
                default=self.finalists.get(own[model][0].number),
                trials=len(own[model]),
            )
            for model, row in self.chosen.items()
        )


def find_finals(
    plan: Plan,
    data: Any,
    storage: str,
    name: str,
    tracker: Tracker,
    counting: Counting,
    judge: Judge,
    race: SeedRace | None = None,
) -> Finals:
    """Evaluates the best trial of each model and its defaults on test, on machines like a trial's.

    ``data`` is a reference to the dataset. MLflow is told of the trials that had not ended. Where
    there is a ``race``, its winner is the best of its model.
    """
    opened = open_study(storage, name)
    rows = tuple(trial_rows(opened.study))
    for row in rows:
        if row.status == "unfinished":
            track_end(tracker, plan, row.number, row.status, row.value, row.epoch)
    chosen, choice = _choose(plan, rows, judge)
    raced = None
    if race is not None and (best := next(iter(chosen.values()), None)) is not None:
        raced = race.run([row for row in rows if row.model == best.model], best)
        chosen |= {best.model: rows[raced.winner]} if raced else {}
        choice = None if raced and raced.seeds > 1 else choice  # that of one seed
    best, models = next(iter(chosen.values()), None), list(dict.fromkeys(r.model for r in rows))
    tested: dict[int, list[Folder]] = {}  # number -> where its checkpoint goes
    for model in models:
        own = tuple(row for row in rows if row.model == model)
        if own[0].value is not None and own[0].status != "failed":
            tested[own[0].number] = []
        if (top := chosen.get(model)) is not None:
            tested[top.number] = [plan.folder / BEST / model] if len(models) > 1 else []
    for row in front(rows, judge) if judge.several else ():
        tested.setdefault(row.number, []).append(plan.folder / FRONT / f"{row.number:04d}")
    if best is not None:
        tested[best.number].insert(0, plan.folder / "champion")
    test = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=2)(final.examine)
    starts: dict[int, Callable[[], Any]] = {}
    for number, folders in tested.items():
        row = rows[number]
        told = opened.study.get_trials(deepcopy=False)[number].intermediate_values
        epochs = [epoch for epoch in sorted(told) if epoch <= (row.epoch or 0)] or [row.epoch or 1]
        values, own_plan = dict(row.params), plan.of(row.model)
        starts[number] = partial(test.remote, own_plan, number, values, data, folders, epochs)
    jobs = {number: start() for number, start in starts.items()}
    shown = _shown(opened.study)
    one_of_several = best.model if best and len(models) > 1 else None
    shares = importances(opened.study, one_of_several)  # while the tests run
    opened.close()
    finalists = {number: _outcome(job, starts[number]) for number, job in jobs.items()}
    floors = counting.floors()
    notes = [one.note for one in finalists.values() if one.note]
    if counting.failed:
        notes.append(f"the floors could not be counted: {counting.failed}")
    said = (*notes, *counting.remarks())
    return Finals(rows, shown, shares, finalists, floors, said, chosen, judge, choice, raced)


def _choose(
    plan: Plan, rows: Sequence[TrialRow], judge: Judge
) -> tuple[dict[str, TrialRow], Choice | None]:
    """Returns the best trial of each model, the best of all first, and how that was chosen."""
    choice, known = None, [row for row in rows if row.eligible]
    best = best_trial(rows, judge)
    if not judge.several:
        candidates = sorted(known, key=lambda row: -(row.value or 0))[:MOST]
        found = {r.number: read_gains(plan.trial_folder(r.number), plan.metric) for r in candidates}
        choice = choose(candidates, {n: gains for n, gains in found.items() if gains is not None})
        best = rows[choice.number] if choice else best
    if best is None:
        return {}, None
    models = dict.fromkeys(row.model for row in known if row.model != best.model)
    others = [best_trial([row for row in known if row.model == m], judge) for m in models]
    ranked = sorted((r for r in others if r), key=lambda row: (-(row.value or 0), row.number))
    return {row.model: row for row in (best, *ranked)}, choice


def _outcome(job: Any, again: Callable[[], Any]) -> Finalist:
    """Waits for a task, which is started again where the machine had no memory for it.

    Raises:
        Halted: it has had none for minutes, or the task's process crashes each time.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            found: Finalist = ray.get(job)
        except (OutOfMemoryError, WorkerCrashedError) as error:
            if (pause := next(pauses, None)) is None:
                reason = last_line(error)
                raise Halted(f"the evaluation on test did not come to its end: {reason}") from error
            time.sleep(pause)
            job = again()
        else:
            return found


def _shown(study: optuna.Study) -> optuna.Study:
    """Copies a study so that each trial with a value is complete: Optuna draws no other."""
    shown = optuna.create_study(direction="maximize")
    for trial in study.get_trials(deepcopy=True):
        value = best_value(trial)
        trial.state = TrialState.FAIL if value is None else TrialState.COMPLETE
        trial.value = value
        trial.datetime_start = trial.datetime_start or datetime.now()
        trial.datetime_complete = trial.datetime_complete or datetime.now()
        shown.add_trial(trial)
    return shown


def make_result(
    asked: AskedStudy,
    dataset: Dataset,
    plan: Plan,
    began: float,
    finals: Finals,
    why_ended: str = "",
    settled: str = "",
) -> StudyResult:
    """Puts together what the study has to say; the links are not known yet.

    ``why_ended`` says why it ended, where somebody asked for it, ``settled`` why nothing more is
    to be gained.
    """
    options, best, seconds = asked.options, finals.best, time.monotonic() - began
    alone = best is None or finals.rows[best.number].origin != EVOLVED
    ended = sum(row.status != "unfinished" for row in finals.rows)
    planned = len(finals.rows)
    late = asked.time_budget is not None and seconds > asked.time_budget
    if ended < planned or why_ended or (late and not settled):
        planned = max(planned, options.most)  # else the search space has no more points
    notes = finals.notes
    if settled and ended == planned:
        notes += (f"{settled}; --resume --trials N goes on",)
    if ended < planned:
        goes_on, why = "--resume goes on with the others", why_ended or "time was up"
        notes += (f"{why} when {ended} of {planned} trials had ended; {goes_on}",)
    return StudyResult(
        name=options.study,
        models=options.models,
        data_name=dataset.name,
        metric=options.metric,
        protocol=plan.protocol.sentence(dataset),
        trials=finals.rows,
        default=finals.contenders[0].default if best else None,
        best=best,
        contenders=finals.contenders,
        importances=finals.importances.shares,
        unimportant=finals.importances.why,
        searched=_searched(asked, best.model if best else asked.space.model),
        planned=planned,
        seconds=seconds,
        checkpoint=(plan.folder / "champion").uri if best else "",
        train_command=train_command(options, best) if best and alone else "",
        dashboard_command=f"optuna-dashboard {_quoted(optuna_storage(plan.folder))}",
        report=(plan.folder / "report").uri,
        best_hit_10=plan.protocol.reachable(dataset),
        floors=finals.floors,
        notes=notes,
        baseline=asked.baseline,
        judge=finals.judge,
        choice=finals.choice,
        raced=finals.raced,
    )


def with_background(
    result: StudyResult, options: StudyOptions, dataset: Dataset, plan: Plan
) -> StudyResult:
    """Adds for whom the best of each model and the strongest floor are good, and what it ran on."""
    facts = tags(options, dataset, plan.protocol) | {"seqtune.machines": described(machines())}
    systems = {one.model: one.best.test_ranks for one in result.contenders}
    if systems and result.floors:
        floor = strongest(result.floors, result.metric, "test")
        systems[floor.name] = floor.test_ranks
    found = groups(plan.protocol.split(dataset), result.metric, systems)
    return replace(result, facts=facts, groups=found)


def _searched(asked: AskedStudy, model: str) -> tuple[str, ...]:
    space = next(space for space in asked.spaces if space.model == model)
    return tuple(dimension.name for dimension in space.dimensions)


def _quoted(storage: str) -> str:
    return f'"{storage}"' if storage.startswith("$") else shlex.quote(storage)


def train_command(options: StudyOptions, best: Finalist) -> str:
    """Returns the command that trains a trial again."""
    values = {**shared(options, TrainOptions), "params": None, "resume": False, "time_budget": None}
    values["model"] = best.model
    values |= {"set": tuple(f"{name}={written(value)}" for name, value in best.params.items())}
    return command(TrainOptions(**values, workers=options.workers_per_trial))
