"""What the driver tells, and the thread that passes it on to MLflow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.metrics import mlflow_name
from seqtune.storage import Folder
from seqtune.track.champion import ON_VALIDATION, Registered
from seqtune.track.journal import Journal
from seqtune.track.pages import Links
from seqtune.track.store import brief, shown
from seqtune.track.writer import Op, Writer

LINES = 500  # of the journal, worked off at once
PAUSES = (0.5, 30.0)  # seconds between tries while MLflow is away: first, longest
LASTING = {  # errors that come back however often one tries
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "MALFORMED_REQUEST",
    "NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class Tracker:
    """Tells MLflow about one study; no method waits for MLflow, and none raises.

    ``study`` identifies the study for good: a resumed study passes the same, a new one of the same
    name another. ``journal`` is a local file; what is not sent when the process ends stays in it,
    and the next tracker on that file sends it first. ``say`` gets one line when MLflow goes away,
    comes back, or refuses something; it is called from the background thread.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        study: str,
        journal: Path,
        *,
        say: Callable[[str], None] = print,
    ) -> None:
        self.uri, self.experiment, self.study = uri, experiment, study
        self._journal, self._say = Journal(journal), say
        self.links: Links | None = None  # where the study is; None until MLflow has answered
        self.registered: Registered | None = None  # None until the champion is
        self.begun = False  # whether there is, or will be, a run
        self._away = False  # MLflow did not answer the last time
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    # What the driver tells.

    def start_study(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        *,
        metric: str,
        dimensions: Sequence[str],
    ) -> None:
        """Opens the parent run; ``metric`` (``ndcg@10``) and ``dimensions`` shape the view.

        Every trial gets the ``tags`` too.
        """
        self.begun = True
        self._tell(
            "study",
            params=params,
            tags=tags,
            metric=mlflow_name(metric),
            dimensions=dimensions,
        )

    def trial_started(
        self, number: int, params: Mapping[str, Any], tags: Mapping[str, Any] | None = None
    ) -> None:
        """Opens the run of a trial, or the one that an earlier driver left."""
        self._tell("trial", number=number, params=params, tags=tags or {})

    def trial_result(
        self, number: int | None, step: int, metrics: Mapping[str, Any], time: float | None = None
    ) -> None:
        """Adds a point to each curve; what is not a number is left out. ``time`` in seconds.

        Without a ``number`` the curves are those of the study's own run.
        """
        self._tell("result", number=number, step=step, metrics=_numbers(metrics), at=_ms(time))

    def trial_ended(
        self,
        number: int,
        status: str,
        best: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> None:
        """Closes a trial's run: ``status`` is finished, pruned, failed or interrupted."""
        best = {f"best/{name}": value for name, value in _numbers(best or {}).items()}
        self._tell("trial_end", number=number, status=status, best=best, reason=reason, at=_ms())

    def upload(
        self,
        folder: Folder,
        names: Sequence[str] | None = None,
        to: str = "",
        trial: int | None = None,
    ) -> None:
        """Uploads files (all of a folder by default) as artifacts of a trial, or of the study."""
        self._tell("upload", folder=folder.uri, names=names, to=to, number=trial)

    def finalist(
        self, folder: Folder, trial: int | None, valid: Mapping[str, Any], test: Mapping[str, Any]
    ) -> None:
        """Logs a checkpoint as a servable model of a trial, or of the study's own run.

        It has its metrics on these data.
        """
        both = (("valid", valid), ("test", test))
        found = {f"{part}/{n}": v for part, values in both for n, v in _numbers(values).items()}
        self._tell("finalist", folder=folder.uri, number=trial, metrics=found)

    def champion(
        self,
        folder: Folder,
        name: str,
        trial: int | None,
        verdict: str = "",
        *,
        chosen: str = ON_VALIDATION,
    ) -> None:
        """Logs a checkpoint as a servable model and registers it; ``registered`` says how.

        ``verdict`` is a sentence for the model's description. One that was ``chosen`` in another
        way than on validation gets the alias from whatever has it.
        """
        self.registered = None
        about = {"name": name, "number": trial, "verdict": verdict, "chosen": chosen}
        self._tell("champion", folder=folder.uri, **about)

    def study_ended(
        self,
        status: str = "finished",
        metrics: Mapping[str, Any] | None = None,
        verdict: str = "",
    ) -> None:
        """Closes the parent run, and runs of trials that did not end."""
        numbers = _numbers(metrics or {})
        self._tell("study_end", status=status, metrics=numbers, verdict=verdict, at=_ms())

    @property
    def answers(self) -> bool:
        """Whether MLflow has answered, the last time too."""
        return self.links is not None and not self._away

    def settle(self, timeout: float) -> bool:
        """Waits until all that was told is worked off, at most ``timeout`` seconds."""
        return self._journal.settle(timeout)

    def close(self, timeout: float = 60.0) -> bool:
        """Waits until all is sent, at most ``timeout`` seconds; says where the rest is kept."""
        self._journal.close()
        self._thread.join(timeout)
        if left := self._journal.end():
            self._say(
                f"{left} records did not reach MLflow at {shown(self.uri)}; they are kept in "
                f"{self._journal.path} and sent when the study is resumed (--resume), or the "
                "command is given again"
            )
        return not left

    # The thread that works the journal off.

    def _tell(self, do: str, **what: Any) -> None:
        try:
            self._journal.add(json.dumps({"do": do, **what}, default=_plain).encode() + b"\n")
        except (OSError, TypeError, ValueError) as error:
            self._say(f"MLflow will miss a record ({do}): {brief(error)}")

    def _work(self) -> None:
        writer: Writer | None = None
        pause, limit = PAUSES[0], LINES
        while lines := self._journal.take(limit):
            connected = writer is not None
            try:
                writer = writer or Writer(self.uri, self.experiment, self.study)
                connected = True
                for op, length in _merged(lines):
                    writer.apply(op)
                    self.links = writer.links
                    self.registered = writer.registered or self.registered
                    self._journal.done(length)
            except Exception as error:
                writer = None  # whatever it knew of the store may be wrong
                if connected and _lasting(error):
                    if limit == 1:
                        self._say(f"MLflow refused a record, which is left out: {brief(error)}")
                        self._journal.done(len(lines[0]))
                    limit = 1  # one at a time, to find the record that it is
                    continue
                if not self._away:
                    self._say(
                        f"MLflow at {shown(self.uri)} takes no records now ({brief(error)}); "
                        "they are kept and sent when it is back"
                    )
                self._away = True
                self._journal.rest(pause, PAUSES[0])
                pause = min(2 * pause, PAUSES[1])
            else:
                if self._away:
                    self._say(f"MLflow at {shown(self.uri)} is back")
                self._away, pause, limit = False, PAUSES[0], LINES


def _merged(lines: list[bytes]) -> Iterator[tuple[Op, int]]:
    """Reads lines; results that follow each other become one operation, with their length."""
    results: list[Op] = []
    length = 0
    for line in lines:
        op = json.loads(line)
        if op["do"] == "result":
            results.append(op)
            length += len(line)
            continue
        if results:
            yield {"do": "results", "results": results}, length
            results, length = [], 0
        yield op, len(line)
    if results:
        yield {"do": "results", "results": results}, length


def _lasting(error: Exception) -> bool:
    """Says whether trying again cannot help: the record is at fault, not the connection."""
    ours = (
        *(FileNotFoundError, ImportError, TypeError, KeyError, AttributeError, UserError),
        json.JSONDecodeError,  # a damaged line of the journal
    )
    return getattr(error, "error_code", None) in LASTING or isinstance(error, ours)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in metrics.items():
        plain = _plain(value) if hasattr(value, "item") else value
        if isinstance(plain, int | float) and not isinstance(plain, bool):
            numbers[mlflow_name(name)] = float(plain)
    return numbers


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def _ms(seconds: float | None = None) -> int:
    return int((time.time() if seconds is None else seconds) * 1000)
