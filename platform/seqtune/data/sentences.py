"""What a protocol says of itself: in one sentence, with the figures on which it rests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from seqtune.data.kinds import LEAVE_ONE_OUT, Kind
from seqtune.data.split import Held, Split, Which
from seqtune.words import counted

TARGETS = {
    "last": "the last event of a user there is the target",
    "first": "the first event of a user there is the target",
    "random": "a random event of a user there is the target",
    "successive": "each event there is a target, after all that was before it",
    "all": "the events of a user there are looked for in one list",
}
VALIDATES = {
    "users": "a tenth of the users, who are not trained on, validates by the last event before",
    "last": "the last event of each user before it validates",
}


@dataclass(frozen=True)
class Made:
    """A split, and how it was made."""

    split: Split
    kind: Kind
    which: Which
    cuts: tuple[int, int]  # of a split by time: the last millisecond of training and of validation
    validation: str
    drawn: tuple[int, int] | None  # how many users validate, and the seed; None: all


def said(made: Made) -> str:
    """Says who is held out."""
    if made.kind.name == LEAVE_ONE_OUT:
        return _leave_one_out(made)
    split = made.split
    n_train = int((split.train_end - split.dataset.offsets[:-1]).sum())
    valid = _some(split.valid, made.which, "validate")
    test = _some(split.test, made.which, "test")
    drawn = f" (drawn with seed {made.drawn[1]})" if made.drawn else ""
    return (
        f"{_how(made)}; {_do(n_train, 'event', 'train')}, {valid}{drawn} and {test}; "
        f"{TARGETS[made.which]}"
    )


def of_seen(*, mask: bool, usual: bool, share: float | None) -> str:
    """Says what happens to seen items, and why: an option, where the data suggest the other.

    ``usual`` says whether the data suggest what is done; ``share`` is that of validation targets
    that the user had before, None where no user has an item twice.
    """
    fact = "no user has an item twice"
    if share is not None:
        fact = f"{percent(share)} of the validation targets are items that the user had before"
    what, option = ("left out", "--mask-seen") if mask else ("ranked too", "--rank-seen")
    why = f"since {fact}" if usual else f"as {option} says, although {fact}"
    return f"seen items are {what}, {why}"


def of_cold(split: Split, kind: Kind, *, items: bool) -> str:
    """Says how many are not tested, and how many test items could not be learnt."""
    text, n = "", split.cold_users
    if n:
        have, are = ("has", "is") if n == 1 else ("have", "are")
        text = (
            f" {counted(n, 'user')} {have} nothing before the test and {are} not tested "
            "(--cold-users tests them)."
        )
    if not items:
        return f"{text} Targets whose item has no training event are left out."
    n = 0 if kind.name == LEAVE_ONE_OUT else int(split.cold_items(split.test).sum())
    if n:
        targets = f"{counted(n, 'test target')} ({percent(n / len(split.test.users))})"
        text += f" The item of {targets} has no training event (--no-cold-items leaves them out)."
    return text


def percent(share: float) -> str:
    """Writes a share: ``12.5 %``."""
    return f"{100 * share:.1f} %" if share >= 0.001 or not share else "under 0.1 %"


def _leave_one_out(made: Made) -> str:
    n_test, n_users = len(made.split.test.users), made.split.dataset.n_users
    who = f"{n_test:,} users" + (" with at least 3" if n_test < n_users else "")
    few = ""
    if made.drawn and made.drawn[0] < n_test:
        few = f" for {made.drawn[0]:,} of them, drawn with seed {made.drawn[1]}"
    return f"Leave-one-out: the last item of {who} is the test and the one before it validates{few}"


def _how(made: Made) -> str:
    """Says how a split other than leave-one-out is made."""
    numbers = made.kind.numbers
    shares = " / ".join(f"{100 * share:g}" for share in numbers)
    match made.kind.name:
        case "time":
            early, late = (_moment(cut) for cut in made.cuts)
            validates = VALIDATES.get(made.validation, f"what is after {early} validates")
            return f"Global temporal split: what is after {late} is the test, and {validates}"
        case "leave-N-out":
            n = f"{numbers[0]:g}"
            return (
                f"Leave-{n}-out: a user's last {n} events are the test, and the {n} before validate"
            )
        case "session":
            days = f"{numbers[0]:g} day{'s' * (numbers[0] != 1)}"
            return f"Sessions of the last {days} are the test, and those of as long before validate"
        case "ratio":
            return f"Of each user's events, in their order, {shares} % train, validate and test"
        case "users":
            return f"Of the users, {shares} % train, validate and test"
    return "The data say which events train, validate and test"


def _some(held: Held, which: Which, verb: str) -> str:
    """Says what is held out: ``12 users test``, ``34 targets of 12 users test``."""
    n, users = len(held.users), len(np.unique(held.users))
    if which not in ("successive", "all"):
        return _do(users, "user", verb)
    return f"{counted(n, 'target')} of {_do(users, 'user', verb)}"


def _do(n: int, what: str, verb: str) -> str:
    return f"{counted(n, what)} {verb}{'s' * (n == 1)}"


def _moment(cut: int) -> str:
    """Writes the last millisecond of a span as a person reads it, in UTC."""
    return f"{datetime.fromtimestamp(cut / 1000, UTC):%Y-%m-%d %H:%M:%S}"
