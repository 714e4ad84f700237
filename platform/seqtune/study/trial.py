"""One trial of a study, as Ray Tune runs it.

A trial's folder holds ``state.pt``, from which training continues exactly from the best evaluation,
``ranks.parquet``, the validation rank of every user there, and ``history.json``, all that the trial
has told. Tune's own checkpoints are not used: the folder serves a retry after a crash and
``--resume`` after the driver's death alike.
"""

from __future__ import annotations

from typing import Any

from seqtune.data import Dataset
from seqtune.state import Row, history
from seqtune.study.loop import fresh_start, hopeless, train_here
from seqtune.study.plan import Plan, trial_params
from seqtune.study.workers import train_in_workers


def run(config: Row, plan: Plan, data: list[Any]) -> None:
    """The trainable that Tune runs: ``config`` is {"number": ..., "params": {...}}.

    ``data`` holds a reference to the dataset, whose arrays are read where they lie.

    Whatever the trial reported before a crash is reported again first, so that the scheduler
    sees its whole curve; with ``config["replay"]`` that is all.
    """
    import ray
    from ray import tune

    fresh_start(plan.cpus)
    dataset: Dataset = ray.get(data)[0]
    folder = plan.trial_folder(config["number"])
    rows = history(folder)
    for row in rows:
        tune.report(row | {"replayed": True})
    if config.get("replay") or (rows and rows[-1]["finished"]):
        return
    try:
        params = trial_params(plan.model, config["params"])
        if plan.workers > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            train_in_workers(plan, params, folder, dataset, [TuneReportCallback()])
        else:
            train_here(plan, params, folder, dataset, tune.report)
    except Exception as error:
        reason = hopeless(error)
        if reason is None:
            raise  # Tune starts the trial again from its state
        tune.report({"failed": reason, "finished": True})
