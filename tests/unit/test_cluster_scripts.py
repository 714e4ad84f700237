"""The scripts in cluster/, as far as they can be tried without what they are for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_can_be_run_and_says_what_for(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    first, second = script.read_text().splitlines()[:2]
    assert first == "#!/usr/bin/env bash"
    assert second.startswith("# ")
    assert f"[{script.name}]" in (CLUSTER / "README.md").read_text()


@pytest.mark.parametrize(
    ("there", "resumed", "begun", "code"),
    [
        (True, 0, 7, 0),  # it goes on
        (True, 130, 7, 130),  # it was stopped once more
        (False, 2, 0, 0),  # there was none
        (True, 2, 2, 2),  # what is wrong is said by both
    ],
)
def test_a_study_goes_on_or_begins(
    tmp_path: Path, there: bool, resumed: int, begun: int, code: int
) -> None:
    study = tmp_path / "study"
    study.write_text(
        f'#!/bin/sh\necho "$@"\ncase "$*" in *--resume) exit {resumed};; *) exit {begun};; esac\n'
    )
    study.chmod(0o755)
    done = subprocess.run(
        [CLUSTER / "again.sh", study, "--name", "two words"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    lines = ["--name two words --resume"] + ["--name two words"] * (resumed == 2)
    assert done.stdout.splitlines() == lines


def test_slurm_gives_every_machine_the_same_line(tmp_path: Path) -> None:
    """With Slurm's programs and Ray's replaced by ones that print what they are given."""
    for name, line in {
        "scontrol": "printf 'n1\\nn2\\n'",
        "srun": 'echo "$@"',
        "ray": "true",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2"}
    environment = given | {"SLURM_CPUS_PER_TASK": "64", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [CLUSTER / "slurm.sh", "--model", "sasrec"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (
        "--kill-on-bad-exit=0 ray symmetric-run --address n1:22345 --min-nodes 2 --num-cpus 64 -- "
        "env RAY_ADDRESS=n1:22345 cluster/again.sh python tune.py --model sasrec"
    )
