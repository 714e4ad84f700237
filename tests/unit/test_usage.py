"""What a process takes of its machine."""

import time

import pytest
import torch

from seqtune.usage import Usage


def test_a_busy_process_takes_a_cpu_and_a_sleeping_one_none() -> None:
    usage = Usage()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    busy = usage.look()
    assert busy["system/cpu_percent"] > 5  # others may have the CPU meanwhile
    time.sleep(0.2)
    assert usage.look()["system/cpu_percent"] < busy["system/cpu_percent"] / 2
    held = bytearray(200_000_000)
    assert usage.look()["system/memory_peak_megabytes"] >= len(held) / 1e6


def test_a_gpu_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 3_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 97)
    found = Usage().look()
    assert found["system/gpu_memory_peak_megabytes"] == 3
    assert found["system/gpu_utilization_percent"] == 97
    monkeypatch.setattr(torch.cuda, "utilization", missing)
    assert "system/gpu_utilization_percent" not in Usage().look()
