"""What a process takes of its machine."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seqtune import usage
from seqtune.usage import Usage


def test_a_busy_process_takes_a_cpu_and_a_sleeping_one_none() -> None:
    meter = Usage()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    busy = meter.look()
    assert busy["system/cpu_percent"] > 5  # others may have the CPU meanwhile
    time.sleep(0.2)
    assert meter.look()["system/cpu_percent"] < busy["system/cpu_percent"] / 2
    held = bytearray(200_000_000)
    assert meter.look()["system/memory_peak_megabytes"] >= len(held) / 1e6


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


def test_energy_is_what_the_machine_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tell(name: str, joules: float) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")

    monkeypatch.setattr(usage, "POWERCAP", tmp_path)
    assert "system/energy_joules" not in Usage().look()
    for name, joules in (("intel-rapl:0", 10), ("intel-rapl:1", 20), ("intel-rapl:0:0", 5)):
        tell(name, joules)
    (tmp_path / "intel-rapl:2").mkdir()  # one that may not be read
    meter = Usage()
    tell("intel-rapl:0", 12)
    tell("intel-rapl:0:0", 6)
    assert meter.look()["system/energy_joules"] == 2
    tell("intel-rapl:1", 23.5)
    assert meter.look()["system/energy_joules"] == 3.5
    tell("intel-rapl:1", 1)  # its counter began anew
    assert "system/energy_joules" not in meter.look()
    tell("intel-rapl:1", 2)
    assert meter.look()["system/energy_joules"] == 1


def test_the_energy_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([5000, 7500])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "utilization", lambda: 0)
    monkeypatch.setattr(usage, "POWERCAP", Path("/nowhere"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="abc"))
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda card: next(used) if card == "GPU-abc" else 0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert Usage().look()["system/energy_joules"] == 2.5
