"""What a process takes of its machine, as MLflow's page of system metrics shows it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")  # where Linux tells what processors have used: RAPL
PER_MB = 1e3 if sys.platform != "darwin" else 1e6  # getrusage counts kB, and bytes on a Mac


class Usage:
    """Measures from one look to the next."""

    def __init__(self) -> None:
        self._at, self._cpu = time.perf_counter(), time.process_time()
        self._joules = dict(_meters())

    def look(self) -> dict[str, float]:
        """Returns percent of one CPU since the last look, and the most MB that were ever held.

        With a GPU there is the same of it: percent of its time, where ``nvidia-ml-py`` is
        installed, and the most MB since a trial began. Where the machine tells, there are the
        joules since the last look, of its processors and of this process's GPU, whoever used them.
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
        joules = dict(_meters())
        spent = [joules[name] - before for name, before in self._joules.items() if name in joules]
        if spent and min(spent) >= 0:  # a counter that began anew tells nothing
            found["system/energy_joules"] = sum(spent)
        self._joules = joules
        return found


def _meters() -> Iterator[tuple[str, float]]:
    """Yields the joules that each processor and this process's GPU have used so far."""
    for zone in sorted(POWERCAP.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") == 1:  # others are parts of one
            with suppress(OSError, ValueError):  # mostly root alone may read it
                yield zone.name, int((zone / "energy_uj").read_text()) / 1e6
    if torch.cuda.is_initialized():
        with suppress(ModuleNotFoundError):
            import pynvml

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                uuid = f"GPU-{torch.cuda.get_device_properties().uuid}"
                card = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                yield uuid, pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1000
