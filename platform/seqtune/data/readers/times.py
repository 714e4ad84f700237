"""Times as files write them: numbers, ISO text, dates and timestamps."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqtune.errors import UserError

TICKS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
YEAR_1973, YEAR_2100 = 10**8, 4_102_444_800  # in seconds
ARROW_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
ISO = "2024-05-31T18:30:00"


class Times(NamedTuple):
    """Times of the rows: as finely as the file has them, for sorting, and in milliseconds."""

    order: NDArray[Any]
    milliseconds: NDArray[np.int64]
    notes: list[str]


# How dates are written elsewhere, for a hint.
FORMS = (
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%m/%d/%Y %I:%M:%S %p"),
    *("%m/%d/%Y %I:%M %p", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y"),
    *("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M"),
    *("%Y/%m/%d", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y"),
    *("%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%Y.%m.%d %H:%M:%S", "%Y.%m.%d"),
)
LOOKED_AT = 1000  # values, for a hint


def times(column: pa.ChunkedArray, name: str, form: str | None = None) -> Times:
    """Reads the column ``name``; raises UserError where it holds no times.

    ``form`` is how they are written, as strptime has it.
    """
    if form is not None:
        column = formed(column, form)
    values, unit, notes = numbers(column)
    told = unit is not None
    if unit is None:
        unit, notes = unit_of(values, name)
    return Times(values, in_milliseconds(values, unit, told, column), notes)


def in_order(n: int) -> Times:
    """Returns times of rows that have none: their order in the file."""
    rows = np.arange(n)
    return Times(rows, rows, ["the rows have no times: their order is taken for it"])


def formed(column: pa.ChunkedArray, form: str) -> pa.ChunkedArray:
    """Reads texts as ``form`` says; raises UserError where one is written otherwise."""
    import pandas as pd

    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    texts = pc.utf8_trim_whitespace(array.cast(pa.string())).to_pandas()
    try:
        when = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
    except ValueError as error:
        raise UserError(f"--time-format {form}: is no format ({error})") from None
    bad = (when.isna() & texts.notna()).to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"row {row + 1} has the time {texts[row]!r}, which is not as --time-format {form} says"
            f"{hint(texts[row : row + 1].tolist())}"
        )
    read = pa.array(when.dt.tz_convert(None).to_numpy().astype("datetime64[ns]"))
    return pa.chunked_array([read.cast(pa.timestamp("ns", "UTC"))])


def hint(texts: list[str]) -> str:
    """Names the format in which dates are written, or the two that are possible."""
    found = [form for form in FORMS if all(_is_of(form, text) for text in texts)][:2]
    return (
        "; --time-format " + " or ".join(f"'{one}'" for one in found) + " reads it" if found else ""
    )


def _is_of(form: str, text: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def numbers(column: pa.ChunkedArray) -> tuple[NDArray[Any], str | None, list[str]]:
    """Returns times as numbers, their unit where the column itself tells it, and notes.

    Raises UserError where a row has no time, or these are no times.
    """
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
    if array.null_count:
        n = array.null_count
        row = array.is_null().to_numpy(zero_copy_only=False).argmax() + 1
        where = f"row {row} has" if n == 1 else f"{n:,} rows have"
        first = "" if n == 1 else f" (the first is row {row})"
        raise UserError(
            f"{where} no time{first}; --drop-bad-rows leaves them out, and --time-col names "
            "another column"
        )
    array, unit, notes = _numbers(array)
    return array.to_numpy(zero_copy_only=False), unit, notes


def unit_of(values: NDArray[Any], name: str) -> tuple[str, list[str]]:
    """Returns the unit in which the middle of the values is a time, and a note on it."""
    typical = np.partition(values, len(values) // 2)[len(values) // 2]
    if iso := _calendar(values, "%Y%m%d%H%M%S"):
        raise UserError(
            f"the time column {name} holds {values[0]:.0f}, which is {iso} in digits and no number "
            f"of seconds; write it so"
        )
    unit = next(
        (
            unit
            for unit, ticks in TICKS.items()
            if (0 if ticks == 1 else YEAR_1973 * ticks) <= typical < YEAR_2100 * ticks
        ),
        "seconds",
    )
    if unit != "seconds":
        return unit, [f"times are read as {unit}, by their size"]
    if typical >= YEAR_1973:
        return unit, []
    if (values % 1 != 0).any():
        shown = values[np.argmax(values % 1 != 0)]
        return unit, [
            (
                f"the time column {name} holds small fractions such as {shown:g}, which no clock "
                "gives: only their order is used; is --time-col right?"
            )
        ]
    what = "dates in digits" if _calendar(values, "%Y%m%d") else "small numbers, read as seconds"
    return unit, [f"times are {what}: only their order is meaningful"]


def _calendar(values: NDArray[Any], form: str) -> str | None:
    """Returns the first value as ISO text where the ends and the middle are dates in digits."""
    try:
        ends = [values[0], values.min(), values.max(), values[len(values) // 2]]
        found = [datetime.strptime(f"{value:.0f}", form) for value in ends]
    except (ValueError, OverflowError):
        return None
    return found[0].isoformat() if min(found).year >= 1900 and max(found).year < 2100 else None


def _numbers(array: pa.Array) -> tuple[pa.Array, str | None, list[str]]:
    """Returns times as numbers, their unit where the column tells it, and notes."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array = _parse(pc.utf8_trim_whitespace(array))
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
    raise UserError(f"the time column holds {kind}, not times; choose with --time-col")


def _parse(texts: pa.Array) -> pa.Array:
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
    value = texts[good].as_py()
    if value.startswith("'"):
        fix = "single quotes are no quoting: remove them"
    else:
        fix = f"write seconds or milliseconds since 1970, or ISO such as {ISO}"
        fix += ", the same way in every row"
        some = [one for one in texts[good : good + LOOKED_AT].to_pylist() if one]
        fix += hint(some) or hint(some[:1]) or "; --time-format says how else they are written"
        fix += "; --drop-bad-rows leaves out such rows" if good else ""
    raise UserError(f"row {good + 1} has the time {value!r}; {fix}")


def _reads(texts: pa.Array, kind: pa.DataType) -> bool:
    try:
        texts.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def in_milliseconds(
    values: NDArray[Any], unit: str, told: bool, column: pa.ChunkedArray
) -> NDArray[np.int64]:
    """Returns Unix milliseconds; ``told`` says whether the column itself tells its unit.

    Raises UserError, with what stands in ``column``, where a time is none in that unit.
    """
    ticks = TICKS[unit]
    low = 0 if told or unit == "seconds" else YEAR_1973 * ticks
    absurd = (values < low) | (values >= YEAR_2100 * ticks)
    if absurd.any():
        row = int(absurd.argmax())
        raise UserError(
            f"row {row + 1} has the time {column[row].as_py()}, which is not between 1970 and 2100 "
            f"in {unit}, the unit of the others; mend it, or leave it out with --drop-bad-rows"
        )
    scaled = values // (ticks // 1000) if ticks > 1000 else values * (1000 // ticks)
    rounded: NDArray[np.int64] = np.rint(scaled).astype(np.int64)
    return rounded
