"""What is said of a trial whose process has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from seqtune.storage import Folder
from seqtune.study.deaths import CRASH, LOST, NO_MEMORY, SIGNALS, last_line, noted, reason

KILLED = "the process of the trial was killed from outside (SIGKILL), or by the system for memory"
GONE = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task."
DIES = """
import os, sys
from seqtune.storage import Folder
from seqtune.study.deaths import noted

def fails(number):
    os.kill(os.getpid(), number)

with noted(Folder.at(sys.argv[1])):
    fails(int(sys.argv[2]))
"""


def test_the_last_line_of_an_error_is_its_message() -> None:
    assert last_line("Traceback:\n  x\nValueError: no\n\n") == "ValueError: no"
    assert last_line("") == "the process of the trial ended"
    assert len(last_line("x" * 1000)) == 300
    for form in (
        "pid=3, actual memory used=1.25GB, worker",
        "Retriable: 1 | Memory used: 1.25 GiB)",
    ):
        monitored = f"killed due to the node running low on memory.\n({form})"
        assert last_line(monitored) == f"{NO_MEMORY}; it had 1.25 GB"
    killed = "ActorDiedError\n1 worker(s) were killed due to the node running low on memory.\nSee"
    assert last_line(killed) == NO_MEMORY


def die(folder: Path, number: int) -> None:
    words = [sys.executable, "-c", DIES, str(folder), str(number)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, env=environment, check=False, capture_output=True)
    assert done.returncode == -number, done.stderr


@pytest.mark.parametrize("name", sorted(set(SIGNALS.values())))
def test_a_crash_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    die(tmp_path, signal.Signals[name])
    said = reason(f"{GONE}\nand more", Folder.at(tmp_path))
    assert said.startswith("the process of the trial crashed: ")
    assert said.endswith(f" ({name}), in fails (<string>, line 7)")


def test_a_process_that_is_killed_leaves_nothing_to_read(tmp_path: Path) -> None:
    die(tmp_path, signal.SIGKILL)
    assert reason(GONE, Folder.at(tmp_path)) == KILLED
    assert reason(GONE, Folder.at(tmp_path / "nowhere")) == KILLED


def test_the_last_of_several_deaths_is_meant(tmp_path: Path) -> None:
    memory = "Failure # 1 (occurred at noon)\nkilled due to the node running low on memory\n"
    first = f"{memory}Failure # 2 (occurred at one)\nValueError: no\n"
    assert reason(first, Folder.at(tmp_path)) == "ValueError: no"
    assert reason(f"{first}{memory}", Folder.at(tmp_path)) == NO_MEMORY
    assert reason(f"{memory}Failure # 2 (at one)\n{GONE}", Folder.at(tmp_path)) == KILLED


WORKERS = """ray.train.WorkerGroupError: Training failed due to worker errors:
[Rank 0,2 Error Snippet]:
Traceback (most recent call last):
RuntimeError: Connection closed by peer
[Rank 1 Error Snippet]:
{death}
"""


def test_of_several_workers_the_one_that_died_is_meant(tmp_path: Path) -> None:
    folder, who = Folder.at(tmp_path), "the process of worker 1 of the trial"
    died = WORKERS.format(death=GONE)
    assert reason(died, folder) == KILLED.replace("the process of the trial", who)
    (tmp_path / "crash-1.txt").write_text("Fatal Python error: Segmentation fault\n")
    assert reason(died, folder) == f"{who} crashed: Segmentation fault (SIGSEGV)"
    raised = WORKERS.format(death="ValueError: no")
    assert reason(raised, folder) == "RuntimeError: Connection closed by peer"


def test_workers_note_their_crashes_beside_each_other(tmp_path: Path) -> None:
    with noted(Folder.at(tmp_path), 0), noted(Folder.at(tmp_path), 1):
        assert {path.name for path in tmp_path.iterdir()} == {"crash-0.txt", "crash-1.txt"}
    assert not [*tmp_path.iterdir()]


def test_a_machine_that_is_lost_is_no_fault_of_the_trial(tmp_path: Path) -> None:
    gone = f"{GONE}\nThe actor died because its node has died. Node Id: 12"
    assert reason(gone, Folder.at(tmp_path)) == LOST
    assert reason(WORKERS.format(death=gone), Folder.at(tmp_path)) == LOST


def test_an_exception_is_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / CRASH).write_text("Fatal Python error: Segmentation fault\n")
    assert reason("ValueError: no", Folder.at(tmp_path)) == "ValueError: no"


def test_nothing_is_left_of_a_trial_that_ends(tmp_path: Path) -> None:
    with noted(Folder.at(tmp_path / "0007")):
        assert (tmp_path / "0007" / CRASH).exists()
    assert not list((tmp_path / "0007").iterdir())
    with noted(Folder.at("s3://bucket/0007")):
        pass
