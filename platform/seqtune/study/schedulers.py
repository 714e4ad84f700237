"""Which trials are stopped early."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

GRACE, REDUCTION = 10, 3  # epochs that every trial gets; of how many trials one goes on


def make_scheduler(name: str, epochs: int) -> TrialScheduler:
    """Returns a scheduler by its name, for trials of so many epochs at most."""
    if name == "none" or epochs < 2:
        return FIFOScheduler()
    return Asha(
        time_attr="epoch",
        metric="best",
        mode="max",
        grace_period=max(1, min(GRACE, epochs // REDUCTION)),
        max_t=epochs + 1,  # a trial ends by itself
        reduction_factor=REDUCTION,
    )


class Asha(AsyncHyperBandScheduler):
    """ASHA (arXiv 1810.05934) that never stops trial 0: the defaults are what all is compared with.

    A default that was stopped early would make tuning look better than it is.
    """

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Decides whether a trial goes on."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["number"] == 0 else decision

    def remember(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Takes the curve of a trial that has ended, as if it had been reported now."""
        known: Any = SimpleNamespace(trial_id=f"past-{number}")
        for row in rows:  # there is one bracket; it has no public way in (Ray 2.60.0)
            self._brackets[0].on_result(known, row["epoch"], row["best"])
