"""Writes the states of a trial while its training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

State = dict[str, Any]
Row = dict[str, Any]


class Saver:
    """Writes states in a thread, and tells each row when the state before it is written.

    The scheduler may end a trial at any row it is told of, and the study then wants the weights of
    that row. So both keep their order: a row that waits holds up the next state, and not the
    training. ``wait`` holds up the training too, for ranks that must tell together.
    """

    def __init__(
        self, write: Callable[[State], None], tell: Callable[[Row], None], *, wait: bool = False
    ) -> None:
        self._write, self._tell, self._wait = write, tell, wait
        self._rows: deque[Row] = deque()
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "state")

    def save(self, state: State) -> None:
        """Writes a state that nobody changes any more."""
        self.proceed(wait=True)
        self._writing = self._thread.submit(self._write, state)

    def report(self, row: Row) -> None:
        """Tells a row, now or when ``proceed`` finds that the state before it is written."""
        self._rows.append(row)
        self.proceed(wait=self._wait or row["finished"])

    def proceed(self, *, wait: bool = False) -> None:
        """Tells what can be told; raises what went wrong in writing. Made to be called often."""
        if self._writing is not None:
            if not (wait or self._writing.done()):
                return
            writing, self._writing = self._writing, None
            writing.result()
        while self._rows:
            self._tell(self._rows.popleft())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits until a state that is being written is on disk, also where training has failed."""
        self._thread.shutdown()
