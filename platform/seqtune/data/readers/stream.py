"""Reads interactions a part at a time, for files that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from seqtune.data.files import PARQUET, kind
from seqtune.data.readers import tables
from seqtune.data.readers.columns import choose
from seqtune.errors import UserError

Columns = dict[str, pa.ChunkedArray]
BYTES = 64  # of a text table that are read at a time, for each row that shall come of them


@dataclass(frozen=True)
class Stream:
    """Files with the same columns, read one after another as often as is needed."""

    paths: list[Path]
    names: dict[str, str]  # role -> name of the column
    picks: dict[str, int]  # role -> its position
    notes: list[str]
    typed: bool  # whether the files know numbers from text
    rows: int  # of a part, about

    @classmethod
    def open(cls, paths: list[Path], wanted: Mapping[str, str | None], rows: int) -> Stream:
        """Finds the columns in the first file, and looks whether the others have the same.

        Raises:
            UserError: a file cannot be read, or lacks a column.
        """
        (first, notes), *others = (_names(path, wanted) for path in paths)
        choice = choose(first, wanted, {})
        if choice.problems:
            raise UserError(f"{paths[0]}: {'; '.join(choice.problems)}")
        for path, (names, _) in zip(paths[1:], others, strict=True):
            if names != first:
                raise UserError(f"{path}: has other columns than {paths[0]}: {', '.join(names)}")
        named = {role: first[i] for role, i in choice.picks.items()}
        typed = kind(paths[0]) in PARQUET
        return cls(paths, named, choice.picks, notes + choice.notes, typed, rows)

    def parts(self) -> Iterator[tuple[str, Columns]]:
        """Yields the columns part by part, each with the place that an error names."""
        for path in self.paths:
            begin = 0
            for columns in self._of(path):
                yield f"{path}, rows counted from {begin + 1:,} on", columns
                begin += len(columns["user"])

    def _of(self, path: Path) -> Iterator[Columns]:
        try:
            if self.typed:
                yield from self._parquet(path)
            else:
                size = BYTES * self.rows
                yield from tables.in_parts(path, tables.sniff(path), self.picks, size)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def _parquet(self, path: Path) -> Iterator[Columns]:
        import pyarrow.parquet as pq

        from seqtune.data.readers import decoded

        try:
            with pq.ParquetFile(path) as file:
                names = list(self.names.values())
                for batch in file.iter_batches(self.rows, columns=names):
                    table = pa.Table.from_batches([batch])
                    yield {role: decoded(table[name]) for role, name in self.names.items()}
        except (pa.ArrowInvalid, OSError) as error:
            why = tables.first_line(error)
            raise UserError(f"not a readable parquet file ({why})") from None


def _names(path: Path, wanted: Mapping[str, str | None]) -> tuple[list[str], list[str]]:
    import pyarrow.parquet as pq

    from seqtune.data.readers import names_of

    if kind(path) not in PARQUET:
        return names_of(tables.sniff(path), wanted)
    try:
        return pq.read_schema(path).names, []
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: not a readable parquet file ({tables.first_line(error)})"
        ) from None
