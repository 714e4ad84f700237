"""Files that are not a row an event: lists of items, and lines of a user and its items."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from seqtune.errors import UserError

LINES = 200  # that are looked at
OF_TABLES = b",;|\t\"'"  # characters of a line that is a row of a table
Columns = dict[str, pa.ChunkedArray]


def exploded(columns: Columns) -> tuple[Columns, list[str]]:
    """Gives each item of a list a row of its own, with what stands beside it."""
    item = columns.get("item")
    if item is None or not _is_list(item.type):
        return columns, []
    lists = item.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    of = pa.array(np.repeat(np.arange(len(lists)), lengths.to_numpy(zero_copy_only=False)))
    found = {}
    for role, column in columns.items():
        one = column.combine_chunks()
        if not _is_list(one.type):
            found[role] = pa.chunked_array([one.take(of)])
            continue
        if not pc.fill_null(pc.list_value_length(one), 0).equals(lengths):
            raise UserError(f"the lists of {role}s and items are not of the same lengths")
        found[role] = pa.chunked_array([pc.list_flatten(one)])
    return found, ["each item of a list is read as a row"]


def _is_list(kind_: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind_) or pa.types.is_large_list(kind_))


def sequences(path: Path, encoding: str | None) -> Columns | None:
    """Reads lines of a user and its items, as many as there are; None where it is a table."""
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        try:
            lines = [line for line in islice(file, LINES) if line.strip()]
        except (OSError, EOFError):
            return None  # what is wrong is said where tables are read
        widths = {len(line.split()) for line in lines}
        table = any(set(OF_TABLES) & set(line) or b"::" in line for line in lines)
        if table or len(widths) < 2 or min(widths) < 2:
            return None
        lines += [line for line in file if line.strip()]
    rows = [line.decode(encoding or "utf-8").split() for line in lines]
    lengths = np.array([len(row) - 1 for row in rows])
    users = np.repeat(np.array([row[0] for row in rows], dtype=object), lengths)
    items = [word for row in rows for word in row[1:]]
    found = {"user": users, "item": items}
    return {role: pa.chunked_array([pa.array(one, pa.string())]) for role, one in found.items()}
