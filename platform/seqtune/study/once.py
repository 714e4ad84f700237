"""One training without a search: the command ``seqtune train``."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from seqtune import cluster, paramsfile
from seqtune.data import Dataset, read
from seqtune.errors import UserError
from seqtune.options import TrainOptions
from seqtune.params import TrainParams
from seqtune.results import TrainResult
from seqtune.storage import Folder
from seqtune.study.identity import ALL_USERS, validated

if TYPE_CHECKING:
    from seqtune.report.view import TrainView

from seqtune.state import Row, history, load_state
from seqtune.study.final import evaluate_on_test, write_checkpoint
from seqtune.study.loop import train_here
from seqtune.study.plan import Plan, trial_params
from seqtune.study.workers import train_in_workers


def train_once(options: TrainOptions, view: TrainView) -> TrainResult:
    """Trains one model and writes its checkpoint: the command ``seqtune train``."""
    began = time.monotonic()
    dataset = read(options)
    given = paramsfile.given_by(options)
    chosen = paramsfile.overrides(options, given)
    params = paramsfile.point(given, chosen)
    poor = paramsfile.poor_values(options.model, paramsfile.without(given, chosen), params)
    for note in (*dataset.notes, *given.notes, *poor):
        view.note(note)
    folder = Folder.at(options.folder)
    mask_seen = options.mask_seen
    plan = Plan(
        model=options.model,
        metric=options.metric,
        mask_seen=not dataset.has_repeats if mask_seen is None else mask_seen,
        folder=folder,
        workers=options.workers,
        valid_users=options.valid_users,
        seed=options.seed,
    )
    state_folder = _training_folder(folder, options, dataset, params)
    view.started(options.model, dataset.describe(), folder.uri)
    for row in history(state_folder):
        view.evaluated(row)
    built = trial_params(plan.model, params)
    if plan.workers > 1:
        _train_in_own_workers(plan, built, state_folder, dataset, view)
    else:
        train_here(plan, built, state_folder, dataset, view.evaluated)
    state = load_state(state_folder)
    assert state is not None, "training ended without an evaluation"
    valid = {name: value for name, value in state["best"].items() if name != "epoch"}
    found, _ = evaluate_on_test(plan, params, state["best_model"], dataset)
    about = {"metric": plan.metric, "valid": valid, "test": found}
    write_checkpoint(folder, plan, params, state["best_model"], dataset, about)
    return TrainResult(
        model=plan.model,
        data_name=dataset.name,
        metric=plan.metric,
        epoch=state["best"]["epoch"],
        valid=valid,
        test=found,
        seconds=time.monotonic() - began,
        checkpoint=folder.uri,
        best_hit_10=dataset.best_hit_10,
    )


def _training_folder(
    folder: Folder, options: TrainOptions, dataset: Dataset, params: Row
) -> Folder:
    """Returns the folder of the training state, emptied unless the same training goes on."""
    now = {"model": options.model, "data": dataset.fingerprint, "params": params}
    now |= {"validation": validated(options)}
    saved = json.loads(folder.read("training.json") or b"{}")
    if options.resume and {"validation": ALL_USERS} | saved != now:
        raise UserError(
            f"--resume: {folder.uri} holds no training with these options; give the same model, "
            "data, --valid-users, --params and --set, or leave --resume out"
        )
    if not options.resume:
        folder.write("training.json", json.dumps(now, indent=2).encode())
        (folder / "training").delete()
    return folder / "training"


def _train_in_own_workers(
    plan: Plan, params: TrainParams, folder: Folder, dataset: Dataset, view: TrainView
) -> None:
    from ray.util.queue import Queue

    with cluster.connected():
        rows = Queue(actor_options={"num_cpus": 0})
        follower = threading.Thread(target=_follow, args=(rows, view), daemon=True)
        follower.start()
        train_in_workers(plan, params, folder, dataset, [], rows)
        rows.put(None)
        follower.join()


def _follow(rows: Any, view: TrainView) -> None:
    while (row := rows.get()) is not None:
        view.evaluated(row)
