"""Which columns of a file are the users, the items and the times."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seqtune.data.reading import ORDER

SHOWN = 20  # names of columns in a message

# Usual names, lower case without punctuation. A name further left wins; two in one group clash.
USUAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "user": (
        ("user", "userid", "uid"),
        ("reviewerid", "customerid", "customer", "visitorid", "clientid", "memberid", "accountid"),
        ("sessionid", "session"),
    ),
    "item": (
        ("item", "itemid", "iid"),
        (
            *("asin", "parentasin", "productid", "product", "movieid", "bookid", "isbn", "songid"),
            *("trackid", "artistid", "videoid", "articleid", "newsid", "gameid", "appid", "sku"),
            *("businessid", "locationid", "poiid", "venueid"),
        ),
    ),
    "time": (
        ("timestamp", "time", "ts", "datetime", "unixreviewtime", "unixtime"),
        ("timestampms", "eventtime", "clicktime", "createdat", "date", "eventdate", "day"),
    ),
}
# Columns that would say which rows count, and the option that makes them.
UNUSED = {
    "rating": (("rating", "ratings", "stars", "overall"), "--min-rating"),
    "event": (("event", "eventtype", "action", "behavior", "behaviortype"), "--events"),
}
WHAT = {"user": "a history is all that one {} has", "item": "the items are those of {}"}


class Choice(NamedTuple):
    """The position of the column of each role, what to know about it, and what is wrong."""

    picks: dict[str, int]
    notes: list[str]
    problems: list[str]


def choose(
    names: Sequence[str],
    wanted: Mapping[str, str | None],
    expected: Mapping[str, str],
    header: bool = True,
) -> Choice:
    """Chooses the column of each role: as ``wanted``, else as ``expected``, else by usual names.

    A column that could have been chosen as well is told in a note, or is a mistake where it is as
    likely as the other.
    """
    picks: dict[str, int] = {}
    notes: list[str] = []
    problems: list[str] = []
    alone = not header and len(names) == 2  # a user and an item, in the order of time
    for role in [*USUAL, *(role for role in wanted if role not in USUAL)]:
        name = wanted.get(role)
        if role == "time" and name not in names and (name == ORDER or (alone and name is None)):
            continue
        if alone and name is None:
            name = names[list(USUAL).index(role)]
        if name is None and expected.get(role) in names:
            name = expected[role]
        groups = _usual(names, role)
        found = _named(names, name) if name is not None else next(filter(None, groups), [])
        if not found:
            problems.append(_absent(names, role, name, header))
        elif len(found) > 1:
            several = " and ".join(repr(names[i]) for i in found)
            same = len({names[i] for i in found}) < len(found)
            fix = "rename one of them" if same else f"choose one with --{role}-col"
            problems.append(f"{several} could each be the {role} column; {fix}")
        else:
            picks[role] = found[0]
            others = [names[i] for group in groups for i in group if i != found[0]]
            if name is None and others and role in WHAT:
                notes.append(
                    f"{WHAT[role].format(names[found[0]])}; {' or '.join(others)} could be meant "
                    f"too: choose with --{role}-col"
                )
    for role, other in (("item", "user"), ("time", "user"), ("time", "item")):
        if role in picks and picks[role] == picks.get(other):
            problems.append(
                f"--{role}-col and --{other}-col both name {names[picks.pop(role)]!r}; "
                "each needs a column of its own"
            )
    for role, (usual, option) in UNUSED.items():
        if role not in wanted and (there := [name for name in names if _plain(name) in usual]):
            notes.append(f"all rows count, whatever {there[0]} they have ({option} chooses some)")
    return Choice(picks, notes, list(dict.fromkeys(problems)))


def _usual(names: Sequence[str], role: str) -> list[list[int]]:
    groups = USUAL.get(role, ())
    return [[i for i, n in enumerate(names) if _plain(n) in group] for group in groups]


def _named(names: Sequence[str], name: str) -> list[int]:
    return [i for i, n in enumerate(names) if n == name] or [
        i for i, n in enumerate(names) if _plain(n) == _plain(name.partition(":")[0])
    ]


def _absent(names: Sequence[str], role: str, name: str | None, header: bool) -> str:
    there = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    if name is not None:
        plain = {_plain(n): n for n in reversed(names)}
        near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
        hint = f"did you mean {plain[near[0]]!r}?" if near else f"the columns are {there}"
        return f"--{role}-col {name}: there is no such column; {hint}"
    if not header and len(names) < len(USUAL):
        return (
            f"the file has {len(names)} columns and no header line, and each row needs three "
            "values: user, item and time; where the order of the rows is the time, give --time-col "
            f"{ORDER}"
        )
    if not header:
        return (
            f"the file has no header line; name its {len(names)} columns by position, "
            "for example --user-col 1 --item-col 2 --time-col 3"
        )
    order = f", or give {ORDER} for the order of the rows" if role == "time" else ""
    return f"no {role} column found; the columns are {there}; name it with --{role}-col{order}"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.strip().lower())
