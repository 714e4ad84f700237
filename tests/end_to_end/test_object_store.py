"""A study whose folder is a bucket, killed on one machine and continued on another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqtune.data import load
from seqtune.data.remote import CACHE
from seqtune.errors import UserError
from seqtune.storage import Folder
from seqtune.study.store import open_study, storage_url

pytestmark = pytest.mark.slow

TUNE = ["--set", "epochs=12", "--set", "eval_every=1", "--scheduler", "none", "--trials", "4"]


@pytest.fixture
def bucket(free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An S3 server with an empty bucket, and how to name a folder in it."""
    pytest.importorskip("moto")
    keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "s3cr3ts3cr3t"}
    for name, value in (keys | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(free_port)]
    with (tmp_path / "moto").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, cwd=tmp_path)
    try:
        place, until = f"127.0.0.1:{free_port}", time.monotonic() + 60
        while True:
            try:
                make = urllib.request.Request(f"http://{place}/shop", method="PUT")
                urllib.request.urlopen(make, timeout=10).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.2)
        yield f"s3://shop/studies?endpoint_override={place}&scheme=http&region=us-east-1"
    finally:
        server.kill()
        server.wait()


def test_a_folder_of_a_bucket_is_a_folder(bucket: str) -> None:
    folder = Folder.at(bucket) / "a" / "b"
    assert (folder.read("x"), folder.names(), folder.name) == (None, [], "b")
    folder.write("x", b"1")
    folder.write("x", b"2")
    assert (folder.read("x"), folder.names(), folder.parent.names()) == (b"2", ["x"], ["b"])
    aside = folder.set_aside()
    assert (aside.name, aside.read("x"), folder.names()) == ("b.aside-1", b"2", [])
    aside.remove("x")
    aside.remove("x")
    folder.delete()
    folder.prove("--storage")
    assert (folder.names(), aside.names()) == ([], [])


def test_interactions_of_a_bucket_are_fetched_once(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    place, _, told = bucket.partition("?")
    rows = "".join(f"{user},{user + n},{n}\n" for user in range(5) for n in range(4))
    Folder.at(bucket).write("rows.csv", f"user,item,time\n{rows}".encode())
    source = f"{place}/rows.csv?{told}"
    first = load(source)
    assert (first.n_users, first.n_interactions, first.name) == (5, 20, "rows")
    Folder.at(bucket).remove("rows.csv")
    assert load(source).fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"absent.csv.*: cannot be downloaded"):
        load(f"{place}/absent.csv?{told}")


def test_a_study_goes_on_where_nothing_is_but_the_address_of_its_bucket(
    bucket: str,
    tune: Callable[..., Any],
    study_at: type[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def machine(name: str) -> None:
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))

    words = [*TUNE, "--storage", bucket, "--name", "mine"]
    words += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    machine("straight")
    local = [*TUNE, "--storage", str(tmp_path / "local"), "--name", "mine"]
    tune(*local).ends(0)
    expected = {t.number: t.value for t in study_at(tmp_path / "local" / "mine").trials()}

    machine("first")
    first = tune(*words)
    first.until(lambda: "[1/4]" in first.out)
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    machine("second")
    second = tune(*words, "--resume").ends(0)
    assert second.err == ""
    assert "[4/4]" in second.out
    assert "[1/4]" not in second.out  # what had ended is not told again
    folder = Folder.at(bucket) / "mine"
    assert {"champion", "report", "study.json", "trials"} <= set(folder.names())

    machine("third")
    third = tune(*words, "--resume").ends(0)
    assert "4 trials in" in third.out
    opened = open_study(storage_url(next((tmp_path / "third").rglob("study.db")).parent), "mine")
    found = {t.number: t.value for t in opened.study.get_trials()}
    opened.close()
    assert found == expected
