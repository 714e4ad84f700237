"""Which study it is: names, what study.json keeps, and what a resumed study must share."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from seqtune.data import Dataset, Protocol
from seqtune.data.generate import make_preset
from seqtune.errors import UserError
from seqtune.options import StudyOptions
from seqtune.storage import Folder
from seqtune.study.identity import Identity, claimed, tags
from seqtune.study.lease import Lease

TINY = make_preset("tiny")
PROTOCOL = Protocol.of(TINY)
URI = "http://ann:secret@127.0.0.1:5000"


@pytest.fixture
def options(tmp_path: Path) -> StudyOptions:
    return StudyOptions("sasrec", data="tiny", storage=str(tmp_path), tracking_uri=URI)


def find(options: StudyOptions, dataset: Dataset, protocol: Protocol) -> Identity:
    """Claims a study for a moment."""
    with claimed(options, dataset, protocol) as identity:
        return identity


def a_study() -> optuna.Study:
    """A study of Optuna's, which knows its space."""
    study = optuna.create_study()
    study.set_user_attr("spaces", {"sasrec": {"model": "sasrec", "fixed": {}, "space": {}}})
    return study


def test_a_new_study_says_what_it_is(options: StudyOptions, tmp_path: Path) -> None:
    found = find(options, TINY, PROTOCOL)
    assert not list(tmp_path.iterdir())  # nothing is written until it is kept
    found.keep(a_study())
    kept = json.loads((tmp_path / "sasrec-tiny" / "study.json").read_text())
    assert kept["id"].startswith("sasrec-tiny-")
    assert kept["same"] == {
        "model": "sasrec",
        "metric": "ndcg@10",
        "also": "",
        "prefer": "",
        "limit": "",
        "data": TINY.fingerprint,
        "split": "leave-one-out",
        "validation": "all users",
        "seen items": "left out",
    }
    assert kept["command"] == (
        f"seqtune tune --model sasrec --data tiny --storage {tmp_path} --name sasrec-tiny"
    )


def test_names_that_were_not_given_are_made_unique_and_the_last_is_resumed(
    options: StudyOptions,
) -> None:
    names = []
    for _ in range(3):
        found = find(options, TINY, PROTOCOL)
        found = found.keep(a_study())
        names.append(found.name)
    assert names == ["sasrec-tiny", "sasrec-tiny-2", "sasrec-tiny-3"]
    again = find(replace(options, resume=True), TINY, PROTOCOL)
    assert (again.name, again.about) == (names[-1], found.about)


def test_a_name_that_was_given_is_new_or_resumed(options: StudyOptions) -> None:
    named = replace(options, name="mine")
    with pytest.raises(UserError, match="--resume: there is no study 'mine' in "):
        find(replace(named, resume=True), TINY, PROTOCOL)
    find(named, TINY, PROTOCOL).keep(a_study())
    with pytest.raises(UserError, match="--name mine: this study exists; go on with --resume"):
        find(named, TINY, PROTOCOL)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "gru4rec"}, "another model (sasrec, now gru4rec)"),
        ({"metric": "hr@5"}, "another metric (ndcg@10, now hr@5)"),
        ({"valid_users": 30}, "another validation (all users, now 30 users of seed 0)"),
        ({"mask_seen": False}, "another seen items (left out, now ranked)"),
        ({"data": "other"}, "another data ("),
    ],
)
def test_a_resumed_study_is_the_same(
    options: StudyOptions, change: dict[str, Any], sentence: str
) -> None:
    find(replace(options, name="mine"), TINY, PROTOCOL).keep(a_study())
    dataset = make_preset("demo") if "data" in change else TINY
    asked = replace(options, name="mine", resume=True, **change)
    protocol = Protocol.of(dataset, asked.mask_seen, asked.valid_users)
    with pytest.raises(UserError) as refused:
        find(asked, dataset, protocol)
    assert f"--resume: study 'mine' was started with {sentence}" in str(refused.value)


def test_what_may_differ_may(options: StudyOptions) -> None:
    find(replace(options, name="mine"), TINY, PROTOCOL).keep(a_study())
    free = {"trials": 99, "time_budget": 5.0, "scheduler": "none", "concurrency": 7, "seed": 3}
    find(replace(options, name="mine", resume=True, **free), TINY, PROTOCOL)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is damaged: the whole: "),
        (b'{"id": "a', "is damaged: the whole: "),
        (b"[]", "is damaged: the whole: "),
        (b'{"id": "a", "command": "b", "format": 1}', "is damaged: same: field required"),
        (b'{"id": 3, "command": "b", "same": {}, "format": 1}', "is damaged: id: input should be"),
        (b'{"id": "a", "command": "b", "same": {}, "format": 9}', "has format 9, and this seqtune"),
        (b"[" * 100_000, "is damaged: the whole: "),
    ],
)
def test_a_damaged_study_json_is_told_with_the_way_out(
    options: StudyOptions, tmp_path: Path, content: bytes, sentence: str
) -> None:
    find(replace(options, name="mine"), TINY, PROTOCOL).keep(a_study())
    path = tmp_path / "mine" / "study.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        find(replace(options, name="mine", resume=True), TINY, PROTOCOL)
    assert str(refused.value).startswith(f"{path} {sentence}")
    assert str(refused.value).endswith(f"make it anew: seqtune repair mine --storage {tmp_path}")
    path.unlink()
    (tmp_path / "mine" / "study.db").touch()
    with pytest.raises(UserError, match=r"study.json is missing; make it anew: seqtune repair"):
        find(replace(options, name="mine", resume=True), TINY, PROTOCOL)


def test_tags_say_what_was_made_of_what_without_secrets(options: StudyOptions) -> None:
    found = tags(options, TINY, PROTOCOL)
    assert found["seqtune.data_fingerprint"] == TINY.fingerprint
    assert found["seqtune.protocol"] == PROTOCOL.sentence(TINY)
    assert "secret" not in json.dumps(found)
    assert found["seqtune.version.torch"]


def test_names_of_studies_that_start_together_differ(options: StudyOptions) -> None:
    with claimed(options, TINY, PROTOCOL) as one, claimed(options, TINY, PROTOCOL) as other:
        assert (one.name, other.name) == ("sasrec-tiny", "sasrec-tiny-2")
    assert find(options, TINY, PROTOCOL).name == "sasrec-tiny"  # neither was kept


@pytest.mark.parametrize("resume", [False, True])
def test_a_study_that_runs_is_refused_with_who_runs_it(
    resume: bool, options: StudyOptions, tmp_path: Path
) -> None:
    named = replace(options, name="mine", resume=resume)
    find(replace(named, resume=False), TINY, PROTOCOL).keep(a_study())
    lease = Lease(Folder.at(tmp_path / "mine"))
    how = "--resume" if resume else "--name mine"
    with pytest.raises(UserError) as refused, claimed(named, TINY, PROTOCOL):
        pass
    assert str(refused.value).startswith(f"{how}: study 'mine' is run by process {os.getpid()} of ")
    assert str(refused.value).endswith("; wait until it has ended, or stop it there")
    lease.release()


def test_a_place_that_cannot_be_written_is_a_sentence(options: StudyOptions) -> None:
    for place in ("/proc/seqtune", "/dev/null/x"):
        with pytest.raises(UserError, match=f"^--storage {place}: nothing can be written there"):
            find(replace(options, storage=place), TINY, PROTOCOL)
