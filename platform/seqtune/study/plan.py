"""What the trials of a study share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seqtune.data import Dataset, Split, leave_one_out
from seqtune.params import TrainParams, build
from seqtune.state import Row
from seqtune.storage import Folder


@dataclass(frozen=True)
class Plan:
    """What the trials of a study share."""

    model: str
    metric: str
    mask_seen: bool
    folder: Folder  # of the study
    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    valid_users: int | None = None  # None: all
    seed: int = 0  # of the choice of these users

    def trial_folder(self, number: int) -> Folder:
        """Where a trial keeps its state."""
        return self.folder / "trials" / f"{number:04d}"

    def split(self, dataset: Dataset) -> Split:
        """Holds out the last two events of each user, for validation of ``valid_users`` alone."""
        split = leave_one_out(dataset)
        if self.valid_users is None:
            return split
        return replace(split, valid=split.valid.sample(self.valid_users, self.seed))


def trial_params(model: str, values: Row) -> TrainParams:
    """Builds the hyperparameters of a trial."""
    from seqtune.model import model_class

    return build(model_class(model).Params, values, model)
