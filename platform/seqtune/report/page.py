"""The report of a study as one HTML file, which needs no network: for a browser, a phone, paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template

import optuna

from seqtune.metrics import METRICS
from seqtune.report.choosing import schedule_table, seeds_table
from seqtune.report.documents import (
    board_table,
    costs_table,
    front_table,
    groups_sentence,
    groups_table,
    metrics_table,
    trials_table,
)
from seqtune.report.pictures import Picture, pictures
from seqtune.report.verdict import (
    against_floors,
    changes,
    counts,
    label,
    limit_sentence,
    of_model,
    verdict,
)
from seqtune.results import StudyResult
from seqtune.words import models_text

PAGE = Path(__file__).with_name("page.html")
BANNER = '<p class="verdict">'
AXIS = {"slices": 150, "parallel_coordinates": 110}  # pixels that each hyperparameter needs


def to_html(result: StudyResult, study: optuna.Study) -> str:
    """Returns the page; ``study`` is what the pictures show, see ``pictures``."""
    from plotly.offline import get_plotlyjs

    drawn = list(pictures(result, study))
    parts = dict(_parts(result, drawn))
    links = "".join(f'<a href="#{_id(title)}">{escape(title)}</a>' for title in parts if title)
    body = [parts.pop(""), f"<nav>{links}</nav>"]
    body += [
        f'<section id="{_id(title)}"><h2>{escape(title)}</h2>{part}</section>'
        for title, part in parts.items()
    ]
    figures = {one.name: json.loads(one.figure.to_json()) for one in drawn}
    for figure in figures.values():
        figure["layout"].pop("template", None)  # 6 kB of looks each, which the page sets itself
    title = f"{models_text(result.models)} on {result.data_name}"
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        plotly=get_plotlyjs(),
        body="\n".join(body),
        figures=json.dumps(figures).replace("</", "<\\/"),
    )


def with_banner(page: str, sentence: str) -> str:
    """Puts a sentence above all else of a page, in the place of the one that was there."""
    before, _, rest = page.partition("<main>")
    if rest.startswith(BANNER):
        rest = rest.partition("</p>")[2]
    return f"{before}<main>{BANNER}{escape(sentence)}</p>{rest}"


def _parts(result: StudyResult, drawn: list[Picture]) -> Iterator[tuple[str, str]]:
    """Yields the title and the content of each part; the first has no title."""
    by_name = {one.name: one for one in drawn}

    def figures(*names: str) -> str:
        return "".join(_figure(by_name[name]) for name in names if name in by_name)

    yield "", _head(result)
    if result.best is not None:
        if result.several:
            yield "Leaderboard", _table(*board_table(result), best="**")
        if (seeds := seeds_table(result))[0]:
            yield "With more seeds", _table(*seeds, best="**")
        if result.front:
            yield "The front", figures("front") + _table(*front_table(result), best="**")
        if (schedule := schedule_table(result))[0]:
            yield "From trial to trial", _table(*schedule, best="**")
        yield f"Hyperparameters{of_model(result)}", _hyperparameters(result)
    yield "History", figures("history")
    yield "Learning curves", figures("learning_curves")
    if result.importances or result.unimportant:
        said = f"<p>{escape(result.unimportant)}</p>" if result.unimportant else ""
        yield f"What mattered{of_model(result, 'in')}", said + figures("importances")
    if set(by_name) & {"slices", "contour", "parallel_coordinates"}:
        shown = figures("parallel_coordinates", "slices", "contour")
        yield f"The search{of_model(result)}", shown
    yield "Where the time went", figures("timeline")
    if result.groups:
        yield "For whom", _groups(result)
    if result.best is not None:
        yield f"All metrics{of_model(result)}", _table(*metrics_table(result))
        yield "What it costs", _table(*costs_table(result))
    yield "All trials", f"<details><summary>{counts(result)}</summary>{_trials(result)}</details>"
    yield "What to do next", _commands(result)
    yield "How it was made", _made(result)


def _head(result: StudyResult) -> str:
    said = [verdict(result)]
    if counted := against_floors(result):
        said.append(counted.sentence)
    if result.best is not None:
        said.append(limit_sentence(result.best_hit_10, result.best.test))
    words = "".join(f"<p>{escape(one)}</p>" for one in said if one)
    notes = "".join(f'<p class="soft">Note: {escape(note)}</p>' for note in result.notes)
    title = escape(f"{models_text(result.models)} on {result.data_name}")
    return (
        f"<h1>{title}</h1>"
        f'<p class="soft">{escape(counts(result))}</p>'
        f'<div class="verdict">{words}</div>'
        f'<p class="soft">{escape(result.protocol)}</p>{notes}'
    )


def _hyperparameters(result: StudyResult) -> str:
    assert result.best is not None
    header = ["", label(result.baseline), f"best (trial {result.best.number})"]
    rows = [
        [f"**{name}**" if changed else name, before, after]
        for name, before, after, changed in changes(result)
    ]
    return _table(header, rows, best="**")


def _groups(result: StudyResult) -> str:
    header, rows = groups_table(result)
    return f"<p>{escape(groups_sentence(result))}</p>{_table(header, rows)}"


def _trials(result: StudyResult) -> str:
    return _table(*trials_table(result))


def _commands(result: StudyResult) -> str:
    steps = [
        ("Train the best one again.", result.train_command),
        ("Serve the champion over HTTP.", result.serve_command),
        ("Browse all trials in MLflow.", result.ui_command),
        ("Open the trials in Optuna's dashboard.", result.dashboard_command),
        ("Run the study again.", result.facts.get("seqtune.command", "")),
    ]
    shown = "".join(f"<p>{purpose}</p><pre>{escape(line)}</pre>" for purpose, line in steps if line)
    return f"{shown}<p>The best checkpoint lies in</p><pre>{escape(result.checkpoint)}</pre>"


def _made(result: StudyResult) -> str:
    names = {name.removeprefix("seqtune."): value for name, value in result.facts.items()}
    names.pop("command", None)
    rows = "".join(
        f"<dt>{escape(name.replace('version.', '').replace('_', ' '))}</dt><dd>{escape(value)}</dd>"
        for name, value in names.items()
        if value
    )
    known = f"The metrics are {', '.join(METRICS)}; docs/metrics.md defines them."
    return f'<dl>{rows}</dl><p class="soft">{escape(known)}</p>'


def _figure(picture: Picture) -> str:
    height = picture.figure.layout.height or 420
    least = AXIS.get(picture.name, 0) * picture.axes  # narrower, it scrolls
    size = f"height:{height}px;min-width:{least}px"
    plot = f'<div id="plot-{picture.name}" class="plot" style="{size}"></div>'
    return f"<figure><figcaption>{escape(picture.text)}</figcaption>{plot}</figure>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], best: str = "") -> str:
    """Returns a table; a row whose first cell is ``**bold**`` stands out."""
    head = "".join(f"<th>{escape(_plain(cell))}</th>" for cell in header)
    lines = []
    for row in rows:
        mark = ' class="best"' if best and row[0].startswith(best) else ""
        cells = "".join(f"<td>{escape(_plain(cell))}</td>" for cell in row)
        lines.append(f"<tr{mark}>{cells}</tr>")
    inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table>{inside}</table></div>'


def _plain(cell: str) -> str:
    """Returns a cell of a Markdown table without its marks."""
    return cell.replace("**", "").replace("`", "")


def _id(title: str) -> str:
    return "-".join(title.lower().split())
