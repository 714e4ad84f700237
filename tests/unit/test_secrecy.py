"""Secrets are left out of everything that is said, stored or tagged."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from seqtune.cli.mistakes import say
from seqtune.cli.ready import ready
from seqtune.cli.tune import stopped
from seqtune.errors import UserError
from seqtune.options import StudyOptions, command
from seqtune.secrecy import redact, without_keys


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://ann:hunter2@host:5000/x", "http://ann:***@host:5000/x"),
        ("postgresql+psycopg://me:p%40ss@h/db is away", "postgresql+psycopg://me:***@h/db is away"),
        ("s3://AKIA:ab/cd+ef=@bucket/x", "s3://AKIA:***@bucket/x"),
        ("gs://me:a/b@bucket", "gs://me:***@bucket"),
        ("https://h/x?token=abc&k=3", "https://h/x?token=***&k=3"),
        ("s3://b?access_key=A1&secret_key=B2&region=x", "s3://b?access_key=***&secret_key=***&region=x"),
        ("https://h/x?X-Amz-Signature=abc&X-Amz-Credential=c", "https://h/x?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("https://h/?sig=a%2Fb#z", "https://h/?sig=***#z"),
    ],
)  # fmt: skip
def test_a_secret_is_left_out(text: str, left: str) -> None:
    assert redact(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/a@champion",
        "http://h/#/experiments/1/runs?viewStateShareKey=seqtune-22&orderByKey=tags.x",
        "models:/shop@champion and a key=value: b",
        "sqlite:////tmp/a@b/mlflow.db",
        "user_col=token, 3:4@5",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("SEQTUNE_OPTUNA_STORAGE", "postgresql://me:battery-staple@h/db")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/etc/ray/auth_token")
    monkeypatch.setenv("SHORT_TOKEN", "the")
    text = "the wJalrXUtnFEMI/K7MDENG, correct-horse, battery-staple of /etc/ray/auth_token"
    assert redact(text) == "the ***, ***, *** of /etc/ray/auth_token"


def test_everything_said_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGPASSWORD", "correct-horse")
    say("http://ann:hunter22@host and correct-horse")
    assert capsys.readouterr().err == "http://ann:***@host and ***\n"
    assert str(UserError("s3://K:S/x@b and correct-horse")) == "s3://K:***@b and ***"


def test_the_command_that_continues_has_no_password() -> None:
    options = StudyOptions("sasrec", tracking_uri="http://ann:hunter22@host")
    assert command(options) == "seqtune tune --model sasrec --tracking-uri http://ann:***@host"


def test_keys_of_a_storage_go_where_s3_looks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in names:  # set first, so that what is set later is undone
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    asked = StudyOptions("sasrec", data="tiny", storage="s3://AKIA1234:ab%2Fcd/ef@bucket/x")
    assert ready(asked).storage == "s3://bucket/x"
    assert [os.environ[name] for name in names] == ["AKIA1234", "ab/cd/ef"]
    assert ready(asked).storage == "s3://bucket/x"  # the same ones again
    with pytest.raises(UserError, match="--storage s3://bucket/x: has other keys than AWS_ACCESS"):
        ready(replace(asked, storage="s3://OTHER123:ab@bucket/x"))


def test_a_place_without_keys_stays() -> None:
    for place in ("s3://bucket/x@y", "results", "gs://me:a@b", "file:///a:b@c"):
        assert without_keys(place) == (place, {})


def test_who_stops_is_told_what_to_write_again(capsys: pytest.CaptureFixture[str]) -> None:
    view: Any = SimpleNamespace(where="results/mine")
    stopped(StudyOptions("sasrec", tracking_uri="http://ann:hunter22@host"), view)
    said = capsys.readouterr().err
    assert "--tracking-uri http://ann:***@host --resume" in said
    assert said.endswith("\n(Write the password in place of ***.)\n")
    stopped(StudyOptions("sasrec"), view)
    assert "password" not in capsys.readouterr().err
