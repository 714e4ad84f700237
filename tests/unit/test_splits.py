"""Every split on a dozen events, worked by hand, and what must hold for any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqtune.data import Dataset, Held, Protocol, Split
from seqtune.data.kinds import Kind, parse_split
from seqtune.data.split import DAY, targets
from seqtune.errors import UserError

#           user 0        user 1           user 2   user 3
ITEMS = [1, 2, 3, 4, 1, 3, 5, 6, 7, 2, 8, 9]
TIMES = [1, 2, 6, 10, 3, 4, 7, 8, 11, 5, 9, 12]
OFFSETS = [0, 4, 9, 10, 12]
# In order of time: 0 0 1 1 2 0 1 1 3 0 1 3


@pytest.fixture
def data() -> Dataset:
    return Dataset(
        name="dozen",
        items=np.array(ITEMS, np.int32),
        offsets=np.array(OFFSETS),
        times=np.array(TIMES) * DAY,
        user_ids=np.arange(4),
        item_ids=np.arange(9),
    )


def split(data: Dataset, by: str, **how: Any) -> Split:
    return Protocol(True, split_by=by, **how).split(data)


def told(data: Dataset, held: Held) -> list[tuple[int, list[int], int]]:
    """User, history and target of each."""
    first = data.offsets[held.users]
    rows = zip(held.users.tolist(), first, held.ends, held.events, strict=True)
    return [(u, data.items[a:b].tolist(), int(data.items[e])) for u, a, b, e in rows]


def trained(data: Dataset, found: Split) -> list[list[int]]:
    spans = zip(data.offsets[:-1], found.train_end, strict=True)
    return [data.items[a:b].tolist() for a, b in spans]


def test_leave_two_out(data: Dataset) -> None:
    found = split(data, "leave-two-out")
    assert trained(data, found) == [[1, 2, 3, 4], [1], [2], [8, 9]]
    assert told(data, found.valid) == [(1, [1], 3), (1, [1], 5)]
    assert told(data, found.test) == [(1, [1, 3, 5], 6), (1, [1, 3, 5], 7)]
    assert found.test.lists.tolist() == [0]
    each = split(data, "leave-2-out", targets="successive")
    assert told(data, each.test) == [(1, [1, 3, 5], 6), (1, [1, 3, 5, 6], 7)]


def test_by_the_time_of_a_share_of_all_events(data: Dataset) -> None:
    found = split(data, "time:0.5,0.7", targets="successive")  # 6.5 and 8.7 days
    assert trained(data, found) == [[1, 2, 3], [1, 3], [2], []]
    assert told(data, found.valid) == [(1, [1, 3], 5), (1, [1, 3, 5], 6)]
    assert told(data, found.test) == [(0, [1, 2, 3], 4), (1, [1, 3, 5, 6], 7)]
    assert found.cold_users == 1  # user 3
    cold = split(data, "time:0.5,0.7", targets="successive", cold_users=True)
    assert told(data, cold.test)[-1] == (3, [8], 9)
    assert cold.cold_users == 0


def test_one_share_is_that_of_what_is_before_the_test_too(data: Dataset) -> None:
    found = split(data, "time:0.7")
    assert trained(data, found) == [[1, 2], [1, 3], [2], []]  # 0.7 of 8 events: 5.9 days
    again = split(data, "time:0.75")  # 9.25: nine events, of which 0.75 are 7 days
    assert trained(data, again) == [[1, 2, 3], [1, 3, 5], [2], []]
    assert told(data, again.valid) == [(1, [1, 3, 5], 6)]
    assert told(data, again.test) == [(0, [1, 2, 3], 4), (1, [1, 3, 5, 6], 7), (3, [8], 9)]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("last", [(1, [1, 3, 5, 6], 7)]),
        ("first", [(1, [1, 3], 5)]),
        ("successive", [(1, [1, 3], 5), (1, [1, 3, 5], 6), (1, [1, 3, 5, 6], 7)]),
        ("all", [(1, [1, 3], 5), (1, [1, 3], 6), (1, [1, 3], 7)]),
    ],
)
def test_which_events_of_a_span_are_targets(data: Dataset, which: Any, expected: list[Any]) -> None:
    found = split(data, "time:0.2,0.5", targets=which)
    assert [one for one in told(data, found.test) if one[0] == 1] == expected


def test_a_random_target_is_one_of_the_span_by_the_seed(data: Dataset) -> None:
    drawn = {
        told(data, split(data, "time:0.2,0.5", targets="random", seed=seed).test)[1]
        and told(data, split(data, "time:0.2,0.5", targets="random", seed=seed).test)[1][2]
        for seed in range(30)
    }
    assert drawn == {5, 6, 7}
    one, other = (split(data, "time:0.2,0.5", targets="random", seed=4) for _ in range(2))
    assert told(data, one.test) == told(data, other.test)


def test_by_dates(data: Dataset) -> None:
    found = split(data, "time:1970-01-06,1970-01-09", targets="successive")  # days 5 and 8
    assert trained(data, found) == [[1, 2], [1, 3], [], []]  # what is at midnight is after
    assert told(data, found.valid) == [(0, [1, 2], 3), (1, [1, 3], 5)]
    assert told(data, found.test) == [(0, [1, 2, 3], 4), (1, [1, 3, 5], 6), (1, [1, 3, 5, 6], 7)]


def test_validation_by_the_last_event_of_each(data: Dataset) -> None:
    found = split(data, "time:0.7", validation="last")
    assert trained(data, found) == [[1, 2], [1, 3, 5], [2], []]
    assert told(data, found.valid) == [(0, [1, 2], 3), (1, [1, 3, 5], 6)]
    assert told(data, found.test) == [(0, [1, 2, 3], 4), (1, [1, 3, 5, 6], 7)]


def test_validation_by_users_who_are_not_trained_on(data: Dataset) -> None:
    found = split(data, "time:0.7", validation="users", seed=1)
    (user,) = found.valid.users
    assert trained(data, found)[user] == []
    assert told(data, found.valid) == [
        (0, [1, 2], 3) if user == 0 else (1, [1, 3, 5], 6)  # the last before the test
    ]


def test_parts_of_each_users_events(data: Dataset) -> None:
    found = split(data, "ratio:0.5,0.25,0.25")
    assert trained(data, found) == [[1, 2], [1, 3, 5], [2], [8, 9]]
    assert told(data, found.valid) == [(0, [1, 2], 3), (1, [1, 3, 5], 6)]
    assert told(data, found.test) == [(0, [1, 2, 3], 4), (1, [1, 3, 5, 6], 7)]
    wide = split(data, "ratio:0.2,0.4,0.4")
    assert told(data, wide.test) == [(0, [1, 2, 3], 4), (1, [1, 3, 5], 6), (1, [1, 3, 5], 7)]


def test_parts_of_the_users(data: Dataset) -> None:
    found = split(data, "users:0.4,0.3,0.3", targets="successive", seed=2)
    by_user = [set(held.users.tolist()) for held in (found.valid, found.test)]
    assert [len(users) for users in by_user] == [1, 1]
    assert not by_user[0] & by_user[1]
    held = by_user[0] | by_user[1]
    assert [bool(events) for events in trained(data, found)] == [u not in held for u in range(4)]
    for user, history, target in told(data, found.test):
        own = data.items[data.offsets[user] : data.offsets[user + 1]].tolist()
        assert [*history, target] == own[: len(history) + 1]
    assert 2 not in held  # it has one event


def test_sessions_of_the_last_days(data: Dataset) -> None:
    found = split(data, "session:1.5")  # they end on days 10, 11, 5 and 12
    assert trained(data, found) == [[], [], [2], []]
    assert told(data, found.valid) == [(0, [1], 2), (0, [1, 2], 3), (0, [1, 2, 3], 4)]
    assert [one[2] for one in told(data, found.test)] == [3, 5, 6, 7, 9]


def test_parts_that_the_data_name(data: Dataset) -> None:
    parts = np.array([0, 0, 1, 2, 0, 1, 2, 2, 2, 0, 2, 2], np.int8)
    named = replace(data, parts=parts)
    found = split(named, "given")
    assert trained(named, found) == [[1, 2], [1], [2], []]
    assert told(named, found.valid) == [(0, [1, 2], 3), (1, [1], 3)]
    assert [one[2] for one in told(named, found.test)] == [4, 5, 6, 7]
    assert found.cold_users == 1
    with pytest.raises(UserError, match=r"--split given: name the column .* --split-col"):
        split(data, "given")


def test_targets_of_items_that_nobody_trains_on(data: Dataset) -> None:
    found = split(data, "time:0.7")
    assert found.counts().tolist() == [2, 2, 1, 0, 0, 0, 0, 0, 0]
    assert found.cold_items(found.test).tolist() == [True, True]
    some = split(data, "ratio:0.5,0.25,0.25", cold_items=False)
    assert told(data, some.valid) == [(0, [1, 2], 3)]
    assert not len(some.test.users)
    warm = replace(data, items=np.array([1, 2, 3, 1, *ITEMS[4:]], np.int32))
    kept = split(warm, "time:0.7", cold_items=False)
    assert told(warm, kept.test) == [(0, [1, 2, 3], 1)]


def test_users_are_sampled_with_all_their_targets(data: Dataset) -> None:
    whole = split(data, "leave-2-out", targets="successive").test
    assert whole.sample(5, 0) is whole
    many = targets(data, data.offsets[:-1] + 1, data.offsets[1:], "all")
    some = many.sample(1, 3)
    assert len(set(some.users.tolist())) == 1
    assert some.until is not None
    assert len(some.lists) == 1


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("leave-one-out", [[1, 2, 3], [1, 3, 5, 6], [2], [8, 9]]),
        ("time:0.7", [[1, 2, 3], [1, 3, 5, 6], [2], []]),
        ("ratio:0.5,0.25,0.25", [[1, 2, 3], [1, 3, 5, 6], [2], [8, 9]]),
        ("session:1.5", [[1, 2, 3, 4], [], [2], []]),
    ],
)
def test_a_refit_trains_until_the_test_or_on_everything(
    data: Dataset, by: str, expected: list[list[int]]
) -> None:
    usual, until = split(data, by), split(data, by, refit="test")
    assert trained(data, until) == expected
    assert told(data, until.test) == told(data, usual.test)
    learnt = np.arange(12) < np.repeat(until.train_end, np.diff(data.offsets))
    assert not learnt[until.test.events].any()
    assert trained(data, split(data, by, refit="all")) == [
        [1, 2, 3, 4],
        [1, 3, 5, 6, 7],
        [2],
        [8, 9],
    ]


WAYS = (
    *("leave-one-out", "leave-2-out", "time:0.8", "time:0.6,0.8", "time:1971-01-01"),
    *("ratio:0.6,0.2,0.2", "users:0.6,0.2,0.2", "session:40", "given"),
)


@pytest.mark.parametrize("which", ["", "last", "first", "random", "successive", "all"])
@pytest.mark.parametrize("by", WAYS)
def test_what_holds_for_any_split(by: str, which: Any) -> None:
    rng = np.random.default_rng(len(by) + 7 * len(which))
    lengths = rng.integers(1, 15, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.sort(rng.integers(0, 700 * DAY, n)) for n in lengths])
    parts = np.concatenate([np.sort(rng.integers(0, 3, n)) for n in lengths]).astype(np.int8)
    items = rng.integers(1, 40, offsets[-1]).astype(np.int32)
    data = Dataset("any", items, offsets, times, np.arange(60), np.arange(40), parts=parts)
    if by == "leave-one-out" and which:
        return
    protocol = Protocol(True, split_by=by, targets=which)
    found = protocol.split(data)
    ends = np.repeat(found.train_end, lengths)
    learnt = np.arange(len(items)) < ends
    for held in (found.valid, found.test):
        assert len(held.users)
        assert (np.diff(held.users) >= 0).all()
        assert not learnt[held.events].any()  # no target trains
        first = offsets[held.users]
        assert (held.ends > first).all()  # a history is never empty
        assert (held.ends <= held.events).all()  # and is what came before
        assert (held.events < offsets[held.users + 1]).all()
        assert (times[held.events] >= times[held.ends - 1]).all()
        if which == "last":
            assert len(np.unique(held.users)) == len(held.users)
    assert not np.intersect1d(found.valid.events, found.test.events).size
    if by.startswith("time"):
        newest = times[learnt].max()
        assert newest <= times[found.valid.events].min() <= times[found.valid.events].max()
        assert times[found.valid.events].max() < times[found.test.events].min()
    assert found.counts().sum() == learnt.sum()
    again = protocol.split(data)
    assert again.test.events.tolist() == found.test.events.tolist()
    said = protocol.sentence(data)
    assert said.endswith(".")
    assert protocol.facts()["split"].startswith(by)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("leave-one-out", Kind("leave-one-out")),
        ("leave-1-out", Kind("leave-one-out")),
        ("leave-three-out", Kind("leave-N-out", (3,))),
        ("time:0.9", Kind("time", (0.9,))),
        ("time:0.8, 0.9", Kind("time", (0.8, 0.9))),
        ("time:1970-01-02", Kind("time", cuts=(DAY,))),
        ("TIME:1970-01-02T00:00:01+00:00", Kind("time", cuts=(DAY + 1000,))),
        ("ratio:0.8,0.1,0.1", Kind("ratio", (0.8, 0.1, 0.1))),
        ("session", Kind("session", (1,))),
        ("session:7", Kind("session", (7,))),
    ],
)
def test_what_split_reads(text: str, kind: Kind) -> None:
    assert parse_split(text) == kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("leave-0-out", "write how many are left out, as in leave-2-out"),
        ("leave-many-out", "write how many are left out"),
        ("time:1.5", "a share of all events lies between 0 and 1"),
        ("time:0.9,0.8", "a share of all events lies between 0 and 1"),
        ("time:tomorrow", "write a share of all events or a date"),
        ("time:2024-03-01,2024-01-01", "the first date is that of validation"),
        ("ratio:0.8,0.1,0.2", "must be above 0 and add up to 1"),
        ("users:1,0,0", "must be above 0 and add up to 1"),
        ("session:0", "give the number of days, above 0"),
        ("tmie:0.9", "no such split; did you mean 'time'?"),
        ("time", "no such split; write one of leave-one-out, leave-2-out, time:0.9"),
        ("random", "no such split"),
    ],
)
def test_what_is_no_split(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_split(text)
    assert str(caught.value).startswith(f"--split {text}: ")
    assert said in str(caught.value)


def test_nothing_to_learn_from_or_to_test(data: Dataset) -> None:
    def checked(by: str, **how: Any) -> str:
        with pytest.raises(UserError) as caught:
            Protocol(True, split_by=by, **how).check(data, "--data x")
        return str(caught.value)

    said = checked("time:1971-01-01")
    assert said.startswith("--data x: nobody is tested by --split time:1971-01-01; the times of")
    assert said.endswith("; if so, split by leave-one-out, ratio or users")
    data = replace(data, times=data.times + 10**12)  # later ones are surely moments
    assert checked("time:2030-01-01") == "--data x: nobody is tested by --split time:2030-01-01"
    data = replace(data, times=data.times - 10**12)
    assert "nobody validates" in checked("time:1970-01-07T02,1970-01-07T03")
    assert "no user trains on two events" in checked("time:1970-01-01,1970-01-04")
    Protocol(True, split_by="time:0.7").check(data, "--data x")


def test_the_sentence_of_a_split_by_time(data: Dataset) -> None:
    said = Protocol(True, split_by="time:0.5,0.7").sentence(data)
    assert said == (
        "Global temporal split: what is after 1970-01-09 16:48:00 is the test, and what is after "
        "1970-01-07 12:00:00 validates; 6 events train, 1 user validates and 2 users test; the "
        "last event of a user there is the target; each is ranked among all 9 items, and seen "
        "items are left out, since no user has an item twice. 1 user has nothing before the test "
        "and is not tested (--cold-users tests them). The item of 2 test targets (100.0 %) has no "
        "training event (--no-cold-items leaves them out)."
    )


@pytest.mark.parametrize("mask_seen", [True, False])
def test_among_how_many_items_a_target_is_ranked(
    data: Dataset, mask_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in (2**24, 3):
        monkeypatch.setattr("seqtune.data.split.AT_A_TIME", most)
        for ranked in (None, np.arange(data.n_items) != 1):
            some = replace(data, candidates=ranked)
            found = split(some, "ratio:0.4,0.3,0.3")
            inside = {k + 1 for k in range(data.n_items) if ranked is None or ranked[k]}
            expected = [
                len(inside - set(history) | {target} if mask_seen else inside)
                for _, history, target in told(some, found.test)
            ]
            assert found.competing(found.test, mask_seen=mask_seen).tolist() == expected
