"""What the trials of a study share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from seqtune.catalogue import declaration
from seqtune.data import Protocol
from seqtune.metrics import COSTS
from seqtune.params import Params, build
from seqtune.storage import Folder

LENGTH = ("epochs", "patience", "eval_every")  # a resumed training may be of another length


@dataclass(frozen=True)
class Plan:
    """What the trials of a study share."""

    model: str  # of several: all their names, until ``of`` says which a trial has
    metric: str
    protocol: Protocol
    folder: Folder  # of the study
    workers: int = 1  # of a trial, at least
    most: int = 1  # workers, where there is room for more
    cpus: float = 1  # of each worker
    gpus: float = 0
    concurrency: int = 1  # trials at a time
    grows: bool = False  # more at a time as machines join
    study: str = ""  # its id
    source: Mapping[str, Any] = field(default_factory=dict)  # how the interactions are read
    fingerprint: str = ""  # of them
    measures: tuple[str, ...] = ()  # that a trial is judged by beside the metric

    def of(self, model: str) -> Plan:
        """Returns the plan for trials of a model; one that is not trained needs no workers."""
        if declaration(model).is_trained:
            return replace(self, model=model)
        return replace(self, model=model, workers=1, most=1)

    @property
    def together(self) -> bool:
        """Whether several workers may share a trial."""
        return max(self.workers, self.most) > 1

    @property
    def weighs(self) -> bool:
        """Whether trials are judged by what a model costs."""
        return bool(COSTS.keys() & {*self.measures})

    @property
    def elastic(self) -> bool:
        """Whether the number of workers follows the room that there is."""
        return self.most > self.workers

    def trial_folder(self, number: int) -> Folder:
        """Where a trial keeps its state."""
        return self.folder / "trials" / f"{number:04d}"

    def owner(self, params: Params) -> str:
        """Says whose the files of a trial are: its study's, and of these hyperparameters."""
        values = {n: v for n, v in params.model_dump(mode="json").items() if n not in LENGTH}
        told = json.dumps([self.model, values], sort_keys=True).encode()
        return f"{self.study} {hashlib.sha256(told).hexdigest()[:16]}"

    def describe(self) -> str:
        """Says who gets what: ``2 at a time, 1 CPU each``."""
        now = f"{self.concurrency} at a time" + ", more as machines join" * self.grows
        workers = f" for each of {self.team()}" if self.together else " each"
        return f"{now}, {self.share()}{workers}"

    def team(self) -> str:
        """Says how many workers share a trial: ``2 workers``, ``2 to 8 workers``."""
        return f"{self.workers}{f' to {self.most}' * self.elastic} workers"

    def share(self) -> str:
        """Says what one process gets: ``1 CPU, 0.5 GPU``."""
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus:g} CPU{'s' * (self.cpus > 1)}{gpus}"


def trial_params(model: str, values: dict[str, Any]) -> Params:
    """Builds the hyperparameters of a trial."""
    from seqtune.model import model_class

    return build(model_class(model).Params, values, model)
