"""Recommends to every user of a file, with a checkpoint, into a file of the kind that is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from seqtune import data
from seqtune.checkpoint import Recommender, load
from seqtune.errors import UserError
from seqtune.storage import Folder

USERS = 8192  # of a file, answered at once
Write = Callable[[pa.Table], object]


class Written(NamedTuple):
    """What ``recommend_file`` did."""

    n_users: int
    n_rows: int
    n_popular: int  # users without a known item, who got the most popular ones
    unknown: list[Any]  # ids of items in the file that training never saw


def recommend_file(
    folder: Folder,
    source: str,
    out: str | Path,
    *,
    k: int = 10,
    exclude_seen: bool | None = None,
    user_col: str | None = None,
    item_col: str | None = None,
    time_col: str | None = None,
    device: torch.device | str = "cpu",
) -> Written:
    """Recommends to every user of an interactions file and writes a file.

    One row per recommendation: ``user``, ``rank`` (1 is best), ``item``, ``score``; ids are the
    file's and the catalogue's own, and of their types. The suffix of ``out`` says the format: .csv,
    .tsv, .jsonl or .parquet. Columns have the names that they had in training unless they are
    named, or missing. Rows are written as they are found, and the file appears under its name
    once it is complete.
    """
    target = Path(out)
    check_suffix(target)
    recommender = load(folder, device)
    given = data.load(
        source,
        user_col=user_col,
        item_col=item_col,
        time_col=time_col,
        min_user=1,
        expected=recommender.meta.get("columns"),
    )
    item_of = np.zeros(given.n_items + 1, dtype=np.int64)  # number in the file -> in the model
    item_of[1:] = [recommender.number(own) or 0 for own in given.item_ids.tolist()]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    n_rows = n_popular = 0
    with _writer(part, target.suffix, _schema(given, recommender)) as write:
        for first in range(0, given.n_users, USERS):
            users = np.arange(first, min(first + USERS, given.n_users))
            table, popular = _answers(recommender, given, item_of, users, k, exclude_seen)
            write(table)
            n_rows += len(table)
            n_popular += popular
    part.replace(target)
    unknown = given.item_ids[item_of[1:] == 0].tolist()
    return Written(given.n_users, n_rows, n_popular, unknown)


def _answers(
    recommender: Recommender,
    given: data.Dataset,
    item_of: NDArray[np.int64],
    users: NDArray[np.int64],
    k: int,
    exclude_seen: bool | None,
) -> tuple[pa.Table, int]:
    """Returns the rows of some users, and how many of them have no known item."""
    spans = [slice(given.offsets[u], given.offsets[u + 1]) for u in users]
    rows = [item_of[given.items[span]] for span in spans]
    histories = [row[row > 0] for row in rows]
    times = [given.times[span][row > 0] for span, row in zip(spans, rows, strict=True)]
    found = recommender.rank(histories, k, exclude_seen, times)
    counts = [len(items) for items, _ in found]
    columns = [
        np.repeat(given.user_ids[users], counts),
        np.concatenate([np.arange(1, count + 1) for count in counts]),
        recommender.item_ids[np.concatenate([items for items, _ in found]) - 1],
        np.concatenate([scores for _, scores in found]),
    ]
    schema = _schema(given, recommender)
    table = pa.table(columns, schema.names).cast(schema)
    return table, sum(not len(history) for history in histories)


def _schema(given: data.Dataset, recommender: Recommender) -> pa.Schema:
    user, item = (pa.array(ids[:1]).type for ids in (given.user_ids, recommender.item_ids))
    return pa.schema({"user": user, "rank": pa.int32(), "item": item, "score": pa.float32()})


# Formats.


@contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema) as writer:
        yield writer.write_table


@contextmanager
def _lines(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda table: file.writelines(
            f"{json.dumps(row, ensure_ascii=False)}\n" for row in table.to_pylist()
        )


@contextmanager
def _commas(path: Path, schema: pa.Schema, delimiter: str = ",") -> Iterator[Write]:
    from pyarrow.csv import CSVWriter, WriteOptions

    with CSVWriter(path, schema, write_options=WriteOptions(delimiter=delimiter)) as writer:
        yield writer.write_table


@contextmanager
def _tabs(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with _commas(path, schema, "\t") as write:
        yield write


FORMATS = {".parquet": _parquet, ".pq": _parquet, ".csv": _commas, ".tsv": _tabs, ".jsonl": _lines}


def check_suffix(out: Path) -> None:
    """Raises UserError where the suffix of a file says no format that can be written."""
    if out.suffix.lower() not in FORMATS:
        raise UserError(
            f"--out {out}: the suffix {out.suffix!r} says no format that is known; write "
            f"{', '.join(FORMATS)}"
        )


def _writer(path: Path, suffix: str, schema: pa.Schema) -> Any:
    return FORMATS[suffix.lower()](path, schema)
