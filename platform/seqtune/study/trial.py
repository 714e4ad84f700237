"""One trial of a study, as Ray Tune runs it.

Tune's own checkpoints are not used: the trial's folder serves a retry after a crash and
``--resume`` after the driver's death alike.
"""

from __future__ import annotations

import math
from typing import Any

from seqtune.data import Dataset
from seqtune.errors import DamagedError
from seqtune.state import all_told, flat, load_state, told
from seqtune.storage import Folder
from seqtune.study import deaths
from seqtune.study.loop import fresh_start, hopeless, threads, train_here
from seqtune.study.plan import Plan, trial_params
from seqtune.study.workers import train_in_workers


def run(config: dict[str, Any], plan: Plan, data: list[Any]) -> None:
    """The trainable that Tune runs; ``config`` is what the searcher suggests.

    ``data`` holds a reference to the dataset, whose arrays are read where they lie.

    Whatever the trial reported before a crash is reported again first, so that the scheduler
    sees its whole curve; with ``config["replay"]`` that is all. A folder that is damaged, or not
    this trial's, is set aside: the trial is trained again, or its curve is what Optuna holds.
    """
    import ray
    from ray import tune

    fresh_start(threads(plan))
    folder = plan.trial_folder(config["number"])
    try:
        params = trial_params(plan.model, config["params"])
        rows, note = _known(plan, folder, plan.owner(params), config)
        if note:
            tune.report({"note": note})
        for row in rows:
            tune.report({**row, "replayed": True})
        if config["replay"] or (rows and rows[-1]["finished"]):
            return
        dataset: Dataset = ray.get(data)[0]
        if plan.workers > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            train_in_workers(plan, params, folder, dataset, [TuneReportCallback()])
        else:
            with deaths.noted(folder):
                train_here(plan, params, folder, dataset, lambda row: tune.report(flat(row)))
    except Exception as error:
        reason = hopeless(error)
        if reason is None:
            raise  # Tune starts the trial again from its state
        tune.report({"failed": reason, "finished": True})


def _known(
    plan: Plan, folder: Folder, owner: str, config: dict[str, Any]
) -> tuple[list[dict[str, Any]], str]:
    """Returns what the trial has reported already, and a note where its folder was set aside."""
    try:
        rows = told(folder, owner)
        if not config["replay"] and not (rows and rows[-1]["finished"]):
            rows = all_told(rows, load_state(folder, owner))
    except DamagedError as error:
        aside = folder.set_aside().uri.rpartition("/")[2]
        then = "its values are Optuna's" if config["replay"] else "the trial is trained again"
        return _stored(plan, config), f"{error}; its folder is kept as {aside}, and {then}"
    if config["replay"] and not rows:
        return _stored(plan, config), ""
    return [flat(row) for row in rows], ""


def _stored(plan: Plan, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the curve that Optuna holds, which is all where a trial has ended there."""
    rows: list[dict[str, Any]] = []
    best, best_epoch = -math.inf, 0
    for epoch, value in sorted((int(epoch), value) for epoch, value in config["values"].items()):
        if value > best:
            best, best_epoch = value, epoch
        seen = {"epoch": epoch, plan.metric: value, "best": best, "best_epoch": best_epoch}
        rows.append({**seen, "finished": False})
    return rows
