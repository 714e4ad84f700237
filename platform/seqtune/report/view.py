"""What a person sees while a study runs.

On a terminal: one live view of a dozen lines. Elsewhere: one plain line for each trial that ends.
The study calls the methods from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from seqtune.options import DEFAULTS
from seqtune.report.report import short
from seqtune.state import Row
from seqtune.words import bar, brief, duration

REFRESHES = 2  # per second; drawing takes about a millisecond
CURVE_WIDTH, CURVE_HEIGHT = 40, 3
RUNNING_SHOWN = 4
BLOCKS = " ▁▂▃▄▅▆▇█"
WORDS = {"complete": "green", "running": "cyan", "pruned": "yellow", "failed": "red"}


@dataclass
class _Running:
    started: float
    params: str
    epoch: int | None = None
    value: float | None = None


@dataclass
class _State:
    trials: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    running: dict[int, _Running] = field(default_factory=dict)
    best: float | None = None
    best_trial: int | None = None
    default: float | None = None
    default_trial: int | None = None
    curve: list[float] = field(default_factory=list)  # best value when each trial ended
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    concurrency: int = 1


class StudyView:
    """Follows a study; every method may be called from any thread."""

    def __init__(
        self,
        metric: str,
        budget: float | None = None,
        console: Console | None = None,
        baseline: str = DEFAULTS,
    ) -> None:
        self.metric, self.budget = metric, budget
        self.baseline, self.label = baseline, short(baseline)  # of trial 0
        self.console = console or Console(highlight=False)
        self.has_started = False  # from here on there is something to resume
        self._state = _State()
        self._lock = threading.Lock()
        self._clock = time.monotonic()
        self._on_terminal = self.console.file.isatty() and not self.console.is_dumb_terminal
        self._live: Live | None = None
        self._status = self.console.status("", spinner="line", spinner_style="dim")

    def preparing(self, line: str) -> None:
        """Shows, on a terminal, what is done before the first trial or after the last one.

        The line is gone when the study starts, and when it ends.
        """
        if self._on_terminal and self._live is None:
            self._status.update(Text(line, "dim"))
            self._status.start()

    def study_started(self, model: str, data: str, n_trials: int, space: str, where: str) -> None:
        """Shows what is about to run; ``data``, ``space`` and ``where`` are ready to read."""
        self._status.stop()
        with self._lock:
            self._state.trials = n_trials
            self._clock = time.monotonic()
            self.has_started = True
        self._print(Text(f"{model} on {data}", "bold"))
        self._print(Text(f"{space}\nresults in {where}", "dim"))
        if self._on_terminal:
            self._print(Text())
            self._live = Live(
                console=self.console, get_renderable=self._draw, refresh_per_second=REFRESHES
            )
            self._live.start()

    def note(self, line: str) -> None:
        """Shows a line that stays."""
        self._print(Text(line, "yellow"))

    def trial_started(
        self, number: int, params: Mapping[str, object], is_default: bool = False
    ) -> None:
        """A trial starts, or starts again."""
        words = [f"{name} {brief(value)}" for name, value in params.items()]
        with self._lock:
            state = self._state
            text = f"the {self.baseline}" if is_default else ", ".join(words)
            state.running[number] = _Running(time.monotonic(), text)
            state.concurrency = max(state.concurrency, len(state.running))
            if is_default:
                state.default_trial = number

    def trial_result(self, number: int, epoch: int, value: float, best: float) -> None:
        """A running trial was evaluated; ``best`` is its own best value."""
        with self._lock:
            if trial := self._state.running.get(number):
                trial.epoch, trial.value = epoch, value
            self._improve(number, best)

    def trial_ended(
        self,
        number: int,
        status: str,
        value: float | None,
        reason: str = "",
        replayed: bool = False,
    ) -> None:
        """A trial is complete, pruned or failed; ``value`` is its best.

        ``replayed``: it ended before this study was resumed; it counts, and is not told again.
        """
        with self._lock:
            state = self._state
            trial = state.running.pop(number, None)
            state.ended[status] += 1
            if trial and not replayed:
                state.durations.append(time.monotonic() - trial.started)
            if value is not None:
                self._improve(number, value)
            if state.best is not None:
                state.curve.append(state.best)
            line = self._ended_line(number, status, value, reason, trial)
        if replayed:
            return
        if not self._on_terminal:
            self._print(Text(line))
        elif status == "failed":
            self._print(Text(line, "red"))

    def study_ended(self) -> None:
        """Leaves the final state on screen, once; later calls end what ``preparing`` shows."""
        self._status.stop()
        with self._lock:
            self._state.running.clear()
            live, self._live = self._live, None
        if live:
            live.stop()

    def _improve(self, number: int, value: float) -> None:
        state = self._state
        if number == state.default_trial:
            state.default = value
        if state.best is None or value > state.best:
            state.best, state.best_trial = value, number

    def _print(self, text: Text) -> None:
        # Soft wrap: a log keeps one line per event, however narrow it thinks it is.
        self.console.print(text, soft_wrap=not self._on_terminal)

    def _ended_line(
        self, number: int, status: str, value: float | None, reason: str, trial: _Running | None
    ) -> str:
        state = self._state
        who = f"trial {number}" + (f" ({self.label})" if number == state.default_trial else "")
        parts = [status]
        if value is not None:
            parts.append(f"{self.metric} {value:.4f}")
        if trial and trial.epoch:  # a model without training has none
            parts.append(f"{trial.epoch} epoch{'' if trial.epoch == 1 else 's'}")
        if trial:
            parts.append(duration(time.monotonic() - trial.started))
        if reason:
            parts.append(reason)
        if value is not None and number == state.best_trial and sum(state.ended.values()) > 1:
            parts.append("new best")
        return f"[{sum(state.ended.values())}/{state.trials}] {who}: {', '.join(parts)}"

    # The live view.

    def _draw(self) -> Group:
        with self._lock:
            lines = [self._progress(), self._time(), self._best(), *self._curve()]
            return Group(*lines, *self._running())

    def _progress(self) -> Text:
        state = self._state
        done = sum(state.ended.values())
        text = _row(" trials  ", "dim")
        text.append(f"{bar(done / max(state.trials, 1), 12):<12}".replace(" ", "·"), "blue")
        text.append(f"  {done} of {state.trials}", "bold")
        counted = {**state.ended, "running": len(state.running)}
        for word, style in WORDS.items():
            if n := counted.get(word, 0):
                text.append(f"  {n} {word}", style)
        return text

    def _time(self) -> Text:
        elapsed = time.monotonic() - self._clock
        text = _row(" time    ", "dim")
        text.append(_whole(elapsed))
        left = self._left(elapsed) if self._live else None
        return text.append(f", {left} left" if left else "", "dim")

    def _left(self, elapsed: float) -> str | None:
        state = self._state
        by_budget = None if self.budget is None else max(0.0, self.budget - elapsed)
        by_trials = None
        if len(state.durations) >= 2:
            mean = sum(state.durations) / len(state.durations)
            now = time.monotonic()
            begun = sum(max(mean - (now - t.started), mean / 10) for t in state.running.values())
            waiting = state.trials - sum(state.ended.values()) - len(state.running)
            by_trials = (begun + max(waiting, 0) * mean) / state.concurrency
        if by_trials is not None and (by_budget is None or by_trials < by_budget):
            return f"about {_whole(max(by_trials, 1))}"
        return None if by_budget is None else f"at most {_whole(by_budget)}"

    def _best(self) -> Text:
        state = self._state
        text = _row(" best    ", "dim")
        if state.best is None:
            return text.append("none yet", "dim")
        text.append(f"{self.metric} {state.best:.4f}", "bold green")
        if state.best_trial == state.default_trial:
            return text.append(f" by the {self.baseline} (trial {state.best_trial})")
        text.append(f" in trial {state.best_trial}")
        if state.default:
            gain = state.best / state.default - 1
            text.append(f", {self.label} {state.default:.4f} ({gain * 100:+.1f} %)", "dim")
        return text

    def _curve(self) -> Iterator[Text]:
        state = self._state
        curve = state.curve
        low, high = (curve[0], curve[-1]) if curve else (0.0, 0.0)
        rows = area(curve, state.trials, CURVE_WIDTH, CURVE_HEIGHT)
        labels = [f"{high:.4f}" if high > low else "", "", f"{low:.4f}" if curve else ""]
        for label, row in zip(labels, rows, strict=True):
            yield Text.assemble((f" {label:>7} ", "dim"), (row, "blue"), no_wrap=True)

    def _running(self) -> Iterator[Text]:
        running = sorted(self._state.running.items())
        for number, trial in running[:RUNNING_SHOWN]:
            text = _row(f" trial {number:<4} ", "cyan")
            if trial.epoch is None or trial.value is None:
                text.append(f"{'starting':<20}", "dim")
            else:
                text.append(f"epoch {trial.epoch:<4} {trial.value:<9.4f}")
            text.append(trial.params, "dim")
            # The terminal echoes ^C after the last line: in a full line it would break the view.
            text.truncate(self.console.width - 4, overflow="ellipsis")
            yield text
        if len(running) > RUNNING_SHOWN:
            yield Text(f" and {len(running) - RUNNING_SHOWN} more", "dim")


def _row(label: str, style: str) -> Text:
    return Text.assemble((label, style), no_wrap=True, overflow="ellipsis")


def _whole(seconds: float) -> str:
    # A clock that ticks shows whole seconds.
    return f"{int(seconds)}s" if seconds < 10 else duration(seconds)


class TrainView:
    """Follows one training: a line for each evaluation."""

    def __init__(self, metric: str, console: Console | None = None) -> None:
        self.metric = metric
        self.console = console or Console(highlight=False)
        self.has_started = False  # from here on there is something to resume

    def started(self, model: str, data: str, where: str) -> None:
        """Shows what is about to run."""
        self.has_started = True
        self._print(Text(f"{model} on {data}", "bold"))
        self._print(Text(f"checkpoint in {where}", "dim"))

    def note(self, line: str) -> None:
        """Shows a line of interest."""
        self._print(Text(line, "yellow"))

    def evaluated(self, row: Row) -> None:
        """Shows a row of the training loop: epoch, losses, the metric, seconds."""
        losses = [f"{name} {value:.4f}" for name, value in row["losses"].items()]
        seconds = duration(row["train_seconds"] + row["eval_seconds"])
        words = [
            f"epoch {row['epoch']:>3}",
            *losses,
            f"{self.metric} {row['metrics'][self.metric]:.4f}",
        ]
        is_best = row["epoch"] == row["best_epoch"]
        text = Text("  ".join([*words, f"{seconds:>5}"]))
        self._print(text.append("  best", "green") if is_best else text)

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)


def area(values: Sequence[float], n: int, width: int, height: int) -> list[str]:
    """Draws rising values as a filled area: ``height`` rows of text, at most ``width`` wide.

    The x axis has room for ``n`` values, so that the area grows to the right as they arrive.
    """
    columns = min(width, max(n, len(values)) * max(1, width // max(n, len(values), 1)))
    shown = round(columns * len(values) / max(n, len(values), 1))
    low, high = (values[0], values[-1]) if values else (0.0, 0.0)
    levels = []
    for column in range(shown):
        value = values[column * len(values) // shown]
        share = (value - low) / (high - low) if high > low else 0.0
        levels.append(1 + round(share * (height * 8 - 1)))
    return [
        "".join(BLOCKS[max(0, min(8, level - 8 * row))] for level in levels)
        for row in reversed(range(height))
    ]
