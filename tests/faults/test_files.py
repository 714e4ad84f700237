"""Files of a study are lost, emptied, torn or noise; the study goes on without loss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import RESUMED, Fault, runs_in_mlflow

from seqtune.state import told
from seqtune.storage import Folder
from seqtune.study.store import open_study, storage_url

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
TRIALS = 4  # as many as there are kinds of damage
Damage = Callable[[Path], object]


def seqtune(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seqtune", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform"), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def tune(storage: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ["--data", "tiny", "--set", "epochs=4", "--name", "mine", "--scheduler", "none"]
    return seqtune("tune", "--model", "sasrec", *words, "--storage", str(storage), *more)


def values(storage: Path) -> dict[int, float | None]:
    """What Optuna holds of the trials that have ended well."""
    opened = open_study(storage_url(storage / "mine"), "mine")
    trials = opened.study.get_trials(deepcopy=False)
    opened.close()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    return {one.number: one.value for one in trials if one.state.name == "COMPLETE"}


def curves(storage: Path) -> dict[int, list[float]]:
    """The curves in the trials' folders."""
    folder = Folder.at(storage / "mine" / "trials")
    rows = {int(n): told(folder / n) for n in folder.names() if n.isdecimal()}
    return {n: [row["metrics"]["ndcg@10"] for row in found] for n, found in rows.items()}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("ended") / "results"
    done = tune(storage, "--trials", str(TRIALS))
    assert done.returncode == 0, done.stderr
    assert values(storage).keys() == set(range(TRIALS))
    return storage


@pytest.fixture
def storage(ended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ended, tmp_path / "results"))


DAMAGES: dict[str, Damage] = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
}


def goes_on(storage: Path, before: dict[int, float | None]) -> str:
    """Resumes for one more trial; what had ended must be as it was. Returns what was said."""
    done = tune(storage, "--trials", str(TRIALS + 1), "--resume")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    after = values(storage)
    assert {n: after.get(n) for n in before} == before
    assert after.keys() == set(range(TRIALS + 1))
    assert set(runs_in_mlflow(storage / "mlflow.db")) == {"FINISHED"}
    assert (storage / "mine" / "champion" / "model.json").exists()
    return said


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_states_of_trials(storage: Path, damage: str, fault: Fault) -> None:
    """Of all; those that are tested in the end are missed: the defaults and the best one."""
    before, had = values(storage), curves(storage)
    for number in before:
        DAMAGES[damage](storage / "mine" / "trials" / f"{number:04d}" / "state.pt")
    said = goes_on(storage, before).replace("\n", "")
    report = json.loads((storage / "mine" / "report" / "report.json").read_text())
    missed = sorted({0, report["best"]["number"]} & before.keys())
    assert asides(storage) == [f"{number:04d}.aside-1" for number in missed]
    for number in missed:
        assert f"{number:04d}/state.pt" in said
        curve = had[number]
        assert curves(storage)[number][: len(curve)] == curve  # trained again to the same values
    seen = "file and reason, and where it is kept"
    fault(f"state.pt of the best trial: {damage}", "the file is damaged", seen, RESUMED)


@pytest.mark.parametrize("name", ["history.json", "ranks.parquet", "trial.json"])
def test_files_of_the_trials(storage: Path, name: str, fault: Fault) -> None:
    """Of the first trial it is lost, of the second empty, and so on."""
    before = values(storage)
    for number, damage in enumerate(DAMAGES.values()):
        damage(storage / "mine" / "trials" / f"{number:04d}" / name)
    said = goes_on(storage, before).replace("\n", "")
    unbelievable = {n for n, damage in enumerate(DAMAGES) if damage != "lost"}
    expected = unbelievable if name == "history.json" else set()
    assert asides(storage) == [f"{number:04d}.aside-1" for number in sorted(expected)]
    assert all(f"{number:04d}/{name}" in said for number in expected)
    for number, damage in enumerate(DAMAGES):
        seen = "file and reason, and where it is kept" if number in expected else "nothing"
        fault(f"{name} of a trial: {damage}", "the file is damaged", seen, RESUMED)


def asides(storage: Path) -> list[str]:
    """The folders of trials that were set aside."""
    folder = storage / "mine" / "trials"
    return sorted(path.name for path in folder.iterdir() if "aside" in path.name)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["study.db", "study.json"])
def test_a_file_of_the_study(storage: Path, name: str, damage: str, fault: Fault) -> None:
    before = values(storage)
    DAMAGES[damage](storage / "mine" / name)
    refused = tune(storage, "--trials", str(TRIALS + 1), "--resume")
    assert refused.returncode == 2, refused.stdout
    assert f"seqtune repair mine --storage {storage}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    repaired = seqtune("repair", "mine", "--storage", str(storage))
    assert repaired.returncode == 0, repaired.stderr
    goes_on(storage, before)
    goes = "with `seqtune repair`, which the refusal names, and --resume"
    fault(f"{name}: {damage}", "the file is damaged", "one line with the command", goes)
