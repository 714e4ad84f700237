"""What a user did wrong, said in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from seqtune.secrecy import redact

LONGEST = 300  # characters of a sentence
# What moves a terminal's cursor, breaks a line or turns the direction of writing.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    """Writes control characters as one would type them, but for those to keep."""

    def typed(found: re.Match[str]) -> str:
        return found[0] if found[0] in keep else ascii(found[0])[1:-1]

    return CONTROL.sub(typed, text)


def sentence(text: str, longest: int = LONGEST) -> str:
    """Returns a text as one line of bearable length: what is said of anything a user gave.

    Secrets are left out.
    """
    text = visible(redact(text))
    if len(text) <= longest:
        return text
    tail = longest // 2  # the way out stands at the end
    return f"{text[: longest - tail - 5]} ... {text[-tail:]}"


class UserError(Exception):
    """A mistake in what the user gave: one sentence with place, value, rule and nearest fix.

    Where several ``things`` are wrong at once, it may be as many times longer.
    """

    def __init__(self, text: str, things: int = 1) -> None:
        super().__init__(sentence(text, LONGEST * things))


class DamagedError(UserError):
    """A file of ours that cannot be believed: torn, of another owner, or changed."""


class Halted(KeyboardInterrupt):
    """What is around a study keeps it from going on: it stops, as on Ctrl-C, to be resumed."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns ``"; did you mean 'n_heads'?"``, or the whole list where nothing is near."""
    known = list(names)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}"
