"""The application: its commands, and the way in."""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from seqtune import __version__
from seqtune.cli import (
    afterwards,
    bench,
    data,
    models,
    outcomes,
    recommend,
    repair,
    studies,
    train,
    tune,
)
from seqtune.cli.mistakes import refuse_twice, say, usage_sentence
from seqtune.errors import UserError

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    help="Tunes sequential recommenders: your interactions in, the best checkpoint out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command(context_settings=HELP)(tune.tune)
app.command(context_settings=HELP)(train.train)
app.command(context_settings=HELP)(recommend.recommend)
app.command(context_settings=HELP)(bench.bench)
app.command("list", context_settings=HELP)(studies.list_)
for verb in (
    *(studies.status, studies.stop),
    *(outcomes.best, outcomes.report, outcomes.compare, outcomes.export, outcomes.portfolio),
    *(afterwards.promote, afterwards.rerun, afterwards.refresh),
    *(studies.delete, studies.ui, models.models),
):
    app.command(context_settings=HELP)(verb)
app.add_typer(data.app, name="data", context_settings=HELP)
app.command(context_settings=HELP)(repair.repair)


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


def main(only: str | None = None) -> NoReturn:
    """Runs the command line; with ``only``, that command alone, as ``python tune.py`` does."""
    atexit.register(gc.freeze)  # what is loaded is not looked through once more: 1 to 2 seconds
    group: Any = typer.main.get_command(app)
    program, entry = (
        ("seqtune", group) if only is None else ("python tune.py", group.commands[only])
    )
    examples = tune.EXAMPLES.format(program=program if only else f"{program} tune")
    group.commands["tune"].epilog = examples
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows ?, not a traceback
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        words = sys.argv[1:] if only else sys.argv[2:]
        if called := entry if only else group.commands.get((sys.argv[1:] or [""])[0]):
            refuse_twice(called, words)
        sys.exit(entry.main(prog_name=program, standalone_mode=False) or 0)
    except UserError as error:
        say(str(error), "error: ")
    except TyperException as error:
        if sentence := usage_sentence(error):
            say(sentence, "error: ")
    except typer.Abort:
        sys.exit(130)
    sys.exit(2)
