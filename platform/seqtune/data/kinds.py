"""How ``--split`` names a split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from seqtune.data.split import Which
from seqtune.errors import UserError, nearest

LEAVE_ONE_OUT, GIVEN = "leave-one-out", "given"
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
KINDS = (LEAVE_ONE_OUT, "leave-N-out", "time", "ratio", "users", "session", GIVEN)
WAYS = """leave-one-out, leave-2-out, time:0.9, time:2024-03-01, ratio:0.8,0.1,0.1,
users:0.8,0.1,0.1, session:1, given"""


@dataclass(frozen=True)
class Kind:
    """A way to split, as ``--split`` names it."""

    name: str  # one of KINDS
    numbers: tuple[float, ...] = ()  # k, shares of events or of users, days
    cuts: tuple[int, ...] = ()  # of a split by dates: the first millisecond that is held out

    @property
    def which(self) -> Which:
        """The targets, where nobody says."""
        if self.name in ("time", "users"):
            return "last"
        return "all" if self.name in ("ratio", "leave-N-out") else "successive"


def parse_split(text: str, place: str = "--split") -> Kind:
    """Reads ``time:0.9``, ``ratio:0.8,0.1,0.1`` and the others.

    Raises:
        UserError: it is none of them.
    """
    name, colon, rest = text.strip().lower().partition(":")
    words = [word.strip() for word in rest.split(",")] if colon else []
    if found := re.fullmatch(r"leave-(\w+)-out", name):
        k = WORDS.get(found[1], int(found[1]) if found[1].isdecimal() else 0)
        if k < 1 or words:
            raise UserError(f"{place} {text}: write how many are left out, as in leave-2-out")
        return Kind(LEAVE_ONE_OUT) if k == 1 else Kind("leave-N-out", (k,))
    if name == "time" and 1 <= len(words) <= 2:
        return _time(words, f"{place} {text}")
    if name in ("ratio", "users") and (shares := _numbers(words)) and len(shares) == 3:
        if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
            raise UserError(f"{place} {text}: the three parts must be above 0 and add up to 1")
        return Kind(name, tuple(shares))
    if name == "session" and len(words) < 2 and (days := _numbers(words or ["1"])):
        if days[0] <= 0:
            raise UserError(f"{place} {text}: give the number of days, above 0")
        return Kind(name, tuple(days))
    if name == "given" and not words:
        return Kind(name)
    near = nearest(name, KINDS) if name not in KINDS else ""
    raise UserError(f"{place} {text}: no such split{near}; write one of {' '.join(WAYS.split())}")


def _time(words: list[str], place: str) -> Kind:
    shares = _numbers(words)
    if shares:
        if not all(0 < share < 1 for share in shares) or shares != sorted(set(shares)):
            raise UserError(f"{place}: a share of all events lies between 0 and 1, as in time:0.9")
        return Kind("time", tuple(shares))
    try:
        cuts = tuple(moment(word, place) for word in words)
    except UserError:
        raise UserError(
            f"{place}: write a share of all events or a date, as in time:0.9 or time:2024-03-01"
        ) from None
    if len(cuts) == 2 and cuts[0] >= cuts[1]:
        raise UserError(f"{place}: the first date is that of validation, and must be the earlier")
    return Kind("time", cuts=cuts)


def moment(text: str, place: str) -> int:
    """Returns a date in Unix milliseconds; without a zone it is of UTC."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{place} {text}: write a date as 2024-03-01, or 2024-03-01T12:00"
        ) from None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def _numbers(words: list[str]) -> list[float]:
    """Returns the numbers that words are, or none where one is another thing."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return []
