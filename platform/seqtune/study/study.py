"""A study: a space, data, a searcher, a scheduler and tracking, put together on Ray Tune.

The study's folder holds ``study.json`` (what the study is), ``study.db`` (Optuna's trials),
``trials/`` (a folder each) and, in the end, ``champion/`` and ``report/``.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from seqtune import cluster, paramsfile
from seqtune.data import read
from seqtune.options import StudyOptions
from seqtune.params import declaration
from seqtune.report.view import StudyView
from seqtune.results import StudyResult
from seqtune.space import Given, Space, load_space
from seqtune.state import Row
from seqtune.storage import Folder
from seqtune.study.events import Interrupts, Messenger, track_end
from seqtune.study.finals import find_finals, make_result
from seqtune.study.identity import find, tags
from seqtune.study.plan import Plan
from seqtune.study.probe import Share
from seqtune.study.publish import publish
from seqtune.study.resources import cpus_wanted, make_plan, share_cpus
from seqtune.study.search import OptunaSearcher
from seqtune.study.store import open_study, optuna_storage
from seqtune.study.tuner import search_all
from seqtune.track import Tracker, store_uri
from seqtune.words import duration

# A first look should not take long: these hold on the demo set where nothing else is asked for.
DEMO, DEMO_BUDGET, DEMO_EPOCHS = "demo", 210.0, 40


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
        options, chosen, note = first_look(options, given, chosen)
        view.note(note)
    view.preparing("reading data")
    dataset = read(options)
    space = load_space(options.space, options.model, chosen, given=given)
    poor = paramsfile.poor_values(
        options.model,
        paramsfile.without(given, chosen),
        space.defaults(),
        [d.name for d in space.dimensions],
    )
    uri = store_uri(options.tracking_uri, Folder.at(options.storage))
    options, folder, about = find(options, dataset)
    view.preparing("starting Ray")
    with cluster.connected(cpus_wanted(options), options.workers_per_trial > 1) as resources:
        plan, concurrency = make_plan(options, dataset, folder, resources)
        data = ray.put(dataset)
        if share := share_cpus(options, space, dataset, plan, data, about, view):
            plan, concurrency = replace(plan, cpus=share.cpus), share.concurrency
            about["share"] = asdict(share)
        searcher = OptunaSearcher(
            space,
            optuna_storage(folder),
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
            dataset.describe(),
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
                tags(options, dataset),
                metric=options.metric,
                dimensions=[d.name for d in space.dimensions],
            )
            callbacks: list[tune.Callback] = [
                Messenger(options, searcher, plan, view, tracker, interrupts)
            ]
            search_all(options, space, searcher, plan, data, concurrency, callbacks)
            interrupts.check()
            finals = find_finals(open_study(optuna_storage(folder), options.study), plan, data)
            view.study_ended()
            for note in searcher.notes:
                view.note(note)
            for row in finals.rows:
                if row.status == "unfinished":
                    track_end(tracker, plan, row.number, row.status, row.value, row.epoch)
            result = make_result(options, space, dataset, folder, began, finals)
            view.preparing("writing the report and registering the champion in MLflow")
            return publish(result, dataset, folder, tracker, finals.curves)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            tracker.study_ended("interrupted" if interrupted else "failed")
            tracker.close(timeout=10)
            raise


def first_look(options: StudyOptions, given: Given, chosen: Row) -> tuple[StudyOptions, Row, str]:
    """Keeps a study of the demo set short, where nothing else is asked for, and says so."""
    options = replace(options, time_budget=options.time_budget or DEMO_BUDGET)
    own = declaration(options.model).params.model_fields["epochs"].default
    if own > DEMO_EPOCHS and "epochs" not in given.lines:
        chosen = {"epochs": DEMO_EPOCHS} | chosen
    usual = "some" if "epochs" in given.lines else own
    epochs = chosen.get("epochs", given.values.get("epochs", usual))
    limit, ways = f"{duration(options.time_budget or 0)} in all", "--time-budget"
    if own:  # STAN has none
        limit, ways = f"{epochs} epochs a trial and {limit}", f"--set epochs=, {ways}"
    note = f"the demo set is generated; a first look takes at most {limit} ({ways})"
    return options, chosen, note


def _describe_search(
    space: Space,
    options: StudyOptions,
    concurrency: int,
    plan: Plan,
    share: Share | None,
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
