"""Why a study ends before it has all its trials: it has what was wanted, or no more is to come."""

from __future__ import annotations

from typing import Any

from ray import tune

from seqtune.limits import Judge
from seqtune.options import StudyOptions, parse_goal
from seqtune.study.samplers import DRAWN
from seqtune.study.settling import Settling


class Ending(tune.Stopper):
    """Hears of each trial, those before ``--resume`` too, and says when it is enough.

    ``--goal`` ends the study at once, as ``seqtune stop`` does. ``--patience-trials`` and
    ``--max-failed`` begin no other trial, and let those that run come to their end; so does a
    study that has settled.
    """

    def __init__(self, options: StudyOptions, settling: Settling | None = None) -> None:
        self._settling = settling
        self.settled = ""  # why further trials would add nothing that counts
        self._goal = None if options.goal is None else parse_goal(options.goal)[1]
        self._patience, self._most_failed = options.patience_trials, options.max_failed
        self._metric, self._best = options.metric, float("-inf")
        self._judge = Judge.asked(options)
        self._since = self._failed = 0  # trials since the best one, and that have failed
        self.now = ""  # why the study ends at once
        self.enough = ""  # why no other trial begins

    def evaluated(self, best: float) -> None:
        """A trial was evaluated; ``best`` is its best value so far."""
        if self._goal is not None and best >= self._goal and not self.now:
            self.now = f"{self._metric} {best:.4f} has reached the goal, {self._goal:g},"

    def ended(self, number: int, status: str, best: float | None, origin: str) -> None:
        """A trial is complete, pruned or failed; ``best`` is its value, if it can be chosen."""
        if self._settling is not None and not self.settled:
            drawn = origin == DRAWN
            self.settled = self._settling.ended(number, best, drawn=drawn)
            self.enough = self.enough or self.settled
        if status == "failed":
            self._failed += 1
            if self._most_failed is not None and self._failed >= self._most_failed:
                self.enough = f"{self._failed} trials had failed"
        elif best is not None and best > self._best:
            self._best, self._since = best, 0
        else:
            self._since += 1
            if self._patience is not None and self._since >= self._patience:
                self.enough = f"{self._since} trials after the best one none was better,"

    @property
    def reason(self) -> str:
        """Why the study has ended though more was to come; empty where it has come to its end."""
        return self.now or ("" if self.settled else self.enough)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Says whether a trial shall end: one whose costs are beyond a limit stays so.

        The defaults do not, with which all is compared.
        """
        return result["config"]["origin"] != "default" and self._judge.hopeless(result)

    def stop_all(self) -> bool:
        """Says whether the study shall end."""
        return bool(self.now)
