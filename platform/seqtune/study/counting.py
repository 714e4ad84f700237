"""The floors of a study, counted in a process of their own while its trials run."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from seqtune.data import Dataset
from seqtune.floors import Floor, floors
from seqtune.study.plan import Plan
from seqtune.survey import survey


class Counting:
    """What counting reaches on the data of a study; trials are not held up for it.

    ``data`` is a reference to the dataset.
    """

    def __init__(self, plan: Plan, data: Any) -> None:
        self.failed = ""  # why there are no floors
        self._job = ray.remote(num_cpus=0)(count).remote(plan, data)
        self._remarks = ray.remote(num_cpus=0)(remark).remote(plan, data, self._job)

    def done(self) -> bool:
        """Says, without waiting, whether all is known."""
        return bool(ray.wait([self._remarks], timeout=0)[0])

    def floors(self) -> tuple[Floor, ...]:
        """Waits for the floors; empty where they could not be counted: a study goes on then."""
        try:
            found: list[Floor] = ray.get(self._job)
        except RayError as error:
            self.failed = str(error).strip().splitlines()[-1][:300]
            return ()
        return tuple(found)

    def remarks(self) -> tuple[str, ...]:
        """Waits for what is worth a word about the data; nothing where it could not be counted."""
        try:
            found: list[str] = ray.get(self._remarks)
        except RayError:
            return ()
        return tuple(found)


def count(plan: Plan, dataset: Dataset) -> list[Floor]:
    """Counts the floors by the protocol of a study."""
    protocol = plan.protocol
    return floors(protocol.split(dataset), mask_seen=protocol.mask_seen, metric=plan.metric)


def remark(plan: Plan, dataset: Dataset, counted: list[Floor]) -> list[str]:
    """Says of the data what somebody should know who reads results on them."""
    return list(survey(dataset, plan.protocol, plan.metric, counted=counted).remarks())
