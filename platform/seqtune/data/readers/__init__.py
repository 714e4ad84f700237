"""Reads interactions from text tables, JSON lines and parquet files.

Only the columns that matter are parsed. All that is wrong with a file is said at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqtune.data.dataset import Dataset
from seqtune.data.files import JSON, PARQUET, kind
from seqtune.data.filters import filtered
from seqtune.data.readers import tables
from seqtune.data.readers.bad import without_bad
from seqtune.data.readers.columns import USUAL, Choice, choose
from seqtune.data.readers.ids import ids
from seqtune.data.readers.shapes import exploded, sequences
from seqtune.data.readers.times import in_order, times
from seqtune.data.reading import Reading
from seqtune.errors import UserError

PARALLEL = 2**20  # keys, from which on parts are sorted side by side
RATINGS = ["user", "item", "rating", "timestamp"]


class _Table(NamedTuple):
    """What a file holds: the columns that were found, by role, and their names in the file."""

    columns: dict[str, pa.ChunkedArray]
    names: dict[str, str]
    notes: list[str]
    problems: list[str]
    typed: bool  # whether the file knows numbers from text


def read(
    sources: Sequence[tuple[Path, str]], reading: Reading, expected: Mapping[str, str] | None = None
) -> Dataset:
    """Reads files as one, of which ``reading`` may name columns, and says which rows count.

    Where it does not, those of ``expected`` are taken if the file has them, else usual names. A
    source is a file and the part that all of it belongs to, or nothing. Users and items are
    numbered in the order of their own ids. Raises UserError with the place and all that is wrong
    where a file cannot be used; rows are counted from 1, without the header.
    """
    found = [_labelled(_read_one(path, reading, expected or {}), part) for path, part in sources]
    path, others = sources[0][0], len(sources) - 1
    place = f"{path} and {others} others" if others else f"{path}"
    return _dataset(joined(found, path), name_of(sources), reading, place)


def read_table(table: pa.Table, name: str, reading: Reading) -> Dataset:
    """Reads a table in memory, as ``read`` does a file."""
    choice = choose(table.column_names, reading.columns, {})
    columns = {role: decoded(table.column(i)) for role, i in choice.picks.items()}
    try:
        found = _with_rows(_table(columns, table.column_names, choice, typed=True), reading)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return _dataset(found, name, reading, name)


def _dataset(table: _Table, name: str, reading: Reading, place: str) -> Dataset:
    """Numbers users and items, sorts by time, and leaves out the rows that do not count."""
    problems, found = table.problems, table.columns

    if any(not len(column) for column in found.values()):
        raise UserError(f"{place}: the file has no interactions; it needs one row for each")
    ways: dict[str, Callable[[], Any]] = {
        "user": lambda: ids(found["user"], "user", table.typed),
        "item": lambda: ids(found["item"], "item", table.typed),
        "time": lambda: times(found["time"], table.names["time"], reading.time_format),
    }
    with ThreadPoolExecutor() as pool:  # arrow and numpy let others run meanwhile
        jobs = {role: pool.submit(way) for role, way in ways.items() if role in found}
    errors = [error for job in jobs.values() if (error := job.exception()) is not None]
    if unknown := [error for error in errors if not isinstance(error, UserError)]:
        raise unknown[0]
    problems += [str(error) for error in errors]
    if problems:
        raise UserError(f"{place}: {_all_of(problems)}", len(problems))
    users, items = jobs["user"].result(), jobs["item"].result()
    when = jobs["time"].result() if "time" in jobs else in_order(len(users.codes))
    order = in_time(users.codes, when.order)
    lengths = np.bincount(users.codes, minlength=len(users.own))
    dataset = Dataset(
        name=name,
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
        raise UserError(f"{place}: {error}") from None


def in_time(users: NDArray[np.int64], times: NDArray[Any]) -> NDArray[np.int64]:
    """Returns the rows by user and time; ties keep the order of the file: (E,).

    Whole numbers are sorted by one key where it has room, in less than half the time.
    """
    if times.dtype.kind in "iu" and len(times):
        least, span = int(times.min()), int(times.max()) - int(times.min()) + 1
        if (int(users.max()) + 1) * span < 2**62:
            return _sorted(users * span + (times.astype(np.int64) - least))
    return np.lexsort((times, users))


def _sorted(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the stable order of many keys: each core sorts a part, and sorted parts merge."""
    cores = len(os.sched_getaffinity(0))
    if len(keys) < PARALLEL or cores == 1:
        return np.argsort(keys, kind="stable")
    parts = np.array_split(np.arange(len(keys)), cores)
    with ThreadPoolExecutor(cores) as pool:
        order = np.concatenate(
            list(pool.map(lambda part: part[np.argsort(keys[part], kind="stable")], parts))
        )
    return order[np.argsort(keys[order], kind="stable")]


def name_of(sources: Sequence[tuple[Path, str]]) -> str:
    """Returns the name of a file without its extension, or of the folder of several."""
    path, part = sources[0]
    several = len(sources) > 1 and not part
    return path.parent.name if several else Path(path.name.removesuffix(".gz")).stem


def _read_one(path: Path, reading: Reading, expected: Mapping[str, str]) -> _Table:
    of = _parquet if kind(path) in PARQUET else _json if kind(path) in JSON else _text
    try:
        return _with_rows(of(path, reading, expected), reading)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _with_rows(table: _Table, reading: Reading) -> _Table:
    """Gives each item of a list a row, and leaves out rows that are bad where that is asked for."""
    columns, notes = exploded(table.columns)
    if reading.drop_bad_rows and columns:
        columns, more = without_bad(columns, reading.time_format)
        notes += more
    return table._replace(columns=columns, notes=table.notes + notes)


def _labelled(table: _Table, part: str) -> _Table:
    """Adds the part that all rows belong to, if there is one."""
    if not part or not table.columns:
        return table
    n = len(next(iter(table.columns.values())))
    return table._replace(
        columns=table.columns | {"split": pa.chunked_array([pa.array([part] * n)])}
    )


def joined(found: list[_Table], first: Path) -> _Table:
    """Puts the rows of several files together.

    Raises:
        UserError: their columns hold other kinds of values.
    """
    if len(found) == 1 or not all(one.columns for one in found):
        return next((one for one in found if not one.columns or one.problems), found[0])
    plain = [
        pa.table({role: decoded(one) for role, one in table.columns.items()}) for table in found
    ]
    try:
        rows = pa.concat_tables(plain, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"{first} and others: {tables.first_line(error)}") from None
    notes = list(dict.fromkeys(note for one in found for note in one.notes))
    problems = list(dict.fromkeys(text for one in found for text in one.problems))
    columns = {role: rows[role] for role in rows.column_names}
    return found[0]._replace(columns=columns, notes=notes, problems=problems)


def _all_of(problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    numbered = (f"({number}) {problem}" for number, problem in enumerate(problems, start=1))
    return f"{len(problems)} things are wrong: {'; '.join(numbered)}"


def _parquet(path: Path, reading: Reading, expected: Mapping[str, str]) -> _Table:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        choice = choose(names, reading.columns, expected)
        table = file.read(columns=[names[i] for i in choice.picks.values()])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"not a readable parquet file ({tables.first_line(error)})") from None
    columns = {role: decoded(table[names[i]]) for role, i in choice.picks.items()}
    return _table(columns, names, choice, typed=True)


def _json(path: Path, reading: Reading, expected: Mapping[str, str]) -> _Table:
    """Reads JSON lines: an object in each."""
    from pyarrow import json as arrow_json

    try:
        with pa.input_stream(str(path), compression="detect") as file:
            if file.read(1) == b"[":
                raise UserError("is one JSON array; write an object a line, as jq -c '.[]' does")
        with pa.input_stream(str(path), compression="detect") as file:
            table = arrow_json.read_json(file)
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise UserError(f"not readable as JSON lines ({tables.first_line(error)})") from None
    choice = choose(table.column_names, reading.columns, expected)
    columns = {role: decoded(table.column(i)) for role, i in choice.picks.items()}
    return _table(columns, table.column_names, choice, typed=True)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns plain values: categories may be unused, and views lack most functions."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.string() if pa.types.is_string_view(kind) else kind)


def _text(path: Path, reading: Reading, expected: Mapping[str, str]) -> _Table:
    if (lines := sequences(path, reading.encoding)) is not None:
        note = "each line is read as a user and its items, in order"
        return _Table(lines, {"user": "1", "item": "2"}, [note], [], False)
    layout, wanted = tables.sniff(path, reading.encoding), reading.columns
    names, notes = names_of(layout, wanted)
    choice = choose(names, wanted, expected, layout.header or names is RATINGS)
    if not choice.picks:
        return _table({}, names, choice, notes)
    text = tables.read(path, layout, choice.picks)
    return _table(text.columns, names, choice, notes + text.notes, text.problems)


def names_of(
    layout: tables.Layout, wanted: Mapping[str, str | None]
) -> tuple[list[str], list[str]]:
    """Returns the names of the columns of a text table, and what to know about them."""
    elsewhere = any(name not in RATINGS for name in wanted.values() if name is not None)
    if layout.header or elsewhere or not layout.movielens:
        return layout.names, []
    return RATINGS, [
        "the file has no header: its columns are read as user, item, rating, timestamp"
    ]


def _table(
    columns: dict[str, pa.ChunkedArray],
    names: list[str],
    choice: Choice,
    notes: Sequence[str] = (),
    problems: Sequence[str] = (),
    *,
    typed: bool = False,
) -> _Table:
    named = {role: names[i] for role, i in choice.picks.items()}
    said = [*notes, *choice.notes]
    return _Table(columns, named, said, [*choice.problems, *problems], typed)
