"""One training without a search: the command ``seqtune train``."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from seqtune.data import Dataset, protocol_of, read
from seqtune.errors import DamagedError, UserError
from seqtune.floors import logged
from seqtune.machines import check_seen
from seqtune.meter import TimeIsUp
from seqtune.options import TrainOptions
from seqtune.params import Params
from seqtune.results import CHECKPOINT_FILES, TrainResult
from seqtune.schema import FORMAT, checked
from seqtune.space.asked import Asked, fit_training
from seqtune.state import Row, best_of, curves, flat, held_file, load_state, told
from seqtune.storage import Folder, refusing
from seqtune.study import deaths, lock
from seqtune.study.counting import count
from seqtune.study.final import evaluate_on_test, write_checkpoint
from seqtune.study.lock import data_options
from seqtune.study.loop import hopeless, train_here
from seqtune.study.plan import LENGTH, Plan, trial_params
from seqtune.study.resources import alone, check_data, check_memory, fit, shape, team
from seqtune.study.workers import backend, close_group, train_in_group
from seqtune.track import store_uri

if TYPE_CHECKING:
    from seqtune.report.view import TrainView
    from seqtune.track import Tracker


RESTARTS = 2  # of workers that fail, as of a trial's process


def train_once(asked: Asked[TrainOptions], view: TrainView, *, track: bool = False) -> TrainResult:
    """Trains one model and writes its checkpoint; with ``track`` MLflow has its curves.

    Raises:
        UserError: for what the user can mend; nothing is written then.
        KeyboardInterrupt: on Ctrl-C; the best weights so far are a checkpoint then.
    """
    began = time.monotonic()
    options = asked.options
    workers, most = team([options.model], options.workers)
    if options.time_budget is not None and most > 1:
        raise UserError("--time-budget: several workers cannot stop together; leave --workers out")
    dataset = read(options)
    asked = fit_training(asked, dataset.n_items)
    values = dict(asked.values)
    check_memory(options.model, values, dataset)
    protocol = protocol_of(options, dataset, asked.seed)
    uri = store_uri(options.tracking_uri, Folder.at(options.storage)) if track else ""
    option = "--storage" if options.out is None else "--out"
    with refusing(f"{option} {options.folder}"):
        folder = _free_folder(options)
    folder.prove(option)
    plan = Plan(options.model, options.metric, protocol, folder, workers=workers, most=most)
    built = trial_params(plan.model, values)
    for note in (*asked.notes, *dataset.notes, *alone(plan, options.workers)):
        view.note(note)
    plan = replace(plan, source=data_options(options), fingerprint=dataset.fingerprint)
    training = _training_folder(plan, options, dataset, built)
    try:
        before = told(training, plan.owner(built))
        load_state(training, plan.owner(built))
    except DamagedError as error:
        raise UserError(f"--resume: {error}; train anew without --resume") from None
    if not before:
        lock.begin(folder, plan, built, len(os.sched_getaffinity(0)))
    view.started(options.model, f"{dataset.describe()}\n{protocol.sentence(dataset)}", folder.uri)
    try:
        with _tracked(plan, uri, view) as tracker:
            report = _reporting(
                view, tracker, lambda told: _begin(told, asked, plan, built, dataset)
            )
            for row in before:
                report(row)
            if plan.together:
                _train_in_own_workers(plan, options, built, training, dataset, view, report)
            else:
                stop = _deadline(began, options.time_budget, training)
                with suppress(TimeIsUp):
                    train_here(plan, built, training, dataset, report, stepped=stop)
            result = _finish(plan, values, training, dataset, began=began)
            return _told(result, plan, tracker)
    except KeyboardInterrupt:
        _finish(plan, values, training, dataset, tested=False)
        raise
    except UserError:
        if not options.resume and not told(training):
            _forget(folder)
        raise


def _tracked(plan: Plan, uri: str, view: TrainView) -> AbstractContextManager[Tracker | None]:
    """Yields what tells MLflow of this training, if anything shall."""
    if not uri:
        return nullcontext()
    from seqtune.study.tracked import tracked

    return tracked(uri, plan.folder.name, _begun(plan.folder)["id"], plan.folder, view.note)


def _begin(
    tracker: Tracker, asked: Asked[TrainOptions], plan: Plan, params: Params, dataset: Dataset
) -> None:
    """Opens the run of a training."""
    from seqtune.study.identity import tags

    tracker.start_study(
        params.model_dump(mode="json") | {"metric": plan.metric, "workers": plan.team()},
        tags(asked.options, dataset, plan.protocol),
        metric=plan.metric,
        dimensions=[],
    )


def _reporting(
    view: TrainView, tracker: Tracker | None, begin: Callable[[Tracker], None]
) -> Callable[[Row], None]:
    """Returns what shows a row, and tells MLflow of it; what is refused before has no run."""

    def report(row: Row) -> None:
        if tracker is not None:
            if not tracker.begun:
                begin(tracker)
            tracker.trial_result(None, row["epoch"], curves(flat(row)), time=row["time"])
        view.evaluated(row)

    return report


def _told(result: TrainResult, plan: Plan, tracker: Tracker | None) -> TrainResult:
    """Tells MLflow what the best epoch reaches, and uploads the checkpoint."""
    if tracker is None:
        return result
    both = (("valid", result.valid), ("test", result.test))
    found = {f"{part}/{name}": value for part, values in both for name, value in values.items()}
    tracker.upload(plan.folder, CHECKPOINT_FILES, to="checkpoint")
    tracker.upload(plan.folder, [lock.NAME])
    tracker.study_ended("finished", found | logged(result.floors) | {"best/epoch": result.epoch})
    tracker.settle(30)
    tracker.close(timeout=120 if tracker.answers else 5)
    return replace(result, ui_command=tracker.links.command or "" if tracker.links else "")


def _forget(folder: Folder) -> None:
    """Removes what a training has left that was refused before its first evaluation."""
    folder.remove("training.json")
    folder.remove(lock.NAME)
    (folder / "training").delete()
    if folder.local is not None:
        with suppress(OSError):  # it was there before, with something else in it
            folder.local.rmdir()


def _free_folder(options: TrainOptions) -> Folder:
    """Returns where the checkpoint goes: a folder that has none, unless a training goes on."""
    folder = Folder.at(options.folder)
    if options.resume:
        return folder
    if options.out is not None:
        if folder.read("training.json") is not None or folder.read("model.json") is not None:
            raise UserError(
                f"--out {options.out}: holds a training; go on with --resume, or give another --out"
            )
        return folder
    number = 1
    while folder.read("training.json") is not None:
        number += 1
        folder = folder.parent / f"{Folder.at(options.folder).name}-{number}"
    return folder


def _training_folder(plan: Plan, options: TrainOptions, dataset: Dataset, params: Params) -> Folder:
    """Returns the folder of the training state, which is empty unless the same training goes on."""
    values = params.model_dump()
    now = {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "model": plan.model,
        "data": dataset.fingerprint,
        **plan.protocol.facts(),
        "params": {name: value for name, value in values.items() if name not in LENGTH},
    }
    if not options.resume:
        plan.folder.write("training.json", json.dumps(now, indent=2).encode())
        (plan.folder / "training").delete()  # a state without its training.json is nobody's
    elif (saved := _begun(plan.folder)) != (now := now | {"id": saved.get("id")}):
        different = [name for name in now if saved.get(name) != now[name]] if saved else ["all"]
        raise UserError(
            f"--resume: {plan.folder.uri} holds no training with these options (it differs in "
            f"{', '.join(different)}); give the same model, data, --valid-users, --params and "
            "--set, or leave --resume out"
        )
    return plan.folder / "training"


class _Begun(TypedDict):
    """What ``training.json`` holds, beside the facts of the protocol."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    format: int
    id: str
    model: str
    data: str
    params: dict[str, Any]


def _begun(folder: Folder) -> dict[str, Any]:
    content = folder.read("training.json")
    try:
        return (
            checked(f"{folder / 'training.json'}", _Begun, content) if content is not None else {}
        )
    except DamagedError as error:
        raise UserError(f"--resume: {error}; train anew without --resume") from None


def _deadline(began: float, budget: float | None, folder: Folder) -> Callable[[int], None]:
    """Returns what ends a training when its time is up, once something has been evaluated."""

    def stop(targets: int) -> None:
        if budget is not None and time.monotonic() - began > budget and told(folder):
            raise TimeIsUp

    return stop


def _finish(
    plan: Plan,
    values: dict[str, Any],
    training: Folder,
    dataset: Dataset,
    *,
    began: float = 0.0,
    tested: bool = True,
) -> TrainResult:
    """Writes the best weights as a checkpoint, with what they reach on test."""
    state = load_state(training)
    if state is None:
        raise KeyboardInterrupt  # nothing was evaluated yet
    best = best_of(state)
    valid = best["metrics"]
    found: dict[str, float] = {}
    ranks = None
    if tested:
        found, ranks = evaluate_on_test(plan, values, best["weights"], dataset)
        held = plan.protocol.split(dataset).test
        plan.folder.write("ranks-test.parquet", held_file(dataset, held, ranks))
    about = {"metric": plan.metric, "valid": valid, "test": found}
    lock.complete(plan.folder, plan.metric, told(training))
    write_checkpoint(plan, values, best["weights"], dataset, about, to=plan.folder)
    return TrainResult(
        model=plan.model,
        data_name=dataset.name,
        metric=plan.metric,
        epoch=best["epoch"],
        valid=valid,
        test=found,
        seconds=time.monotonic() - began,
        checkpoint=plan.folder.uri,
        best_hit_10=plan.protocol.reachable(dataset),
        floors=tuple(count(plan, dataset)) if tested else (),
        test_ranks=ranks,
    )


def _train_in_own_workers(
    plan: Plan,
    options: TrainOptions,
    params: Params,
    folder: Folder,
    dataset: Dataset,
    view: TrainView,
    report: Callable[[Row], None],
) -> None:
    import ray
    from ray.train import TrainingFailedError

    from seqtune import cluster

    with cluster.connected() as joined:
        gpus, workers = options.gpus_per_worker, plan.workers
        if gpus is None and sum(one.gpus for one in (*joined.machines, *joined.kinds)) < workers:
            gpus = 0
        cpus, gpus = shape(None, gpus, joined)
        fit(workers, cpus, gpus, joined, "--workers or --gpus-per-worker")
        plan = replace(plan, cpus=cpus, gpus=gpus)
        if joined.grows:
            check_seen(plan.folder, "--storage" if options.out is None else "--out")
            check_data(dataset)
        by = {"nccl": "NCCL", "gloo": "gloo"}[backend(gpus)]
        view.note(f"{plan.team()}, {plan.share()} each, exchange gradients by {by}")
        data, failures = ray.put(dataset), 0
        while True:
            try:
                train_in_group(plan, params, folder, data, report, view.note)
            except TrainingFailedError as error:
                lasting, failures = hopeless(error), failures + 1
                why = lasting or deaths.reason(str(error), folder)
                if lasting or failures > RESTARTS:
                    again = "; --resume goes on from the last evaluation" if told(folder) else ""
                    raise UserError(f"the training stopped: {why}{again}") from error
                view.note(f"{why}; others go on from the last evaluation")
            else:
                break
        close_group()
