"""What a resumed study tells of the trials that have ended: their curves, without running them.

A folder that is damaged, or not the trial's, is set aside: the curve is what Optuna holds.
"""

from __future__ import annotations

import math
from typing import Any

from optuna.trial import FrozenTrial

from seqtune.errors import DamagedError
from seqtune.state import flat, told
from seqtune.study.plan import Plan, trial_params


def curve(plan: Plan, trial: FrozenTrial) -> tuple[list[dict[str, Any]], str]:
    """Returns what an ended trial has reported, and a note where its folder was set aside."""
    folder, note, model = plan.trial_folder(trial.number), "", trial.user_attrs["model"]
    try:
        owner = plan.of(model).owner(trial_params(model, trial.user_attrs["params"]))
        if rows := told(folder, owner):
            return [dict(flat(row)) for row in rows], ""
    except DamagedError as error:
        aside = folder.set_aside().name
        note = f"{error}; its folder is kept as {aside}, and its values are Optuna's"
    return _stored(plan, trial), note


def _stored(plan: Plan, trial: FrozenTrial) -> list[dict[str, Any]]:
    """Returns the curve that Optuna holds."""
    rows: list[dict[str, Any]] = []
    best, best_epoch = -math.inf, 0
    for epoch, value in sorted(trial.intermediate_values.items()):
        if value > best:
            best, best_epoch = value, epoch
        rows.append({"epoch": epoch, plan.metric: value, "best": best, "best_epoch": best_epoch})
    return rows
