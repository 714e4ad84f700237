"""What a person sees while a study runs.

On a terminal: one live view, of a dozen lines where the screen has no room for more. Elsewhere:
one plain line for each trial that ends.
The study calls the methods from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from seqtune.errors import visible
from seqtune.options import DEFAULTS
from seqtune.report.live import Ended, Running, State, difference, draw
from seqtune.report.verdict import floor_words, short, strongest
from seqtune.secrecy import redact
from seqtune.state import Row
from seqtune.words import duration

if TYPE_CHECKING:
    from seqtune.floors import Floor

REFRESHES = 2  # per second; drawing takes about a millisecond


class StudyView:
    """Follows a study; every method may be called from any thread."""

    def __init__(
        self,
        metric: str,
        budget: float | None = None,
        console: Console | None = None,
        baseline: str = DEFAULTS,
    ) -> None:
        self.metric, self.baseline = metric, baseline
        self.console = console or Console(highlight=False)
        self.where = ""  # the folder of what can be resumed, once there is something
        self._state = State(metric, baseline, budget, time.monotonic())
        self._lock = threading.Lock()
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
            self._state.clock = time.monotonic()
            self.where = where
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
        self,
        number: int,
        params: Mapping[str, object],
        origin: str = "drawn",
        model: str = "",
        parent: int | None = None,
    ) -> None:
        """A trial starts, or starts again; the ``model`` is named in a study of several.

        ``origin`` says where its point comes from: the default, the portfolio, or drawn; or it goes
        on from the weights of the ``parent``.
        """
        is_default = origin == "default"
        with self._lock:
            state = self._state
            state.models[number] = model
            state.trials = max(state.trials, number + 1)  # those that go on come beside the others
            state.origins[number], state.points[number] = origin, params
            if parent is not None:
                state.parents[number] = parent
            state.running[number] = Running(time.monotonic(), self._text(number))
            state.concurrency = max(state.concurrency, len(state.running))
            if is_default:
                state.default_trials[model], state.usual[model] = number, params
                for known, trial in state.running.items():  # those that were there before
                    trial.params = self._text(known)

    def _text(self, number: int) -> str:
        """Says what a trial runs: first what differs from the defaults of its model."""
        state = self._state
        model, origin = state.models[number], state.origins[number]
        text = difference(state.points[number], state.usual.get(model, {}))
        text = f"the {self.baseline}" if origin == "default" else text
        text = f"portfolio: {text}" if origin == "portfolio" else text
        if (parent := state.parents.get(number)) is not None:
            text = f"from trial {parent}: {text}"
        return f"{model}: {text}" if model else text

    def trial_result(self, number: int, epoch: int, value: float, best: float | None) -> None:
        """A running trial was evaluated; ``best`` is its own best value, if it can be chosen."""
        with self._lock:
            state = self._state
            if trial := state.running.get(number):
                trial.epoch, trial.value = epoch, value
            if best is not None:
                state.improve(number, best)

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
                state.improve(number, value)
                state.known[number] = Ended(status, value, trial.params if trial else "")
            if state.best is not None:
                state.curve.append(state.best)
            if status == "failed":
                state.failed = f"trial {number}: {reason}"
            line = self._ended_line(number, status, value, reason, trial)
        if replayed:
            return
        if not self._on_terminal:
            self._print(Text(line))
        elif status == "failed":
            self._print(Text(line, "red"))

    def floors_counted(self, floors: Sequence[Floor]) -> None:
        """Counting is done: the strongest floor stands beside the best trial from here on."""
        if not floors:
            return
        with self._lock:
            floor = self._state.floor = strongest(floors, self.metric, "valid")
        if not self._on_terminal:
            value = f"{self.metric} {floor.valid[self.metric]:.4f} on validation"
            words = f"{floor_words(floor.name)}, {duration(floor.seconds)}"
            self._print(Text(f"counting reaches {value} ({words})"))

    def study_ended(self) -> None:
        """Leaves the final state on screen, once; later calls end what ``preparing`` shows."""
        self._status.stop()
        with self._lock:
            self._state.running.clear()
            live, self._live = self._live, None
        if live:
            live.stop()

    def _print(self, text: Text) -> None:
        # Soft wrap: a log keeps one line per event, however narrow it thinks it is.
        self.console.print(harmless(text), soft_wrap=not self._on_terminal)

    def _ended_line(
        self, number: int, status: str, value: float | None, reason: str, trial: Running | None
    ) -> str:
        state = self._state
        model = state.models.get(number, "")
        is_default = state.default_trials.get(model) == number
        words = [model] * bool(model) + [short(self.baseline)] * is_default
        words += ["portfolio"] * (state.origins.get(number) == "portfolio")
        if number in state.parents:
            words.append(f"from trial {state.parents[number]}")
        who = f"trial {number}" + (f" ({', '.join(words)})" if words else "")
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

    def _draw(self) -> Group:
        with self._lock:
            live = self._live is not None
            return Group(*draw(self._state, self.console.width, self.console.height, live=live))


class TrainView:
    """Follows one training: a line for each evaluation."""

    def __init__(self, metric: str, console: Console | None = None) -> None:
        self.metric = metric
        self.console = console or Console(highlight=False)
        self.where = ""  # the folder of what can be resumed, once there is something

    def started(self, model: str, data: str, where: str) -> None:
        """Shows what is about to run."""
        self.where = where
        self._print(Text(f"{model} on {data}", "bold"))
        self._print(Text(f"checkpoint in {where}", "dim"))

    def note(self, line: str) -> None:
        """Shows a line of interest."""
        self._print(Text(line, "yellow"))

    def evaluated(self, row: Row) -> None:
        """Shows a row of the training loop: epoch, losses, the metric, seconds."""
        self.told(row, self.metric)

    def told(self, row: Row, metric: str = "") -> None:
        """Shows a row with one of its metrics: the first, where none is named."""
        metric = metric or next(iter(row["metrics"]))
        losses = [f"{name} {value:.4f}" for name, value in row["losses"].items()]
        seconds = duration(row["train_seconds"] + row["eval_seconds"])
        words = [
            f"epoch {row['epoch']:>3}",
            *losses,
            f"{metric} {row['metrics'][metric]:.4f}",
        ]
        is_best = row["epoch"] == row["best_epoch"]
        text = Text("  ".join([*words, f"{seconds:>5}"]))
        self._print(text.append("  best", "green") if is_best else text)

    def _print(self, text: Text) -> None:
        self.console.print(harmless(text), soft_wrap=True)


def harmless(text: Text) -> Text:
    """Returns a line without secrets, whose names, ids and paths do nothing to a terminal."""
    plain = redact(visible(text.plain, keep="\n"))
    return text if plain == text.plain else Text(plain, text.style)
