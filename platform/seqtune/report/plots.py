"""Pictures of a study, as PNG files: one function per picture.

Drawn with matplotlib's own objects and no pyplot: nothing global is touched, so that a thread may
draw while a study runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqtune.report.verdict import short
from seqtune.results import StudyResult, TrialRow
from seqtune.words import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[int, Sequence[tuple[int, float]]]  # trial -> (epoch, value of the metric)

BLUE, ORANGE, GREEN, GRAY, INK = "#3b6fb6", "#e07b28", "#2f8f6b", "#b8bec7", "#30343b"
SCALE = "viridis"


def plots(result: StudyResult, curves: Curves, folder: Path) -> list[Path]:
    """Draws every picture that the study has enough trials for; returns the files."""
    pictures: dict[str, Callable[[], Figure | None]] = {
        "history": lambda: history(result),
        "importances": lambda: importances(result),
        "parallel_coordinates": lambda: parallel_coordinates(result),
        "slices": lambda: slices(result),
        "learning_curves": lambda: learning_curves(result, curves),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, draw in pictures.items():
        if figure := draw():
            files.append(folder / f"{name}.png")
            figure.savefig(files[-1], dpi=130)
    return files


def history(result: StudyResult) -> Figure | None:
    """The value of every trial in order, and the best so far."""
    trials = _valued(result)
    if len(trials) < 2:
        return None
    figure, axes = _figure(f"Best {result.metric} over the study")
    best, steps = -math.inf, []
    for trial in trials:
        best = max(best, trial.value or 0.0)
        steps.append(best)
    numbers = [trial.number for trial in trials]
    axes.step(numbers, steps, where="post", color=INK, linewidth=1.5, label="best so far")
    for status, face, edge in (("complete", BLUE, BLUE), ("pruned", "white", BLUE)):
        chosen = [trial for trial in trials if trial.status == status]
        if chosen:
            axes.scatter(
                [trial.number for trial in chosen],
                [trial.value or 0.0 for trial in chosen],
                s=34, facecolors=face, edgecolors=edge, label=status, zorder=3,
            )  # fmt: skip
    _mark(axes, result, {trial.number: (trial.number, trial.value or 0.0) for trial in trials})
    axes.set_xlabel("trial")
    axes.set_ylabel(f"validation {result.metric}")
    _whole_numbers(axes)
    _legend(figure)
    return figure


def importances(result: StudyResult) -> Figure | None:
    """How much each hyperparameter mattered."""
    if not result.importances:
        return None
    shares = [(one.name, one.share) for one in reversed(result.importances)]
    figure, axes = _figure(
        f"Which hyperparameters mattered for {result.metric}", height=1.4 + 0.34 * len(shares)
    )
    bars = axes.barh([name for name, _ in shares], [s for _, s in shares], color=BLUE, height=0.62)
    axes.bar_label(bars, labels=[f"{share:.0%}" for _, share in shares], padding=4, color=INK)
    axes.set_xlim(0, 1.12 * shares[-1][1] or 1)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)
    return figure


def parallel_coordinates(result: StudyResult) -> Figure | None:
    """Every trial as a line through its hyperparameters, coloured by its value."""
    trials = _valued(result)
    scales = [_Scale(name, [t.params.get(name) for t in trials]) for name in result.searched]
    scales = [scale for scale in scales if scale.varies]
    if len(trials) < 3 or not scales:
        return None
    values = [trial.value or 0.0 for trial in trials]
    scales.append(_Scale(result.metric, values))
    figure, axes = _figure(
        "All trials, coloured by their value", width=max(7.5, 1.35 * len(scales) + 1)
    )
    colour = _colours(values)
    for trial in sorted(trials, key=lambda trial: trial.value or 0.0):
        is_best = result.best is not None and trial.number == result.best.number
        points = [*(trial.params.get(scale.name) for scale in scales[:-1]), trial.value]
        # A hyperparameter that is not in use by this trial breaks its line.
        heights = [
            scale.height(scale.at(point)) if point is not None else math.nan
            for scale, point in zip(scales, points, strict=True)
        ]
        axes.plot(
            range(len(scales)), heights, color=ORANGE if is_best else colour(trial.value or 0.0),
            linewidth=2.6 if is_best else 1.3, alpha=1 if is_best else 0.75,
            marker="o", markersize=3.5, zorder=4 if is_best else 2,
            label=f"best (trial {trial.number})" if is_best else None,
        )  # fmt: skip
    for place, scale in enumerate(scales):
        axes.axvline(place, color=INK, linewidth=0.8, zorder=1)
        for at, text in scale.ticks():
            axes.text(
                place + 0.05, scale.height(at), text, fontsize=8, va="center", zorder=5, color=INK,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(range(len(scales)), [scale.name for scale in scales], rotation=20, ha="right")
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlim(-0.15, len(scales) - 0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)
    _legend(figure)
    return figure


def slices(result: StudyResult) -> Figure | None:
    """The value of the trials against each hyperparameter alone; later trials are darker."""
    trials = _valued(result)
    scales = [_Scale(name, [t.params.get(name) for t in trials]) for name in result.searched]
    scales = [scale for scale in scales if scale.varies]
    if len(trials) < 3 or not scales:
        return None
    from matplotlib.figure import Figure

    columns = min(4, len(scales))
    rows = math.ceil(len(scales) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, 2.35 * rows + 0.6), layout="constrained")
    figure.suptitle(
        f"{result.metric} against each hyperparameter (darker: later trial)",
        x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK,
    )  # fmt: skip
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(scales):
            axes.set_visible(False)
            continue
        scale = scales[place]
        _plain(axes)
        chosen = [trial for trial in trials if trial.params.get(scale.name) is not None]
        where = [scale.at(trial.params[scale.name]) for trial in chosen]
        values = [trial.value or 0.0 for trial in chosen]
        shade = [trial.number for trial in chosen]
        axes.scatter(
            where, values, c=shade, cmap="Blues", vmin=-trials[-1].number / 2,
            vmax=trials[-1].number, s=26, edgecolors=INK, linewidths=0.4, zorder=3,
        )  # fmt: skip
        points = {t.number: (x, y) for t, x, y in zip(chosen, where, values, strict=True)}
        _mark(axes, result, points, words=False)
        axes.set_xlabel(scale.name)
        if scale.labels:
            axes.set_xticks(range(len(scale.labels)), scale.labels)
            axes.set_xlim(-0.5, len(scale.labels) - 0.5)
        elif scale.log:
            axes.set_xscale("log")
            axes.set_xticks([at for at, _ in scale.ticks()], [text for _, text in scale.ticks()])
            axes.minorticks_off()
        if place % columns == 0:
            axes.set_ylabel(f"validation {result.metric}")
    return figure


def learning_curves(result: StudyResult, curves: Curves) -> Figure | None:
    """The metric over the epochs of every trial; the best and the defaults stand out."""
    drawn = {number: points for number, points in curves.items() if points}
    if not drawn:
        return None
    figure, axes = _figure("Learning curves")
    stand_out = {}
    if result.default is not None:
        stand_out[result.default.number] = (GREEN, short(result.baseline))
    if result.best is not None:
        word = "best" if result.tuned else f"{short(result.baseline)} and best"
        stand_out[result.best.number] = (ORANGE, word)
    for number, points in sorted(drawn.items(), key=lambda pair: pair[0] in stand_out):
        colour, word = stand_out.get(number, (GRAY, ""))
        epochs, values = zip(*points, strict=True)
        axes.plot(
            epochs, values, color=colour, linewidth=2.4 if word else 1,
            marker="o" if len(points) == 1 else "",  # a lone point is no line
            label=f"{word} (trial {number})" if word else None,
        )  # fmt: skip
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {result.metric}")
    _whole_numbers(axes)
    _legend(figure)
    return figure


def _valued(result: StudyResult) -> list[TrialRow]:
    known = [t for t in result.trials if t.value is not None and math.isfinite(t.value)]
    return sorted(known, key=lambda trial: trial.number)


def _figure(title: str, width: float = 7.5, height: float = 4.2) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=14)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.tick_params(color=GRAY, labelcolor=INK, labelsize=9)
    axes.grid(visible=True, color=GRAY, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _legend(figure: Figure) -> None:
    # Below the axes, where no point can lie under it.
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=len(handles), frameon=False,
            fontsize=9, labelcolor=INK,
        )  # fmt: skip


def _mark(
    axes: Axes, result: StudyResult, points: Mapping[int, tuple[float, float]], words: bool = True
) -> None:
    # The defaults and the best trial stand out in the same way in every picture.
    for finalist, colour, shape, size, word in (
        (result.default, GREEN, "D", 52, short(result.baseline)),
        (result.best, ORANGE, "*", 190, "best"),
    ):
        if finalist is not None and finalist.number in points:
            x, y = points[finalist.number]
            label = f"{word} (trial {finalist.number})" if words else None
            axes.scatter(
                [x], [y], s=size, c=colour, marker=shape, edgecolors="white", zorder=5, label=label
            )


def _colours(values: Sequence[float]) -> Callable[[float], object]:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    # Ranks spread the colours evenly; one bad trial would else paint all others alike.
    ordered = sorted(values)
    norm = Normalize(0, max(len(ordered) - 1, 1))
    scale = colormaps[SCALE]
    return lambda value: scale(0.95 * norm(ordered.index(value)))


class _Scale:
    """Where the values of a hyperparameter lie on an axis: as numbers, logarithms or labels."""

    def __init__(self, name: str, values: Sequence[object]) -> None:
        self.name = name
        known = {value for value in values if value is not None}
        words = {value for value in known if isinstance(value, str | bool)}
        # A few integers are a choice (heads 1, 2, 4): even distances read better than a line.
        few = len(known) <= 6 and all(isinstance(value, int) for value in known)
        distinct = sorted(known, key=lambda value: str(value) if words else value)  # type: ignore[arg-type, return-value]
        self.varies = len(distinct) > 1
        self.labels = [brief(value) for value in distinct] if words or few else []
        self.low, self.high = (0.0, 1.0)
        if distinct and not self.labels:
            self.low, self.high = float(distinct[0]), float(distinct[-1])  # type: ignore[arg-type]
        self.log = not self.labels and self.low > 0 and self.high / self.low >= 20

    def at(self, value: object) -> float:
        """The value's coordinate on an axis of its own."""
        if self.labels:
            return self.labels.index(brief(value))
        return float(value)  # type: ignore[arg-type]

    def height(self, at: float) -> float:
        """The height between 0 and 1 of a coordinate."""
        if self.labels:
            return at / max(len(self.labels) - 1, 1)
        low, high = self.low, self.high
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / ((high - low) or 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Coordinates and texts of the marks on an axis."""
        if self.labels:
            return [(float(at), label) for at, label in enumerate(self.labels)]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(at, f"{at:.2g}") for at in (self.low, middle, self.high)]
