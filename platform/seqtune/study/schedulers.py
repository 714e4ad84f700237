"""Which trials are stopped early."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

GRACE, REDUCTION = 10, 3  # epochs that every trial gets; of how many trials one goes on


def make_scheduler(name: str, epochs: Mapping[str, int]) -> TrialScheduler:
    """Returns a scheduler by its name, for trials of so many epochs at most: model -> epochs."""
    if name == "none" or max(epochs.values()) < 2:
        return FIFOScheduler()
    return Asha(epochs)


class Asha(AsyncHyperBandScheduler):
    """ASHA (arXiv 1810.05934), in which a trial is compared with those of its own model.

    Epochs of two models are not the same amount of anything. It never stops the first trial of a
    model, the defaults, with which all is compared: one that was stopped early would make tuning
    look better than it is.

    Args:
        epochs: model -> the most epochs of its trials.
    """

    def __init__(self, epochs: Mapping[str, int]) -> None:
        super().__init__(
            time_attr="epoch",
            metric="best",
            mode="max",
            max_t=max(epochs.values()) + 1,  # a trial ends by itself
            reduction_factor=REDUCTION,
        )
        self.models = list(epochs)
        # In public there are brackets of later starts alone, between which trials are drawn by lot.
        self._brackets = [
            _Bracket(max(1, min(GRACE, n // REDUCTION)), max(n, 1) + 1, REDUCTION, 0)
            for n in epochs.values()
        ]

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Puts a trial among those of its model."""
        super().on_trial_add(tune_controller, trial)
        self._trial_info[trial.trial_id] = self._brackets[self.models.index(trial.config["model"])]

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Decides whether a trial goes on."""
        decision: str = super().on_trial_result(tune_controller, trial, result)
        is_default = trial.config["number"] < len(self.models)
        return TrialScheduler.CONTINUE if is_default else decision

    def remember(self, number: int, model: str, rows: list[dict[str, Any]]) -> None:
        """Takes the curve of a trial that has ended, as if it had been reported now."""
        known: Any = SimpleNamespace(trial_id=f"past-{number}")
        for row in rows:
            self._brackets[self.models.index(model)].on_result(known, row["epoch"], row["best"])
