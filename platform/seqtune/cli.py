"""The command line: ``seqtune tune | train | recommend | models | bench``.

Everything that can be checked in a moment is checked before torch, Ray, MLflow or pandas is
imported: a typing mistake is answered at once, by one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.exceptions import TyperException

from seqtune import __version__
from seqtune.cluster import check_lasting, in_job
from seqtune.errors import UserError, nearest
from seqtune.options import RESULTS, StudyOptions, TrainOptions, command, parse_duration
from seqtune.params import (
    check,
    check_model,
    check_name,
    declaration,
    model_names,
    parse_assignment,
)
from seqtune.paramsfile import check_point, given_by

if TYPE_CHECKING:
    from seqtune.view import StudyView, TrainView

WHAT, DATA, SEARCH, RESOURCES, WHERE = "What", "Columns and filters", "Search", "Resources", "Where"

STARTED = time.perf_counter()

app = typer.Typer(
    help="Tunes sequential recommenders: your interactions in, the best checkpoint out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
HELP = {"help_option_names": ["-h", "--help"]}


def _option(panel: str, text: str, *flags: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*flags, help=text, metavar=metavar, rich_help_panel=panel, **more)


EXAMPLES = """[bold]Examples[/]

python tune.py --model duorec

python tune.py --model sasrec --data ratings.csv --trials 50 --time-budget 2h

python tune.py --model sasrec --data ratings.csv --set n_layers=3 --name deeper
"""

# Options that tune and train share.
Source = Annotated[
    str,
    _option(
        WHAT,
        "Interactions: a csv, tsv, parquet or .inter file (also .gz), or a generated set: "
        "demo, tiny, ml1m, beauty, yoochoose, xl.",
        metavar="FILE",
    ),
]
Params = Annotated[
    str | None,
    _option(
        WHAT,
        "Hyperparameters in place of the defaults, as WarpRec writes them "
        "(models: {DuoRec: {...}}); lists are searched.",
        metavar="FILE",
    ),
]
Set = Annotated[
    list[str],
    _option(
        WHAT,
        "Fix a hyperparameter; may be given many times.",
        "--set",
        metavar="NAME=VALUE",
        show_default=False,
    ),
]
Metric = Annotated[
    str,
    _option(WHAT, "What to maximise, on validation: ndcg, hr, mrr, ... at k.", metavar="NAME@K"),
]
ValidUsers = Annotated[
    int | None,
    _option(
        WHAT,
        "Validate on so many users, the same for all trials; the test is on all.",
        metavar="N",
        min=1,
        show_default="all",
    ),
]
UserCol = Annotated[
    str | None, _option(DATA, "Column of users, where its name is not a usual one.", metavar="NAME")
]
ItemCol = Annotated[str | None, _option(DATA, "Column of items.", metavar="NAME")]
TimeCol = Annotated[str | None, _option(DATA, "Column of times: s, ms or ISO.", metavar="NAME")]
MinUser = Annotated[int, _option(DATA, "Drop users with fewer interactions.", metavar="N", min=3)]
MinItem = Annotated[int, _option(DATA, "Drop items with fewer interactions.", metavar="N", min=1)]
MaskSeen = Annotated[
    bool | None,
    _option(
        DATA,
        "Leave items that a user has seen out of the ranking.",
        "--mask-seen/--rank-seen",
        metavar="",
        show_default="mask, unless users repeat items",
    ),
]
Storage = Annotated[
    str, _option(WHERE, "Folder of results: a path, s3:// or gs://.", metavar="FOLDER")
]
TrackingUri = Annotated[
    str | None,
    _option(
        WHERE,
        "MLflow server or store.",
        metavar="URI",
        show_default="a SQLite file in --storage",
    ),
]
Seed = Annotated[int, _option(SEARCH, "Seed of the search and of training.", metavar="N", min=0)]


def _complete_model(incomplete: str) -> list[str]:
    return [name for name in model_names() if name.startswith(incomplete.lower())]


@app.command(context_settings=HELP, epilog=EXAMPLES)
def tune(
    model: Annotated[
        str | None,
        _option(
            WHAT,
            "Model to tune; --list shows them.",
            metavar="NAME",
            autocompletion=_complete_model,
        ),
    ] = None,
    data: Source = "demo",
    space: Annotated[
        str | None,
        _option(
            WHAT,
            "Search space.",
            metavar="FILE",
            show_default="search_spaces/MODEL.yaml",
        ),
    ] = None,
    params: Params = None,
    set_: Set = [],  # noqa: B006
    metric: Metric = "ndcg@10",
    valid_users: ValidUsers = None,
    list_: Annotated[
        bool, _option(WHAT, "List the models and exit.", "--list", metavar="")
    ] = False,
    explain: Annotated[
        str | None,
        _option(
            WHAT,
            "Explain a model and its hyperparameters and exit.",
            metavar="MODEL",
            autocompletion=_complete_model,
        ),
    ] = None,
    user_col: UserCol = None,
    item_col: ItemCol = None,
    time_col: TimeCol = None,
    min_user: MinUser = 3,
    min_item: MinItem = 1,
    mask_seen: MaskSeen = None,
    trials: Annotated[
        int, _option(SEARCH, "Trials, the defaults included.", metavar="N", min=1)
    ] = 20,
    time_budget: Annotated[
        str | None, _option(SEARCH, "Stop after this time: 90s, 15m, 1h30m.", metavar="TIME")
    ] = None,
    scheduler: Annotated[
        Literal["asha", "none"],
        _option(SEARCH, "asha stops poor trials early; none lets all run to their end."),
    ] = "asha",
    seed: Seed = 0,
    concurrency: Annotated[
        int | None,
        _option(
            RESOURCES, "Trials at a time.", metavar="N", min=1, show_default="what fits the machine"
        ),
    ] = None,
    cpus_per_trial: Annotated[
        float | None,
        _option(RESOURCES, "CPUs of each worker.", metavar="N", min=0, show_default="1"),
    ] = None,
    gpus_per_trial: Annotated[
        float | None,
        _option(
            RESOURCES,
            "GPUs of each worker; 0.5 lets two share one.",
            metavar="N",
            min=0,
            show_default="1 where there is one",
        ),
    ] = None,
    workers_per_trial: Annotated[
        int, _option(RESOURCES, "Processes that train one trial together.", metavar="N", min=1)
    ] = 1,
    max_failures: Annotated[
        int, _option(RESOURCES, "Restarts of a trial that crashes.", metavar="N", min=0)
    ] = 2,
    name: Annotated[
        str | None,
        _option(WHERE, "Name of the study.", metavar="NAME", show_default="MODEL-DATA"),
    ] = None,
    resume: Annotated[
        bool, _option(WHERE, "Continue the study of this name.", "--resume", metavar="")
    ] = False,
    storage: Storage = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Searches for the best hyperparameters of a model on your interactions.

    The defaults, or the values of --params, run first, so that the report can say what
    tuning gained.
    """
    if list_:
        _list_models()
        return
    if explain is not None:
        _explain(check_model(explain, "--explain"))
        return
    options = StudyOptions(
        model=_needed(model),
        data=data,
        user_col=user_col,
        item_col=item_col,
        time_col=time_col,
        min_user=min_user,
        min_item=min_item,
        mask_seen=mask_seen,
        space=space,
        params=params,
        set=tuple(set_),
        trials=trials,
        time_budget=None if time_budget is None else parse_duration(time_budget),
        metric=metric.lower(),
        valid_users=valid_users,
        scheduler=scheduler,
        seed=seed,
        concurrency=concurrency,
        cpus_per_trial=cpus_per_trial,
        gpus_per_trial=gpus_per_trial,
        workers_per_trial=workers_per_trial,
        max_failures=max_failures,
        name=name,
        resume=resume,
        storage=_lasting(storage),
        tracking_uri=tracking_uri,
    )
    _check(options)
    from seqtune.space import load_space

    load_space(options.space, options.model, _assignments(options), given=given_by(options))
    _tune(options)


def _tune(options: StudyOptions) -> None:
    from seqtune.report import show
    from seqtune.view import StudyView

    view = StudyView(options.metric, options.time_budget, baseline=options.baseline)
    try:
        view.preparing("starting")
        from seqtune import study

        result = study.run(options, view)
    except KeyboardInterrupt:
        view.study_ended()
        raise _stopped(options, view) from None
    finally:
        view.study_ended()
    show(result)
    if result.best is None:
        raise typer.Exit(1)


def _stopped(options: StudyOptions | TrainOptions, view: StudyView | TrainView) -> typer.Exit:
    again = command(replace(options, resume=True))
    _say(f"Stopped. Continue with:\n{again}" if view.has_started else "Stopped before it began.")
    return typer.Exit(130)


@app.command(context_settings=HELP)
def train(
    model: Annotated[
        str | None, _option(WHAT, "Model to train.", metavar="NAME", autocompletion=_complete_model)
    ] = None,
    data: Source = "demo",
    params: Params = None,
    set_: Set = [],  # noqa: B006
    metric: Metric = "ndcg@10",
    valid_users: ValidUsers = None,
    user_col: UserCol = None,
    item_col: ItemCol = None,
    time_col: TimeCol = None,
    min_user: MinUser = 3,
    min_item: MinItem = 1,
    mask_seen: MaskSeen = None,
    seed: Seed = 0,
    workers: Annotated[
        int, _option(RESOURCES, "Processes that train together.", metavar="N", min=1)
    ] = 1,
    out: Annotated[
        str | None,
        _option(
            WHERE,
            "Folder of the checkpoint.",
            metavar="FOLDER",
            show_default="MODEL-DATA-train in --storage",
        ),
    ] = None,
    storage: Storage = RESULTS,
    resume: Annotated[
        bool, _option(WHERE, "Continue the training in --out.", "--resume", metavar="")
    ] = False,
) -> None:
    """Trains a model once: the defaults, changed by --params and by --set."""
    options = TrainOptions(
        model=_needed(model),
        data=data,
        user_col=user_col,
        item_col=item_col,
        time_col=time_col,
        min_user=min_user,
        min_item=min_item,
        mask_seen=mask_seen,
        params=params,
        set=tuple(set_),
        metric=metric.lower(),
        valid_users=valid_users,
        seed=seed,
        workers=workers,
        out=out,
        storage=_lasting(storage),
        resume=resume,
    )
    _check(options)
    check_point(declaration(options.model).params, given_by(options), _assignments(options))
    from seqtune.report import show_training
    from seqtune.view import TrainView

    view = TrainView(options.metric)
    try:
        from seqtune.trial import train_once

        result = train_once(options, view)
    except KeyboardInterrupt:
        raise _stopped(options, view) from None
    show_training(result)


@app.command(context_settings=HELP)
def recommend(
    checkpoint: Annotated[
        str | None,
        _option(
            WHAT, "Folder of a checkpoint, or models:/NAME@champion in MLflow.", metavar="FOLDER"
        ),
    ] = None,
    histories: Annotated[
        str | None,
        _option(WHAT, "Interactions of the users to recommend to.", "--data", metavar="FILE"),
    ] = None,
    out: Annotated[str, _option(WHAT, "Parquet file to write.", metavar="FILE")] = (
        "recommendations.parquet"
    ),
    k: Annotated[int, _option(WHAT, "Items for each user.", "--k", metavar="N", min=1)] = 10,
    exclude_seen: Annotated[
        bool | None,
        _option(
            WHAT,
            "Leave out items that the user has seen.",
            "--exclude-seen/--include-seen",
            metavar="",
            show_default="as in evaluation",
        ),
    ] = None,
    user_col: UserCol = None,
    item_col: ItemCol = None,
    time_col: TimeCol = None,
    storage: Storage = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Writes the best next items of every user in a file."""
    if checkpoint is None:
        raise UserError("--checkpoint: name the folder of a checkpoint; tune and train print it")
    if histories is None:
        raise UserError("--data: name a file with the interactions of the users")
    _check_data(histories)
    registered = checkpoint.startswith("models:/")
    remote = registered or "://" in checkpoint
    if not remote and not Path(checkpoint).expanduser().is_dir():
        raise UserError(f"--checkpoint {checkpoint}: no such folder; tune and train print it")
    from seqtune.checkpoint import recommend_file
    from seqtune.storage import Folder

    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder.at(checkpoint)
        if registered:
            from seqtune.track import fetch, store_uri

            store = store_uri(tracking_uri, Folder.at(_lasting(storage)))
            folder = fetch(checkpoint, store, Path(scratch))
        written = recommend_file(
            folder,
            histories,
            out,
            k=k,
            exclude_seen=exclude_seen,
            user_col=user_col,
            item_col=item_col,
            time_col=time_col,
        )
    print(f"{written.n_rows:,} recommendations for {written.n_users:,} users in {out}")
    if written.unknown:
        some = ", ".join(map(str, written.unknown[:5]))
        more = ", ..." if len(written.unknown) > 5 else ""
        print(f"{len(written.unknown):,} items are unknown to the model, ignored: {some}{more}")
    if written.n_popular:
        print(f"{written.n_popular:,} users have no known item and got the most popular ones")


@app.command(context_settings=HELP)
def bench(
    model: Annotated[
        str | None,
        _option(WHAT, "Model to measure.", metavar="NAME", autocompletion=_complete_model),
    ] = None,
    all_: Annotated[
        bool, _option(WHAT, "Measure all models, one after another.", "--all", metavar="")
    ] = False,
    data: Source = "demo",
    params: Params = None,
    set_: Set = [],  # noqa: B006
    user_col: UserCol = None,
    item_col: ItemCol = None,
    time_col: TimeCol = None,
    min_user: MinUser = 3,
    min_item: MinItem = 1,
    seconds: Annotated[
        float, _option(RESOURCES, "Seconds of training to measure.", metavar="N", min=0.1)
    ] = 10.0,
    threads: Annotated[
        int | None,
        _option(RESOURCES, "CPU threads.", metavar="N", min=1, show_default="one per core"),
    ] = None,
    json_: Annotated[
        bool, _option(WHERE, "Print JSON, an object for each model.", "--json", metavar="")
    ] = False,
) -> None:
    """Measures what a model costs: training, evaluation, start-up and memory."""
    if all_ and model is not None:
        raise UserError(f"--model {model}: --all measures every model; leave one of the two out")
    options = TrainOptions(
        model="sasrec" if all_ else _needed(model),
        data=data,
        user_col=user_col,
        item_col=item_col,
        time_col=time_col,
        min_user=min_user,
        min_item=min_item,
        params=params,
        set=tuple(set_),
    )
    if all_:
        _check_data(data)
        from seqtune.bench import run_apart

        words = [word for word in sys.argv[2:] if word not in ("--all", "--json")]
        costs = run_apart(words, model_names())
    else:
        _check(options)
        check_point(declaration(options.model).params, given_by(options), _assignments(options))
        from seqtune.bench import run

        cores = len(os.sched_getaffinity(0))
        costs = iter([run(options, seconds, threads or cores, STARTED)])
    if json_:
        for cost in costs:
            print(json.dumps(asdict(cost)))
    else:
        from seqtune.bench import show

        show(costs)


@app.command(context_settings=HELP)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Model to explain; without it all are listed.",
            metavar="[MODEL]",
            autocompletion=_complete_model,
        ),
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Bare names, for scripts.", metavar="")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All models, as docs/models.md.", metavar="")
    ] = False,
) -> None:
    """Lists the models, or explains one: what it does, its cost and its hyperparameters."""
    if names:
        print("\n".join(model_names()))
    elif markdown:
        from seqtune.handbook import page

        print(page(), end="")
    elif name is None:
        _list_models()
    else:
        _explain(check_model(name, "models"))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"seqtune {__version__}")
        raise typer.Exit


@app.callback(context_settings=HELP)
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", metavar="", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


# Checks that need no heavy import.


def _lasting(storage: str) -> str:
    """Moves the default out of the temporary folder of a Ray job, into the home folder."""
    return str(Path.home() / RESULTS) if storage == RESULTS and in_job() else storage


def _needed(model: str | None) -> str:
    if model is None:
        names = model_names()
        raise UserError(
            f"--model: name the model, for example --model {names[0]}; "
            f"there are: {', '.join(names)}"
        )
    return check_model(model)


def _check(options: StudyOptions | TrainOptions) -> None:
    from seqtune.metrics import parse_metric

    params = declaration(options.model).params
    for name, value in _assignments(options).items():
        check(params, name, value, "--set")
    parse_metric(options.metric)
    _check_data(options.data)
    if isinstance(options, StudyOptions):
        check_lasting("--storage", options.storage)
        check_lasting("--tracking-uri", options.tracking_uri)
    else:
        check_lasting("--out", options.folder)
    study = getattr(options, "study", "ok")
    if not re.fullmatch(r"[\w][\w.-]*", study):
        raise UserError(f"--name {study}: use letters, digits, '.', '_' and '-' only")


def _assignments(options: StudyOptions | TrainOptions) -> dict[str, object]:
    values: dict[str, object] = {}
    for text in options.set:
        name, value = parse_assignment(text)
        name = check_name(declaration(options.model).params, name, "--set")
        if name in values:
            raise UserError(f"--set {text}: {name} is set twice; keep one")
        values[name] = value
    return values


def _check_data(source: str) -> None:
    from seqtune.data.generate import PRESETS

    path = Path(source).expanduser()
    if source in PRESETS or "://" in source or path.is_file():
        return
    if path.is_dir():
        raise UserError(f"--data {source}: is a folder; name the file with the interactions")
    if path.parent == Path() and not path.suffix:
        raise UserError(f"--data {source}: no such file or generated set{nearest(source, PRESETS)}")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
    raise UserError(f"--data {source}: no such file{hint}")


# Pages about models.


def _list_models() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    for name in model_names():
        table.add_row(name, declaration(name).summary)
    console = Console(highlight=False)
    console.print(table)
    console.print("\n  Explain one: python tune.py --explain NAME", style="dim")


def _explain(model: str) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from seqtune.handbook import LETTERS, Chapter, Row, hung

    chapter = Chapter.of(model)
    console = Console(highlight=False)

    def show(text: str, indent: int = 2, style: str = "") -> None:
        console.print(Padding(Text(text, style), (0, 0, 0, indent), expand=False))

    def show_rows(title: str, rows: tuple[Row, ...]) -> None:
        console.print(Text(f"\n{title}", "bold"))
        for row in rows:
            line = Text.assemble((f"  {row.name}", "cyan"), (f" = {row.default}", "bold"))
            if row.usual:
                line.append(f" (usually {row.usual})")
            if row.allowed:
                line.append(f"   {row.allowed}", "dim")
            console.print(line)
            show(row.description, 6)
            if row.origin:
                show(f"default from: {row.origin}", 6, "dim")
            if row.searched:
                show(f"searched: {row.searched}", 6, "green")

    console.print(Text(f"\n{model}", "bold cyan"))
    show(chapter.summary)
    if paper := f"{chapter.venue}  {chapter.link}".strip():
        show(paper, style="dim")
    for block in chapter.text:
        console.print()
        if block.kind == "formula":
            show(hung(block.text, console.width - 6), 6)
        else:
            show(("- " if block.kind == "point" else "") + block.text.replace("``", ""))
    if chapter.cost:
        console.print(Text("\nCost", "bold"))
        show(chapter.cost.replace("``", ""))
        show(f"({LETTERS})", style="dim")
    show_rows(f"Hyperparameters of {model}", chapter.own)
    show_rows("Of every model", chapter.shared)
    show("\n".join(f"{fact.name} is {fact.told}" for fact in chapter.facts))
    console.print(
        Text(f"\nFix one with --set NAME=VALUE. The search space is {chapter.space}.", "dim")
    )


# The way in, and how mistakes are answered.


def main(only: str | None = None) -> NoReturn:
    """Runs the command line; with ``only``, that command alone, as ``python tune.py`` does."""
    atexit.register(gc.freeze)  # what is loaded is not looked through once more: 1 to 2 seconds
    group: Any = typer.main.get_command(app)
    program, entry = (
        ("seqtune", group) if only is None else ("python tune.py", group.commands[only])
    )
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows ?, not a traceback
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        sys.exit(entry.main(prog_name=program, standalone_mode=False) or 0)
    except UserError as error:
        _say(str(error), "error: ")
    except TyperException as error:
        if sentence := usage_sentence(error):
            _say(sentence, "error: ")
    except typer.Abort:
        sys.exit(130)
    sys.exit(2)


def _say(text: str, prefix: str = "") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble((prefix, "bold red"), text), soft_wrap=True)


def usage_sentence(error: TyperException) -> str:
    """Turns a mistake in the command line into one sentence: place, value, rule, nearest fix."""
    context = getattr(error, "ctx", None)
    flags = [flag for one in context.command.params for flag in one.opts] if context else []
    message = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        close = difflib.get_close_matches(option, flags, n=1)
        page = f"see {context.command_path} --help" if context else "see --help"
        return f"{option}: no such option; " + (f"did you mean {close[0]!r}?" if close else page)
    if option:
        return f"{option}: {message.removeprefix(f'Option {option!r} ')}"
    if parameter := getattr(error, "param", None):
        cause: Any = error.__cause__
        first = cause.errors()[0] if hasattr(cause, "errors") else {}
        rule = str(first.get("msg", message)).partition(", unable")[0].rstrip(".")
        rule = rule.removeprefix("Value error, ").replace("Input should be", "must be")
        value = f" {first['input']}" if isinstance(first.get("input"), str) else ""
        return f"{parameter.opts[0]}{value}: {rule}"
    if extra := re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", message):
        words = extra[1].split()
        fix = f"--model {words[0]}" if words[0].lower() in model_names() else "--NAME VALUE"
        return f"{extra[1]}: stands alone; write {fix}"
    return message
