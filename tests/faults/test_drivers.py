"""Two drivers of one study."""

from __future__ import annotations

import pytest
from harness import ITSELF, Fault, Study, clean, trained, whole

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_two_drivers_at_once(study: Study, values: dict[int, float], fault: Fault) -> None:
    drivers = [study.tune(), study.tune()]
    codes = sorted(driver.process.wait(240) for driver in drivers)
    assert codes == [0, 2], [driver.said for driver in drivers]
    (refused,) = [driver for driver in drivers if driver.process.returncode == 2]
    clean(refused.said)
    assert f"process {next(d for d in drivers if d is not refused).process.pid} of" in refused.said
    assert len(refused.said.splitlines()) == 1
    whole(study, values, {})
    fault("a study is started twice at once", "two commands", "who has it, since when", ITSELF)


def test_a_resume_while_it_runs(study: Study, values: dict[int, float], fault: Fault) -> None:
    first = study.tune()
    trained(first, study)
    before = study.ended()
    refused = study.tune("--resume").ends(2)
    clean(refused)
    assert f"process {first.process.pid} of" in refused
    assert len(refused.splitlines()) == 1
    clean(first.ends(0))
    whole(study, values, before)
    fault("a running study is resumed", "--resume beside it", "who has it, since when", ITSELF)
