"""What a trial was made of: ``seqtune.lock.json``, a file of its run, from which it is run again.

It holds data, protocol, every hyperparameter, code, libraries and processor, and what it reached.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seqtune.data import Reading
from seqtune.options import ModelOptions, StudyOptions, TrainOptions, shared
from seqtune.params import Params
from seqtune.schema import FORMAT, checked
from seqtune.state import Row, told
from seqtune.storage import Folder
from seqtune.study.plan import Plan
from seqtune.versions import git_commit, versions

NAME = "seqtune.lock.json"
DATA = ("data", *Reading.__dataclass_fields__)


@dataclass(frozen=True)
class Lock:
    """A training that can be run again, and what it reached."""

    model: str
    params: dict[str, Any]  # all of them, the spacing of evaluations that was used among them
    data: dict[str, Any]  # the options by which the interactions were read
    fingerprint: str  # of the interactions
    protocol: dict[str, Any]  # mask_seen, valid_users and seed
    metric: str
    workers: int
    made_with: dict[str, str]  # commit, versions, processor, threads
    epoch: int = 0  # of the best evaluation
    valid: dict[str, float] = field(default_factory=dict)  # there; empty before the end
    parent: int | None = None  # the trial with whose weights and state it began, if any
    format: int = FORMAT


def made_with(cpus: float) -> dict[str, str]:
    """Returns what numbers may depend on beside what was asked for."""
    here = {"git commit": git_commit(), "python": platform.python_version()}
    return here | versions() | {"processor": _processor(), "threads": f"{max(1, int(cpus))}"}


def _processor() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def begin(
    folder: Folder, plan: Plan, params: Params, cpus: float, parent: int | None = None
) -> None:
    """Writes what a training is made of into its folder, on the machine where it begins.

    ``parent`` is the trial whose weights it begins with, if they make it what it is.
    """
    lock = Lock(
        model=plan.model,
        params=params.model_dump(mode="json"),
        data=dict(plan.source),
        fingerprint=plan.fingerprint,
        protocol=asdict(plan.protocol),
        metric=plan.metric,
        workers=plan.workers,
        made_with=made_with(cpus),
        parent=parent,
    )
    _write(folder, lock)


def complete(folder: Folder, metric: str, rows: Sequence[Row] | None = None) -> None:
    """Adds what the training has reached at its best evaluation.

    Raises:
        DamagedError: a file is torn.
    """
    content, rows = folder.read(NAME), told(folder) if rows is None else rows
    if content is None or not rows:
        return
    lock = read(f"{folder / NAME}", content)
    best = max(rows, key=lambda row: (row["metrics"][metric], -row["epoch"]))
    every = {"eval_every": best["eval_every"]} if "eval_every" in lock.params else {}
    if lock.epoch == best["epoch"] and lock.valid:
        return
    params, epoch, valid = lock.params | every, best["epoch"], best["metrics"]
    _write(folder, replace(lock, params=params, epoch=epoch, valid=valid))


def _write(folder: Folder, lock: Lock) -> None:
    folder.write(NAME, json.dumps(asdict(lock), indent=2).encode())


def read(place: str, content: bytes) -> Lock:
    """Reads a lock.

    Raises:
        DamagedError: it is torn, or none.
    """
    lock: Lock = checked(place, Lock, content)
    return lock


def data_options(options: StudyOptions | TrainOptions) -> dict[str, Any]:
    """Returns the options by which the interactions are read."""
    return {name: v for name, v in shared(options, ModelOptions).items() if name in DATA}
