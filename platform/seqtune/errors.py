"""What a user did wrong, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: one sentence with place, value, rule and nearest fix."""


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
