"""The lines of the live view: what is drawn of the state of a running study."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from seqtune.report.verdict import floor_words, short
from seqtune.words import bar, brief, duration

if TYPE_CHECKING:
    from seqtune.floors import Floor

CURVE_WIDTH, CURVE_HEIGHT = 40, 3
TRIALS_SHOWN = 4  # on a screen of OTHER_LINES + 4 lines; a higher one shows more
OTHER_LINES = 21  # of a screen: what stands above the live view, its figures, and the prompt
SHORT = 120.0  # seconds
BLOCKS = " ▁▂▃▄▅▆▇█"
WORDS = {"complete": "green", "running": "cyan", "pruned": "yellow", "failed": "red"}


@dataclass
class Running:
    """A trial that runs."""

    started: float
    params: str
    epoch: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Ended:
    """A trial that has ended with a value."""

    status: str
    value: float
    params: str


@dataclass
class State:
    """What is known of a running study."""

    metric: str
    baseline: str  # what trial 0 runs
    budget: float | None  # seconds
    clock: float  # when it began
    trials: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    running: dict[int, Running] = field(default_factory=dict)
    known: dict[int, Ended] = field(default_factory=dict)
    models: dict[int, str] = field(default_factory=dict)  # of trials; "" where there is but one
    origins: dict[int, str] = field(default_factory=dict)  # where the points of trials come from
    parents: dict[int, int] = field(default_factory=dict)  # from whose weights trials go on
    points: dict[int, Mapping[str, object]] = field(default_factory=dict)  # what trials run
    usual: dict[str, Mapping[str, object]] = field(default_factory=dict)  # the defaults of each
    default_trials: dict[str, int] = field(default_factory=dict)  # the trial of each that runs them
    reached: dict[str, float] = field(default_factory=dict)  # the best value of each model
    defaults: dict[str, float] = field(default_factory=dict)  # that of its defaults
    failed: str = ""  # the last trial that failed, and why
    floor: Floor | None = None  # the strongest on validation
    best: float | None = None
    best_trial: int | None = None
    curve: list[float] = field(default_factory=list)  # best value when each trial ended
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    concurrency: int = 1

    def improve(self, number: int, value: float) -> None:
        """A trial has reached a value."""
        model = self.models.get(number, "")
        self.reached[model] = max(value, self.reached.get(model, value))
        if number == self.default_trials.get(model):
            self.defaults[model] = value
        if self.best is None or value > self.best:
            self.best, self.best_trial = value, number


def draw(state: State, width: int, height: int, *, live: bool) -> list[Text]:
    """Returns the lines; ``live`` says that more is to come, so that time is left."""
    lines = [_progress(state), _time(state, live), _best(state), *_models(state, width)]
    lines += [*_counted(state), *_failed(state, width)]
    return [*lines, *_curve(state, width), *_trials(state, width, height, live)]


def _progress(state: State) -> Text:
    done = sum(state.ended.values())
    text = _row(" trials  ", "dim")
    text.append(f"{bar(done / max(state.trials, 1), 12):<12}".replace(" ", "·"), "blue")
    text.append(f"  {done} of {state.trials}", "bold")
    counted = {**state.ended, "running": len(state.running)}
    for word, style in WORDS.items():
        if n := counted.get(word, 0):
            text.append(f"  {n} {word}", style)
    return text


def _time(state: State, live: bool) -> Text:
    elapsed = time.monotonic() - state.clock
    text = _row(" time    ", "dim").append(_whole(elapsed))
    left = _left(state, elapsed) if live else ""
    return text.append(f", {left}" if left else "", "dim")


def _left(state: State, elapsed: float) -> str:
    by_budget = None if state.budget is None else state.budget - elapsed
    if by_budget is not None and by_budget <= 0:
        return "time is up; the running trials stop" if state.running else "time is up"
    by_trials = None
    if len(state.durations) >= 2:
        mean = sum(state.durations) / len(state.durations)
        now = time.monotonic()
        begun = sum(max(mean - (now - t.started), mean / 10) for t in state.running.values())
        waiting = state.trials - sum(state.ended.values()) - len(state.running)
        by_trials = (begun + max(waiting, 0) * mean) / state.concurrency
    if by_trials is not None and (by_budget is None or by_trials < by_budget):
        return f"about {_whole(max(by_trials, 1))} left{_until(by_trials)}"
    return "" if by_budget is None else f"at most {_whole(by_budget)} left{_until(by_budget)}"


def _until(seconds: float) -> str:
    """Says when a study ends that takes long enough to do something else meanwhile."""
    if seconds < SHORT:
        return ""
    now = time.time()
    end = now + seconds
    day = "" if time.localtime(end)[:3] == time.localtime(now)[:3] else "%a "
    return time.strftime(f", until {day}%H:%M", time.localtime(end))


def _best(state: State) -> Text:
    text = _row(" best    ", "dim")
    if state.best is None:
        return text.append("none yet", "dim")
    text.append(f"{state.metric} {state.best:.4f}", "bold green")
    model = state.models.get(state.best_trial or 0, "")
    by = f" by {model}" if model else ""
    if state.best_trial == state.default_trials.get(model):
        with_them = f"{by} with" if model else " by"
        return text.append(f"{with_them} the {state.baseline} (trial {state.best_trial})")
    text.append(f"{by} in trial {state.best_trial}")
    if default := state.defaults.get(model):
        gain = f"{100 * (state.best / default - 1):+.1f} %"
        text.append(f", {short(state.baseline)} {default:.4f} ({gain})", "dim")
    return text


def _models(state: State, width: int) -> Iterator[Text]:
    """Says of several models how many trials each has had, and what it has reached."""
    counted = Counter(model for model in state.models.values() if model)
    if not counted:
        return
    text = _row(" models  ", "dim")
    for model in sorted(counted, key=lambda one: -state.reached.get(one, -1)):
        value = state.reached.get(model)
        told = "-" if value is None else f"{value:.4f}"
        text.append(f"{model} {told}").append(f" ({counted[model]})  ", "dim")
    text.truncate(width - 4, overflow="ellipsis")
    yield text


def _failed(state: State, width: int) -> Iterator[Text]:
    if state.failed:
        text = _row(" failed  ", "dim").append(state.failed, "red")
        text.truncate(width - 4, overflow="ellipsis")
        yield text


def _counted(state: State) -> Iterator[Text]:
    if state.floor is None:
        return
    text, value = _row(" counted ", "dim"), state.floor.valid[state.metric]
    text.append(f"{state.metric} {value:.4f} by {floor_words(state.floor.name)}")
    if state.best is not None:
        above = state.best > value
        text.append(", below the best" if above else ", above the best so far", "dim")
    yield text


def _curve(state: State, width: int) -> Iterator[Text]:
    # The last value is that of the best line, which a running trial may have reached.
    best_now = [state.best] if state.running and state.best is not None else []
    curve = [*state.curve, *best_now]
    low, high = (curve[0], curve[-1]) if curve else (0.0, 0.0)
    width = max(CURVE_WIDTH, min(state.trials, width - 20))
    rows = area(curve, max(state.trials, len(curve)), width, CURVE_HEIGHT)
    labels = [f"{high:.4f}" if high > low else "", "", f"{low:.4f}" if curve else ""]
    for label, row in zip(labels, rows, strict=True):
        yield Text.assemble((f" {label:>7} ", "dim"), (row, "blue"), no_wrap=True)


def _trials(state: State, width: int, height: int, live: bool) -> Iterator[Text]:
    """Lists the running trials and, while there is room, those that have ended, best first."""
    running = sorted(state.running.items())
    room = max(TRIALS_SHOWN, height - OTHER_LINES)
    for number, trial in running[:room]:
        where = f"{'starting':<20}"
        if trial.epoch is not None and trial.value is not None:
            where = f"epoch {trial.epoch:<4} {trial.value:<9.4f}"
        yield _trial(number, where, trial.params, "cyan", width)
    if len(running) > room:
        yield Text(f" and {len(running) - room} more", "dim")
    if not live or room < 2 * TRIALS_SHOWN:
        return
    best_first = sorted(state.known.items(), key=lambda pair: -pair[1].value)
    for number, one in best_first[: max(0, room - len(running))]:
        where = f"{one.status:<10} {one.value:<9.4f}"
        yield _trial(number, where, one.params, WORDS.get(one.status, ""), width)


def _trial(number: int, where: str, params: str, style: str, width: int) -> Text:
    text = _row(f" trial {number:<4} ", style)
    text.append(where, "dim" if where.startswith("starting") else "")
    text.append(params, "dim")
    # The terminal echoes ^C after the last line: in a full line it would break the view.
    text.truncate(width - 4, overflow="ellipsis")
    return text


def difference(params: Mapping[str, object], usual: Mapping[str, object]) -> str:
    """Writes hyperparameters: what differs from trial 0 first, and of that the learning rate."""

    def place(name: str) -> tuple[bool, bool]:
        return name in usual and usual[name] == params[name], name != "learning_rate"

    return ", ".join(f"{name} {brief(params[name])}" for name in sorted(params, key=place))


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


def _row(label: str, style: str) -> Text:
    return Text.assemble((label, style), no_wrap=True, overflow="ellipsis")


def _whole(seconds: float) -> str:
    # A clock that ticks shows whole seconds.
    return f"{int(seconds)}s" if seconds < 10 else duration(seconds)
