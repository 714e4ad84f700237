"""What a process takes of its machine, as MLflow's page of system metrics shows it."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress

import torch

PER_MB = 1e3 if sys.platform != "darwin" else 1e6  # getrusage counts kB, and bytes on a Mac


class Usage:
    """Measures from one look to the next."""

    def __init__(self) -> None:
        self._at, self._cpu = time.perf_counter(), time.process_time()

    def look(self) -> dict[str, float]:
        """Returns percent of one CPU since the last look, and the most MB that were ever held.

        With a GPU there is the same of it: percent of its time, where ``nvidia-ml-py`` is
        installed, and the most MB since a trial began.
        """
        at, cpu = time.perf_counter(), time.process_time()
        busy = 100 * (cpu - self._cpu) / max(at - self._at, 1e-9)
        self._at, self._cpu = at, cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PER_MB
        found = {"system/cpu_percent": busy, "system/memory_peak_megabytes": peak}
        if torch.cuda.is_initialized():
            found["system/gpu_memory_peak_megabytes"] = torch.cuda.max_memory_reserved() / 1e6
            with suppress(ModuleNotFoundError, RuntimeError):
                found["system/gpu_utilization_percent"] = float(torch.cuda.utilization())
        return found
