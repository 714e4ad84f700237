"""One trial of a study, as Ray Tune runs it.

Tune's own checkpoints are not used: the trial's folder serves a retry after a crash and
``--resume`` after the driver's death alike.
"""

from __future__ import annotations

from typing import Any

from seqtune.data import Dataset
from seqtune.state import all_told, flat, load_state, told
from seqtune.study.loop import fresh_start, hopeless, train_here
from seqtune.study.plan import Plan, trial_params
from seqtune.study.workers import train_in_workers


def run(config: dict[str, Any], plan: Plan, data: list[Any]) -> None:
    """The trainable that Tune runs: ``config`` is {"number": ..., "params": {...}, "replay": ...}.

    ``data`` holds a reference to the dataset, whose arrays are read where they lie.

    Whatever the trial reported before a crash is reported again first, so that the scheduler
    sees its whole curve; with ``config["replay"]`` that is all.
    """
    import ray
    from ray import tune

    fresh_start(plan.cpus)
    folder = plan.trial_folder(config["number"])
    rows = told(folder)
    if not config.get("replay") and not (rows and rows[-1]["finished"]):
        rows = all_told(rows, load_state(folder))
    for row in rows:
        tune.report({**flat(row), "replayed": True})
    if config.get("replay") or (rows and rows[-1]["finished"]):
        return
    dataset: Dataset = ray.get(data)[0]
    try:
        params = trial_params(plan.model, config["params"])
        if plan.workers > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            train_in_workers(plan, params, folder, dataset, [TuneReportCallback()])
        else:
            train_here(plan, params, folder, dataset, lambda row: tune.report(flat(row)))
    except Exception as error:
        reason = hopeless(error)
        if reason is None:
            raise  # Tune starts the trial again from its state
        tune.report({"failed": reason, "finished": True})
