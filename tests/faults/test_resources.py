"""Memory, disks and limits that run out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    EPOCHS,
    ITSELF,
    RESUMED,
    SPACE,
    Fault,
    Study,
    clean,
    nothing_runs,
    tmpfs,
    trained,
    whole,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FILLS = "import time; print('ready', flush=True); input(); x = b'1' * (4000 << 20); time.sleep(600)"


def fill(disk: Path) -> Path:
    """Takes all that is left of a disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return ballast


@pytest.fixture
def disk(study: Study, tmp_path: Path) -> Iterator[Path]:
    """A small disk, on which the study lies."""
    with tmpfs(tmp_path / "disk", 48) as one:
        study.storage = one / "results"
        yield one


def test_the_disk_of_the_study_is_full_for_a_while(
    study: Study, values: dict[int, float], disk: Path, fault: Fault
) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    ballast = fill(disk)
    time.sleep(20)
    assert driver.process.poll() is None, driver.said
    assert f"the disk of {study.folder} has" in driver.said
    ballast.unlink()
    said = driver.ends(0)
    clean(said)
    assert "there is room again" in said
    whole(study, values, before)
    caused, seen = "a tmpfs, filled", "the disk, what is left and needed, and the end of it"
    fault("the disk is full for 20 s", caused, seen, f"{ITSELF}, when there is room")


def test_the_disk_of_the_study_stays_full(
    study: Study, values: dict[int, float], disk: Path, fault: Fault
) -> None:
    driver = study.tune()
    trained(driver, study)
    before = study.ended()
    ballast = fill(disk)
    time.sleep(10)
    os.killpg(driver.process.pid, signal.SIGINT)
    said = driver.ends(130)
    clean(said)
    assert said.splitlines()[-2] == "Stopped. Continue with:"
    nothing_runs(study)
    ballast.unlink()
    clean(study.resume())
    whole(study, values, before)
    seen = "the disk, what is left and needed; the command"
    fault("the disk stays full, then Ctrl-C", "a tmpfs, filled", seen, RESUMED)


def test_the_disk_of_mlflow_is_full_for_a_while(
    study: Study, values: dict[int, float], tmp_path: Path, fault: Fault
) -> None:
    with tmpfs(tmp_path / "disk", 16) as disk:
        study.store = f"sqlite:///{disk}/mlflow.db"
        driver = study.tune("--tracking-uri", study.store)
        trained(driver, study)
        before = study.ended()
        ballast = fill(disk)
        time.sleep(15)
        ballast.unlink()
        clean(driver.ends(0))
        whole(study, values, before)
    seen = "that MLflow takes no records, and that it is back"
    fault("the disk of MLflow's store is full for 15 s", "a tmpfs, filled", seen, ITSELF)


def test_the_memory_monitor_ends_a_trial(study: Study, fault: Fault) -> None:
    """Somebody else fills the machine for a while: Ray's monitor ends a trial to make room."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    study.environment = {"RAY_memory_usage_threshold": str(used() + 3 * 2**30 / total)}
    longer = SPACE.replace(f": {EPOCHS}", ": 600")  # so that it is still there when memory is short
    (study.home / "space.yaml").write_text(longer)
    words = [sys.executable, "-c", FILLS]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        driver = study.tune(trials=2)
        driver.until(lambda: study.epochs(0) > 3)
        other.stdin.write(b"now\n")
        other.stdin.flush()
        try:
            driver.until(lambda: "Ray's memory monitor ended the process" in driver.said, 60)
        finally:
            other.kill()
    clean(driver.ends(0))
    assert [one.state.name for one in study.trials().values()] == ["COMPLETE"] * 2
    for number in range(2):
        assert [row["epoch"] for row in study.rows(number)] == list(range(1, 601))
    nothing_runs(study)
    caused, seen = "somebody else takes the machine's memory", "what ended it, and what it had"
    fault("Ray's memory monitor ends a trial", caused, seen, f"{ITSELF}, from its state")


def used() -> float:
    """The share of the machine's memory that is in use."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return 1 - kb["MemAvailable"] / kb["MemTotal"]


@pytest.mark.parametrize(
    ("limit", "name"),
    [("-n 64", "64 open files"), ("-v 3000000", "3 GB of addresses"), ("-f 8", "8 kB a file")],
)
def test_a_limit_is_low(
    study: Study, values: dict[int, float], limit: str, name: str, fault: Fault
) -> None:
    driver = study.tune(before=f"ulimit {limit}")
    driver.process.wait(200)
    clean(driver.said)
    nothing_runs(study)
    name = f"a process may have no more than {name}"
    if driver.process.returncode == 0:
        whole(study, values, {})
        fault(name, f"ulimit {limit}", "nothing", ITSELF)
        return
    if driver.process.returncode == 130:  # a process of Ray had too little in the midst of it
        assert driver.said.splitlines()[-2] == "Stopped. Continue with:"
        clean(study.resume())
        whole(study, values, {})
        fault(name, f"ulimit {limit}", "which process of Ray ended, and the command", RESUMED)
        return
    assert driver.process.returncode == 2, driver.said
    assert len(driver.said.splitlines()) == 1
    fault(name, f"ulimit {limit}", "a sentence", "it does not begin")
