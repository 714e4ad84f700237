"""What is lost of a study is made anew from what is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from seqtune.errors import UserError
from seqtune.space import Space, load_space
from seqtune.storage import Folder
from seqtune.study import record, repair
from seqtune.study.identity import About, Identity, read_about
from seqtune.study.lease import Lease
from seqtune.study.search import OptunaSearcher
from seqtune.study.store import open_study, storage_url

ABOUT = About("mine-1234", "seqtune tune --model sasrec", {"model": "sasrec"})


@pytest.fixture
def space() -> Space:
    return load_space(None, "sasrec")


@pytest.fixture
def folder(tmp_path: Path, space: Space) -> Folder:
    """A study of five trials: complete, pruned, failed, complete, running."""
    folder = Folder.at(tmp_path) / "mine"
    searcher = driver(folder, space)
    lease = Lease(folder)
    Identity("mine", folder, ABOUT, lease).keep(searcher.open().study)
    for number in range(5):
        searcher.suggest(f"t{number}")
        last = {"finished": number in (0, 3), "best": 0.1 * number, "best_epoch": 1}
        report = {"epoch": 1, "m": 0.1 * number} | last
        searcher.on_trial_result(f"t{number}", report)
        if number == 2:
            searcher.on_trial_complete("t2", error=True)
            searcher.give_reason("t2", "no room")
        elif number < 4:
            searcher.on_trial_complete(f"t{number}", report)
    searcher.close(rest=False)  # the driver died
    lease.release()
    return folder


def driver(study: Folder, space: Space, **changes: Any) -> OptunaSearcher:
    storage = storage_url(study.local or "")
    given = {"metric": "m", "trials": 9, "seed": 3, "folder": study, "owner": ABOUT.id} | changes
    return OptunaSearcher([space], storage, "mine", **given)


def trials(folder: Folder) -> list[FrozenTrial]:
    opened = open_study(storage_url(folder.local or ""), "mine")
    found = opened.study.get_trials()
    opened.close()
    return found


def known(one: FrozenTrial) -> tuple[Any, ...]:
    """What a study must not lose of a trial."""
    state = "WAITING" if one.state.name == "RUNNING" else one.state.name
    reported = one.intermediate_values if one.state.is_finished() else {}
    return (one.number, state, one.values, one.params, one.distributions, one.user_attrs, reported)


LOST: dict[str, Callable[[Path], object]] = {
    "lost": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "noise": lambda path: path.write_bytes(b"noise" * 9999),
}


@pytest.mark.parametrize("how", LOST)
def test_the_trials_of_optuna_are_made_anew_from_their_folders(
    folder: Folder, space: Space, how: str
) -> None:
    before = trials(folder)
    root = Path(folder.uri)
    LOST[how](root / "study.db")
    with pytest.raises(UserError, match="seqtune repair mine"):
        driver(folder, space, resume=True).open()
    done = repair.repair("mine", str(root.parent))
    assert "5 trials have been added to Optuna's database" in done
    assert [known(one) for one in trials(folder)] == [known(one) for one in before]
    assert repair.repair("mine", str(root.parent)) == []


def test_the_trials_to_come_are_those_that_would_have_come(folder: Folder, space: Space) -> None:
    root = Path(folder.uri)
    copy = (root / "study.db").read_bytes()
    points = []
    for lost in (False, True):
        if lost:
            (root / "study.db").unlink()
            repair.repair("mine", str(root.parent))
        again = driver(folder, space, resume=True, folder=None)
        points.append([again.suggest(f"w{n}") for n in range(7)])
        again.close()
        (root / "study.db").write_bytes(copy)
    assert points[0] == points[1]


def test_a_trial_whose_record_is_lost_counts_as_failed(folder: Folder, space: Space) -> None:
    root = Path(folder.uri)
    (root / "study.db").unlink()
    (root / "trials" / "0001" / record.NAME).write_text('{"format": 1, "numb')
    (root / "trials" / "0003" / record.NAME).unlink()
    _, one, three = repair.repair("mine", str(root.parent))
    assert one.startswith("trial 1 counts as failed: ")
    assert one.partition(": ")[2].startswith(f"{root}/trials/0001/trial.json is damaged: ")
    assert three.startswith("trial 3 counts as failed: ")
    states = [trial.state.name for trial in trials(folder)]
    assert states == ["COMPLETE", "FAIL", "FAIL", "FAIL", "WAITING"]
    again = driver(folder, space, resume=True)
    assert again.suggest("a")["number"] == 4
    assert [trial.number for trial in again.past] == [0]


@pytest.mark.parametrize("how", LOST)
def test_study_json_is_made_anew_from_optunas_database(folder: Folder, how: str) -> None:
    root = Path(folder.uri)
    before = read_about(folder)
    LOST[how](root / "study.json")
    if how == "torn":
        (root / "study.json").write_text('{"id": "mi')
    (done,) = repair.repair("mine", str(root.parent))
    assert done.startswith("study.json has been made anew from Optuna's database")
    assert read_about(folder) == before


def test_what_cannot_be_repaired_is_said(folder: Folder) -> None:
    root = Path(folder.uri)
    (root / "study.json").unlink()
    (root / "study.db").unlink()
    with pytest.raises(UserError, match="are both lost; start the study again"):
        repair.repair("mine", str(root.parent))
    with pytest.raises(UserError, match="other: there is no study of that name in"):
        repair.repair("other", str(root.parent))


def test_a_study_that_runs_is_not_repaired(folder: Folder) -> None:
    lease = Lease(folder)
    with pytest.raises(UserError, match=r"mine: the study is run by process .* wait until it ends"):
        repair.repair("mine", str(Path(folder.uri).parent))
    lease.release()


def test_the_command_says_what_it_did(folder: Folder) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "seqtune", "repair", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    root = Path(folder.uri)
    (root / "study.json").unlink()
    first, second = (run("mine", "--storage", str(root.parent)) for _ in range(2))
    assert first.stdout == "study.json has been made anew from Optuna's database\n"
    assert second.stdout == "Nothing is missing in study mine.\n"
    wrong = run("../mine", "--storage", str(root.parent))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: NAME ../mine: use letters, digits")
