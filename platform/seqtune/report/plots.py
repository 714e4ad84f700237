"""Pictures of a study: Optuna's own, with the best trial and trial 0 marked.

This room is imported late: matplotlib takes a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optuna
import optuna.visualization.matplotlib as pictures
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.exceptions import ExperimentalWarning

from seqtune.report.verdict import short
from seqtune.results import StudyResult
from seqtune.words import share_text

BLUE, ORANGE, GREEN, GRAY = "#3b6fb6", "#e07b28", "#2f8f6b", "#b8bec7"
COLUMNS = 4  # of the slices


def plots(result: StudyResult, study: optuna.Study, folder: Path) -> list[Path]:
    """Writes every picture that there are enough trials for as a PNG file; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures(result, study):
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=110, bbox_inches="tight")
    return files


def figures(result: StudyResult, study: optuna.Study) -> Iterator[tuple[str, Figure]]:
    """Yields names and figures; each is closed when the next one is asked for.

    ``study`` has the result's trials in their order, complete where they have a value.
    """
    n = sum(trial.value is not None for trial in result.trials)
    wanted = [(1, learning_curves), (2, history)]
    wanted += [(3, slices), (3, parallel_coordinates)] if _varied(study) else []
    wanted += [(1, importances)] if result.importances else []
    for draw in [draw for fewest, draw in wanted if n >= fewest]:
        # Optuna sets a style for whatever is drawn afterwards, and its release 5.0.0 calls all
        # that it draws with matplotlib experimental.
        with mpl.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            plt.switch_backend("agg")
            axes = draw(result, study)
            yield draw.__name__, _finished(axes.figure, (draw.__doc__ or "").split(".")[0])
            plt.close(axes.figure)


def history(result: StudyResult, study: optuna.Study) -> Any:
    """The value of every trial, and the best so far."""
    axes = pictures.plot_optimization_history(study, target_name=f"validation {result.metric}")
    for number, colour, word in _outstanding(result):
        place = (number, study.trials[number].value)
        axes.scatter(*place, **_mark(colour), label=word)  # type: ignore[arg-type]
    return axes


def learning_curves(result: StudyResult, study: optuna.Study) -> Any:
    """The metric over the epochs of every trial."""
    axes = pictures.plot_intermediate_values(study)
    outstanding = {f"Trial{number}": one for number, *one in _outstanding(result)}
    line: Any
    for line in axes.lines:
        colour, word = outstanding.get(str(line.get_label()), (GRAY, "_"))
        line.set(color=colour, label=word, marker="." if len(line.get_xydata()) == 1 else "")
        line.set(linewidth=1 if word == "_" else 2.4, zorder=2 if word == "_" else 3)
    axes.set(xlabel="epoch", ylabel=f"validation {result.metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return axes


def slices(result: StudyResult, study: optuna.Study) -> Any:
    """The value of every trial against each hyperparameter (darker: later trial)."""
    grid = np.atleast_1d(pictures.plot_slice(study, _varied(study)))  # type: ignore[arg-type]
    figure, columns, rows = grid[0].figure, min(len(grid), COLUMNS), -(-len(grid) // COLUMNS)
    figure.axes[-1].remove()  # the scale of the colours
    figure.set_size_inches(2.7 * columns, 2.7 * rows)
    places = figure.add_gridspec(rows, columns, hspace=0.45, wspace=0.08)
    for place, axes in enumerate(grid):
        axes.set_subplotspec(places[place])
        axes.tick_params(labelleft=place % COLUMNS == 0)
        axes.set_ylabel("" if place % COLUMNS else f"validation {result.metric}")
        _fewer_ticks(axes.xaxis)
        name = axes.get_xlabel()
        for number, colour, word in _outstanding(result):
            trial = study.trials[number]
            if kind := trial.distributions.get(name):
                is_choice = isinstance(kind, optuna.distributions.CategoricalDistribution)
                at = repr(trial.params[name]) if is_choice else trial.params[name]
                axes.scatter(at, trial.value, **_mark(colour), label=word)
    return grid[0]


def parallel_coordinates(result: StudyResult, study: optuna.Study) -> Any:
    """Every trial through its hyperparameters (darker: better)."""
    axes: Any = pictures.plot_parallel_coordinate(study, _varied(study), target_name=result.metric)
    axes.figure.axes[1].remove()  # the scale of the colours is the first axis
    for one in axes.figure.axes:
        _fewer_ticks(one.yaxis)
    lines = axes.collections[0].get_segments()
    axes.figure.set_size_inches(max(7.5, 1.2 * len(lines[0])), 4.5)
    for number, colour, word in _outstanding(result):
        line = next(line for line in lines if line[0][1] == study.trials[number].value)
        axes.plot(*line.T, color=colour, linewidth=2.6, zorder=4, label=word)
    return axes


def importances(result: StudyResult, study: optuna.Study) -> Any:
    """The share of the variance that each hyperparameter explains (90 % interval)."""
    shares = result.importances[::-1]
    axes = plt.subplots(figsize=(7.5, 1.2 + 0.36 * len(shares)))[1]
    names, means = [one.name for one in shares], [one.share for one in shares]
    bounds = [[one.share - one.low for one in shares], [one.high - one.share for one in shares]]
    axes.barh(names, means, xerr=bounds, color=BLUE, ecolor=ORANGE, capsize=3, height=0.6)
    for place, one in enumerate(shares):
        axes.text(one.high + 0.02, place, share_text(one.share, one.low, one.high), va="center")
    axes.set(xlim=(0, 1.3), xticks=[])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    return axes


def _varied(study: optuna.Study) -> list[str]:
    """Returns the hyperparameters that have more than one value."""
    points = [t.params for t in study.trials if t.value is not None]
    names = dict.fromkeys(name for point in points for name in point)
    return [name for name in names if len({point.get(name) for point in points} - {None}) > 1]


def _outstanding(result: StudyResult) -> Iterator[tuple[int, str, str]]:
    """Yields number, colour and name of trial 0 and of the best one."""
    first = short(result.baseline)
    if result.default is not None and result.tuned:
        yield result.default.number, GREEN, f"{first} (trial {result.default.number})"
    if result.best is not None:
        word = "best" if result.tuned else f"{first}, the best"
        yield result.best.number, ORANGE, f"{word} (trial {result.best.number})"


def _mark(colour: str) -> dict[str, Any]:
    return {"c": colour, "s": 100, "edgecolors": "white", "zorder": 5}


def _fewer_ticks(axis: Axis) -> None:
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _finished(figure: Figure, title: str) -> Figure:
    """Writes the title above, and the legend below all axes, where no point can lie under it."""
    figure.suptitle(title, fontsize=12)
    for axes in figure.axes:
        axes.set_title("")
        if legend := axes.get_legend():
            legend.remove()
    handles, words = figure.axes[0].get_legend_handles_labels()
    known = {w: h for h, w in zip(handles, words, strict=True) if w != "Infeasible Trial"}
    if known:
        below = (0.5, -0.03)
        figure.legend(known.values(), known, loc="upper center", bbox_to_anchor=below, ncols=4)
    return figure
