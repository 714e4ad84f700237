"""What the trials of a study share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seqtune.data import Protocol
from seqtune.params import Params, build
from seqtune.storage import Folder


@dataclass(frozen=True)
class Plan:
    """What the trials of a study share."""

    model: str
    metric: str
    protocol: Protocol
    folder: Folder  # of the study
    workers: int = 1  # of a trial
    cpus: float = 1  # of each worker
    gpus: float = 0
    concurrency: int = 1  # trials at a time

    def trial_folder(self, number: int) -> Folder:
        """Where a trial keeps its state."""
        return self.folder / "trials" / f"{number:04d}"

    def describe(self) -> str:
        """Says who gets what: ``2 at a time, 1 CPU each``."""
        cpus = f"{self.cpus:g} CPU{'s' * (self.cpus > 1)}"
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        workers = f" for each of {self.workers} workers" if self.workers > 1 else " each"
        return f"{self.concurrency} at a time, {cpus}{gpus}{workers}"


def trial_params(model: str, values: dict[str, Any]) -> Params:
    """Builds the hyperparameters of a trial."""
    from seqtune.model import model_class

    return build(model_class(model).Params, values, model)
