"""``seqtune tune``: search for the best hyperparameters of a model."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from seqtune.catalogue import check_model
from seqtune.cli.flags import complete_model, option, takes
from seqtune.cli.mistakes import say
from seqtune.cli.pages import explain_model, list_models
from seqtune.cli.ready import ready
from seqtune.errors import UserError
from seqtune.options import WHAT, WHERE, StudyOptions, TrainOptions, command
from seqtune.secrecy import HIDDEN
from seqtune.space.asked import AskedStudy, ask_study

if TYPE_CHECKING:
    from seqtune.report.view import StudyView, TrainView

EXAMPLES = """[bold]Examples[/]

{program} --model duorec

{program} --model sasrec --data ratings.csv --trials 50 --time-budget 2h

{program} --model sasrec --data ratings.csv --set n_layers=3 --name deeper
"""


@takes(StudyOptions)
def tune(
    options: StudyOptions,
    list_: Annotated[bool, option(WHAT, "List the models and exit.", "--list", metavar="")] = False,
    explain: Annotated[
        str | None,
        option(
            WHAT,
            "Explain a model and its hyperparameters and exit.",
            "--explain",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None,
    quiet: Annotated[
        bool, option(WHERE, "Show nothing before the report.", "--quiet", metavar="")
    ] = False,
    json_lines: Annotated[
        bool,
        option(
            WHERE, "Print events as JSON, a line each, and the report.", "--json-lines", metavar=""
        ),
    ] = False,
    open_: Annotated[
        bool,
        option(WHERE, "Open MLflow's page of the study in a browser.", "--open", metavar=""),
    ] = False,
    notify: Annotated[
        str | None,
        option(WHERE, "Post one JSON to this address at the end.", "--notify", metavar="URL"),
    ] = None,
) -> None:
    """Searches for the best hyperparameters of a model on your interactions.

    The defaults, or the values of --params, run first: the report says what tuning gained.
    """
    if list_:
        list_models()
    elif explain is not None:
        explain_model(check_model(explain, "--explain"))
    else:
        if notify is not None and not notify.startswith(("http://", "https://")):
            raise UserError(f"--notify {notify}: write http://HOST/PATH or https://HOST/PATH")
        options = ready(options)
        shown = {"quiet": quiet, "events": json_lines, "browse": open_}
        _tune(options, ask_study(options), url=notify, **shown)


def _tune(
    options: StudyOptions,
    asked: AskedStudy,
    *,
    quiet: bool,
    events: bool,
    browse: bool,
    url: str | None,
) -> None:
    from seqtune.cli.opening import opened
    from seqtune.report import scripted
    from seqtune.report.report import show
    from seqtune.report.view import StudyView

    kind = scripted.EventView if events else StudyView
    console = scripted.silent_console() if quiet and not events else None
    view = kind(options.metric, asked.time_budget, console, asked.baseline)

    def abandon(reason: str) -> None:
        view.study_ended()
        os._exit(stopped(options, view, reason).exit_code)

    try:
        view.preparing("starting")
        from seqtune.study import study

        with opened(options, view) if browse else nullcontext():
            result = study.run(asked, view, abandon)
    except KeyboardInterrupt as stop:
        view.study_ended()
        raise stopped(options, view, str(stop)) from None
    finally:
        view.study_ended()
    (scripted.show_events if events else show)(result)
    if url is not None and (failed := scripted.notify(url, scripted.message(result))):
        say(f"--notify {url}: the message did not get there ({failed})", "error: ")
    if result.best is None:
        raise typer.Exit(1)


def stopped(
    options: StudyOptions | TrainOptions, view: StudyView | TrainView, reason: str = ""
) -> typer.Exit:
    """Says how to go on after Ctrl-C, or for what reason, and returns how to exit.

    The command names the study or the folder, which may have got a number.
    """
    if reason:
        say(f"{reason}.")
    if not view.where:
        say("Stopped before it began.")
        return typer.Exit(130)
    if isinstance(options, StudyOptions):
        again: StudyOptions | TrainOptions = replace(options, name=view.where.rpartition("/")[2])
    else:
        again = replace(options, out=view.where)
    words = command(replace(again, resume=True))
    hidden = "\n(Write the password in place of ***.)" if HIDDEN in words else ""
    say(f"Stopped. Continue with:\n{words}{hidden}")
    return typer.Exit(130)
