"""Groups of test users: whom a metric is averaged over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from seqtune.data import Protocol, leave_one_out
from seqtune.data.generate import make_preset
from seqtune.metrics import of_held, per_list
from seqtune.study.groups import groups

TINY = make_preset("tiny")
SPLIT = leave_one_out(TINY)


def test_every_user_is_in_one_group_of_each_kind() -> None:
    n = len(SPLIT.test.users)
    history = SPLIT.test.events - TINY.offsets[SPLIT.test.users]
    ranks = np.where(history > np.median(history), 1, 100).astype(np.float32)
    found = groups(SPLIT, "hr@10", {"long": ranks, "all": np.ones(n, np.float32)})
    by_history = [one for one in found if one.name.startswith("history")]
    by_item = [one for one in found if one.name.startswith("test item")]
    assert sum(one.n for one in by_history) == sum(one.n for one in by_item) == n
    assert [one.values["long"] for one in by_history[:2]] == [0, 0]  # the shorter half
    assert by_history[-1].values["long"] == 1
    assert {one.values["all"] for one in found} == {1}
    mean = sum(one.n * one.values["long"] for one in by_item) / n
    assert abs(mean - (ranks == 1).mean()) < 1e-12


def test_groups_of_the_data_are_tested_against_all_others() -> None:
    n = len(SPLIT.test.users)
    of = (np.arange(TINY.n_users) % 4 == 0).astype(np.int16)
    data = replace(TINY, groups=of, group_names=("new", "old", "nobody"))
    ranks = np.where(of[SPLIT.test.users] == 1, 1, np.arange(n) % 30 + 1).astype(np.float32)
    ranks[0] = 50
    found = groups(replace(SPLIT, dataset=data), "hr@10", {"one": ranks})
    new, old, *others = found
    assert (new.name, old.name) == ("group new", "group old")
    assert new.n + old.n == n
    hit = ranks <= 10
    expected = hit[of == 1].mean() - hit[of == 0].mean()
    assert old.difference == -new.difference == expected
    alone = stats.ttest_ind(hit[of == 1], hit[of == 0], equal_var=False).pvalue
    assert new.p_holm == old.p_holm  # the two are one question, asked twice
    assert old.p_holm == pytest.approx(alone * len(found))
    assert old.p_holm < 1e-6
    assert all(one.p_holm > 0.05 for one in others)


def test_items_that_nobody_trained_on_are_a_group() -> None:
    last = np.zeros(TINY.n_interactions, bool)
    last[SPLIT.test.events[:7]] = True
    items = np.where(last, TINY.n_items + 1, TINY.items).astype(np.int32)
    data = replace(TINY, items=items, item_ids=np.arange(TINY.n_items + 1))
    found = groups(leave_one_out(data), "hr@10", {"one": np.ones(TINY.n_users, np.float32)})
    assert [one.n for one in found if one.name == "test item without a training event"] == [7]
    assert sum(one.n for one in found if one.name.startswith("test item")) == TINY.n_users
    assert {one.p_holm for one in found if one.n > 7} == {1.0}  # all are alike
    assert [one.p_holm for one in found if one.n == 7] == [None]  # too few


def test_users_are_tested_and_not_their_lists() -> None:
    split = Protocol(True, split_by="leave-2-out").split(TINY)
    lists = split.test.take(split.test.lists)
    assert len(lists.users) == TINY.n_users
    split = Protocol(True, split_by="leave-2-out", targets="successive").split(TINY)
    assert len(split.test.users) == 2 * TINY.n_users
    ranks = of_held(np.arange(400) % 40 + 1.0, split.test)
    data = replace(TINY, groups=np.arange(200).astype(np.int16) // 100, group_names=("a", "b"))
    found = groups(replace(split, dataset=data), "mrr@10", {"one": ranks})
    own = per_list("mrr@10", ranks).reshape(200, 2).mean(axis=1)
    alone = stats.ttest_ind(own[:100], own[100:], equal_var=False)
    assert found[0].n == 200
    assert found[0].difference == pytest.approx(own[:100].mean() - own[100:].mean())
    assert found[0].p_holm == pytest.approx(min(1, alone.pvalue * len(found)))


def test_nobody_was_tested() -> None:
    assert groups(SPLIT, "hr@10", {}) == ()
