"""What a study tells Ray's metrics, for Prometheus to read on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqtune.study.plan import Plan

RUNNING = "running"
ENDED = ("complete", "pruned", "failed")


class Gauges:
    """Three figures of a study, each tagged with its name; Prometheus adds ``ray_`` to their names.

    ``seqtune_trials`` counts trials by ``state``, ``seqtune_targets_total`` what they have learnt
    from, and ``seqtune_best`` is the best value of the study's ``metric``. Without ``export`` (on
    this machine alone no agent of Ray's collects them) nothing is told.
    """

    def __init__(self, plan: Plan, *, export: bool) -> None:
        self._states: dict[int, str] = {}
        self._best = float("-inf")
        self._export = export
        if not export:
            return
        from ray.util import metrics

        tags = {"study": plan.folder.name, "metric": plan.metric}
        self._trials = metrics.Gauge(
            "seqtune_trials", "Trials of a study by what they do.", ("study", "metric", "state")
        )
        self._targets = metrics.Counter(
            "seqtune_targets_total", "Targets that trials have learnt from.", ("study", "metric")
        )
        self._value = metrics.Gauge(
            "seqtune_best", "The best value of the study's metric.", ("study", "metric")
        )
        for one in (self._trials, self._targets, self._value):
            one.set_default_tags(tags)

    def started(self, number: int) -> None:
        """A trial runs."""
        self._note(number, RUNNING)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """A trial was evaluated, or had been (``replayed``) before the study was resumed."""
        if not self._export:
            return
        if not row.get("replayed") and row["train_targets"]:  # a model may have nothing to learn
            self._targets.inc(row["train_targets"])
        if row["best"] > self._best:
            self._best = row["best"]
            self._value.set(self._best)

    def ended(self, number: int, status: str) -> None:
        """A trial has ended: complete, pruned or failed."""
        self._note(number, status)

    def _note(self, number: int, state: str) -> None:
        self._states[number] = state
        if self._export:
            held = list(self._states.values())
            for name in (RUNNING, *ENDED):
                self._trials.set(held.count(name), {"state": name})
