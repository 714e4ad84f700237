"""A study: a space, data, a searcher, a scheduler and tracking, put together on Ray Tune.

The study's folder holds ``study.json`` (what the study is), ``study.db`` (Optuna's trials),
``trials/`` (a folder each) and, in the end, ``champion/`` and ``report/``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from seqtune import cluster, paramsfile, probe, search, trial
from seqtune.data import Dataset, leave_one_out
from seqtune.errors import UserError
from seqtune.options import StudyOptions, TrainOptions, command, duration
from seqtune.params import declaration, training
from seqtune.plots import plots
from seqtune.report import Finalist, StudyResult, TrialRow, to_json, to_markdown
from seqtune.space import Given, Space, load_space
from seqtune.storage import Folder
from seqtune.track import Links, Tracker, store_uri
from seqtune.track.store import shown
from seqtune.trial import Plan
from seqtune.versions import git_commit, versions
from seqtune.view import StudyView

if TYPE_CHECKING:
    import optuna
    from ray.tune.experiment import Trial as TuneTrial

Row = dict[str, Any]
# A first look should not take long: these hold on the demo set where nothing else is asked for.
DEMO, DEMO_BUDGET, DEMO_EPOCHS = "demo", 210.0, 40
OPTUNA_STORAGE = "SEQTUNE_OPTUNA_STORAGE"  # a database URL, for studies whose driver may move


def run(options: StudyOptions, view: StudyView) -> StudyResult:
    """Runs a study to its end, or from where it stopped with ``options.resume``.

    Raises:
        UserError: for what the user can mend; nothing has started then.
        KeyboardInterrupt: on Ctrl-C, once the study can be resumed.
    """
    began = time.monotonic()
    given = paramsfile.given_by(options)
    chosen = paramsfile.overrides(options, given)
    if options.data == DEMO:
        options, chosen, note = _first_look(options, given, chosen)
        view.note(note)
    view.preparing("reading data")
    dataset = trial.read(options)
    space = load_space(options.space, options.model, chosen, given=given)
    poor = paramsfile.poor_values(
        options.model,
        paramsfile.without(given, chosen),
        space.defaults(),
        [d.name for d in space.dimensions],
    )
    uri = store_uri(options.tracking_uri, Folder.at(options.storage))
    options, folder, about = _find(options, dataset)
    view.preparing("starting Ray")
    with cluster.connected(_cpus(options), options.workers_per_trial > 1) as resources:
        plan, concurrency = _plan(options, dataset, folder, resources)
        data = ray.put(dataset)
        if share := _share(options, space, dataset, plan, data, about, view):
            plan, concurrency = replace(plan, cpus=share.cpus), share.concurrency
            about["share"] = asdict(share)
        searcher = search.OptunaSearcher(
            space,
            _optuna_storage(folder),
            options.study,
            metric=options.metric,
            trials=options.trials,
            seed=options.seed,
            resume=options.resume,
        )
        searcher.open()
        folder.write("study.json", json.dumps(about, indent=2).encode())  # from here on it exists
        for note in (*dataset.notes, *given.notes, *space.notes, *poor, *cluster.busy()):
            view.note(note)
        view.study_started(
            options.model,
            trial.describe(dataset),
            options.trials,
            _describe_search(space, options, concurrency, plan, share),
            folder.uri,
        )
        interrupts = Interrupts()
        local = folder.local or Path(tempfile.gettempdir()) / "seqtune" / about["id"]
        journal = local / "mlflow.journal"
        tracker = Tracker(uri, options.study, about["id"], journal, say=view.note)
        try:
            tracker.start_study(
                _study_params(options, space),
                _tags(options, dataset),
                metric=options.metric,
                dimensions=[d.name for d in space.dimensions],
            )
            callbacks: list[tune.Callback] = [
                Messenger(options, searcher, plan, view, tracker, interrupts)
            ]
            _search(options, space, searcher, plan, data, concurrency, callbacks)
            interrupts.check()
            finals = _finals(search.open_study(_optuna_storage(folder), options.study), plan, data)
            view.study_ended()
            for note in searcher.notes:
                view.note(note)
            for row in finals.rows:
                if row.status == "unfinished":
                    _track_end(tracker, plan, row.number, row.status, row.value, row.epoch)
            result = _result(options, space, dataset, folder, began, finals)
            view.preparing("writing the report and registering the champion in MLflow")
            return _publish(result, dataset, folder, tracker, finals.curves)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            tracker.study_ended("interrupted" if interrupted else "failed")
            tracker.close(timeout=10)
            raise


# Before the first trial


def _first_look(options: StudyOptions, given: Given, chosen: Row) -> tuple[StudyOptions, Row, str]:
    """Keeps a study of the demo set short, where nothing else is asked for, and says so."""
    options = replace(options, time_budget=options.time_budget or DEMO_BUDGET)
    own = declaration(options.model).epochs
    if own > DEMO_EPOCHS and "epochs" not in given.lines:
        chosen = {"epochs": DEMO_EPOCHS} | chosen
    usual = "some" if "epochs" in given.lines else own
    epochs = chosen.get("epochs", given.values.get("epochs", usual))
    limit, ways = f"{duration(options.time_budget or 0)} in all", "--time-budget"
    if own:  # STAN has none
        limit, ways = f"{epochs} epochs a trial and {limit}", f"--set epochs=, {ways}"
    note = f"the demo set is generated; a first look takes at most {limit} ({ways})"
    return options, chosen, note


def _find(options: StudyOptions, dataset: Dataset) -> tuple[StudyOptions, Folder, Row]:
    """Finds the study's name and folder, and says what the study is: the content of study.json.

    A name that was not given is made unique; one that was given must be new, or be resumed.
    """
    root = Folder.at(options.storage)
    name, taken = options.study, set(root.names())
    if options.name is None:
        numbered = [f"{name}-{n}" for n in range(2, len(taken) + 3)]
        known = [one for one in (name, *numbered) if one in taken]
        if options.resume and known:
            name = known[-1]
        elif known:
            name = next(one for one in numbered if one not in taken)
    folder = root / name
    options = replace(options, name=name)
    saved: Row = json.loads(folder.read("study.json") or b"{}")
    now = {"model": options.model, "data": dataset.fingerprint, "metric": options.metric}
    now |= {"validation": trial.validated(options)}
    if not options.resume:
        if saved:
            raise UserError(
                f"--name {name}: this study exists; go on with --resume, or give another --name"
            )
        asked = command(replace(options, tracking_uri=None))  # which may hold a password
        return options, folder, now | {"id": f"{name}-{uuid.uuid4().hex[:8]}", "command": asked}
    if not saved:
        raise UserError(f"--resume: there is no study {name!r} in {root.uri}; leave --resume out")
    for what, value in now.items():
        before = saved.get(what, trial.ALL_USERS)  # where a study of old says nothing
        if before != value:
            raise UserError(
                f"--resume: study {name!r} was started with another {what} ({before}, now "
                f"{value}); give the same, or another --name without --resume"
            )
    return options, folder, saved


def _optuna_storage(folder: Folder) -> str:
    if OPTUNA_STORAGE in os.environ:
        return f"${OPTUNA_STORAGE}"  # read when the study is opened: it may hold a password
    if folder.local is None:
        raise UserError(
            f"--storage {folder.uri}: Optuna's SQLite file needs a local folder; set "
            f"{OPTUNA_STORAGE} to a database, for example postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    return search.storage_url(folder.local)


def _cpus(options: StudyOptions) -> float | None:
    """Returns the CPUs that Ray shall believe in, where the user asks for more than there are."""
    if options.concurrency is None:
        return None
    wanted = options.concurrency * options.workers_per_trial * (options.cpus_per_trial or 1)
    return max(math.ceil(wanted), len(os.sched_getaffinity(0)))


def _plan(
    options: StudyOptions, dataset: Dataset, folder: Folder, resources: Mapping[str, float]
) -> tuple[Plan, int]:
    """Decides what a trial gets, and how many run at a time.

    One CPU a trial, unless it is measured (``_share``): two trials of one thread mostly get more
    done than one of two.
    """
    cpus, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
    mask_seen = options.mask_seen
    plan = Plan(
        model=options.model,
        metric=options.metric,
        mask_seen=not dataset.has_repeats if mask_seen is None else mask_seen,
        folder=folder,
        workers=options.workers_per_trial,
        cpus=1 if options.cpus_per_trial is None else options.cpus_per_trial,
        gpus=min(gpus, 1) if options.gpus_per_trial is None else options.gpus_per_trial,
        valid_users=options.valid_users,
        seed=options.seed,
    )
    fits = [cpus / (plan.cpus * plan.workers)] if plan.cpus else []
    fits += [gpus / (plan.gpus * plan.workers)] if plan.gpus else []
    fitting = int(min(fits, default=1))
    if fitting < 1:
        raise UserError(
            f"a trial needs {plan.workers} x ({plan.cpus:g} CPUs, {plan.gpus:g} GPUs), more than "
            f"the {cpus:g} CPUs and {gpus:g} GPUs there are; lower --workers-per-trial, "
            "--cpus-per-trial or --gpus-per-trial"
        )
    return plan, min(options.concurrency or fitting, fitting)


def _share(
    options: StudyOptions,
    space: Space,
    dataset: Dataset,
    plan: Plan,
    data: Any,
    about: Row,
    view: StudyView,
) -> probe.Share | None:
    """Measures how trials share the CPUs best; None where one CPU each is not in question.

    A study that is resumed keeps what it began with, where the machine is the same.
    """
    asked = options.concurrency is not None or options.cpus_per_trial is not None
    ways = probe.ways(cluster.nodes(), options.trials)
    if asked or plan.gpus or plan.workers > 1 or len(ways) < 2 or cluster.busy():
        return None
    if options.resume:
        kept = probe.Share(**about["share"]) if "share" in about else None
        return kept if kept and (kept.concurrency, kept.cpus) in ways else None
    values = space.defaults()
    epochs = training(space.build(values)).epochs
    if not probe.pays(dataset.n_interactions, epochs, options.trials, options.time_budget):
        return None
    view.preparing("measuring how many trials at a time get most done")
    try:
        return probe.choose(plan, values, data, ways)
    except Exception as error:
        view.note(f"not measured how many trials at a time get most done: {_last_line(error)}")
        return None


def _describe_search(
    space: Space,
    options: StudyOptions,
    concurrency: int,
    plan: Plan,
    share: probe.Share | None,
) -> str:
    names = f"{len(space.dimensions)} hyperparameters searched"
    given = f"{concurrency} at a time, {plan.cpus:g} CPU{'s' * (plan.cpus > 1)}" + (
        f", {plan.gpus:g} GPU" * bool(plan.gpus)
    )
    workers = f" for each of {plan.workers} workers" if plan.workers > 1 else " each"
    why = f" ({share.why})" if share else ""
    return f"{names}, {options.trials} trials, {given}{workers}{why}"


def _study_params(options: StudyOptions, space: Space) -> dict[str, Any]:
    asked = ("model", "data", "metric", "valid_users", "trials", "time_budget", "scheduler", "seed")
    return {name: getattr(options, name) for name in asked} | {"space": space.place}


def _tags(options: StudyOptions, dataset: Dataset) -> dict[str, str]:
    tags = {
        "seqtune.model": options.model,
        "seqtune.data": options.data,
        "seqtune.data_fingerprint": dataset.fingerprint,
        "seqtune.git_commit": git_commit(),
        "seqtune.command": command(replace(options, tracking_uri=None)),  # it may hold a password
    }
    return tags | {f"seqtune.version.{name}": version for name, version in versions().items()}


# The trials


def _search(
    options: StudyOptions,
    space: Space,
    searcher: search.OptunaSearcher,
    plan: Plan,
    data: Any,
    concurrency: int,
    callbacks: list[tune.Callback],
) -> None:
    alone = plan.workers == 1
    # Ray Train's workers bring their own resources. The trial only waits for them, and Tune wants
    # it to ask for something: a byte.
    share = {"CPU": plan.cpus, "GPU": plan.gpus} if alone else {"memory": 1}
    trainable = tune.with_resources(
        tune.with_parameters(trial.run, plan=plan, data=[data]),  # in a list: still a reference
        tune.PlacementGroupFactory([{name: n for name, n in share.items() if n}]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(options, space),
            num_samples=-1,  # the searcher knows when to stop
            max_concurrent_trials=concurrency,
            time_budget_s=options.time_budget,
            reuse_actors=alone,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=plan.folder.uri,
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        searcher.close()


def _trial_name(one: TuneTrial) -> str:
    return f"{one.config['number']:04d}"


def _scheduler(options: StudyOptions, space: Space) -> TrialScheduler:
    epochs = training(space.build(space.defaults())).epochs
    if options.scheduler == "none" or epochs < 2:
        return FIFOScheduler()
    return Asha(
        time_attr="epoch",
        metric="best",
        mode="max",
        grace_period=max(1, min(10, epochs // 3)),
        max_t=epochs + 1,  # a trial ends by itself
        reduction_factor=3,
    )


class Interrupts:
    """Remembers Ctrl-C and SIGTERM while a study runs.

    The KeyboardInterrupt that they raise is lost where it hits Ray's own code at a bad moment, so
    the study also looks here after each of Tune's steps.
    """

    def __init__(self) -> None:
        self.came = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises the KeyboardInterrupt that was lost."""
        if self.came:
            raise KeyboardInterrupt


class Asha(AsyncHyperBandScheduler):
    """ASHA (arXiv 1810.05934) that never stops trial 0: the defaults are what all is compared with.

    A default that was stopped early would make tuning look better than it is.
    """

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: Row) -> str:
        """Decides whether a trial goes on."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["number"] == 0 else decision


class Messenger(tune.Callback):
    """Passes what Tune reports on to the view, to MLflow and, for reasons, to the searcher."""

    def __init__(
        self,
        options: StudyOptions,
        searcher: search.OptunaSearcher,
        plan: Plan,
        view: StudyView,
        tracker: Tracker,
        interrupts: Interrupts,
    ) -> None:
        self.interrupts = interrupts
        self.metric, self.searched = options.metric, {d.name for d in searcher.space.dimensions}
        self.searcher, self.plan, self.view, self.tracker = searcher, plan, view, tracker

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; a resumed study makes its own

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        """Tune has gone once around its loop."""
        self.interrupts.check()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial starts, or starts again after a crash."""
        number, params = trial.config["number"], trial.config["params"]
        searched = {name: value for name, value in params.items() if name in self.searched}
        self.view.trial_started(number, searched, is_default=number == 0)
        self.tracker.trial_started(number, params)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: Row, **_: Any
    ) -> None:
        """A trial was evaluated."""
        if "failed" in result:
            return
        number, epoch = trial.config["number"], result["epoch"]
        self.view.trial_result(number, epoch, result[self.metric], result["best"])
        points = {k: v for k, v in result.items() if "@" in k or k.startswith(("train_", "eval_"))}
        self.tracker.trial_result(number, epoch, points, time=result["time"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has ended by itself, or the scheduler has stopped it."""
        reason = str(trial.last_result.get("failed", ""))
        ended = (
            "failed" if reason else "complete" if trial.last_result.get("finished") else "pruned"
        )
        self._ended(trial, trial.config["replay"] or ended, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial has failed for good."""
        reason = _last_line(trial.get_error() or "")
        self.searcher.give_reason(trial.trial_id, reason)
        self._ended(trial, "failed", reason)

    def _ended(self, trial: Any, status: str, reason: str) -> None:
        # A replayed trial is told to MLflow again: the driver may have died before it could.
        number, result = trial.config["number"], trial.last_result
        best = result.get("best") if status != "failed" else None
        replayed = bool(trial.config["replay"])
        self.view.trial_ended(number, status, best, reason, replayed=replayed)
        epoch = result.get("best_epoch")
        _track_end(self.tracker, self.plan, number, status, best, epoch, reason)


def _track_end(
    tracker: Tracker,
    plan: Plan,
    number: int,
    status: str,
    best: float | None,
    epoch: int | None,
    reason: str = "",
) -> None:
    if best is not None:
        tracker.upload(plan.trial_folder(number), ["ranks.parquet"], trial=number)
    found = {} if best is None else {plan.metric: best, "epoch": epoch}
    ended = "finished" if status == "complete" else status
    tracker.trial_ended(number, ended, found, reason or None)


def _last_line(error: object) -> str:
    """Returns the last line of a traceback: the exception and its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the process of the trial ended"


# After the last trial


class Finals:
    """What is known when the trials have ended: all of them, and two of them tested."""

    def __init__(self, study: optuna.Study) -> None:
        self.rows = [
            replace(row, status="unfinished") if row.status == "running" else row
            for row in search.trial_rows(study)
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


def _finals(study: optuna.Study, plan: Plan, data: Any) -> Finals:
    """Evaluates the best trial and the defaults on test, once, on a machine like a trial's."""
    finals = Finals(study)
    chosen = finals.best
    numbers = {row.number for row in finals.rows if row.number == 0 and row.value is not None}
    numbers |= {chosen.number} if chosen else set()
    champion = plan.folder / "champion"
    test = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=2)(trial.test)
    params = {row.number: dict(row.params) for row in finals.rows}
    jobs = {
        n: test.remote(
            plan, n, params[n], data, champion if chosen and n == chosen.number else None
        )
        for n in numbers
    }
    finals.importances = search.importances(study)  # while the tests run
    search.close_study(study)
    finals.finalists = {number: ray.get(job) for number, job in jobs.items()}
    return finals


def _result(
    options: StudyOptions,
    space: Space,
    dataset: Dataset,
    folder: Folder,
    began: float,
    finals: Finals,
) -> StudyResult:
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
    chosen = tuple(f"{k}={_yaml(v)}" for k, v in best.params.items() if k != "seed")
    return command(TrainOptions(**shared, set=chosen, workers=options.workers_per_trial))


def _yaml(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _publish(
    result: StudyResult,
    dataset: Dataset,
    folder: Folder,
    tracker: Tracker,
    curves: Mapping[int, list[tuple[int, float]]],
) -> StudyResult:
    """Writes the report into the study's folder and MLflow, and registers the champion."""
    if result.best is not None:
        tracker.champion(folder / "champion", result.name, result.best.number)
    links = _wait_for_links(tracker)
    if links is not None:
        serve = f"mlflow models serve -m models:/{result.name}@champion --env-manager local"
        result = replace(
            result,
            ui_command=links.command or "",
            view_link=links.charts,
            serve_command=f"MLFLOW_TRACKING_URI={shown(links.uri)} {serve}" if result.best else "",
            champion=result.name if result.best else "",
        )
    report = folder / "report"
    for name, content in _report_files(result, curves):
        report.write(name, content)
    users = dataset.user_ids[leave_one_out(dataset).test.users]
    for name, finalist in (("default", result.default), ("best", result.best)):
        if finalist is not None:
            ranks = trial.ranks_file(users, finalist.test_ranks)
            report.write(f"ranks-{name}.parquet", ranks)
    tracker.upload(report, to="report")
    tested = result.best.test if result.best else {}
    tracker.study_ended("finished", {f"test/{name}": value for name, value in tested.items()})
    tracker.close(timeout=120 if links else 5)  # it never answered: do not wait for it again
    return result


def _wait_for_links(tracker: Tracker, seconds: float = 30) -> Links | None:
    end = time.monotonic() + seconds
    while tracker.links is None and time.monotonic() < end:
        time.sleep(0.05)
    return tracker.links


def _report_files(
    result: StudyResult, curves: Mapping[int, list[tuple[int, float]]]
) -> Iterator[tuple[str, bytes]]:
    yield "report.md", to_markdown(result).encode()
    yield "report.json", json.dumps(to_json(result), indent=2).encode()
    with tempfile.TemporaryDirectory() as scratch:
        for picture in plots(result, curves, Path(scratch)):
            yield picture.name, picture.read_bytes()
