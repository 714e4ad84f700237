"""The command line: a mistake gets one sentence, at once; what is right arrives where it should."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import seqtune
from seqtune.catalogue import declaration, model_names
from seqtune.cli import app as cli
from seqtune.cli import train, tune
from seqtune.errors import UserError
from seqtune.options import (
    StudyOptions,
    TrainOptions,
    bounds,
    command,
    data_name,
    parse_duration,
    parse_workers,
)
from seqtune.report import handbook, reference
from seqtune.words import duration

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "optuna", "pandas", "pyarrow", "scipy", "plotly", "sklearn")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def call(*words: str, only: str | None = None, columns: int = 100) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["seqtune", *words])
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            cli.main(only)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects the options that ``tune`` and ``train`` would run with."""
    options: list[Any] = []

    def remember(asked: Any, view: Any, *_: Any) -> None:
        options.append(asked.options)
        raise KeyboardInterrupt

    for name in ("seqtune.study.study.run", "seqtune.study.once.train_once"):
        stand_in(monkeypatch, name, remember)
    return options


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    """Puts a function in the place of another, whose signature it must be called with."""
    module, _, attribute = name.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), attribute))

    def called(*words: Any, **more: Any) -> Any:
        return function(*signature.bind(*words, **more).args)

    monkeypatch.setattr(name, called)


# Mistakes. Each sentence is pinned: it is what a person reads.

MISTAKES = {
    "": "--model: name the model, for example --model ",
    "--model sasrc": "--model sasrc: no such model; did you mean 'sasrec'?",
    "--model sasrec --set n_head=3": "--set: sasrec has no hyperparameter 'n_head'; did you mean "
    "'n_heads'?",
    "--model sasrec --set n_heads=0": "--set: n_heads must be greater than or equal to 1, not 0",
    "--model sasrec --set n_heads=two": "--set: n_heads must be a valid integer",
    "--model sasrec --set n_heads": "--set n_heads: write name=value, for example --set n_layers=3",
    "--model sasrec --set n_heads=1 --set n_heads=2": "--set n_heads=2: n_heads is set twice",
    "--model sasrec --metric ndgc@10": "--metric ndgc@10: no such metric; did you mean 'ndcg'?",
    "--model sasrec --metric ndcg": "--metric ndcg: write a cut-off after the name, for example "
    "ndcg@10",
    "--model sasrec --time-budget soon": "--time-budget soon: not a duration; write 90s, 15m, 2h",
    "--model sasrec --data dmeo": "--data dmeo: no such file or generated set; did you mean "
    "'demo'?",
    "--model sasrec --data nowhere/ratings.csv": "--data nowhere/ratings.csv: no such file",
    "--model sasrec --data .": "--data .: is a folder; name the file with the interactions",
    "--model sasrec --space nowhere.yaml": "--space nowhere.yaml: no such file",
    "--model sasrec --params nowhere.yaml": "--params nowhere.yaml: no such file",
    "--model sasrec --name a/b": "--name a/b: use letters, digits, '.', '_' and '-' only",
    "--explain durec": "--explain durec: no such model; did you mean 'duorec'?",
    "--trails 3": "--trails: no such option; did you mean '--trials'?",
    "--zzz": "--zzz: no such option; see python tune.py --help",
    "--trials many": "--trials many: must be a valid integer",
    "--trials 0": "--trials 0: must be greater than or equal to 1",
    "--trials": "--trials: requires an argument",
    "--valid-users 0": "--valid-users 0: must be greater than or equal to 1",
    "--scheduler bohb": "--scheduler bohb: 'bohb' is not one of 'reach', 'asha', 'hyperband', "
    "'median', 'pbt', 'none'",
    "--resume=yes": "--resume: does not take a value",
    "duorec": "duorec: stands alone; write --model duorec",
    "what ever": "what ever: stands alone; write --NAME VALUE",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_answered_by_one_sentence(run: Run, asked: list[Any], words: str) -> None:
    code, out, err = run(*words.split(), only="tune")
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {MISTAKES[words]}")
    assert err.count("\n") == 1
    assert asked == []


def test_mistakes_in_the_other_commands(run: Run, tmp_path: Path) -> None:
    histories = tmp_path / "users.csv"
    histories.write_text("user,item,time\n")
    for words, sentence in {
        "tun": "No such command 'tun'",
        "train --model sasrc": "--model sasrc: no such model; did you mean 'sasrec'?",
        "train --model sasrec --set tau=1": "--set: sasrec has no hyperparameter 'tau'",
        "train --model sasrec --set n_heads=3": "--set: ",  # 64 is not divisible by 3
        "recommend": "--checkpoint: name the folder of a checkpoint",
        "recommend --checkpoint x": "--data: name a file with the interactions",
        f"recommend --checkpoint x --data {histories}": "--checkpoint x: no such folder",
        "recommend --checkpoint x --data y.csv": "--data y.csv: no such file",
        "models durec": "models durec: no such model; did you mean 'duorec'?",
    }.items():
        code, _, err = run(*words.split())
        assert (code, err.startswith(f"error: {sentence}"), err.count("\n")) == (2, True, 1), err


def test_a_file_with_a_similar_name_is_named(run: Run, asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user,item,time\n")
    _, _, err = run("--model", "sasrec", "--data", str(tmp_path / "rating.csv"), only="tune")
    assert err.endswith(f"did you mean '{tmp_path / 'ratings.csv'}'?\n")


def test_a_bad_file_of_params_starts_nothing(run: Run, asked: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("models:\n  SASRec:\n    n_heads: [3, 2]\n")
    for words, sentence in {
        "train --model sasrec": f"{file}:3: n_heads is a list, and train needs one value; give "
        "--set n_heads=3, or use tune",
        "train --model sasrec --set n_heads=3": f"--set with {file}: n_heads must divide",
        "tune --model sasrec --set n_heads=3": f"--set n_heads with {file}: n_heads must divide",
        "tune --model duorec": f"{file}:1: no block of duorec; there are: SASRec",
    }.items():
        code, _, err = run(*words.split(), "--params", str(file))
        assert (code, err.startswith(f"error: {sentence}"), err.count("\n")) == (2, True, 1), err
    assert asked == []


def test_a_bad_search_space_starts_nothing(run: Run, asked: list[Any], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("model: sasrec\nspace:\n  n_heads: {choice: [0, 2]}\n")
    code, _, err = run("--model", "sasrec", "--space", str(space), only="tune")
    assert code == 2
    assert err.startswith(f"error: {space}:3: n_heads must be greater than or equal to 1, not 0")
    assert asked == []


# Right options.


def test_options_arrive(run: Run, asked: list[Any]) -> None:
    words = (
        "--model SASRec --data tiny --set n_layers=1 --set loss_type=bce --trials 7 --metric HR@5 "
        "--time-budget 1h30m --seed 3 --concurrency 2 --cpus-per-trial 1.5 --gpus-per-trial 0 "
        "--workers-per-trial 2 --max-failures 0 --name my.study --storage out --min-user 4 "
        "--tracking-uri http://127.0.0.1:5000 --scheduler none --mask-seen --valid-users 100"
    )
    run(*words.split(), only="tune")
    assert asked == [
        StudyOptions(
            model="sasrec",
            data="tiny",
            set=("n_layers=1", "loss_type=bce"),
            trials=7,
            metric="hr@5",
            valid_users=100,
            time_budget=5400,
            seed=3,
            concurrency=2,
            cpus_per_trial=1.5,
            gpus_per_trial=0,
            workers_per_trial=2,
            max_failures=0,
            name="my.study",
            storage="out",
            min_user=4,
            tracking_uri="http://127.0.0.1:5000",
            scheduler="none",
            mask_seen=True,
        )
    ]


def test_defaults_of_the_commands_are_those_of_the_options(run: Run, asked: list[Any]) -> None:
    run("tune", "--model", "sasrec")
    run("train", "--model", "sasrec")
    assert asked == [StudyOptions("sasrec"), TrainOptions("sasrec")]


OF_THE_LINE = {"list", "explain", "quiet", "json_lines", "open", "notify"}  # and no part of a study


@pytest.mark.parametrize(
    ("function", "options", "more"),
    [(tune.tune, StudyOptions, OF_THE_LINE), (train.train, TrainOptions, set())],
)
def test_every_option_can_be_given(function: Any, options: Any, more: set[str]) -> None:
    names = {name.rstrip("_") for name in inspect.signature(function).parameters}
    given_again = {"also"}  # what comes after the first --metric
    assert names - more == {field.name for field in dataclasses.fields(options)} - given_again


@pytest.mark.parametrize(
    "options",
    [
        StudyOptions("duorec"),
        StudyOptions(
            "sasrec",
            set=("n_layers=1", "lr_scheduler=linear"),
            resume=True,
            mask_seen=False,
            seed=1,
        ),
        StudyOptions("sasrec", time_budget=5400, gpus_per_trial=0.5, name="x", mask_seen=True),
        StudyOptions("sasrec", time_budget=90.5),
        TrainOptions("gru4rec", data="tiny", workers=2, out="my folder", resume=True),
        TrainOptions("gru4rec", valid_users=500),
        StudyOptions("sasrec", params="my file.yaml", set=("n_heads=4",)),
        TrainOptions("sasrec", params="my file.yaml"),
    ],
)
def test_the_command_of_options_gives_the_options(
    run: Run, asked: list[Any], options: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    Path("my file.yaml").write_text("models: {SASRec: {n_layers: 3}}")

    program, *words = shlex.split(command(options))
    assert program == "seqtune"
    run(*words)
    assert asked == [options]


def test_tune_py_is_named_in_commands_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["../tune.py", "--model", "sasrec"])
    assert command(StudyOptions("sasrec")) == "python ../tune.py --model sasrec"
    assert command(TrainOptions("sasrec")) == "seqtune train --model sasrec"


def test_ctrl_c_before_the_study_began(run: Run, asked: list[Any]) -> None:
    code, _, err = run("tune", "--model", "sasrec")
    assert (code, err) == (130, "Stopped before it began.\n")


def test_ctrl_c_in_a_study_prints_the_command_that_resumes_it(
    run: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(options: Any, view: Any, *_: Any) -> None:
        view.study_started("sasrec", "tiny", 3, "2 hyperparameters", "/results/x")
        raise KeyboardInterrupt

    stand_in(monkeypatch, "seqtune.study.study.run", stopped)
    code, out, err = run("tune", "--model", "sasrec", "--data", "tiny", "--trials", "3")
    assert code == 130
    assert "sasrec on tiny" in out
    assert err.endswith("\nseqtune tune --model sasrec --data tiny --trials 3 --name x --resume\n")


def test_where_ray_takes_the_study_with_it_the_command_is_printed_all_the_same(
    run: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(options: Any, view: Any, abandon: Callable[[str], None]) -> None:
        view.study_started("sasrec", "tiny", 3, "2 hyperparameters", "/results/x")
        abandon("Ray has ended")

    monkeypatch.setattr(os, "_exit", sys.exit)
    stand_in(monkeypatch, "seqtune.study.study.run", hangs)
    code, _, err = run("tune", "--model", "sasrec", "--data", "tiny")
    assert code == 130
    assert err.startswith("Ray has ended.\nStopped. Continue with:\nseqtune tune")


def test_ctrl_c_in_a_training(run: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(options: Any, view: Any, *_: Any) -> None:
        view.started("sasrec", "tiny", "/results/x")
        raise KeyboardInterrupt

    stand_in(monkeypatch, "seqtune.study.once.train_once", stopped)
    code, _, err = run("train", "--model", "sasrec", "--data", "tiny")
    assert code == 130
    assert err.endswith("\nseqtune train --model sasrec --data tiny --out /results/x --resume\n")


def test_our_own_mistakes_are_not_hidden(
    run: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "seqtune.study.study.run", lambda options, view, *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["seqtune", "tune", "--model", "sasrec"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_mistakes_that_only_the_data_show_are_sentences_too(
    run: Run, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(options: Any, view: Any, *_: Any) -> None:
        raise UserError("ratings.csv: no column of users; give --user-col")

    stand_in(monkeypatch, "seqtune.study.study.run", refuse)
    code, _, err = run("tune", "--model", "sasrec")
    assert (code, err) == (2, "error: ratings.csv: no column of users; give --user-col\n")


# Pages.


def test_models_are_listed(run: Run) -> None:
    code, out, _ = run("--list", only="tune")
    assert code == 0
    for name in model_names():
        assert f"  {name} " in out
    assert " ".join(declaration("sasrec").summary.split()) in " ".join(out.split())
    assert run("models")[1] == out
    assert run("models", "--names")[1].split() == model_names()


def test_a_model_is_explained(run: Run) -> None:
    code, out, _ = run("--explain", "sasrec", only="tune")
    assert code == 0
    assert run("models", "sasrec")[1] == out
    lines = [line.rstrip() for line in out.splitlines()]
    at = lines.index("  n_layers = 2   1 to 32")
    assert lines[at + 1] == "      The encoder has this many blocks."
    at = lines.index("  learning_rate = 0.001   above 0, at most 10")
    assert lines[at + 2].startswith("      searched: 0.")
    assert "  optimizer = adamw   adamw | adagrad" in lines
    for name in declaration("sasrec").params.model_fields:
        assert any(line.startswith(f"  {name} = ") for line in lines), name
    assert "1808.09781" in out  # the paper


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_page_of_a_model_fits_the_terminal(width: int, run: Run) -> None:
    code, out, _ = run("models", "duorec", columns=width)
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= width
    assert "  WSDM 2022  https://arxiv.org/abs/2110.05730" in lines
    assert lines[lines.index("Cost") + 1].startswith("  Per row as SASRec")
    assert "  batch_size = 256 (usually 128)   1 to 1,000,000" in lines
    hidden = lines.index("      h    of the prefix of a target,")  # formulas keep their lines
    assert lines[hidden + 1].startswith("      h'   of the same prefix")
    listed = run("models", columns=width)[1].splitlines()
    assert max(len(line.rstrip()) for line in listed) <= width


def test_all_models_come_as_markdown(run: Run) -> None:
    assert run("models", "--markdown")[1] == handbook.page()


def test_the_page_on_options_is_what_the_declarations_say() -> None:
    written = (ROOT / "docs" / "options.md").read_text()
    assert written == reference.options_page(), "write it again, as the page says"


def test_help_groups_the_options(run: Run) -> None:
    code, out, _ = run("--help", only="tune")
    assert code == 0
    for panel in ("What", "Search", "Resources", "Where"):
        assert f"─ {panel} ─" in out
    assert "Usage: python tune.py" in out
    assert run("tune", "-h")[1].count("--trials") == out.count("--trials")


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"seqtune {seqtune.__version__}\n")


# The fast path, in a process of its own: what it must not import is what takes seconds.


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("--list", 0),
        ("--explain duorec", 0),
        ("--model sasrc", 2),
        ("--trails 3", 2),
        ("--model sasrec --set n_head=3", 2),
        ("--model sasrec --set n_heads=3", 2),
        ("--model sasrec --metric foo@10", 2),
        ("--model sasrec --data foo.csv", 2),
        ("--model sasrec --space {space}", 2),
        ("--model sasrec --params {space}", 2),
    ],
)
def test_answers_come_before_anything_heavy(words: str, code: int, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("model: sasrec\nspace: {n_layers: {low: 3, high: 1}}\n")
    script = (
        "import runpy, sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', [m for m in {HEAVY} if m in sys.modules]))\n"
        f"sys.argv = [{str(ROOT / 'tune.py')!r}, *{words.format(space=space).split()!r}]\n"
        f"runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert "Traceback" not in done.stderr
    assert (done.stderr.startswith("error: "), done.stderr.count("\n")) == (code == 2, code // 2)


# Small pieces of the options.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("2H", 7200),
        ("1h30m", 5400),
        ("1h 5s", 3605),
        ("1d", 86400),
        ("0.5h", 1800),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "15x", "1.5.2h", "30m1h", "-5m", "0s", "1e3", "45"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(UserError, match="--time-budget"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (7620, "2h 07m"),
        (100_000, "1d 03h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("demo", "demo"),
        ("../data/ml-100k.parquet", "ml-100k"),
        ("my ratings.csv.gz", "my-ratings"),
        ("s3://bucket/clicks.tsv", "clicks"),
        ("no-suffix", "no-suffix"),
    ],
)
def test_data_name(source: str, name: str) -> None:
    assert data_name(source) == name
    assert StudyOptions("sasrec", data=source).study == f"sasrec-{name}"


def test_a_training_that_diverges_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from seqtune.study import once
    from seqtune.train import DivergedError

    def diverges(*_: Any, **__: Any) -> None:
        raise DivergedError("the loss is not finite at step 3; try a smaller learning_rate")

    monkeypatch.setattr(once, "train_once", diverges)
    monkeypatch.setattr(sys, "argv", ["seqtune", "train", "--model", "sasrec", "--data", "tiny"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: the loss is not finite at step 3; try a")


def test_workers_are_a_number_or_a_range() -> None:
    assert parse_workers("4") == 4
    assert parse_workers("2:8") == (2, 8)
    assert [bounds(4), bounds((2, 8))] == [(4, 4), (2, 8)]
    line = command(TrainOptions("sasrec", workers=(2, 8)))
    assert line == "seqtune train --model sasrec --workers 2:8"
