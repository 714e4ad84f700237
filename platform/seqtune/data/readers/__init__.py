"""Reads interactions from text tables and parquet files.

Only the three columns that matter are parsed. All that is wrong with a file is said at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from seqtune.data.dataset import Dataset
from seqtune.data.files import PARQUET, kind
from seqtune.data.filters import filtered
from seqtune.data.readers import tables
from seqtune.data.readers.columns import USUAL, Choice, choose
from seqtune.data.readers.ids import ids
from seqtune.data.readers.times import times
from seqtune.data.reading import Reading
from seqtune.errors import UserError

T = TypeVar("T")
RATINGS = ["user", "item", "rating", "timestamp"]


class _Table(NamedTuple):
    """What a file holds: the columns that were found, by role, and their names in the file."""

    columns: dict[str, pa.ChunkedArray]
    names: dict[str, str]
    notes: list[str]
    problems: list[str]


def read(path: Path, reading: Reading, expected: Mapping[str, str] | None = None) -> Dataset:
    """Reads a file, of which ``reading`` may name columns, and says which rows count.

    Where it does not, those of ``expected`` are taken if the file has them, else usual names.
    Users and items are numbered in the order of their own ids. Raises UserError with the place and
    all that is wrong where the file cannot be used; rows are counted from 1, without the header.
    """
    try:
        of = _parquet if kind(path) in PARQUET else _text
        table = of(path, reading.columns, expected or {})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    problems = table.problems

    def attempt(role: str, of: Callable[[pa.ChunkedArray], T]) -> T | None:
        if role not in table.columns:
            return None
        try:
            return of(table.columns[role])
        except UserError as error:
            problems.append(str(error))
            return None

    if any(not len(column) for column in table.columns.values()):
        raise UserError(f"{path}: the file has no interactions; it needs one row for each")
    typed = kind(path) in PARQUET
    users = attempt("user", lambda column: ids(column, "user", typed))
    items = attempt("item", lambda column: ids(column, "item", typed))
    when = attempt("time", lambda column: times(column, table.names["time"]))
    if users is None or items is None or when is None or problems:
        raise UserError(f"{path}: {_all_of(problems)}", len(problems))
    order = np.lexsort((when.order, users.codes))  # stable: ties keep the order of the file
    lengths = np.bincount(users.codes, minlength=len(users.own))
    dataset = Dataset(
        name=Path(path.name.removesuffix(".gz")).stem,
        items=(items.codes + 1)[order].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=when.milliseconds[order],
        user_ids=users.own,
        item_ids=items.own,
        notes=(*table.notes, *users.notes, *items.notes, *when.notes),
        columns={role: name for role, name in table.names.items() if role in USUAL},
    )
    beside = {
        role: column.take(pa.array(order)).combine_chunks()
        for role, column in table.columns.items()
        if role not in USUAL
    }
    try:
        return filtered(dataset, reading, beside)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _all_of(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    numbered = (f"({number}) {problem}" for number, problem in enumerate(problems, start=1))
    return f"{len(problems)} things are wrong: {'; '.join(numbered)}"


def _parquet(path: Path, wanted: Mapping[str, str | None], expected: Mapping[str, str]) -> _Table:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        choice = choose(names, wanted, expected)
        table = file.read(columns=[names[i] for i in choice.picks.values()])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"not a readable parquet file ({tables.first_line(error)})") from None
    columns = {role: decoded(table[names[i]]) for role, i in choice.picks.items()}
    return _table(columns, names, choice, [], [])


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns plain values: categories may be unused, and views lack most functions."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.string() if pa.types.is_string_view(kind) else kind)


def _text(path: Path, wanted: Mapping[str, str | None], expected: Mapping[str, str]) -> _Table:
    layout = tables.sniff(path)
    names, notes = names_of(layout, wanted)
    choice = choose(names, wanted, expected, layout.header or names is RATINGS)
    if not choice.picks:
        return _table({}, names, choice, notes, [])
    text = tables.read(path, layout, choice.picks)
    return _table(text.columns, names, choice, notes + text.notes, text.problems)


def names_of(
    layout: tables.Layout, wanted: Mapping[str, str | None]
) -> tuple[list[str], list[str]]:
    """Returns the names of the columns of a text table, and what to know about them."""
    if layout.header or any(wanted.values()) or not layout.movielens:
        return layout.names, []
    return RATINGS, [
        "the file has no header: its columns are read as user, item, rating, timestamp"
    ]


def _table(
    columns: dict[str, pa.ChunkedArray],
    names: list[str],
    choice: Choice,
    notes: list[str],
    problems: list[str],
) -> _Table:
    named = {role: names[i] for role, i in choice.picks.items()}
    return _Table(columns, named, notes + choice.notes, choice.problems + problems)
