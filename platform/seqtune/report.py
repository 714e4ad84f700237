"""The end of a study: what was found, whether it was worth it, and what to do next.

A study hands over a ``StudyResult``; it is shown on screen (``show``), written as Markdown
(``to_markdown``) and as JSON (``to_json``). The plots are in ``plots``.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqtune.metrics import METRICS, parse_metric
from seqtune.options import DEFAULTS, duration
from seqtune.significance import Comparison, compare, holm

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


@dataclass(frozen=True)
class TrialRow:
    """One trial of a study."""

    number: int
    status: str  # complete, pruned, failed, running, or unfinished when time was up
    params: dict[str, object]
    value: float | None  # best value of the study's metric on validation
    epoch: int | None  # of the best value
    seconds: float
    reason: str = ""  # why it failed


@dataclass(frozen=True)
class Finalist:
    """A trial whose best checkpoint was evaluated on test: the defaults, and the best one."""

    number: int
    params: dict[str, object]
    valid: dict[str, float]  # "ndcg@10" -> value
    test: dict[str, float]
    test_ranks: NDArray[np.float32]  # (U,) rank of each user's test item


@dataclass(frozen=True)
class StudyResult:
    """Everything that a finished study has to say."""

    name: str
    model: str
    data_name: str
    metric: str  # what the study maximised, on validation
    trials: tuple[TrialRow, ...]
    default: Finalist | None  # trial 0; None where it failed
    best: Finalist | None  # None where no trial finished an evaluation
    importances: dict[str, float]
    searched: tuple[str, ...]  # names of the hyperparameters that were searched
    seconds: float
    checkpoint: str  # folder of the best checkpoint
    train_command: str
    ui_command: str
    view_link: str
    serve_command: str
    champion: str = ""  # name of the registered model
    best_hit_10: float | None = None  # generated data: the best HR@10 that any model can reach
    notes: tuple[str, ...] = ()
    baseline: str = DEFAULTS  # what trial 0 ran

    @property
    def tuned(self) -> bool:
        """Whether the best trial is another than the defaults."""
        return self.best is not None and not (
            self.default is not None and self.default.number == self.best.number
        )


@dataclass(frozen=True)
class TrainResult:
    """What ``seqtune train`` has to say in the end."""

    model: str
    data_name: str
    metric: str
    epoch: int  # of the best validation value
    valid: dict[str, float]
    test: dict[str, float]
    seconds: float
    checkpoint: str
    best_hit_10: float | None = None
    notes: tuple[str, ...] = ()


# Numbers and sentences, shared by screen and Markdown.


def main_metrics(result: StudyResult) -> list[str]:
    """Returns the metrics to show: ndcg, hr and mrr, and the study's own where it is another.

    With one held-out item per user the others are copies: recall is hr, MAP is MRR.
    """
    return _main(result.metric, result.best.test if result.best else {})


def _main(metric: str, measured: Mapping[str, float]) -> list[str]:
    shown = ["ndcg@5", "ndcg@10", "ndcg@20", "hr@5", "hr@10", "hr@20", "mrr@10"]
    shown = [name for name in shown if name in measured]
    return shown if metric in shown else [metric, *shown]


def gains(result: StudyResult) -> dict[str, Comparison]:
    """Compares best and default on test, metric by metric; empty where that makes no sense."""
    if not result.tuned or result.best is None or result.default is None:
        return {}
    best, default = result.best.test_ranks, result.default.test_ranks
    return {name: compare(name, best, default) for name in main_metrics(result)}


def verdict(result: StudyResult) -> str:
    """Says in one sentence whether tuning was worth it."""
    if result.best is None:
        return "No trial got as far as an evaluation, so there is no best one."
    if result.default is None:
        return f"What tuning gained is unknown: the {result.baseline} (trial 0) did not finish."
    if not result.tuned:
        return (
            "Tuning gained nothing: on validation no trial did better than the "
            f"{result.baseline} (trial {result.default.number})."
        )
    found = gains(result)[result.metric]
    size = f"{found.difference:+.4f} {result.metric} ({percent(found.relative)}) on test"
    evidence = (
        f"95 % CI [{found.low:+.4f}, {found.high:+.4f}], {p_text(found.p_value)}, "
        f"paired t-test over {found.n:,} users"
    )
    surely = found.p_value < 0.05
    if found.difference > 0:
        return f"Tuning gained {size}{', ' if surely else ', which may be chance: '}{evidence}."
    if found.difference == 0:
        return f"Tuning changed nothing: {size}, {evidence}."
    if surely:
        return f"Tuning lost: better on validation, but {size}, {evidence}."
    return f"Tuning gained nothing: {size}, {evidence}."


def oracle_sentence(result: StudyResult) -> str:
    """Says how near the best trial is to what generated data allow; empty for real data."""
    return _limit(result.best_hit_10, result.best.test if result.best else {})


def _limit(best_hit_10: float | None, test: Mapping[str, float]) -> str:
    if best_hit_10 is None or "hr@10" not in test:
        return ""
    reached = test["hr@10"]
    return (
        f"These data are generated, so the limit is known: test hr@10 is {reached:.4f} of at most "
        f"{best_hit_10:.4f} ({reached / max(best_hit_10, 1e-12):.0%})."
    )


def counts(result: StudyResult) -> str:
    """Returns ``20 trials in 4m 12s: 11 complete, 8 pruned, 1 failed``."""
    by_status = Counter(trial.status for trial in result.trials)
    parts = [
        f"{by_status[status]} {status}"
        for status in ("complete", "pruned", "failed", "running", "unfinished")
        if by_status[status]
    ]
    n = len(result.trials)
    trials = f"{n} trial{'' if n == 1 else 's'} in {duration(result.seconds)}"
    return f"{trials}: {', '.join(parts)}" if parts else trials


def changes(result: StudyResult) -> Iterator[tuple[str, str, str, bool]]:
    """Yields each searched hyperparameter: name, default, best, and whether they differ."""
    default = result.default.params if result.default else {}
    best = result.best.params if result.best else {}
    for name in result.searched:
        before, after = (value_text(params.get(name)) for params in (default, best))
        yield name, before, after, bool(result.tuned and default and before != after)


def short(baseline: str) -> str:
    """Names what trial 0 runs in a word, for labels: ``defaults``, or ``file``."""
    return "defaults" if baseline == DEFAULTS else "file"


def value_text(value: object) -> str:
    """Writes a hyperparameter's value: four significant digits, and a dash for one not in use."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(relative: float) -> str:
    """Writes a relative change: ``+18 %``, ``+0.4 %``."""
    if not math.isfinite(relative):
        return "from zero"
    return f"{relative * 100:+.{0 if abs(relative) >= 0.0995 else 1}f} %"


def p_text(p_value: float) -> str:
    """Writes a p-value: ``p = 0.012``, ``p < 0.0001``."""
    if p_value < 1e-4:
        return "p < 0.0001"
    return f"p = {p_value:.{2 if p_value >= 0.1 else 3 if p_value >= 0.01 else 4}f}"


def bar(share: float, width: int) -> str:
    """Draws a share between 0 and 1 as a bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


# On screen.


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
    say(f"{result.model} on {result.data_name}", "bold")
    say(counts(result))
    for trial in [trial for trial in result.trials if trial.status == "failed"][:3]:
        say(f"Trial {trial.number} failed: {trial.reason or 'no reason was given'}", "yellow")
    if result.best is not None:
        if result.searched:
            section("Best hyperparameters", _hyperparameters(result))
        section("Accuracy", _accuracy(result))
    say()
    say(verdict(result), _mood(result))
    if limit := oracle_sentence(result):
        say(limit)
    if result.importances:
        section("What mattered", _importances(result))
    for note in result.notes:
        say()
        say(f"Note: {note}", "yellow")
    if result.best is None:
        return

    champion = f", registered as {result.champion}@champion" if result.champion else ""
    _next_steps(
        console,
        [
            (f"the best checkpoint{champion}", result.checkpoint),
            ("train it again", result.train_command),
            ("browse all trials in MLflow", result.ui_command),
            ("  then open the prepared view", result.view_link),
            ("serve it over HTTP", result.serve_command),
        ],
    )


def show_training(result: TrainResult, console: Console | None = None) -> None:
    """Prints the report of one training."""
    from rich.console import Console

    console = console or Console(highlight=False)
    table = _table("", f"validation\n(epoch {result.epoch})", "test\n")
    for name in _main(result.metric, result.test):
        style = "bold" if name == result.metric else ""
        table.add_row(name, *_cells(name, result.valid, result.test), style=style)
    console.print()
    console.print(table)
    limit = _limit(result.best_hit_10, result.test)
    for line in (limit, *(f"Note: {note}" for note in result.notes)):
        if line:
            console.print(f"\n{line}", markup=False)
    recommend = f"seqtune recommend --checkpoint {shlex.quote(result.checkpoint)} --data FILE"
    _next_steps(console, [("the checkpoint", result.checkpoint), ("use it on a file", recommend)])


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
    found = gains(result).get(result.metric)
    return "bold green" if found and found.difference > 0 and found.p_value < 0.05 else "bold"


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=True, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", no_wrap=place > 0)
    return table


def _hyperparameters(result: StudyResult) -> Table:
    assert result.best is not None
    if not result.tuned or result.default is None:
        same = "" if result.tuned else f"{_column(result)} = "
        table = _table("", f"{same}best (trial {result.best.number})")
        for name, _, after, _ in changes(result):
            table.add_row(name, after)
        return table
    table = _table("", _column(result), f"best (trial {result.best.number})", "")
    for name, before, after, changed in changes(result):
        style = "bold" if changed else "dim"
        table.add_row(name, before, f"[{style}]{after}[/]", "changed" if changed else "")
    table.columns[-1].style = "dim"
    return table


def _accuracy(result: StudyResult) -> Table:
    assert result.best is not None
    if not result.tuned or result.default is None:
        table = _table("", "validation", "test")
        for name in main_metrics(result):
            table.add_row(name, *_cells(name, result.best.valid, result.best.test))
        return table
    first = _column(result)
    table = _table("", f"validation\n{first}", "\nbest", f"test\n{first}", "\nbest", "\nchange")
    default, best = result.default, result.best
    for name, found in gains(result).items():
        cells = _cells(name, default.valid, best.valid, default.test, best.test)
        style = "bold" if name == result.metric else ""
        table.add_row(name, *cells, percent(found.relative), style=style)
    return table


def _column(result: StudyResult) -> str:
    return short(result.baseline).removesuffix("s")


def _cells(name: str, *columns: dict[str, float]) -> list[str]:
    return [f"{values[name]:.4f}" if name in values else "-" for values in columns]


def _importances(result: StudyResult) -> Table:
    table = _table("", "", "")
    table.show_header = False
    table.columns[1].justify = "left"
    largest = max(result.importances.values())
    for name, share in result.importances.items():
        table.add_row(name, f"[cyan]{bar(share / max(largest, 1e-12), 24)}[/]", f"{share:.0%}")
    return table


# For the artifacts of the study.


def to_json(result: StudyResult) -> dict[str, Any]:
    """Returns the result as plain data; ranks per user are left out, they have a file."""
    data = asdict(result)
    for finalist in (data["default"], data["best"]):
        if finalist:
            del finalist["test_ranks"]
    found = gains(result)
    corrected = holm([comparison.p_value for comparison in found.values()])
    data["verdict"] = verdict(result)
    data["gains"] = {
        name: asdict(comparison) | {"p_holm": p_holm}
        for (name, comparison), p_holm in zip(found.items(), corrected, strict=True)
    }
    return _finite(data)  # type: ignore[no-any-return]


def _finite(value: Any) -> Any:
    # JSON knows no NaN and no infinity: they become null.
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(result: StudyResult) -> str:
    """Returns the report as Markdown, with every metric and every trial."""
    lines = [f"# {result.model} on {result.data_name}", "", f"{counts(result)}.", ""]
    lines += [verdict(result), oracle_sentence(result), ""]
    if result.best is not None:
        lines += ["## Hyperparameters", ""]
        rows = [
            [f"`{name}`", before, f"**{after}**" if changed else after]
            for name, before, after, changed in changes(result)
        ]
        lines += _markdown(["", _column(result), f"best (trial {result.best.number})"], rows)
        lines += ["## Accuracy", "", *_markdown(*_all_metrics(result))]
    if result.importances:
        shares = [[f"`{name}`", f"{share:.0%}"] for name, share in result.importances.items()]
        lines += ["## What mattered", "", *_markdown(["hyperparameter", "importance"], shares)]
    names = list(result.searched)
    trials = [
        [
            str(trial.number),
            trial.status + (f": {trial.reason}" if trial.reason else ""),
            "-" if trial.value is None else f"{trial.value:.4f}",
            "-" if trial.epoch is None else str(trial.epoch),
            duration(trial.seconds),
            *(value_text(trial.params.get(name)) for name in names),
        ]
        for trial in sorted(result.trials, key=lambda t: (t.value is None, -(t.value or 0)))
    ]
    header = ["trial", "status", result.metric, "epoch", "time", *(f"`{name}`" for name in names)]
    lines += ["## Trials", "", *_markdown(header, trials)]
    lines += [f"- {note}" for note in result.notes]
    steps = (result.train_command, result.ui_command, result.serve_command)
    commands = "\n".join(line for line in steps if line)
    lines += ["", f"Best checkpoint: `{result.checkpoint}`", "", "```sh", commands, "```", ""]
    return "\n".join(lines)


def _all_metrics(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    assert result.best is not None
    names = sorted(result.best.test, key=_metric_order)
    if not result.tuned or result.default is None:
        columns = [result.best.valid, result.best.test]
        return ["", "validation", "test"], [[name, *_cells(name, *columns)] for name in names]
    columns = [result.default.valid, result.best.valid, result.default.test, result.best.test]
    found = gains(result)
    corrected = holm([comparison.p_value for comparison in found.values()])
    p_holm = dict(zip(found, corrected, strict=True))
    rows = []
    for name in names:
        p_value = (
            p_text(p_holm[name]).removeprefix("p ").removeprefix("= ") if name in found else ""
        )
        rows.append([name, *_cells(name, *columns), p_value])
    first = _column(result)
    header = ["", f"validation, {first}", "validation, best", f"test, {first}", "test, best"]
    return [*header, "p (paired t-test, Holm)"], rows


def _metric_order(name: str) -> tuple[int, str, int]:
    family, _, k = name.partition("@")
    place = list(METRICS).index(family) if family in METRICS else len(METRICS)
    return place, family, parse_metric(name)[1] if family in METRICS else int(k or 0)


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *([c.replace("|", "\\|") for c in row] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]
