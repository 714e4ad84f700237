"""What asks a program to end is not forgotten where an exception is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from seqtune.interrupts import Interrupts

ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKED_TO_END}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", ASKED_TO_END)
def test_an_interrupt_that_is_lost_in_ray_is_found_again(number: int) -> None:
    interrupts = Interrupts()
    interrupts.listen()
    interrupts.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
