"""What a person, a terminal or a batch system does to a study: it stops, and goes on later."""

from __future__ import annotations

import os
import shlex
import signal
import time

import pytest
from harness import RESUMED, Fault, Study, clean, nothing_runs, trained, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal(study: Study, values: dict[int, float], name: str, fault: Fault) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    os.killpg(driver.process.pid, signal.Signals[name])  # a terminal tells the whole group
    said = driver.ends(130)
    clean(said)
    stopped, again = said.splitlines()[-2:]
    assert stopped == "Stopped. Continue with:"
    nothing_runs(study)
    assert {status for status, _ in study.runs().values()} == {"FINISHED", "KILLED"}
    program, *words = shlex.split(again)
    assert program == "seqtune"
    clean(study.run(*words).ends(0))
    whole(study, values, before)
    why = {"SIGINT": "Ctrl-C", "SIGTERM": "a batch system ends it", "SIGHUP": "a terminal closes"}
    fault(why[name], f"{name} to the group", "the command that goes on", RESUMED)


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_ctrl_c_twice(study: Study, values: dict[int, float], pause: float, fault: Fault) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    os.killpg(driver.process.pid, signal.SIGINT)
    time.sleep(pause)
    if driver.process.poll() is None:
        os.killpg(driver.process.pid, signal.SIGINT)
    said = driver.ends(130, -signal.SIGINT)  # the second may meet Python on its way out
    clean(said)
    assert said.splitlines()[-2] == "Stopped. Continue with:"
    nothing_runs(study)
    clean(study.resume())
    whole(study, values, before)
    fault(f"Ctrl-C again, {pause} s later", "SIGINT", "the command that goes on", RESUMED)


def test_ctrl_c_at_the_start(study: Study, values: dict[int, float], fault: Fault) -> None:
    for pause in (0.3, 2, 4, 6):
        driver = study.tune(*study.going_on)
        time.sleep(pause)
        os.killpg(driver.process.pid, signal.SIGINT)
        # Once in fifty times Ray's C++ crashes as it is torn down in the midst of its start.
        clean(driver.ends(130, -signal.SIGSEGV))
        nothing_runs(study)
    clean(study.tune(*study.going_on).ends(0))
    whole(study, values, {})
    fault("Ctrl-C while it starts", "SIGINT after 0.3, 2, 4 and 6 s", "that it stopped", RESUMED)
