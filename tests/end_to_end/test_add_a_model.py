"""docs/add-a-model.md, done as it says: its two files in a copy of the repository, its commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-model.md").read_text()
FILES = dict(re.findall(r"^`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
SEQTUNE = [sys.executable, "-c", "from seqtune.cli import main; main()"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the two files."""
    copy = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("platform", "search_spaces", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("tune.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for name, content in FILES.items():
        assert not (copy / name).exists()
        (copy / name).write_text(content)
    return copy


def run(checkout: Path, command: str, timeout: float = 1200) -> str:
    """Runs a line of the page in the copy and returns what it prints."""
    line, _, file = command.partition(" > ")
    words = shlex.split(line)
    words[:1] = {
        "seqtune": SEQTUNE,
        "python": [sys.executable],
        "pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
    }[words[0]]
    done = subprocess.run(
        words,
        check=False,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout / "platform"), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    if file:
        (checkout / file).write_text(done.stdout)
    return done.stdout


def command_with(words: str) -> str:
    (found,) = [line for line in COMMANDS if words in line]
    return found


def test_the_page_has_two_files_and_their_commands() -> None:
    assert list(FILES) == ["platform/seqtune/models/decay.py", "search_spaces/decay.yaml"]
    assert len(COMMANDS) == 5


def test_the_command_line_knows_the_model(checkout: Path) -> None:
    assert "decay" in run(checkout, "seqtune models --names").split()
    explained = run(checkout, command_with("--explain"))
    assert "  decay = 0.7   above 0, below 1" in explained
    assert "      searched: 0.3 to 0.95" in explained
    assert "KDD 2013" in explained
    assert "\nCost\n  O(L^2 D + L D^2)" in explained


@pytest.mark.slow
def test_it_trains(checkout: Path) -> None:
    run(checkout, command_with("seqtune train"))
    folder = checkout / "seqtune-results" / "decay-tiny-train"
    assert folder.is_dir()
    about = json.loads((folder / "model.json").read_text())
    assert (about["model"], about["params"]["decay"]) == ("decay", 0.5)


@pytest.mark.slow
def test_it_passes_the_tests_of_every_model(checkout: Path) -> None:
    options = "-q -o addopts=--import-mode=importlib -m 'not slow'"
    line = command_with("pytest").replace("pytest ", f"pytest {options} ")
    said = run(checkout, line)
    passed = re.search(r"(\d+) passed", said)
    assert passed, said
    assert int(passed[1]) > 60
    assert "failed" not in said


def test_its_file_is_as_ours_are(checkout: Path) -> None:
    (source, space) = FILES.values()
    assert len(source.splitlines()) <= 130
    assert max(map(len, (source + space).splitlines())) <= 100


def test_the_page_on_models_gets_a_section(checkout: Path) -> None:
    run(checkout, command_with("--markdown"))
    written = (checkout / "docs" / "models.md").read_text()
    assert "\n## decay\n" in written
    assert (
        "| `decay` | 0.7 | ours: made up for this page | above 0, below 1 | 0.3 to 0.95 |"
        in written
    )


@pytest.mark.slow
def test_a_study(checkout: Path) -> None:
    run(checkout, command_with("--trials"))
    report = json.loads(
        (checkout / "seqtune-results" / "decay-tiny" / "report" / "report.json").read_text()
    )
    assert report["model"] == "decay"
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2]
    assert {trial["status"] for trial in report["trials"]} <= {"complete", "pruned"}
