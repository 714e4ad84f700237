"""Ctrl-C, SIGTERM and SIGHUP: remembered from the moment that a command starts to load."""

from __future__ import annotations

import signal
import threading

ENDS = (signal.SIGTERM, signal.SIGHUP)  # how a program is asked to end, beside Ctrl-C


class Interrupts:
    """Turns what asks a program to end into a KeyboardInterrupt, and remembers it.

    Where it hits a library's own code at a bad moment, Ray's or an import's, the exception is lost.
    So a study also looks here between its steps, and after each of Tune's.
    """

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        """Takes the signals, also where a library has taken them since."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *ENDS):
                signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raises the KeyboardInterrupt that was lost."""
        if self.came:
            raise KeyboardInterrupt


INTERRUPTS = Interrupts()  # of this process
