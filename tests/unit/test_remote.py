"""Files that lie elsewhere: fetched from a local server, once, whole, and what they should be."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from seqtune.data import load, public
from seqtune.data.public import PUBLIC, Public, known
from seqtune.data.remote import CACHE, cache, fetch
from seqtune.errors import UserError
from seqtune.options import StudyOptions

ROWS = [
    (user, 10 + (user + n) % 6, 3 + n % 3, 1_000_000_000 + n) for user in range(5) for n in range(4)
]


class Elsewhere:
    """A server of made files, which counts what it is asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.torn = False

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path.partition("?")[0].lstrip("/"))
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if outer.torn else content)

            def log_message(self, *_: Any) -> None:
                """Keeps the terminal clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    server = Elsewhere()
    server.start()
    yield server
    server.server.shutdown()
    server.server.server_close()


def zipped(member: str, content: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(member, content)
    return out.getvalue()


def csv() -> bytes:
    frame = pd.DataFrame(ROWS, columns=["user", "item", "rating", "time"])
    return frame.drop(columns="rating").to_csv(index=False).encode()


def test_a_file_is_fetched_once(elsewhere: Elsewhere) -> None:
    elsewhere.files["shop/rows.csv"] = csv()
    source = elsewhere.url("shop/rows.csv?token=a")
    first, second = load(source), load(source)
    assert first.fingerprint == second.fingerprint
    assert (first.n_users, first.n_interactions, first.name) == (5, 20, "rows")
    assert len(elsewhere.asked) == 1
    assert [path.name for path in cache().rglob("*.csv")] == ["rows.csv"]
    assert StudyOptions("sasrec", data=source).study.startswith("sasrec-rows")


def test_what_cannot_be_fetched_leaves_nothing(elsewhere: Elsewhere) -> None:
    with pytest.raises(UserError, match=r"cannot be downloaded .*Not Found"):
        fetch(elsewhere.url("nothing.csv"))
    elsewhere.files["x.csv"], elsewhere.torn = csv(), True
    with pytest.raises(UserError, match=r"ended before|cannot be downloaded"):
        fetch(elsewhere.url("x.csv"))
    elsewhere.torn = False
    with pytest.raises(UserError, match=r"holds another file than is known \(sha256 "):
        fetch(elsewhere.url("x.csv"), "sha256:" + "0" * 64)
    assert not [path for path in cache().rglob("*") if path.is_file()]
    with pytest.raises(UserError, match="'ftp' is no place for files"):
        fetch("ftp://127.0.0.1/x.csv")
    with pytest.raises(UserError, match="names no file"):
        fetch(elsewhere.url(""))
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch("http://127.0.0.1:9/x.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ml-100k", "".join("\t".join(map(str, row)) + "\n" for row in ROWS)),
        ("ml-1m", "".join("::".join(map(str, row)) + "\n" for row in ROWS)),
        (
            "ml-20m",
            "userId,movieId,rating,timestamp\n"
            + "".join(",".join(map(str, row)) + "\n" for row in ROWS),
        ),
    ],
)
def test_movielens_is_read_from_its_archive(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    real = PUBLIC[name]
    archive = zipped(real.member, content)
    elsewhere.files[f"{name}.zip"] = archive
    checksum = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    made = Public(elsewhere.url(f"{name}.zip"), real.terms, checksum, real.member)
    monkeypatch.setitem(public.PUBLIC, name, made)
    for _ in range(2):
        data = load(name, min_rating=4.0, min_user=1)
        assert (data.n_users, data.n_interactions) == (5, 10)
    assert data.name == name
    assert data.notes[0] == real.terms
    assert len(elsewhere.asked) == 1


def test_an_archive_without_the_file(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.files["a.zip"], elsewhere.files["b.zip"] = zipped("other.txt", "x"), b"no archive"
    for name in ("a.zip", "b.zip"):
        monkeypatch.setitem(public.PUBLIC, "ml-1m", Public(elsewhere.url(name), "", "", "ml-1m/r"))
        with pytest.raises(UserError, match="has no ml-1m/r that can be read"):
            load("ml-1m")


def test_reviews_and_check_ins(elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    reviews = "".join(
        f'{{"reviewerID": "U{u}", "asin": "B{i}", "overall": {r}.0, "unixReviewTime": {t}}}\n'
        for u, i, r, t in ROWS
    )
    check_ins = "".join(
        f"{u}\t2010-10-19T23:55:{50 - n:02}Z\t30.2\t-97.7\t{i}\n"
        for n, (u, i, *_) in enumerate(ROWS)
    )
    for name, content in (("amazon-beauty", reviews), ("gowalla", check_ins)):
        file = Path(PUBLIC[name].address).name
        elsewhere.files[file] = gzip.compress(content.encode())
        made = Public(elsewhere.url(file), PUBLIC[name].terms, columns=PUBLIC[name].columns)
        monkeypatch.setitem(public.PUBLIC, name, made)
        data = load(name)
        assert (data.n_users, data.n_items, data.n_interactions) == (5, 6, 20)
        assert data.notes[0].endswith("no checksum is published, so nothing was checked")
    assert data.item_ids[data.items[0] - 1] == ROWS[3][1]  # the newest comes first in that file


def test_sets_that_are_known_and_those_to_be_fetched_by_hand() -> None:
    for name, one in PUBLIC.items():
        assert one.address.startswith("https://"), name
        assert one.terms
    beauty = known("amazon-2023-All_Beauty")
    assert beauty is not None
    assert beauty.address.endswith("/All_Beauty.csv.gz")
    assert known("nothing") is None
    with pytest.raises(UserError, match=r"fetch it from https://www.yelp.com/dataset, and give"):
        load("yelp")
    with pytest.raises(UserError, match="did you mean 'ml-100k'"):
        load("ml-100")


def test_a_file_of_that_name_comes_first(elsewhere: Elsewhere) -> None:
    Path("gowalla").mkdir()
    Path("gowalla/rows.csv").write_bytes(csv())
    assert load("gowalla").n_users == 5
    assert elsewhere.asked == []
