"""Processes that die: the driver, a trial, Ray's own, and one of several workers."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from harness import EPOCHS, ITSELF, RESUMED, ROOT, Fault, Study, clean, nothing_runs, trained, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


KILLS = 4  # of one study


@pytest.mark.parametrize("seed", range(5))
def test_the_driver_is_killed_at_some_moments(
    study: Study, values: dict[int, float], seed: int, fault: Fault
) -> None:
    moments = random.Random(seed)
    before: dict[int, tuple[float, int]] = {}
    for _ in range(KILLS):
        driver = study.tune(*study.going_on)
        time.sleep(moments.uniform(1, 16))
        driver.signal(signal.SIGKILL)
        driver.ends(-signal.SIGKILL, 0)
        clean(driver.said)
        ended = study.ended()
        assert {n: ended.get(n) for n in before} == before, "what had ended was trained again"
        before = ended
        fault("the driver is killed at a random moment", "SIGKILL", "nothing more", RESUMED)
    clean(study.tune(*study.going_on).ends(0))
    whole(study, values, before)


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


def test_a_worker_of_a_trial_is_killed(study: Study, tmp_path: Path, fault: Fault) -> None:
    words = ("--workers-per-trial", "2", "--concurrency", "1")
    driver = study.tune(*words, trials=1)
    driver.until(lambda: 3 < study.epochs(0) < EPOCHS - 5)
    os.kill(driver.one("RayTrainWorker"), signal.SIGKILL)
    said = driver.ends(0)
    clean(said)
    assert re.search(r"trial 0: the process of worker [01] of the trial was killed", said)
    (tmp_path / "undisturbed").mkdir()
    other = Study(tmp_path / "undisturbed")
    clean(other.tune(*words, trials=1).ends(0))
    assert study.trials()[0].value == other.trials()[0].value
    assert [row["epoch"] for row in study.rows(0)] == list(range(1, EPOCHS + 1))
    assert {status for status, _ in study.runs().values()} == {"FINISHED"}
    nothing_runs(study)
    fault(
        "one of two workers of a trial is killed",
        "SIGKILL",
        "what it died of",
        f"{ITSELF}, from its state",
    )


# For each Python process of a study: once the file is there, it is an hour earlier.
CLOCK = """
import os, time
_now = time.time
time.time = lambda: _now() - 3600 * os.path.exists(os.environ["AN_HOUR_EARLIER"])
"""


def test_the_clock_is_set_back(
    study: Study, values: dict[int, float], tmp_path: Path, fault: Fault
) -> None:
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    earlier = tmp_path / "earlier"
    study.environment = {
        "PYTHONPATH": f"{tmp_path}/clock:{ROOT}/platform",
        "AN_HOUR_EARLIER": str(earlier),
    }
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    earlier.touch()
    refused = study.tune("--resume").ends(2)  # the lease holds
    assert f"process {driver.process.pid} of" in refused
    clean(driver.ends(0))
    whole(study, values, before)
    fault("the clock is set back an hour", "time.time() of each process", "nothing", ITSELF)
