"""What a program sees of a study, and what is posted at its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from seqtune.cli.app import app
from seqtune.errors import UserError
from seqtune.report import scripted
from seqtune.report.scripted import EventView, message, notify, show_events
from seqtune.results import Finalist, StudyResult, TrialRow


def result() -> StudyResult:
    ranks = np.arange(1, 21, dtype=np.float32)
    values = {"ndcg@10": 0.3, "hr@10": 0.5}
    best = Finalist(0, "sasrec", {"n_layers": 2}, values, values, ranks)
    return StudyResult(
        name="shop",
        models=("sasrec",),
        data_name="x",
        metric="ndcg@10",
        protocol="Leave-one-out.",
        trials=(TrialRow(0, "sasrec", "complete", {"n_layers": 2}, 0.3, 4, 9.0),),
        default=best,
        best=best,
        importances=(),
        searched=("n_layers",),
        planned=1,
        seconds=12.0,
        checkpoint="/shop/champion",
        train_command="seqtune train",
    )


def test_events_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    view = EventView("ndcg@10")
    view.preparing("reading data")
    view.study_started("sasrec", "x: 3 users", 2, "2 at a time", "/results/shop")
    view.note("a note")
    view.trial_started(0, {"n_layers": 2}, origin="default")
    view.trial_result(0, 1, 0.2, 0.25)
    floor: Any = SimpleNamespace(name="popularity", valid={"ndcg@10": 0.1}, seconds=0.1)
    view.floors_counted([floor])
    view.trial_ended(0, "complete", 0.25)
    view.study_ended()
    show_events(result())
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in told] == [
        *("study", "note", "trial", "evaluation", "floors", "trial_end", "result")
    ]
    assert all(one["time"] > 1.7e9 for one in told)
    study, note, trial, evaluation, floors, end, report = told
    assert (study["model"], study["trials"], study["folder"]) == ("sasrec", 2, "/results/shop")
    assert note["text"] == "a note"
    assert trial["params"] == {"n_layers": 2}
    assert (evaluation["value"], evaluation["best"], evaluation["epoch"]) == (0.2, 0.25, 1)
    assert floors["valid"] == {"popularity": 0.1}
    assert (end["status"], end["best"]) == ("complete", 0.25)
    assert report["best"]["test"]["hr@10"] == 0.5


def test_events_hold_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    EventView("ndcg@10").note("very-secret-key and postgresql://me:pass@host/db")
    said = capsys.readouterr().out
    assert "very-secret-key" not in said
    assert ":pass@" not in said


@pytest.fixture
def receiver() -> Iterator[Any]:
    """A server on this machine that keeps what is posted to it."""
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(204 if self.path == "/done" else 500)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", got=got)
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_message_is_posted_at_the_end(receiver: Any) -> None:
    assert notify(f"{receiver.url}/done", message(result())) == ""
    ((path, kind, content),) = receiver.got
    assert (path, kind) == ("/done", "application/json")
    assert (content["name"], content["metric"], content["seconds"]) == ("shop", "ndcg@10", 12.0)
    assert content["best"]["test"] == {"ndcg@10": 0.3, "hr@10": 0.5}
    assert content["verdict"]
    assert "trials" not in content


def test_a_message_that_does_not_get_there_is_said(receiver: Any) -> None:
    assert "Internal Server Error" in notify(f"{receiver.url}/no", {})
    assert "refused" in notify("http://127.0.0.1:9/", {})


@pytest.mark.parametrize(
    ("words", "kind", "shows"),
    [
        ([], "StudyView", True),
        (["--quiet"], "StudyView", False),
        (["--json-lines"], "EventView", False),
    ],
)
def test_a_study_is_shown_as_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, words: list[str], kind: str, shows: bool, receiver: Any
) -> None:
    seen: list[Any] = []

    def run(asked: Any, view: Any, abandon: Any) -> StudyResult:
        seen.append(view)
        view.note("a note")
        return result()

    monkeypatch.setattr("seqtune.study.study.run", run)
    url = ["--notify", f"{receiver.url}/done"]
    done = CliRunner().invoke(app, ["tune", "--model", "sasrec", "--data", "tiny", *words, *url])
    assert done.exit_code == 0, done.output
    assert type(seen[0]).__name__ == kind
    assert ("a note" in done.output.splitlines()) == shows
    assert "shop" in done.output or "sasrec on x" in done.output
    assert len(receiver.got) == 1


def test_an_address_that_is_none_is_refused() -> None:
    done = CliRunner().invoke(app, ["tune", "--model", "sasrec", "--notify", "me@example.com"])
    assert isinstance(done.exception, UserError)
    assert "--notify me@example.com: write http://" in str(done.exception)
    assert scripted.TIMEOUT <= 30
