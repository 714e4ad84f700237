"""The best trials with more seeds: who races, how surely one is best, when it is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from seqtune.cli.ready import ready
from seqtune.data import Protocol, load
from seqtune.errors import UserError
from seqtune.options import StudyOptions
from seqtune.results import TrialRow
from seqtune.state import ranks_file
from seqtune.storage import Folder
from seqtune.study import seeds
from seqtune.study.plan import Plan
from seqtune.study.seeds import SeedRace, contestants, ranks_of, standing

TINY = load("tiny")


def row(number: int, value: float | None = 0.1, **more: Any) -> TrialRow:
    return TrialRow(number, "sasrec", "complete", {}, value, 1, 1.0, **more)


def gains(means: list[float], n_seeds: int, spread: float, users: int = 500) -> dict[int, Any]:
    rng = np.random.default_rng(0)
    user = rng.normal(0, 0.3, users)
    return {
        n: [
            mean + user + spread * luck + rng.normal(0, 0.05, users)
            for luck in rng.normal(size=n_seeds)
        ]
        for n, mean in enumerate(means)
    }


def test_the_best_three_and_the_defaults_race() -> None:
    rows = [row(0, 0.1), row(1, 0.5), row(2, 0.2), row(3, 0.4), row(4, 0.9, over="too large")]
    rows += [row(5, 0.45)]
    assert [one.number for one in contestants(rows, rows[3])] == [0, 1, 3, 5]
    assert [one.number for one in contestants(rows[:2], rows[1])] == [0, 1]


def test_a_gap_wider_than_seeds_and_users_settles_it() -> None:
    found = standing(gains([0.1, 0.3, 0.12], 3, 0.01))
    assert (found.winner, found.seeds, found.settled) == (1, 3, True)
    assert found.runners[0].p_best > 0.99
    assert found.runners[0].p_holm is None
    assert found.runners[0].mean == pytest.approx(0.3, abs=0.05)


def test_seeds_that_differ_more_than_trials_leave_it_open() -> None:
    found = standing(gains([0.10, 0.11, 0.105], 3, 0.1))
    assert not found.settled
    assert found.runners[0].p_best < 0.9
    assert sum(one.p_best for one in found.runners) == pytest.approx(1)
    assert found.runners[0].spread > 0.02


def test_one_seed_settles_nothing() -> None:
    found = standing(gains([0.1, 0.9], 1, 0.0))
    assert (found.seeds, found.settled, found.winner) == (1, False, 1)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs Ray's tasks where they are asked for; counts them."""
    asked: list[int] = []

    def remote(**_: Any) -> Any:
        return lambda function: SimpleNamespace(
            remote=lambda *words: asked.append(words[1]) or function(*words)
        )

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda jobs: jobs)
    monkeypatch.setattr(ray, "wait", lambda jobs, **_: (jobs, []))
    return asked


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    plan = Plan("sasrec", "ndcg@10", Protocol.of(TINY), Folder.at(tmp_path))
    rng = np.random.default_rng(0)
    for number, rank in enumerate((20.0, 2.0, 3.0)):
        ranks = np.maximum(1, rank + rng.integers(-1, 2, 200)).astype(np.float32)
        content = ranks_file(np.arange(200), ranks)
        plan.trial_folder(number).write("ranks.parquet", content)
    return plan


def race(plan: Plan, said: list[str], most: int = 5, **more: Any) -> SeedRace:
    return SeedRace(plan, "DATA", most, lambda: None, said.append, **more)


def test_a_race_ends_when_it_is_settled(
    plan: Plan, here: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def trained(plan: Plan, number: int, params: Any, data: Any, k: int) -> Any:
        rng = np.random.default_rng([number, k])
        return np.maximum(1, (20.0, 1.0, 6.0)[number] + rng.integers(-1, 2, 200))

    monkeypatch.setattr(seeds, "ranks_of", trained)
    rows = [row(0, 0.2), row(1, 0.6), row(2, 0.5)]
    found = race(plan, said).run(rows, rows[1])
    assert found is not None
    assert (found.winner, found.settled) == (1, True)
    assert len(here) == 3 * (found.seeds - 1) < 12
    assert said[0] == "trials 0, 1, 2 are trained with seed 2 of at most 5"


def test_a_race_without_time_or_rivals_is_none(plan: Plan, here: list[int]) -> None:
    rows = [row(0, 0.2), row(1, 0.6)]
    found = race(plan, [], over=lambda: True).run(rows, rows[1])
    assert found is not None
    assert found.seeds == 1
    assert race(plan, []).run(rows[:1], rows[0]) is None
    assert race(plan, []).run([row(7, 0.1), row(8, 0.2)], row(8, 0.2)) is None  # ranks are lost
    assert here == []


def test_a_seed_that_was_trained_is_not_trained_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"epochs": 2, "embedding_size": 8, "n_layers": 1, "n_heads": 1, "max_seq_len": 5}
    first = ranks_of(plan, 1, small, TINY, 1)
    other = ranks_of(plan, 1, small, TINY, 2)
    assert len(first) == 200
    assert not np.array_equal(first, other)
    monkeypatch.setattr(seeds, "train_here", lambda *_: pytest.fail("it was trained"))
    assert np.array_equal(first, ranks_of(plan, 1, small, TINY, 1))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"workers_per_trial": 2}, "trains in one process each"),
        ({"also": ("coverage@10",)}, "races by one measure"),
    ],
)
def test_who_cannot_race(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ready(replace(StudyOptions("sasrec", "tiny", seeds=3), **asked))
