"""Leave-one-out on three users, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from seqtune.data import Dataset, leave_one_out
from seqtune.errors import UserError


def dataset(*histories: list[int]) -> Dataset:
    items = np.array([item for history in histories for item in history], np.int32)
    return Dataset(
        name="example",
        items=items,
        offsets=np.cumsum([0, *map(len, histories)]),
        times=np.arange(len(items)) * 1000,
        user_ids=np.arange(len(histories)),
        item_ids=np.arange(items.max(initial=0)),
    )


def test_three_users() -> None:
    data = dataset([1, 2, 3], [4, 5, 6, 7, 8], [2, 1, 2, 1])
    split = leave_one_out(data)
    assert split.dataset is data
    assert split.train_end.tolist() == [1, 6, 10]
    assert split.valid.users.tolist() == split.test.users.tolist() == [0, 1, 2]
    assert data.items[split.valid.events].tolist() == [2, 7, 2]
    assert data.items[split.test.events].tolist() == [3, 8, 1]


def test_the_history_of_a_test_target_holds_the_validation_item() -> None:
    data = dataset([1, 2, 3], [4, 5, 6, 7, 8])
    split = leave_one_out(data)
    histories = {
        name: [
            data.items[data.offsets[user] : event].tolist()
            for user, event in zip(held.users, held.events, strict=True)
        ]
        for name, held in (("valid", split.valid), ("test", split.test))
    }
    assert histories["valid"] == [[1], [4, 5, 6]]
    assert histories["test"] == [[1, 2], [4, 5, 6, 7]]


def test_short_histories_are_trained_on_and_not_evaluated() -> None:
    data = dataset([1, 2], [3, 4, 5], [6], [7, 8, 9, 1])
    split = leave_one_out(data)
    assert split.train_end.tolist() == [2, 3, 6, 8]
    assert split.valid.users.tolist() == split.test.users.tolist() == [1, 3]
    assert split.valid.events.tolist() == [3, 8]
    assert split.test.events.tolist() == [4, 9]


def test_read_only_arrays() -> None:
    data = dataset([1, 2, 3])
    data.items.setflags(write=False)
    data.offsets.setflags(write=False)
    split = leave_one_out(data)
    assert split.test.events.tolist() == [2]
    assert split.test.events.dtype == split.test.users.dtype == split.train_end.dtype == np.int64


def test_a_sample_of_the_users() -> None:
    held = leave_one_out(dataset(*[[n + 1, n + 2, n + 3] for n in range(50)])).valid
    some = held.sample(20, seed=7)
    assert len(some.users) == len(set(some.users.tolist())) == 20
    assert some.users.tolist() == sorted(some.users)
    assert some.events.tolist() == held.events[some.users].tolist()
    assert held.sample(20, seed=7).users.tolist() == some.users.tolist()
    assert held.sample(20, seed=8).users.tolist() != some.users.tolist()
    assert held.sample(50, seed=7) is held.sample(51, seed=7) is held


@pytest.mark.parametrize(("histories", "most"), [([[1, 2], [3]], 2), ([], 0)])
def test_no_user_with_three_interactions(histories: list[list[int]], most: int) -> None:
    with pytest.raises(UserError, match=f"^example: no user has three .* is {most}\\), and each"):
        leave_one_out(dataset(*histories))
