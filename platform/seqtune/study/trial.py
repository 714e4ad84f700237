"""One trial of a study, as Ray Tune runs it.

Tune's own checkpoints are not used: the trial's folder serves a retry after a crash and
``--resume`` after the driver's death alike.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from seqtune.data import Dataset
from seqtune.errors import DamagedError, UserError
from seqtune.params import Params
from seqtune.state import Row, all_told, flat, hand_over, load_state, told
from seqtune.storage import Folder
from seqtune.study import deaths, lock
from seqtune.study.loop import fresh_start, hopeless, threads, train_here
from seqtune.study.plan import Plan, trial_params
from seqtune.study.samplers import EVOLVED
from seqtune.study.workers import train_in_group

ALONE = 0.8  # of a GPU's memory: who has more of it would not fit alone either


def told_of(row: Row) -> dict[str, Any]:
    """Returns a row as Tune takes it, with the bytes that it took of a GPU."""
    import torch

    used = {"gpu_bytes": torch.cuda.max_memory_reserved()} if torch.cuda.is_initialized() else {}
    return flat(row) | used


def shared_card_full(plan: Plan, error: BaseException) -> bool:
    """Says whether a GPU had no memory because others have it too, so that later it may."""
    import torch

    if not (0 < plan.gpus < 1 and isinstance(error, torch.cuda.OutOfMemoryError)):
        return False
    own, whole = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()[1]
    return own < ALONE * whole


def begin(config: dict[str, Any], plan: Plan, params: Params, folder: Folder) -> None:
    """Writes what a trial is made of; one that has a parent gets its state.

    Where that is lost, a trial that goes on is trained from the start, to the same numbers.

    Raises:
        UserError: there are no weights for one that takes them over with other hyperparameters.
    """
    parent, taken = config.get("parent"), False
    evolved = config["origin"] == EVOLVED
    lock.begin(folder, plan, params, threads(plan), parent if evolved else None)
    if parent is not None:
        with suppress(DamagedError):
            taken = hand_over(plan.trial_folder(parent), folder, plan.owner(params))
        if evolved and not taken:
            raise UserError(f"the weights of trial {parent}, with which it begins, are lost")


def run(config: dict[str, Any], plan: Plan, data: list[Any]) -> None:
    """The trainable that Tune runs; ``config`` is what the searcher suggests.

    ``data`` holds a reference to the dataset, whose arrays are read where they lie.

    Whatever the trial reported before a crash is reported again first, so that the scheduler
    sees its whole curve. A folder that is damaged, or not this trial's, is set aside: the trial is
    trained again.
    """
    import ray
    from ray import tune

    plan = plan.of(config["model"])
    if share := config.get("share"):
        plan = replace(plan, cpus=share["CPU"], gpus=share["GPU"])
    fresh_start(threads(plan))
    folder = plan.trial_folder(config["number"])
    try:
        params = trial_params(plan.model, config["params"])
        try:
            owner = plan.owner(params)
            rows = told(folder, owner)
            if not (rows and rows[-1]["finished"]):
                rows = all_told(rows, load_state(folder, owner))
        except DamagedError as error:
            aside = folder.set_aside().name
            rows, again = [], "and the trial is trained again"
            tune.report({"note": f"{error}; its folder is kept as {aside}, {again}"})
        for row in rows:
            tune.report({**flat(row), "replayed": True})
        if rows and rows[-1]["finished"]:
            return
        if not rows:
            begin(config, plan, params, folder)
        if plan.together:
            train_in_group(
                plan,
                params,
                folder,
                data[0],
                lambda row: tune.report(flat(row)),
                lambda line: tune.report({"note": line}),
            )
        else:
            dataset: Dataset = ray.get(data)[0]
            with deaths.noted(folder):
                train_here(plan, params, folder, dataset, lambda row: tune.report(told_of(row)))
    except Exception as error:
        reason = hopeless(error)
        if reason is None or shared_card_full(plan, error):
            raise  # Tune starts the trial again from its state
        tune.report({"failed": reason, "finished": True})
