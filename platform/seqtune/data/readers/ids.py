"""Ids as a file writes them: numbered from 0 in their order, and kept as they are.

What a file types stays: text of a parquet file is text, an unsigned integer is unsigned. A text
table has no types, so its ids are integers where every one is one in plain form (007 stays 007).
"""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqtune.errors import UserError

PLAIN = r"(0|-?[1-9][0-9]*)"


class Ids(NamedTuple):
    """The ids of a column: row r has ``own[codes[r]]``."""

    codes: NDArray[np.int64]  # (rows,) 0..n - 1
    own: NDArray[Any]  # (n,) int64, uint64 or str, increasing
    notes: list[str]


def ids(column: pa.ChunkedArray, role: str, typed: bool) -> Ids:
    """Numbers the ids of a column; ``typed`` says whether the file has types.

    Raises UserError where a row has none, or where these are no ids.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
    try:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        coded = column.unify_dictionaries().combine_chunks()
        values, notes = _values(coded.dictionary, role, typed)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError):
        raise UserError(_no_ids(kind, role)) from None
    absent = coded.indices.is_null().to_numpy(zero_copy_only=False)
    codes = coded.indices.fill_null(0).to_numpy()
    if len(values) and (values.null_count or pa.types.is_string(values.type)):
        absent |= pc.fill_null(pc.equal(values.cast(pa.string()), ""), True).to_numpy(
            zero_copy_only=False
        )[codes]
    if absent.any():
        n, row = np.count_nonzero(absent), absent.argmax() + 1
        where = f"row {row} has" if n == 1 else f"{n:,} rows have"
        first = "" if n == 1 else f" (the first is row {row})"
        spelt = "" if typed else " (quote an id that is spelt NA or null)"
        raise UserError(
            f"{where} no {role}{first}; --drop-bad-rows leaves them out, and --{role}-col names "
            "another column"
            f"{spelt}"
        )
    distinct = values.dictionary_encode()  # trimmed texts may have become equal
    order = pc.sort_indices(distinct.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    own = distinct.dictionary.take(order).to_numpy(zero_copy_only=False)
    return Ids(rank[distinct.indices.to_numpy()][codes], own, notes)


def _values(values: pa.Array, role: str, typed: bool) -> tuple[pa.Array, list[str]]:
    """Returns distinct ids as int64, uint64 or text, and notes."""
    kind = values.type
    if pa.types.is_uint64(kind):
        return values, []
    if pa.types.is_fixed_size_binary(kind):
        own = [str(uuid.UUID(bytes=v)) if v is not None else None for v in values.to_pylist()]
        return pa.array(own, pa.string()), []
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return values.cast(pa.int64()), []
        except pa.ArrowInvalid:  # a fraction, or beyond 64 bits
            return values.cast(pa.string()), []
    texts = pc.utf8_trim_whitespace(values.cast(pa.string()))
    if typed and not pa.types.is_decimal(kind):
        return texts, []
    return _integers(texts, role)


def _integers(texts: pa.Array, role: str) -> tuple[pa.Array, list[str]]:
    """Returns int64 where every text is a plain integer, or one that was written as a float."""
    bare = pc.replace_substring_regex(texts, r"\.0+$", "")
    if not pc.all(pc.match_substring_regex(bare, f"^{PLAIN}$")).as_py():
        return texts, []
    try:
        numbers = bare.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        return texts, []
    floats = pc.not_equal(bare, texts)
    if not pc.any(floats).as_py():
        return numbers, []
    place = pc.index(floats, True).as_py()
    shown = f"{texts[place].as_py()} is {bare[place].as_py()}"
    return numbers, [f"{role} ids are written as floats and read as integers: {shown}"]


def _no_ids(kind: pa.DataType, role: str) -> str:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    fix = f"choose with --{role}-col"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        fix = f"write one row for each {role}, or {fix}"
    return f"the {role} column holds {kind}, not ids; {fix}"
