"""Text tables: how one is written is found from its first lines, and no row is ever lost.

Quotation marks are read in one of two ways. Where every line is a row by itself, it is one row,
and a column's values lose their quotes only if each that opens with a quote is properly quoted:
so a title such as ``"Heroes (live)`` swallows nothing. Else values are quoted, since they hold the
delimiter or line breaks; then the whole file has to be quoted properly.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from seqtune.data.readers.times import YEAR_1973, YEAR_2100
from seqtune.errors import UserError

DELIMITERS = ("::", "\t", ",", ";", "|", " ")
ODD = "\x1f"  # in place of :: for pyarrow, which splits at single characters
IDS = ("user", "item")  # roles of columns that few values are in, often
MISSING = ["", "nan", "NaN", "null", "NULL", "None", "NA", "N/A", "<NA>", "\\N"]
SNIFFED, LINES = 65_536, 200  # bytes and lines that are looked at first
SHOWN = 80  # characters of a row in a message
IN_PARTS = (
    "; a text table is read in parts where each line is a row and each quoted value is closed: "
    "write it as parquet"
)


@dataclass(frozen=True)
class Layout:
    """How a text table is written, found from its first lines."""

    names: list[str]  # of the columns; positions "1", "2", ... where there is no header
    delimiter: str
    header: bool
    skip: int  # lines before the first row
    quotes: bool  # RecBole's files have none
    movielens: bool  # looks like user, item, rating, seconds
    encoding: str = "utf-8"
    notes: list[str] = field(default_factory=list)


class Text(NamedTuple):
    """The columns of a text table, what to know about them, and what is wrong."""

    columns: dict[str, pa.ChunkedArray]
    notes: list[str]
    problems: list[str]


class _RaggedError(Exception):
    """A row has another number of columns than the first."""


def sniff(path: Path, encoding: str | None = None) -> Layout:
    """Finds out how a table is written; raises UserError where it is none."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            head = file.read(SNIFFED)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot be read ({first_line(error)})") from None
    if encoding is None and b"\0" in head and head[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError("holds zero bytes, so it is no text table; name it by what it is")
    if encoding is None:
        encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        text = head.decode("utf-8-sig" if encoding == "utf-8" else encoding, errors="replace")
    except LookupError:
        raise UserError(f"--encoding {encoding}: there is no such encoding; try cp1252") from None
    lines = re.split(r"\r\n|\r|\n", text)  # as pyarrow does; splitlines knows seven more
    cut = len(head) == SNIFFED and len(lines) > 1
    lines = lines[:-1] if cut else lines
    blank = next((i for i, line in enumerate(lines) if line.strip()), len(lines))
    cut, lines = cut or len(lines) > blank + LINES, lines[blank : blank + LINES]
    lines = [line for line in lines if line]
    if not lines:
        raise UserError("the file is empty; it needs a row per interaction")

    marked = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    quotes = not re.search(r":token\b", lines[marked])
    delimiter, table = _table(lines[marked:], quotes, cut)
    header, comments = _is_header(table[0]), marked
    for line in reversed(lines[:marked]):  # a header may begin with # as well, and so may rows
        above = _rows([line], delimiter, quotes)[0]
        if header or not len(above) == len(table[0]) > 1:
            break
        table, comments, header = [above, *table], comments - 1, _is_header(above)
        if header:
            above[0] = above[0].lstrip("# ")
    notes = [f"{comments} lines on top begin with # and are skipped"] if comments > 1 else []
    notes += ["the first line begins with # and is skipped"] if comments == 1 else []
    return Layout(
        names=[name if quotes else re.sub(r":\w+$", "", name) for name in table[0]]
        if header
        else [str(i + 1) for i in range(len(table[0]))],
        delimiter=delimiter,
        header=header,
        skip=blank + comments + header,
        quotes=quotes,
        movielens=all(map(_is_rating, table)),
        encoding=encoding,
        notes=notes,
    )


def _table(lines: list[str], quotes: bool, cut: bool) -> tuple[str, list[list[str]]]:
    """Returns the delimiter that makes the most columns, as many in each line, and the rows."""
    best: tuple[tuple[bool, int], str, list[list[str]]] | None = None
    for quoted in (True, False) if quotes else (False,):
        for delimiter in DELIMITERS:
            rows = _rows(lines, delimiter, quoted)
            rows = rows[:-1] if quoted and cut and len(rows) > 1 else rows  # it may be cut
            widths = [len(row) for row in rows]
            fit = (min(widths) == max(widths) > 1, widths[0])
            if best is None or fit > best[0]:
                best = fit, delimiter, rows
        if best is not None and best[0][0]:
            break
    assert best is not None
    return best[1:]


def _rows(lines: list[str], delimiter: str, quotes: bool) -> list[list[str]]:
    if len(delimiter) > 1:
        rows = [line.split(delimiter) for line in lines]
    elif quotes:
        rows = list(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL))
    else:
        rows = list(csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE))
    return [[value.strip() for value in row] for row in rows if row]


def _is_header(row: list[str]) -> bool:
    return not any(_is_number(value) or re.match(r"\d{4}-\d\d-\d\d", value) for value in row)


def _is_rating(row: list[str]) -> bool:
    return (
        len(row) == 4
        and all(map(_is_number, row))
        and 0 <= float(row[2]) <= 10
        and YEAR_1973 <= float(row[3]) < YEAR_2100
    )


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", text))


def read(path: Path, layout: Layout, picks: Mapping[str, int]) -> Text:
    """Reads the columns that were picked: role -> position. Raises UserError where it cannot."""
    problems = []
    try:
        columns, notes = _read(path, layout, picks)
    except UnicodeDecodeError as error:  # say it, and what else is wrong
        line = error.object.count(b"\n", 0, error.start) + 1
        problems = [
            (
                f"line {line} has the byte 0x{error.object[error.start]:02x}, which is not "
                f"{layout.encoding.upper()}; name how it is written, for example with "
                "--encoding cp1252"
            )
        ]
        columns, notes = _read(path, replace(layout, encoding="latin-1"), picks)
    return Text(columns, [*layout.notes, *notes], problems)


def _read(
    path: Path, layout: Layout, picks: Mapping[str, int]
) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    notes: list[str] = []
    try:
        columns = _parse(path, layout, picks, quotes=False)
        if layout.quotes:
            columns = {role: _unquoted(one, role, notes) for role, one in columns.items()}
    except _RaggedError as ragged:
        content = _content(path, layout)
        if not layout.quotes or b'"' not in content:
            raise UserError(str(ragged)) from None
        start = _after(content, layout.skip)
        _check_quotes(content, start, layout)
        try:
            columns = _parse(path, layout, picks, quotes=True)
        except _RaggedError as still:
            raise UserError(str(still)) from None
        notes += _inner_breaks(content, start, len(next(iter(columns.values()))))
        if "time" in columns:
            columns["time"] = _without_gaps(columns["time"])
    for role, column in columns.items():
        if role in IDS and (odd := _spelt_as_missing(column)):
            notes.append(f"the {role} ids {', '.join(odd)} are in quotes, and so are read as ids")
    return columns, notes


def in_parts(
    path: Path, layout: Layout, picks: Mapping[str, int], size: int
) -> Iterator[dict[str, pa.ChunkedArray]]:
    """Yields the columns that were picked, ``size`` bytes of the file at a time.

    Raises UserError where the file cannot be read so: it is in UTF-16, its delimiter has two
    characters, or values in quotes hold delimiters or line breaks.
    """
    from pyarrow import csv as arrow_csv

    if layout.encoding != "utf-8" or len(layout.delimiter) > 1:
        what = "is in UTF-16" if layout.encoding != "utf-8" else f"has {layout.delimiter} in it"
        raise UserError(f"a file that {what} is not read in parts; write it as parquet")
    try:
        file = arrow_csv.open_csv(_stream(path), **_how(layout, picks, quotes=False, size=size))
        for batch in file:
            found = {role: pa.chunked_array([batch[str(i)]]) for role, i in picks.items()}
            if layout.quotes:
                found = {role: _unquoted(one, role, []) for role, one in found.items()}
            for role, column in found.items():
                values = column.chunk(0).dictionary if role in IDS else column
                if layout.quotes and pc.any(pc.starts_with(values, '"')).as_py():
                    raise UserError(f"some {role} opens with a quotation mark{IN_PARTS}")
            yield found
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        raise UserError(f"cannot be read in parts ({first_line(error)}){IN_PARTS}") from None


def _how(
    layout: Layout, picks: Mapping[str, int], *, quotes: bool, size: int | None = None
) -> dict[str, Any]:
    """Returns what pyarrow is told of a text table; ``size`` in bytes, of what it reads at once."""
    from pyarrow import csv as arrow_csv

    names = [str(i) for i in range(len(layout.names))]  # the file's own may occur twice
    coded = pa.dictionary(pa.int32(), pa.string())
    types = {str(i): coded if role in IDS else pa.string() for role, i in picks.items()}
    long = len(layout.delimiter) > 1
    return {
        "read_options": arrow_csv.ReadOptions(
            column_names=names,
            skip_rows=layout.skip,
            encoding="utf-8" if long else layout.encoding,
            block_size=size,
        ),
        "parse_options": arrow_csv.ParseOptions(
            delimiter=ODD if long else layout.delimiter,
            quote_char='"' if quotes else False,
            newlines_in_values=quotes,
        ),
        "convert_options": arrow_csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=MISSING,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    }


def _parse(
    path: Path, layout: Layout, picks: Mapping[str, int], quotes: bool
) -> dict[str, pa.ChunkedArray]:
    from pyarrow import csv as arrow_csv

    try:
        long = len(layout.delimiter) > 1
        source = pa.BufferReader(_content(path, layout)) if long else _stream(path)
        table = arrow_csv.read_csv(source, **_how(layout, picks, quotes=quotes))
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        if ragged := re.search(r"Expected (\d+) columns, got (\d+): (.*)", str(error), re.DOTALL):
            expected, found, text = ragged.groups()
            shown = shortened(repr(text.replace(ODD, layout.delimiter)))
            raise _RaggedError(
                f"the row {shown} has {found} columns where {expected} are expected; mend or "
                "remove it"
            ) from None
        if "Empty CSV" in str(error):
            raise UserError("the file has a header and no rows") from None
        if "UTF8" in str(error):
            _content(path, layout).decode()
        raise UserError(f"cannot be read ({first_line(error)})") from None
    return {role: table[str(i)] for role, i in picks.items()}


def _stream(path: Path) -> Any:
    return pa.input_stream(str(path), compression="detect")


def _content(path: Path, layout: Layout) -> bytes:
    """Returns the whole text in UTF-8, with a single character for a longer delimiter."""
    content: bytes = _stream(path).read()
    if layout.encoding != "utf-8":
        content = content.decode(layout.encoding).encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    long = len(layout.delimiter) > 1
    return content.replace(layout.delimiter.encode(), ODD.encode()) if long else content


# Quotation marks.


def _unquoted(column: pa.ChunkedArray, role: str, notes: list[str]) -> pa.ChunkedArray:
    """Takes the quotes off, unless some value opens with one and is not properly quoted."""
    coded = column.combine_chunks()
    ids = pa.types.is_dictionary(coded.type)
    if ids:
        coded = column.unify_dictionaries().combine_chunks()
    values = pc.utf8_trim_whitespace(coded.dictionary if ids else coded)
    opens = pc.fill_null(pc.starts_with(values, '"'), False)
    proper = pc.fill_null(pc.match_substring_regex(values, r'^"(?:[^"]|"")*"$'), False)
    if not pc.any(opens).as_py() or opens != proper:
        return column
    bare = pc.utf8_slice_codeunits(values, 1, -1)
    doubled = pc.match_substring(bare, '""')
    needless = pc.filter(values, pc.and_(proper, pc.invert(doubled)))
    if ids and len(needless) and not pc.all(opens).as_py():
        shown = needless[0].as_py()
        notes.append(f"quotes around some {role} ids are taken off: {shown} is {shown[1:-1]}")
    values = pc.if_else(proper, pc.replace_substring(bare, '""', '"'), values)
    if ids:
        return pa.chunked_array([pa.DictionaryArray.from_arrays(coded.indices, values)])
    return _without_gaps(pa.chunked_array([values]))


def _without_gaps(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Makes values missing that say so in quotes."""
    return pc.if_else(pc.is_in(column, pa.array(MISSING)), None, column)


def _spelt_as_missing(column: pa.ChunkedArray) -> list[str]:
    """Returns ids that would be missing without their quotes."""
    values = column.unify_dictionaries().combine_chunks().dictionary
    found: list[str] = pc.filter(values, pc.is_in(values, pa.array(MISSING[1:]))).to_pylist()
    return sorted(set(found))


def _after(content: bytes, lines: int) -> int:
    """Returns where the text goes on after so many lines."""
    at = 0
    for _ in range(lines):
        at = content.find(b"\n", at) + 1 or len(content)
    return at


def _check_quotes(content: bytes, start: int, layout: Layout) -> None:
    """Raises UserError unless each value that opens with a quote is closed before a delimiter."""
    mark = re.escape(ODD if len(layout.delimiter) > 1 else layout.delimiter).encode()
    value = rb'(?:"[^"]*+(?:""[^"]*+)*+"|[^"%b\r\n][^%b\r\n]*+)?+' % (mark, mark)
    values = re.compile(rb"(?:%b[%b\r\n])*+" % (value, mark)).match(content, start)
    assert values is not None
    at = values.end()
    last = re.compile(value).match(content, at)
    if last is None or last.end() != len(content):
        number = content.count(b"\n", 0, at) + 1
        line = content[content.rfind(b"\n", 0, at) + 1 :].split(b"\n", 1)[0]
        shown = shortened(line.decode(errors="replace").strip())
        raise UserError(
            f"line {number} opens a value with a quotation mark and does not close it before the "
            f'next column ({shown}); write quotes inside a quoted value twice ("")'
        )


def _inner_breaks(content: bytes, start: int, n_rows: int) -> list[str]:
    """Says how many lines are inside of values; there must be none that nobody was told about."""
    n_lines = sum(1 for _ in re.compile(rb"[^\r\n]+").finditer(content, start))
    if n_lines == n_rows:
        return []
    return [f"quoted values hold line breaks: {n_lines:,} lines are {n_rows:,} rows"]


def shortened(text: str) -> str:
    """Cuts a text that would fill the screen."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def first_line(error: Exception) -> str:
    """Returns what an error of a library says first."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
