"""Texts in one buffer behave like an array of them, and are pickled without a copy."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from seqtune.data.dataset import Dataset
from seqtune.data.strings import Strings

TEXTS = ["b", "", "a\n", "übel", "b", "🙂"]


def dataset(ids: list[str]) -> Dataset:
    n = len(ids)
    items, times = np.ones(n, np.int32), np.zeros(n, np.int64)
    return Dataset("x", items, np.arange(n + 1), times, np.array(ids, object), np.array([7]))


def test_texts_are_taken_out_like_those_of_an_array() -> None:
    strings, array = Strings(TEXTS), np.array(TEXTS, dtype=object)
    assert len(strings) == 6
    assert strings[3] == "übel"
    assert strings[np.int64(5)] == "🙂"
    for index in (slice(1, 4), np.array([5, 0, 0]), array == "b", np.array([], dtype=int)):
        assert strings[index].tolist() == array[index].tolist()
        assert np.array_equal(strings[index], array[index])
    assert np.repeat(strings[2:4], 2).tolist() == ["a\n", "a\n", "übel", "übel"]
    assert pa.array(strings).to_pylist() == TEXTS
    assert strings.dtype.kind == "O"


def test_a_part_knows_its_lengths_and_its_bytes() -> None:
    for part in (Strings(TEXTS), Strings(TEXTS)[2:5], Strings([])):
        assert part.lengths().tolist() == [len(text) for text in part.tolist()]
        assert part.joined() == "".join(part.tolist()).encode()


def test_a_dataset_with_texts_is_pickled_without_them() -> None:
    data, buffers = dataset([f"user {n:050d}" for n in range(10_000)]), list[pickle.PickleBuffer]()
    kept = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(kept) < 2_000
    again = pickle.loads(kept, buffers=buffers)
    assert again.user_ids.tolist() == data.user_ids.tolist()
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("other", [["ab", "c"], ["a", "bc", ""], ["a", "bd"]])
def test_the_fingerprint_tells_texts_apart(other: list[str]) -> None:
    assert dataset(other).fingerprint != dataset(["a", "bc"]).fingerprint
