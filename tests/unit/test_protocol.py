"""The protocol is decided in one place, and says itself in a sentence with its figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seqtune.data import Dataset, Protocol, leave_one_out

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


def repeating(data: Dataset, copied: bool = False) -> Dataset:
    """The last row repeats the item of the row before, at the same time or later."""
    items, times = data.items.copy(), data.times.copy()
    items[-1] = items[-2]
    times[-1] -= copied
    return replace(data, items=items, times=times)


def test_seen_items_are_left_out_unless_users_repeat_items(data: Dataset) -> None:
    assert Protocol.of(data) == Protocol(mask_seen=True, valid_users=None, seed=0)
    assert Protocol.of(repeating(data)) == Protocol(mask_seen=False)
    assert Protocol.of(data, False, 7, 3) == Protocol(False, 7, 3)
    assert Protocol.of(repeating(data), True).mask_seen


def test_repeats_and_copies_are_counted(data: Dataset) -> None:
    assert (data.n_repeats, data.n_copies) == (0, 0)
    assert (repeating(data).n_repeats, repeating(data).n_copies) == (1, 0)
    assert (repeating(data, copied=True).n_repeats, repeating(data, copied=True).n_copies) == (1, 1)
    thrice = replace(
        data, items=np.array([1] * 3 + [2] * 4 + [3] * 4, np.int32), times=data.times * 0
    )
    assert (thrice.n_repeats, thrice.n_copies) == (8, 8)


FACT = "1 of 11 rows (9.1 %) repeats an item that the user had before"


@pytest.mark.parametrize(
    ("copied", "mask_seen", "said"),
    [
        (None, None, "left out, since no user has an item twice."),
        (None, False, "ranked too, as --rank-seen says, although no user has an item twice."),
        (False, None, f"ranked too, since {FACT}."),
        (
            True,
            None,
            (
                f"ranked too, since {FACT}, at the same time, as a copied row does (--mask-seen "
                "leaves them out)."
            ),
        ),
        (True, True, f"left out, as --mask-seen says, although {FACT}."),
    ],
)
def test_the_sentence(
    data: Dataset, copied: bool | None, mask_seen: bool | None, said: str
) -> None:
    one = data if copied is None else repeating(data, copied)
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
