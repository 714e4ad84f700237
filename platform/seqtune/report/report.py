"""The end of a study, or of one training, on screen.

What was found, whether it was worth it, and what to do next. The sentences are in ``verdict``; the
same in Markdown and JSON is in ``documents``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from seqtune.errors import visible
from seqtune.report.choosing import schedule_table, seeds_table
from seqtune.report.documents import front_table
from seqtune.report.verdict import (
    COSTS,
    against_floors,
    board,
    changes,
    counts,
    gains,
    is_early,
    label,
    limit_sentence,
    main_metrics,
    of_model,
    verdict,
)
from seqtune.results import StudyResult, TrainResult
from seqtune.significance import SURE
from seqtune.words import bar, models_text, percent, share_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Values = Mapping[str, float]  # of metrics


def show(result: StudyResult, console: Console | None = None) -> None:
    """Prints the report of a study."""
    from rich.console import Console

    console = console or Console(highlight=False)

    def say(text: str = "", style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False)

    def section(title: str, table: RenderableType) -> None:
        say()
        say(title, "bold")
        console.print(table)

    say()
    say(f"{models_text(result.models)} on {result.data_name}", "bold")
    say(result.protocol, "dim")
    say(counts(result))
    for trial in [trial for trial in result.trials if trial.status == "failed"][:3]:
        say(f"Trial {trial.number} failed: {trial.reason or 'no reason was given'}", "yellow")
    for title, table in _found(result, console):
        section(title, table)
    say()
    say(verdict(result), _mood(result))
    if counted := against_floors(result):
        say(counted.sentence, "bold red" if counted.beaten else "")
    if result.best is not None and (limit := limit_sentence(result.best_hit_10, result.best.test)):
        say(limit)
    if result.importances:
        section(f"What mattered{of_model(result, 'in')}", _importances(result))
    elif result.unimportant:
        say(result.unimportant)
    for note in result.notes:
        say()
        say(f"Note: {visible(note)}", "yellow")
    if result.best is not None:
        _next_steps(console, _after_study(result))


def _found(result: StudyResult, console: Console) -> Iterator[tuple[str, Table]]:
    """Yields the tables of what was found, with their titles."""
    if result.best is None:
        return
    if result.several:
        yield "Leaderboard", _contenders(result, console)
    if (seeds := seeds_table(result))[0]:
        yield "With more seeds, on validation", _marked(*seeds)
    if result.front:
        yield "The front, on validation", _marked(*front_table(result))
    if (schedule := schedule_table(result))[0]:
        yield "From trial to trial", _marked(*schedule)
    if result.searched:
        yield f"Best hyperparameters{of_model(result)}", _hyperparameters(result)
    if not result.several:
        yield "Accuracy", _accuracy(result, console)


def _after_study(result: StudyResult) -> list[tuple[str, str]]:
    champion = f", registered as {result.champion}@champion" if result.champion else ""
    optuna = "study.db is" if "study.db" in result.dashboard_command else "the study is in"
    return [
        ("the report, with every metric, every trial and pictures", f"{result.report}/report.html"),
        (f"the best checkpoint{champion}", result.checkpoint),
        ("train it again", result.train_command),
        ("serve it over HTTP", result.serve_command),
        ("browse all trials in MLflow", result.ui_command),
        ("  then open the prepared view", result.view_link),
        ("  or the plain list, should that page be empty", result.plain_link),
        (f"{optuna} an Optuna storage, which optuna-dashboard opens", result.dashboard_command),
    ]


def show_training(result: TrainResult, console: Console | None = None) -> None:
    """Prints the report of one training."""
    from rich.console import Console

    console = console or Console(highlight=False)
    own = (f"{result.model} (epoch {result.epoch})", result.valid, result.test)
    rows = [(one.name, one.valid, one.test) for one in result.floors]
    names = main_metrics(result.metric, result.test)
    console.print()
    console.print(_leaderboard(result.metric, names, [*rows, own], console))
    counted = against_floors(result)
    limit = limit_sentence(result.best_hit_10, result.test)
    for line in (
        counted.sentence if counted else "",
        limit,
        *(f"Note: {visible(n)}" for n in result.notes),
    ):
        if line:
            console.print(f"\n{line}", markup=False)
    recommend = f"seqtune recommend --checkpoint {shlex.quote(result.checkpoint)} --data FILE"
    steps = [("the checkpoint", result.checkpoint), ("use it on a file", recommend)]
    _next_steps(console, [*steps, ("its curves", result.ui_command)])


def _next_steps(console: Console, steps: Sequence[tuple[str, str]]) -> None:
    console.print("\nNext", style="bold")
    for purpose, line in steps:
        if line:
            console.print(f"  # {purpose}", style="dim", markup=False)
            # One long line, never broken: it is there to be copied.
            console.print(f"  {line}", soft_wrap=True, markup=False, highlight=False)


def _mood(result: StudyResult) -> str:
    if result.best is None:
        return "bold red"
    if is_early(result):
        return "bold"
    found = gains(result).get(result.metric)
    return "bold green" if found and found.difference > 0 and found.p_value < SURE else "bold"


def _table(*columns: str, gap: int = 2) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 0, 0, gap), header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=place > 0)
    return table


def _marked(header: list[str], rows: list[list[str]]) -> Table:
    """Draws a table whose row of the chosen one begins with ``**bold**``."""
    table = _table(*header)
    for first, *rest in rows:
        table.add_row(first.strip("*"), *rest, style="bold" if first.startswith("**") else "")
    return table


def _hyperparameters(result: StudyResult) -> Table:
    assert result.best is not None
    first = label(result.baseline)
    if not result.tuned or result.default is None:
        same = "" if result.tuned else f"{first} = "
        table = _table("", f"{same}best (trial {result.best.number})")
        for name, _, after, _ in changes(result):
            table.add_row(name, after)
        return table
    table = _table("", first, f"best (trial {result.best.number})", "")
    for name, before, after, changed in changes(result):
        style = "bold" if changed else "dim"
        table.add_row(name, before, f"[{style}]{after}[/]", "changed" if changed else "")
    table.columns[-1].style = "dim"
    return table


def _accuracy(result: StudyResult, console: Console) -> Table:
    """Lists who was evaluated, the floors first: a row for each, with the test's metrics."""
    assert result.best is not None
    default, best, names = (
        result.default,
        result.best,
        main_metrics(result.metric, result.best.test),
    )
    rows = [(floor.name, floor.valid, floor.test) for floor in result.floors]
    both = "best" if result.tuned else f"{label(result.baseline)} = best"
    if default is not None and result.tuned:
        rows.append((label(result.baseline), default.valid, default.test))
    rows.append((both, best.valid, best.test))
    if result.refitted is not None:
        rows.append(("best, refitted", {}, result.refitted.test))
    found = gains(result)
    change = [percent(found[name].relative) if name in found else "" for name in names]
    return _leaderboard(result.metric, names, rows, console, change if found else None)


def _contenders(result: StudyResult, console: Console) -> Table:
    """Draws the leaderboard: models and floors, the best on validation first."""
    assert result.best is not None
    wide, rows = console.options.update(max_width=1000), board(result)
    names, costs = main_metrics(result.metric, result.best.test), list(COSTS)
    names.sort(key=lambda name: name != result.metric)
    while True:
        heads = [f"{'' if place else 'test'}\n{name}" for place, name in enumerate(names)]
        tests = ["against\nthe best", "\np (Holm)"]
        table = _table("", f"valid.\n{result.metric}", *heads, *tests, *costs, gap=1)
        for row in rows:
            cells = [*_cells(row.valid, [result.metric]), *_cells(row.test, names)]
            cells += [row.difference, row.p_value, *(row.costs[cost] for cost in costs)]
            table.add_row(row.who, *cells, style="bold" if row.is_best else "")
        if console.measure(table, options=wide).maximum <= console.width:
            return table
        if len(names) > 1:
            names = names[:-1]
        elif costs:
            costs = costs[:-1]
        else:
            return table


def _leaderboard(
    metric: str,
    names: list[str],
    rows: Sequence[tuple[str, Values, Values]],
    console: Console,
    change: list[str] | None = None,
) -> Table:
    """Draws a row for each who was evaluated: its name, its metrics on validation and on test.

    Validation has the study's metric alone. The last of the ``names`` give way on a narrow screen.
    """
    wide = console.options.update(max_width=1000)  # else a table shrinks its cells to fit
    while True:
        heads = [f"{'' if place else 'test'}\n{name}" for place, name in enumerate(names)]
        table = _table("", f"validation\n{metric}", *heads, gap=1)
        for who, valid, test in rows:
            cells = [*_cells(valid, [metric]), *_cells(test, names)]
            table.add_row(who, *cells, style="bold" if who == rows[-1][0] else "")
        if change:
            table.add_row("change", "", *change[: len(names)], style="dim")
        if len(names) == 1 or console.measure(table, options=wide).maximum <= console.width:
            return table
        names = names[:-1]


def _cells(values: Values, names: Sequence[str]) -> list[str]:
    return [f"{values[name]:.4f}" if name in values else "-" for name in names]


def _importances(result: StudyResult) -> Table:
    table = _table("", "", "")
    table.show_header = False
    table.columns[1].justify = "left"
    for one in result.importances:
        text = share_text(one.share, one.low, one.high)
        table.add_row(one.name, f"[cyan]{bar(one.share, 24)}[/]", text)
    return table
