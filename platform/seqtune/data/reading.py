"""How interactions are read: which columns of a file matter, and which of its rows count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Repeats = Literal["none", "consecutive", "all"]
ORDER = "none"  # as the column of times: the order of the rows is taken for it
# Options that say which rows count, and how a file is read.
ROWS = (
    *("min_rating", "events", "since", "before", "drop_repeats", "split_col", "encoding"),
    "user_group_col",
    *("time_format", "drop_bad_rows", "valid", "test"),
)


@dataclass(frozen=True)
class Reading:
    """What the options say of the reading of data; None leaves the choice to us."""

    valid: str | None = None  # files of events that validate and test, beside those that train
    test: str | None = None
    user_col: str | None = None
    item_col: str | None = None
    time_col: str | None = None
    split_col: str | None = None  # which says of each row whether it trains, validates or tests
    rating_col: str | None = None
    event_col: str | None = None
    user_group_col: str | None = None  # which says of what kind a user is
    candidates: str | None = None  # a file of the items that are ranked
    encoding: str | None = None  # of text; None: UTF-8, or UTF-16 where it says so
    time_format: str | None = None  # of times, as strptime has it: %d.%m.%Y %H:%M
    drop_bad_rows: bool = False  # those without a user, an item or a time that can be read
    min_rating: float | None = None  # rows with less are left out
    events: tuple[str, ...] = ()  # rows of other kinds are left out
    since: str | None = None  # a date: rows before it are left out
    before: str | None = None  # a date: rows from it on are left out
    drop_repeats: Repeats = "none"  # of an item that a user had just before, or ever
    min_user: int = 3  # users with fewer interactions are dropped
    min_item: int = 1

    @classmethod
    def of(cls, options: Any) -> Reading:
        """Returns what options say, or what was kept of them as plain values."""
        kept = options if isinstance(options, Mapping) else vars(options)
        values = {name: kept[name] for name in cls.__dataclass_fields__ if name in kept}
        return cls(**values | {"events": tuple(values.get("events", ()))})

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns that are named, by role; those that no option needs are not looked for."""
        always = {"user": self.user_col, "item": self.item_col, "time": self.time_col}
        rating = self.rating_col or ("rating" if self.min_rating is not None else None)
        event = self.event_col or ("event" if self.events else None)
        more = {"split": self.split_col, "rating": rating, "event": event}
        more["user-group"] = self.user_group_col
        return always | {role: name for role, name in more.items() if name is not None}
