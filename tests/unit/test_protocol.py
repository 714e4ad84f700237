"""The protocol is decided in one place, and says itself in a sentence with its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seqtune.data import Dataset, Protocol, leave_one_out
from seqtune.data.protocol import repeated

HELD = (
    "Leave-one-out: the last item of 3 users is the test and the one before it validates; each is "
    "ranked among all 8 items, and "
)


@pytest.fixture
def data() -> Dataset:
    return Dataset(
        name="example",
        items=np.array([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], np.int32),
        offsets=np.array([0, 3, 7, 11]),
        times=np.arange(11),
        user_ids=np.arange(3),
        item_ids=np.arange(8),
    )


def repeating(data: Dataset) -> Dataset:
    """The last user validates on the item that came before."""
    items = data.items.copy()
    items[-2] = items[-3]
    return replace(data, items=items)


def test_seen_items_are_left_out_unless_validation_asks_for_them(data: Dataset) -> None:
    assert Protocol.of(data) == Protocol(mask_seen=True, valid_users=None, seed=0)
    assert Protocol.of(repeating(data)) == Protocol(mask_seen=False)
    assert Protocol.of(data, False, 7, 3) == Protocol(False, 7, 3)
    assert Protocol.of(repeating(data), True).mask_seen


def test_a_repeated_row_in_training_or_test_decides_nothing(data: Dataset) -> None:
    items = data.items.copy()
    items[1], items[-1] = items[0], items[-2]
    once = replace(data, items=items)
    assert once.has_repeats
    assert Protocol.of(replace(once, offsets=np.array([0, 4, 7, 11]))).mask_seen


@pytest.mark.parametrize(("n", "masked"), [(1, True), (2, False)])
def test_one_in_a_hundred_decides(n: int, masked: bool) -> None:
    histories = np.arange(1, 4 * 200 + 1, dtype=np.int32).reshape(200, 4)
    histories[:n, 2] = histories[:n, 0]
    many = Dataset(
        "many",
        histories.ravel(),
        np.arange(0, 801, 4),
        np.arange(800),
        np.arange(200),
        np.arange(800),
    )
    assert repeated(many, leave_one_out(many).valid) == n / 200
    assert Protocol.of(many).mask_seen is masked


def test_repeats_are_counted(data: Dataset) -> None:
    assert data.n_repeats == 0
    assert repeating(data).n_repeats == 1
    assert replace(data, items=np.array([1] * 3 + [2] * 4 + [3] * 4, np.int32)).n_repeats == 8


FACT = "33.3 % of the validation targets are items that the user had before"


@pytest.mark.parametrize(
    ("repeats", "mask_seen", "said"),
    [
        (False, None, "left out, since no user has an item twice."),
        (False, False, "ranked too, as --rank-seen says, although no user has an item twice."),
        (True, None, f"ranked too, since {FACT}."),
        (True, True, f"left out, as --mask-seen says, although {FACT}."),
    ],
)
def test_the_sentence(data: Dataset, repeats: bool, mask_seen: bool | None, said: str) -> None:
    one = repeating(data) if repeats else data
    assert Protocol.of(one, mask_seen).sentence(one) == f"{HELD}seen items are {said}"


def test_the_sentence_says_who_validates(data: Dataset) -> None:
    assert "validates for 2 of them, drawn with seed 7; each" in Protocol(True, 2, 7).sentence(data)
    assert "validates; each" in Protocol(True, 3, 7).sentence(data)
    short = replace(data, offsets=np.array([0, 2, 7, 11]))
    assert "of 2 users with at least 3 is the test" in Protocol(True).sentence(short)


def test_the_split_is_that_of_the_protocol(data: Dataset) -> None:
    whole, some = Protocol(True).split(data), Protocol(True, 2, 7).split(data)
    assert whole.valid.events.tolist() == leave_one_out(data).valid.events.tolist()
    assert some.valid.users.tolist() == whole.valid.sample(2, 7).users.tolist()
    assert some.test.events.tolist() == whole.test.events.tolist() == [2, 6, 10]


def test_training_events_are_counted(data: Dataset) -> None:
    assert leave_one_out(data).counts().tolist() == [2, 0, 0, 1, 1, 0, 0, 1]
    assert Protocol(True).split(repeating(data)).counts().sum() == 5
    assert data.describe() == "example: 3 users, 8 items, 11 interactions"
