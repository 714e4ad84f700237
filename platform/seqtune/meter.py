"""Measures the training loop from the hook that it calls after each step, and ends it in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class TimeIsUp(Exception):  # noqa: N818 - no error: it ends the loop
    """The loop has run for long enough."""


class Meter:
    """Counts the targets of steps after the warm-up, and ends the loop when its time is up.

    Args:
        clock: returns seconds.
        seconds: of measuring.
        warm_up: steps that do not count.
        longest: seconds, warm-up included, where a step takes longer than ``seconds``.
        wait: holds until a device has done what it was given, at both ends of the measurement.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        seconds: float,
        warm_up: int,
        longest: float = math.inf,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock, self._wait = clock, wait
        self._seconds, self._warm_up, self._longest = seconds, warm_up, longest
        self._made = self._began = self._ended = self.first = clock()
        self._calls = self.targets = 0

    def __call__(self, targets: int) -> None:
        """A step has been made; raises TimeIsUp when it shall be the last."""
        now = self._clock()
        self._calls += 1
        counts = self._calls > self._warm_up
        over = now - self._made > self._longest
        over = over or (counts and now - self._began >= self._seconds)
        if over or self._calls in (1, self._warm_up):
            self._wait()
            now = self._clock()
        if self._calls == 1:
            self.first = now
        if counts:
            self.targets, self._ended = self.targets + targets, now
        else:
            self._began = now
        if over:
            raise TimeIsUp

    @property
    def steps(self) -> int:
        """The number of steps that count."""
        return max(self._calls - self._warm_up, 0)

    @property
    def elapsed(self) -> float:
        """The seconds that these took."""
        return self._ended - self._began if self.steps else 0.0
