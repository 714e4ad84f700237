"""Pictures of a study: Optuna's own, with the best trial and the defaults marked.

This room is imported late: plotly takes a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.exceptions import ExperimentalWarning

from seqtune.metrics import ways
from seqtune.report.verdict import short
from seqtune.results import StudyResult
from seqtune.words import share_text

BLUE, ORANGE, GREEN, GRAY = "#3b6fb6", "#e07b28", "#2f8f6b", "#9aa3ae"
ROW = 24  # pixels that a bar takes


class Picture(NamedTuple):
    """A figure and what it shows."""

    name: str
    title: str
    text: str  # how to read it
    figure: go.Figure
    axes: int = 0  # hyperparameters beside each other


def pictures(result: StudyResult, study: optuna.Study) -> Iterator[Picture]:
    """Yields every picture that there are enough trials for.

    ``study`` has the result's trials in their order, complete where they have a value. Pictures of
    hyperparameters show the trials of the best one's model.
    """
    n = sum(trial.value is not None for trial in result.trials)
    own = _of_model(result, study)
    varied = _varied(own)
    wanted: list[tuple[bool, Callable[[], Picture]]] = [
        (2 <= len(result.judge.objectives) <= 3 and bool(result.front), lambda: _front(result)),
        (n >= 2, lambda: _history(result, study)),
        (n >= 1, lambda: _curves(result, study)),
        (bool(result.importances), lambda: _importances(result)),
        (len(own.trials) >= 3 and bool(varied), lambda: _coordinates(result, own, varied)),
        (len(own.trials) >= 3 and bool(varied), lambda: _slices(result, own, varied)),
        (len(own.trials) >= 3 and len(varied) >= 2, lambda: _contour(result, own, varied)),
        (n >= 1, lambda: _timeline(result, study)),
    ]
    for enough, draw in wanted:
        if enough:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                yield draw()


def _history(result: StudyResult, study: optuna.Study) -> Picture:
    figure = visualization.plot_optimization_history(study, target_name=f"valid. {result.metric}")
    for number, colour, word in _outstanding(result):
        _mark(figure, number, result.trials[number].value or 0, colour, word)
    pruned = [t for t in result.trials if t.status == "pruned" and t.value is not None]
    figure.add_scatter(
        x=[t.number for t in pruned],
        y=[t.value for t in pruned],
        mode="markers",
        name="pruned",
        marker={"symbol": "x-thin", "size": 9, "line": {"width": 1.5, "color": GRAY}},
    )
    text = "Each point is a trial and its best value; the line is the best so far."
    return Picture("history", "Trials", text, figure)


def _front(result: StudyResult) -> Picture:
    names = list(result.judge.objectives)
    shown = optuna.create_study(directions=ways(names))
    for row in result.trials:
        if row.eligible and {*names} <= row.measured.keys():
            values = [row.measured[name] for name in names]
            shown.add_trial(optuna.create_trial(values=values, user_attrs={"trial": row.number}))
    figure = visualization.plot_pareto_front(shown, target_names=names)
    text = "Each point is a trial; than those of the front none is better in every objective."
    return Picture("front", "The front", text, figure)


def _curves(result: StudyResult, study: optuna.Study) -> Picture:
    figure = visualization.plot_intermediate_values(study)
    outstanding = {number: rest for number, *rest in _outstanding(result)}
    drawn = [t for t in study.trials if t.state.name == "COMPLETE" and t.intermediate_values]
    told = [trial.number for trial in drawn]
    for line, number in zip(figure.data, told, strict=True):
        colour, word = outstanding.get(number, (GRAY, f"trial {number}"))
        known = number in outstanding
        line.update(
            name=word,
            showlegend=known,
            line={"color": colour, "width": 3 if known else 1},
            marker={"color": colour, "size": 5 if known else 3},
            opacity=1 if known else 0.7,
        )
    figure.update_layout(xaxis_title="epoch", yaxis_title=f"validation {result.metric}")
    text = "How each trial learnt; those that end early were pruned, or stopped by themselves."
    return Picture("learning_curves", "Learning curves", text, figure)


def _importances(result: StudyResult) -> Picture:
    # Optuna's own picture has no intervals.
    shares = result.importances[::-1]
    figure = go.Figure(
        go.Bar(
            x=[one.share for one in shares],
            y=[one.name for one in shares],
            orientation="h",
            marker={"color": BLUE},
            text=[share_text(one.share, one.low, one.high) for one in shares],
            textposition="auto",
            error_x={
                "array": [one.high - one.share for one in shares],
                "arrayminus": [one.share - one.low for one in shares],
                "color": ORANGE,
            },
        )
    )
    figure.update_layout(height=120 + ROW * len(shares), xaxis_title="share of the variance")
    text = "How much of the difference between trials is due to each, with a 90 % interval."
    return Picture("importances", "What mattered", text, figure)


def _coordinates(result: StudyResult, own: optuna.Study, varied: list[str]) -> Picture:
    figure = visualization.plot_parallel_coordinate(own, varied, target_name=result.metric)
    text = "Every trial is a line through its values, darker where it is better; drag on an axis."
    return Picture(
        "parallel_coordinates", "All values of each trial", text, figure, len(varied) + 1
    )


def _slices(result: StudyResult, own: optuna.Study, varied: list[str]) -> Picture:
    figure = visualization.plot_slice(own, varied, target_name=f"valid. {result.metric}")
    figure.update_layout(width=None, autosize=True)
    text = "The value of each trial against one hyperparameter at a time; later trials are darker."
    return Picture("slices", "One by one", text, figure, len(varied))


def _contour(result: StudyResult, own: optuna.Study, varied: list[str]) -> Picture:
    known = [one.name for one in result.importances if one.name in varied]
    two = [*known, *(name for name in varied if name not in known)][:2]
    figure = visualization.plot_contour(own, two, target_name=result.metric)
    most = "the two that mattered most" if len(known) > 1 else "the first two"
    text = f"The value over {most}; points are trials, and what lies between them is a guess."
    return Picture("contour", f"{two[0]} and {two[1]}", text, figure)


def _timeline(result: StudyResult, study: optuna.Study) -> Picture:
    figure = visualization.plot_timeline(study)
    figure.update_layout(height=max(260, 90 + ROW // 2 * len(study.trials)), showlegend=False)
    text = "When each trial ran; trials above each other at one moment ran side by side."
    return Picture("timeline", "Where the time went", text, figure)


def _of_model(result: StudyResult, study: optuna.Study) -> optuna.Study:
    """Returns the trials of the best one's model, hyperparameters by their own names."""
    own = optuna.create_study(direction="maximize")
    prefix = f"{result.model}." if result.several else ""
    for row, trial in zip(result.trials, study.trials, strict=True):
        if row.value is None or (result.several and row.model != result.model):
            continue
        names = {n: n.removeprefix(prefix) for n in trial.params if n.startswith(prefix)}
        trial.params = {own: trial.params[n] for n, own in names.items()}
        trial.distributions = {own: trial.distributions[n] for n, own in names.items()}
        own.add_trial(trial)
    return own


def _varied(study: optuna.Study) -> list[str]:
    """Returns the hyperparameters that have more than one value."""
    points = [trial.params for trial in study.trials]
    names = dict.fromkeys(name for point in points for name in point)
    return [name for name in names if len({point.get(name) for point in points} - {None}) > 1]


def _outstanding(result: StudyResult) -> Iterator[tuple[int, str, str]]:
    """Yields number, colour and name of the defaults and of the best trial."""
    first = short(result.baseline)
    if result.default is not None and result.tuned:
        yield result.default.number, GREEN, f"{first} (trial {result.default.number})"
    if result.best is not None:
        word = "best" if result.tuned else f"{first}, the best"
        yield result.best.number, ORANGE, f"{word} (trial {result.best.number})"


def _mark(figure: Any, x: float, y: float, colour: str, word: str) -> None:
    edge = {"color": "white", "width": 1.5}
    marker = {"color": colour, "size": 13, "line": edge}
    figure.add_scatter(x=[x], y=[y], mode="markers", name=word, marker=marker)
