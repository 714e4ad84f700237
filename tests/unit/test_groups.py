"""Groups of test users: whom a metric is averaged over."""

from __future__ import annotations

import numpy as np

from seqtune.data import leave_one_out
from seqtune.data.generate import make_preset
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


def test_nobody_was_tested() -> None:
    assert groups(SPLIT, "hr@10", {}) == ()
