"""Rows that cannot be read: without a user or an item, or with a time that is none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqtune.data.readers.times import TICKS, YEAR_1973, YEAR_2100, unit_of
from seqtune.words import counted

A = {"user": "a user", "item": "an item", "time": "a time"}
Mask = NDArray[np.bool_]


def without_bad(
    columns: Mapping[str, pa.ChunkedArray], form: str | None
) -> tuple[dict[str, pa.ChunkedArray], list[str]]:
    """Returns the columns without such rows, and how many they were; ``form`` is that of times."""
    bad: dict[str, Mask] = {}
    for role, column in columns.items():
        if role in ("user", "item"):
            bad[role] = no_id(column)
        elif role == "time":
            bad[role] = no_time(column, form)
    every = np.logical_or.reduce(list(bad.values()))
    if not every.any():
        return dict(columns), []
    why = [f"{int(mask.sum()):,} without {A[role]}" for role, mask in bad.items() if mask.any()]
    keep = pa.array(~every)
    rows = counted(int(every.sum()), "row")
    note = f"{rows} that cannot be read {'is' if every.sum() == 1 else 'are'} left out: "
    return {role: one.filter(keep) for role, one in columns.items()}, [note + ", ".join(why)]


def no_id(column: pa.ChunkedArray) -> Mask:
    """Says which rows have no id."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(array.type):
        missing |= ~np.isfinite(array.fill_null(0).to_numpy(zero_copy_only=False))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        empty = pc.equal(pc.utf8_trim_whitespace(array), "")
        missing |= pc.fill_null(empty, True).to_numpy(zero_copy_only=False)
    found: Mask = missing
    return found


def no_time(column: pa.ChunkedArray, form: str | None) -> Mask:
    """Says which rows have no time, or one that does not read as most do."""
    import pandas as pd

    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        missing: Mask = array.is_null().to_numpy(zero_copy_only=False)
        if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
            return missing
        return _absurd(pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False))
    texts = array.to_pandas()
    when = pd.to_datetime(texts, format=form or "ISO8601", errors="coerce", utc=True)
    numbers = pd.to_numeric(texts, errors="coerce")
    if form is None and numbers.notna().sum() >= when.notna().sum():
        return _absurd(numbers.to_numpy(float))
    none: Mask = when.isna().to_numpy()
    return none


def _absurd(values: NDArray[np.float64]) -> Mask:
    """Says which numbers are no times in the unit of most."""
    finite = np.isfinite(values)
    if not finite.any():
        return ~finite
    unit, _ = unit_of(values[finite], "")
    ticks = TICKS[unit]
    low = 0 if unit == "seconds" else YEAR_1973 * ticks
    with np.errstate(invalid="ignore"):
        return ~finite | (values < low) | (values >= YEAR_2100 * ticks)
