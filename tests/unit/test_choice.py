"""The winner's curse: which trial is chosen, and how much of its value is selection."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtune.results import Choice, TrialRow
from seqtune.state import ranks_file
from seqtune.storage import Folder
from seqtune.study.choice import choose, error_of, read_gains


def study(
    truth: list[float], users: int = 400, noise: float = 0.3, seed: int = 0
) -> tuple[list[TrialRow], dict[int, Any]]:
    """Trials whose users share much of their luck, as those of one data set do."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 1, users)
    gains = {
        n: value + noise * (0.9 * shared + 0.4 * rng.normal(0, 1, users))
        for n, value in enumerate(truth)
    }
    rows = [
        TrialRow(n, "sasrec", "complete", {}, float(each.mean()), 1, 1.0)
        for n, each in gains.items()
    ]
    return rows, gains


def test_a_trial_that_is_surely_better_is_chosen() -> None:
    rows, gains = study([0.1, 0.2, 0.3, 0.5, 0.2, 0.1])
    found = choose(rows, gains)
    assert found is not None
    assert (found.number, found.highest, found.behind, found.error) == (3, 3, 0.0, 0.0)
    assert found.selection == pytest.approx(0, abs=0.003)


def test_within_the_error_the_earlier_one_is_chosen() -> None:
    rows, gains = study([0.1, 0.3, 0.1, 0.2, 0.1, 0.3])
    luck = np.random.default_rng(1).normal(size=400)
    gains[5] = gains[1] + 0.001 + 0.06 * (luck - luck.mean())
    rows[5] = dataclasses.replace(rows[5], value=float(gains[5].mean()))
    found = choose(rows, gains)
    assert found is not None
    assert (found.number, found.highest) == (1, 5)
    assert 0 < 2 * found.behind <= found.error == pytest.approx(error_of(gains[1], gains[5]))


def test_selection_grows_with_the_number_of_equals() -> None:
    few, many = (choose(*study([0.1] * n)) for n in (5, 40))
    assert few is not None
    assert many is not None
    assert 0 < few.selection < many.selection < 0.05


def test_selection_is_what_the_winner_loses_with_other_users() -> None:
    lost, told = [], []
    for seed in range(60):
        rows, gains = study([0.1] * 20, seed=seed)
        found = choose(rows, gains)
        assert found is not None
        told.append(found.selection)
        values = np.array([row.value for row in rows])
        lost.append(values.max() - values.mean())  # all are the same in truth
    assert np.mean(told) == pytest.approx(np.mean(lost), rel=0.35)


def test_too_few_trials_or_lost_ranks_say_nothing() -> None:
    rows, gains = study([0.1, 0.2, 0.3, 0.4, 0.5])
    assert choose([], gains) is None
    assert choose(rows[:4], gains) is None
    assert choose(rows, {n: each for n, each in gains.items() if n != 4}) is None
    assert choose(rows, gains | {3: gains[3][:10]}) is None  # of other users


def test_gains_are_read_from_the_ranks_of_a_trial(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    assert read_gains(folder, "hr@10") is None
    folder.write("ranks.parquet", ranks_file(np.arange(3), np.array([1, 10, 11], np.float32)))
    assert read_gains(folder, "hr@10") == pytest.approx([1, 1, 0])
    folder.write("ranks.parquet", b"torn")
    assert read_gains(folder, "hr@10") is None


def test_a_choice_is_plain_data() -> None:
    assert dataclasses.asdict(Choice(1, 5, 0.1, 0.2, 0.01))["highest"] == 5
