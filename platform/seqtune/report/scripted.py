"""What a program sees of a study: an event a line while it runs, and one message at its end."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from seqtune.options import DEFAULTS
from seqtune.report.documents import to_json
from seqtune.report.view import StudyView
from seqtune.results import StudyResult
from seqtune.secrecy import redact

if TYPE_CHECKING:
    from seqtune.floors import Floor

TIMEOUT = 10.0  # seconds that a receiver of the message has


def silent_console() -> Console:
    """Returns a console that shows nothing."""
    return Console(file=io.StringIO(), quiet=True)


class EventView(StudyView):
    """Prints each event as a line of JSON: ``event``, ``time`` (seconds since 1970), and its facts.

    The last event is ``result``, with what report.json holds.
    """

    def __init__(
        self,
        metric: str,
        budget: float | None = None,
        console: Console | None = None,
        baseline: str = DEFAULTS,
    ) -> None:
        super().__init__(metric, budget, console or silent_console(), baseline)

    def study_started(self, model: str, data: str, n_trials: int, space: str, where: str) -> None:
        """The study begins."""
        super().study_started(model, data, n_trials, space, where)
        tell("study", model=model, data=data, trials=n_trials, resources=space, folder=where)

    def note(self, line: str) -> None:
        """Something that a person should know."""
        tell("note", text=line)

    def trial_started(
        self,
        number: int,
        params: Mapping[str, object],
        origin: str = "drawn",
        model: str = "",
        parent: int | None = None,
    ) -> None:
        """A trial begins, or goes on."""
        super().trial_started(number, params, origin, model, parent)
        more: dict[str, object] = {"model": model} if model else {}
        more |= {} if parent is None else {"parent": parent}
        tell("trial", trial=number, params=dict(params), origin=origin, **more)

    def trial_result(self, number: int, epoch: int, value: float, best: float | None) -> None:
        """A trial was evaluated."""
        super().trial_result(number, epoch, value, best)
        tell("evaluation", trial=number, epoch=epoch, metric=self.metric, value=value, best=best)

    def trial_ended(
        self,
        number: int,
        status: str,
        value: float | None,
        reason: str = "",
        replayed: bool = False,
    ) -> None:
        """A trial has ended, now or (``replayed``) before the study was resumed."""
        super().trial_ended(number, status, value, reason, replayed)
        facts = {"status": status, "best": value, "reason": reason, "replayed": replayed}
        tell("trial_end", trial=number, **facts)

    def floors_counted(self, floors: Sequence[Floor]) -> None:
        """Counting is done."""
        super().floors_counted(floors)
        tell("floors", valid={one.name: one.valid[self.metric] for one in floors})


def tell(event: str, **facts: Any) -> None:
    """Prints an event."""
    line = json.dumps({"event": event, "time": time.time(), **facts}, default=str)
    sys.stdout.write(redact(line) + "\n")  # whole, whichever thread it comes from
    sys.stdout.flush()


def show_events(result: StudyResult) -> None:
    """Prints the last event."""
    tell("result", **to_json(result))


def message(result: StudyResult) -> dict[str, Any]:
    """Returns what is posted at the end of a study: how it ended, without the trials."""
    found = to_json(result)
    names = ("name", "model", "data_name", "metric", "verdict", "seconds", "best", "checkpoint")
    return {"event": "result", **{name: found[name] for name in names}}


def notify(url: str, content: Mapping[str, Any]) -> str:
    """Posts JSON to an address; returns why that failed, empty where it did not."""
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    body, kind = json.dumps(content).encode(), {"Content-Type": "application/json"}
    try:
        with urlopen(Request(url, body, kind), timeout=TIMEOUT):
            return ""
    except (URLError, OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error)
