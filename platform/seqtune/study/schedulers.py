"""Which trials are stopped early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from seqtune.options import StudyOptions
from seqtune.space import Space
from seqtune.state import Row

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


def scheduler(options: StudyOptions, space: Space) -> TrialScheduler:
    """Returns the scheduler that the options name."""
    epochs = space.build(space.defaults()).epochs
    if options.scheduler == "none" or epochs < 2:
        return FIFOScheduler()
    return Asha(
        time_attr="epoch",
        metric="best",
        mode="max",
        grace_period=max(1, min(10, epochs // 3)),
        max_t=epochs + 1,  # a trial ends by itself
        reduction_factor=3,
    )


class Asha(AsyncHyperBandScheduler):
    """ASHA (arXiv 1810.05934) that never stops trial 0: the defaults are what all is compared with.

    A default that was stopped early would make tuning look better than it is.
    """

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: Row) -> str:
        """Decides whether a trial goes on."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["number"] == 0 else decision
