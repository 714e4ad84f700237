"""Reads interactions from text tables and parquet files.

Only the three columns that matter are parsed. Text ids are read as text and become integers when
every one is an integer in plain form, so that ids such as 007 keep their zeros.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqtune.data.dataset import Dataset
from seqtune.errors import UserError

TEXT = (".csv", ".tsv", ".txt", ".dat", ".data", ".inter")
PARQUET = (".parquet", ".pq")
DELIMITERS = ("::", "\t", ",", ";", "|", " ")
MISSING = ["", "nan", "NaN", "null", "NULL", "None", "NA", "N/A", "<NA>", "\\N"]

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

TICKS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
YEAR_1973, YEAR_2100 = 10**8, 4_102_444_800  # in seconds
ARROW_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def read(path: Path, columns: Mapping[str, str | None]) -> Dataset:
    """Reads a file; ``columns`` may name the columns of ``user``, ``item`` and ``time``.

    Users and items are numbered in the order of their own ids. Raises UserError with the place and
    the row where the file cannot be used; rows are counted from 1, without the header.
    """
    place = str(path)
    table, notes = _open(path, columns, place)
    if not len(table["user"]):
        raise UserError(f"{place}: the file has no interactions; it needs one row for each")
    users, user_ids = _ids(table["user"], place, "user")
    items, item_ids = _ids(table["item"], place, "item")
    times, note = _times(table["time"], place)
    notes += note
    order = np.lexsort((times.order, users))  # stable: ties keep the order of the file
    return Dataset(
        name=Path(path.name.removesuffix(".gz")).stem,
        items=(items + 1)[order].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_ids)))]),
        times=times.milliseconds[order],
        user_ids=user_ids,
        item_ids=item_ids,
        notes=tuple(notes),
    )


def find(source: str) -> Path:
    """Returns the path of an existing, readable kind of file, or raises a UserError."""
    if "://" in source:
        raise UserError(
            f"--data {source}: only local files are read; copy it to this machine first"
        )
    path = Path(source).expanduser()
    kinds = f"{', '.join(TEXT)} (each also .gz) and {', '.join(PARQUET)}"
    if path.is_dir() or not path.exists():
        folder = path if path.is_dir() else path.parent
        if not folder.is_dir():
            raise UserError(f"--data {source}: there is no folder {folder}")
        names = sorted(p.name for p in folder.iterdir() if _kind(p) and p.is_file())
        near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:8]
        hint = f"did you mean {' or '.join(near)}?" if near else "it holds no file of a known kind"
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"--data {source}: {what}; in {folder.resolve()}: {hint}")
    if not _kind(path):
        raise UserError(f"--data {source}: unknown kind of file {path.suffix!r}; known: {kinds}")
    return path


def _kind(path: Path) -> str:
    """Returns the extension that says how to read a file, or nothing where none is known."""
    *_, kind = ["", *path.suffixes[-2:]]
    if kind.lower() == ".gz":
        inner = path.with_suffix("").suffix.lower()
        return inner if inner in TEXT else ""
    return kind.lower() if kind.lower() in (*TEXT, *PARQUET) else ""


def _open(
    path: Path, wanted: Mapping[str, str | None], place: str
) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """Returns the columns of user, item and time, and notes."""
    if _kind(path) in PARQUET:
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
            names = file.schema_arrow.names
            picks = _choose(names, wanted, place)
            table = file.read(columns=[names[i] for i in picks.values()])
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{place}: not a readable parquet file ({_first(error)})") from None
        return {role: _decoded(table[names[i]]) for role, i in picks.items()}, []

    layout = _sniff(path, place)
    notes = []
    if not layout.header and not any(wanted.values()) and layout.movielens:
        layout = replace(layout, names=["user", "item", "rating", "timestamp"])
        notes = ["the file has no header: its columns are read as user, item, rating, timestamp"]
    picks = _choose(layout.names, wanted, place, layout.header)
    return _text_columns(path, layout, picks, place), notes


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns plain values: categories may be unused, and views lack most functions."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return column.cast(pa.string() if pa.types.is_string_view(kind) else kind)


# Text tables.


@dataclass(frozen=True)
class Layout:
    """How a text table is written, found from its first lines."""

    names: list[str]  # of the columns; positions "1", "2", ... where there is no header
    delimiter: str
    header: bool
    skip: int  # lines before the first row
    quotes: bool  # RecBole's files have none
    multiline: bool  # a value may hold a line break
    movielens: bool  # looks like user, item, rating, seconds


def _sniff(path: Path, place: str, size: int = 65_536) -> Layout:
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            head = file.read(size)
        text = head.decode("utf-8-sig", errors="ignore" if len(head) == size else "strict")
    except UnicodeDecodeError:
        raise UserError(f"{place}: not UTF-8 text; save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{place}: cannot be read ({_first(error)})") from None
    lines = text.splitlines()
    if len(head) == size and len(lines) > 1:
        lines = lines[:-1]  # it may be cut
    blank = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    lines = lines[blank : blank + 200]
    if not lines:
        raise UserError(f"{place}: the file is empty; it needs a row per interaction")

    quotes = not re.search(r":token\b", lines[0])
    rows = {d: _rows(lines, d, quotes) for d in DELIMITERS}

    def fit(delimiter: str) -> tuple[bool, int]:
        widths = [len(row) for row in rows[delimiter]]
        return min(widths) == max(widths) > 1, widths[0]

    delimiter = max(DELIMITERS, key=fit)
    first, table = rows[delimiter][0], rows[delimiter]
    header = not any(_is_number(value) or re.match(r"\d{4}-\d\d-\d\d", value) for value in first)
    return Layout(
        names=[re.sub(r":\w+$", "", name) if not quotes else name for name in first]
        if header
        else [str(i + 1) for i in range(len(first))],
        delimiter=delimiter,
        header=header,
        skip=blank + header,
        quotes=quotes,
        multiline=quotes and '"' in text,
        movielens=all(
            len(row) == 4
            and all(map(_is_number, row))
            and 0 <= float(row[2]) <= 10
            and YEAR_1973 <= float(row[3]) < YEAR_2100
            for row in table
        ),
    )


def _rows(lines: list[str], delimiter: str, quotes: bool) -> list[list[str]]:
    if len(delimiter) > 1:
        rows = [line.split(delimiter) for line in lines]
    else:
        rows = list(
            csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)
            if quotes
            else csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        )
    return [[value.strip() for value in row] for row in rows if row]


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", text))


def _text_columns(
    path: Path, layout: Layout, picks: Mapping[str, int], place: str
) -> dict[str, pa.ChunkedArray]:
    from pyarrow import csv as arrow_csv

    names = [str(i) for i in range(len(layout.names))]  # the file's own may occur twice
    coded = pa.dictionary(pa.int32(), pa.string())
    types = {str(i): pa.string() if role == "time" else coded for role, i in picks.items()}
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    delimiter = layout.delimiter
    source: Any = pa.input_stream(str(path), compression="detect")
    try:
        if len(delimiter) > 1:  # pyarrow splits at single characters
            source = pa.BufferReader(source.read().replace(delimiter.encode(), b"\t"))
            delimiter = "\t"
        table = arrow_csv.read_csv(
            source,
            read_options=arrow_csv.ReadOptions(column_names=names, skip_rows=layout.skip),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if layout.quotes else False,
                newlines_in_values=layout.multiline,
                invalid_row_handler=refuse,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=MISSING,
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        if ragged:
            row = ragged[0]
            raise UserError(
                f"{place}: the row {row.text!r} has {row.actual_columns} columns where "
                f"{row.expected_columns} are expected; mend or remove it"
            ) from None
        if "Empty CSV" in str(error):
            raise UserError(f"{place}: the file has a header and no rows") from None
        if "UTF8" in str(error):
            raise UserError(f"{place}: not UTF-8 text; save it as UTF-8") from None
        raise UserError(f"{place}: cannot be read ({_first(error)})") from None
    return {role: table[str(i)] for role, i in picks.items()}


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# Columns.


def _choose(
    names: list[str], wanted: Mapping[str, str | None], place: str, header: bool = True
) -> dict[str, int]:
    """Returns the position of the column of each role."""
    picks: dict[str, int] = {}
    for role, groups in USUAL.items():
        name = wanted.get(role)
        if name is not None:
            found = [i for i, n in enumerate(names) if n == name] or [
                i for i, n in enumerate(names) if _plain(n) == _plain(name.partition(":")[0])
            ]
        else:
            matches = ([i for i, n in enumerate(names) if _plain(n) in g] for g in groups)
            found = next(filter(None, matches), [])
        there = ", ".join(names)
        if len(found) > 1:
            same = len({names[i] for i in found}) < len(found)
            several = " and ".join(repr(names[i]) for i in found)
            fix = "rename one of them" if same else f"choose one with --{role}-col"
            raise UserError(f"{place}: {several} could each be the {role} column; {fix}")
        if not found and not header and name is None:
            raise UserError(
                f"{place}: the file has no header line; name its {len(names)} columns by position, "
                "for example --user-col 1 --item-col 2 --time-col 3"
            )
        if not found:
            missing = f"no column {name!r}" if name is not None else f"no {role} column found"
            raise UserError(
                f"{place}: {missing}; the columns are {there}; name it with --{role}-col"
            )
        picks[role] = found[0]
    for role, other in (("item", "user"), ("time", "user"), ("time", "item")):
        if picks[role] == picks[other]:
            raise UserError(
                f"{place}: --{role}-col and --{other}-col both name {names[picks[role]]!r}; "
                "each needs a column of its own"
            )
    return picks


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.strip().lower())


# Ids.


def _ids(
    column: pa.ChunkedArray, place: str, role: str
) -> tuple[NDArray[np.int64], NDArray[np.int64] | NDArray[np.object_]]:
    """Returns codes 0.. of each row and the sorted ids they stand for."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    try:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        coded = column.unify_dictionaries().combine_chunks()
        values = _id_values(coded.dictionary)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise UserError(
            f"{place}: the {role} column holds {column.type}, not ids; choose with --{role}-col"
        ) from None
    absent = coded.indices.is_null().to_numpy(zero_copy_only=False)
    codes = coded.indices.fill_null(0).to_numpy()
    if values.null_count or pa.types.is_string(values.type):
        absent |= pc.fill_null(pc.equal(values.cast(pa.string()), ""), True).to_numpy(
            zero_copy_only=False
        )[codes]
    if absent.any():
        raise UserError(
            f"{place}: row {absent.argmax() + 1} has no {role}; remove such rows, or name another "
            f"column with --{role}-col"
        )
    distinct = values.dictionary_encode()  # trimmed texts may have become equal
    order = pc.sort_indices(distinct.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    ids = distinct.dictionary.take(order).to_numpy(zero_copy_only=False)
    return rank[distinct.indices.to_numpy()][codes], ids


def _id_values(values: pa.Array) -> pa.Array:
    """Returns ids as int64 where each is an integer in plain form, else as text."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        values = pc.utf8_trim_whitespace(values.cast(pa.string()))
        if not pc.all(pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]*)$")).as_py():
            return values
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid:  # a fraction, or beyond 64 bits
        return values.cast(pa.string())


# Times.


class Times(NamedTuple):
    """Times of the rows: as finely as the file has them, for sorting, and in milliseconds."""

    order: NDArray[Any]
    milliseconds: NDArray[np.int64]


def _times(column: pa.ChunkedArray, place: str) -> tuple[Times, list[str]]:
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    if array.null_count:
        row = array.is_null().to_numpy(zero_copy_only=False).argmax() + 1
        raise UserError(
            f"{place}: row {row} has no time; remove such rows, or name another column with "
            "--time-col"
        )
    array, unit, notes = _numbers(array, place)
    values = array.to_numpy(zero_copy_only=False)
    low = 0
    if unit is None:
        typical = np.partition(values, len(values) // 2)[len(values) // 2]
        unit = _unit(typical) or "seconds"
        low = 0 if unit == "seconds" else YEAR_1973 * TICKS[unit]
        if unit != "seconds":
            notes = [f"times are read as {unit}, by their size"]
        elif values.max() < YEAR_1973:
            notes = ["times are small numbers, read as seconds: only their order is meaningful"]
    absurd = (values < low) | (values >= YEAR_2100 * TICKS[unit])
    if absurd.any():
        row = int(absurd.argmax())
        shown = column[row].as_py()
        raise UserError(
            f"{place}: row {row + 1} has the time {shown}, which is not between 1970 and 2100 in "
            f"{unit}, the unit of the others; mend or remove it"
        )
    return Times(values, _milliseconds(values, TICKS[unit])), notes


def _numbers(array: pa.Array, place: str) -> tuple[pa.Array, str | None, list[str]]:
    """Returns times as numbers, their unit where the column tells it, and notes."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = _parse(pc.utf8_trim_whitespace(array), place)
    elif pa.types.is_date(kind):
        array = array.cast(pa.timestamp("ms"))
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    if pa.types.is_timestamp(array.type):
        zone = array.type.tz
        notes = [] if zone else ["times have no time zone and are read as UTC"]
        return array.cast(pa.int64()), ARROW_UNITS[array.type.unit], notes
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64(), safe=False), None, []
    if pa.types.is_floating(array.type):
        return array.cast(pa.float64()), None, []
    raise UserError(f"{place}: the time column holds {kind}, not times; choose with --time-col")


def _parse(texts: pa.Array, place: str) -> pa.Array:
    """Returns numbers or timestamps; the first value says which, and all must agree."""
    texts = pc.replace_substring_regex(texts, r"\s*(UTC|GMT)$", "Z")
    kinds = (pa.int64(), pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
    for kind in kinds:
        if _reads(texts, kind):
            return texts.cast(kind)
    kind = next((k for k in kinds[1:] if _reads(texts[:1], k)), kinds[1])
    good, bad = 0, len(texts)  # rows before `good` read, and one before `bad` does not
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _reads(texts[good:middle], kind) else (good, middle)
    raise UserError(
        f"{place}: row {good + 1} has the time {texts[good].as_py()!r}; write seconds or "
        "milliseconds since 1970, or ISO such as 2024-05-31T18:30:00, the same way in every row"
    )


def _reads(texts: pa.Array, kind: pa.DataType) -> bool:
    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _unit(value: float) -> str | None:
    """Returns the unit in which a time lies between 1973 (seconds: 1970) and 2100."""
    for unit, ticks in TICKS.items():
        if (0 if ticks == 1 else YEAR_1973 * ticks) <= value < YEAR_2100 * ticks:
            return unit
    return None


def _milliseconds(values: NDArray[Any], ticks: int) -> NDArray[np.int64]:
    scaled = values // (ticks // 1000) if ticks > 1000 else values * (1000 // ticks)
    rounded: NDArray[np.int64] = np.rint(scaled).astype(np.int64)
    return rounded
