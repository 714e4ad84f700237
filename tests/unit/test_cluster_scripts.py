"""The scripts in cluster/, as far as they can be tried without what they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_can_be_run_and_says_what_for(script: Path) -> None:
    linter = Path(sys.executable).with_name("shellcheck")
    linted = subprocess.run([linter, script], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
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


def submitted(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    """Runs submit.sh with a `ray` that prints what it is given, a word a line."""
    ray = folder / "ray"
    ray.write_text('#!/bin/sh\necho "token in $RAY_AUTH_TOKEN_PATH"\nprintf "%s\\n" "$@"\n')
    ray.chmod(0o755)
    return subprocess.run(
        f"{CLUSTER}/submit.sh {words}",
        shell=True,
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_is_submitted_with_what_the_script_knows(tmp_path: Path) -> None:
    done = submitted(
        tmp_path,
        "--token-file t --exclude '*.csv' --exclude notes --env OMP_NUM_THREADS=1 --resume "
        "--address http://head:8265 --entrypoint-num-cpus 1 -- python tune.py --name 'two words'",
    )
    token, *words = done.stdout.splitlines()
    assert token == "token in t"
    given = json.loads(words.pop(words.index("--runtime-env-json") + 1))
    assert given["excludes"] == ["*.csv", "notes"]
    assert given["env_vars"]["OMP_NUM_THREADS"] == "1"
    assert re.fullmatch(r"[0-9a-f]{40}\+?", given["env_vars"]["SEQTUNE_GIT_COMMIT"])
    assert words[:5] == ["job", "submit", "--working-dir", ".", "--runtime-env-json"]
    assert words[5:9] == ["--address", "http://head:8265", "--entrypoint-num-cpus", "1"]
    assert words[9:] == ["--", "python", "tune.py", "--name", "two words", "--resume"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "what shall run?"),
        ("--no-wait", "what shall run?"),
        ("--env AWS_SECRET_ACCESS_KEY=x -- true", "looks like a secret"),
        ("--env here -- true", "write NAME=VALUE"),
    ],
)
def test_a_job_is_refused(tmp_path: Path, words: str, said: str) -> None:
    done = submitted(tmp_path, words)
    assert done.returncode != 0
    assert said in done.stderr
    assert not done.stdout
