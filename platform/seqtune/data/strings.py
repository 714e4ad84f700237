"""Ids that are texts: a column of Arrow, which processes share without a copy of their own."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class Strings:
    """Many texts (n,) in one buffer, to be used like an array.

    An array of Python's texts is pickled text by text: 116 MB and .1 s for each process that reads
    a million user ids.
    """

    dtype = np.dtype(object)

    def __init__(self, texts: Any) -> None:
        import pyarrow as pa

        self._column = pa.array(texts, pa.large_string())

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> Strings: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Strings(self._column[index])
        if np.ndim(index) == 0:
            return self._column[int(index)].as_py()
        index = np.asarray(index)
        return Strings(self._column.take(np.flatnonzero(index) if index.dtype == bool else index))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.object_]:
        return np.asarray(self._column.to_numpy(zero_copy_only=False), dtype=object)

    def __arrow_array__(self, type: Any = None) -> Any:  # noqa: A002
        import pyarrow as pa

        return self._column.cast(type or pa.string())  # as files have them

    def tolist(self) -> list[str]:
        """Returns all of them."""
        found: list[str] = self._column.to_pylist()
        return found

    def lengths(self) -> NDArray[np.int64]:
        """Returns how many characters each has: (n,)."""
        from pyarrow import compute

        found: NDArray[np.int64] = np.asarray(compute.utf8_length(self._column), dtype=np.int64)
        return found

    def joined(self) -> bytes:
        """Returns all of them one after another, in UTF-8."""
        if not len(self):
            return b""
        _, offsets, content = self._column.buffers()
        ends = np.frombuffer(offsets, np.int64)[self._column.offset :][: len(self) + 1]
        return memoryview(content)[ends[0] : ends[-1]].tobytes() if content else b""
