"""What is asked of a running study from elsewhere: to end, or to end a trial.

A wish is a file in the folder ``wishes`` of the study, so that it can be left from every terminal
and machine that sees the study's folder. Its driver looks for them every few seconds.
"""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from seqtune.storage import Folder
from seqtune.study.shelf import STOP, STOP_TRIAL, WISHES

EVERY = 3.0  # seconds between two looks


class Wishes(tune.Stopper):
    """Fulfils the wishes of a study; Tune asks it after each evaluation and in each round."""

    def __init__(self, study: Folder) -> None:
        self._folder, self._next = study / WISHES, 0.0
        self._trials: set[int] = set()
        self.stopped = False  # the study was asked to end
        self._folder.delete()  # what was asked of an earlier driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Says whether a trial shall end."""
        self._look()
        return result["config"]["number"] in self._trials

    def stop_all(self) -> bool:
        """Says whether the study shall end."""
        self._look()
        return self.stopped

    def _look(self) -> None:
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + EVERY
        for name in self._folder.names():
            self.stopped |= name == STOP
            if name.startswith(STOP_TRIAL):
                self._trials.add(int(name.removeprefix(STOP_TRIAL)))
