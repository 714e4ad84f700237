"""A folder by URI; here, local ones."""

from __future__ import annotations

import os
import pickle
import stat
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqtune.errors import UserError
from seqtune.storage import Folder, make_whole, own_scratch


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "made" / "when needed")


def test_what_was_written_is_read(folder: Folder) -> None:
    folder.write("state.pt", b"one")
    assert folder.read("state.pt") == b"one"
    folder.write("state.pt", b"")
    assert folder.read("state.pt") == b""


def test_what_is_missing_is_none(folder: Folder) -> None:
    assert folder.read("state.pt") is None
    folder.write("state.pt", b"one")
    assert folder.read("other") is None


def test_names_are_sorted_and_hide_what_is_hidden(folder: Folder, tmp_path: Path) -> None:
    assert folder.names() == []
    for name in ("b", "a", ".hidden"):
        folder.write(name, b"x")
    (folder / "c").write("d", b"x")
    assert folder.names() == ["a", "b", "c"]


def test_a_deleted_folder_is_gone_and_may_be_deleted_again(folder: Folder) -> None:
    folder.delete()
    (folder / "deep" / "deeper").write("a", b"x")
    (folder / "deep").delete()
    assert folder.names() == []
    (folder / "deep").delete()
    assert (folder / "deep" / "deeper").read("a") is None


def test_what_says_what_a_folder_is_goes_last(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "me", "z"):
        folder.write(name, b"x")
    (folder / "deep").write("b", b"x")
    filesystem, path = folder._open()
    gone: list[str] = []

    def note(place: str) -> None:
        gone.append(place.rpartition("/")[2])

    spy = SimpleNamespace(get_file_info=filesystem.get_file_info, delete_dir=note, delete_file=note)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "_open", lambda self: (spy, path))
        folder.delete(last="me")
    assert sorted(gone[:-1]) == ["a", "deep", "z"]
    assert gone[-1] == path.rpartition("/")[2]
    folder.delete(last="me")
    assert folder.names() == []


def test_a_part_of_a_folder_is_a_folder(tmp_path: Path) -> None:
    part = Folder.at(tmp_path) / "trials" / "0003"
    part.write("a", b"x")
    assert part.local == tmp_path / "trials" / "0003"
    assert (tmp_path / "trials" / "0003" / "a").read_bytes() == b"x"


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Folder.at("results/") == Folder(str(tmp_path / "results"))
    assert Folder.at("../x") == Folder(str(tmp_path.parent / "x"))
    assert Folder.at("~/results") == Folder(str(tmp_path / "home" / "results"))
    folder = Folder.at("results")
    monkeypatch.chdir("/")
    folder.write("a", b"x")
    assert (tmp_path / "results" / "a").is_file()


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    folder = Folder.at(f"file://{tmp_path}/results/")
    assert folder.uri == f"file://{tmp_path}/results"
    assert folder.local == tmp_path / "results"
    folder.write("a", b"x")
    assert (tmp_path / "results" / "a").read_bytes() == b"x"
    assert folder.names() == ["a"]
    folder.delete()
    assert not (tmp_path / "results").exists()


def test_other_uris_are_remote() -> None:
    folder = Folder.at("s3://bucket/results/") / "study"
    assert folder.uri == "s3://bucket/results/study"
    assert folder.local is None


def test_it_travels_as_its_uri(folder: Folder) -> None:
    folder.write("a", b"x")
    there = pickle.loads(pickle.dumps(folder))
    assert there == folder
    assert there.read("a") == b"x"


def test_a_reader_sees_the_old_file_or_the_new_one(folder: Folder) -> None:
    contents = [bytes([k]) * 2_000_000 for k in range(2)]
    folder.write("a", contents[0])
    seen, ended = set(), threading.Event()

    def read() -> None:
        while not ended.is_set():
            content = folder.read("a")
            seen.add(None if content is None else (len(content), content[0], content[-1]))

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(60):
        folder.write("a", contents[k % 2])
    ended.set()
    reader.join()
    assert seen <= {(2_000_000, 0, 0), (2_000_000, 1, 1)}


def test_a_write_that_fails_leaves_the_old_file(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("a", b"old")
    with pytest.raises(TypeError):
        folder.write("a", None)  # type: ignore[arg-type]
    assert folder.read("a") == b"old"
    assert folder.names() == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written_says_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Folder.at(tmp_path / "results").write("a", b"x")


def test_the_scratch_folder_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = own_scratch()
    assert folder == tmp_path / f"seqtune-{os.getuid()}" == own_scratch()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    with pytest.raises(UserError, match="others may enter it; name another temporary folder"):
        own_scratch()


def test_a_file_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "made" / "one.db"

    def torn(part: Path) -> None:
        part.write_bytes(b"ha")
        assert not path.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_whole(path, torn)
    assert not [*path.parent.iterdir()]
    make_whole(path, lambda part: part.write_bytes(b"whole"))
    make_whole(path, torn)  # it is there
    assert path.read_bytes() == b"whole"

    def slower(part: Path) -> None:
        part.write_bytes(b"mine")
        path.write_bytes(b"theirs")

    path.unlink()
    make_whole(path, slower)
    assert path.read_bytes() == b"theirs"
    assert [one.name for one in path.parent.iterdir()] == ["one.db"]
