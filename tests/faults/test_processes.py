"""Processes that die: the driver, a trial, Ray's own, and one of several workers."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from harness import ITSELF, RESUMED, Fault, Study, clean, nothing_runs, trained, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("seed", range(20))
def test_the_driver_is_killed_at_some_moment(
    study: Study, values: dict[int, float], seed: int, fault: Fault
) -> None:
    driver = study.tune()
    time.sleep(random.Random(seed).uniform(1, 16))
    driver.signal(signal.SIGKILL)
    driver.ends(-signal.SIGKILL, 0)
    nothing_runs(study)
    before = study.ended()
    begun = (study.folder / "study.json").exists()
    clean(study.tune(*["--resume"] * begun).ends(0))
    whole(study, values, before)
    fault("the driver is killed at a random moment", "SIGKILL", "nothing more", RESUMED)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_trial_is_killed(
    study: Study, values: dict[int, float], number: int, fault: Fault
) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    os.kill(driver.one("ray::ImplicitFunc"), number)
    clean(driver.ends(0))
    whole(study, values, before)
    name = {signal.SIGKILL: "is killed", signal.SIGSEGV: "has a segmentation fault"}[number]
    caused, seen = signal.Signals(number).name, "what it died of"
    fault(f"a trial {name}", caused, seen, f"{ITSELF}, from its state")


def test_a_trial_is_killed_once_too_often(
    study: Study, values: dict[int, float], fault: Fault
) -> None:
    driver = study.tune("--max-failures", "0", "--concurrency", "1")
    trained(driver, study)
    before = study.ended()
    os.kill(driver.one("ray::ImplicitFunc"), signal.SIGSEGV)
    said = driver.ends(0)
    clean(said)
    trials = study.trials()
    (failed,) = [n for n, one in trials.items() if one.state.name == "FAIL"]
    assert {n: one.value for n, one in trials.items() if n != failed} == {
        n: value for n, value in values.items() if n != failed
    }
    reason = trials[failed].user_attrs["reason"]
    assert "SIGSEGV" in reason
    status, tags = study.runs()[str(failed)]
    assert (status, tags["seqtune.reason"]) == ("FAILED", reason)
    assert {n: study.ended()[n] for n in before} == before
    seen = "that it crashed, with signal, function and line"
    fault("a trial crashes more often than --max-failures", "SIGSEGV", seen, ITSELF, "that trial")


@pytest.mark.parametrize("name", ["raylet/raylet", "gcs_server"])
def test_a_process_of_ray_dies(
    study: Study, values: dict[int, float], name: str, fault: Fault
) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    os.kill(driver.one(name), signal.SIGKILL)
    began = time.monotonic()
    said = driver.ends(130)
    assert time.monotonic() - began < 20
    clean(said)
    assert "--resume" in said
    nothing_runs(study)
    clean(study.resume())
    whole(study, values, before)
    process = name.rpartition("/")[2]
    fault(f"Ray's {process} dies", "SIGKILL", "which process has ended, and the command", RESUMED)
