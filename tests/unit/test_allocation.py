"""Which model gets the next trial, in simulated studies of models whose costs are known."""

from __future__ import annotations

from collections import Counter

from seqtune.study.allocation import Allocation

COSTS = {"slow": 100.0, "middle": 10.0, "fast": 1.0, "free": 0.0}
EQUAL = dict.fromkeys(COSTS, 0.5)


def simulated(
    reached: dict[str, float], trials: int, budget: float | None = None
) -> tuple[Counter[str], Counter[str], list[str]]:
    """Runs a study, one trial after another; returns trials, seconds, and who had its turn."""
    allocation, elapsed = Allocation(list(COSTS), trials, budget), 0.0
    counts, seconds, turns = Counter[str](), Counter[str](), list[str]()
    while len(turns) < trials and (budget is None or elapsed < budget):
        model = allocation.choose(elapsed)
        assert model is not None
        allocation.begun(model)
        allocation.evaluated(model, reached[model], COSTS[model])
        allocation.ended(model, COSTS[model])
        elapsed += COSTS[model]
        counts[model] += 1
        seconds[model] += COSTS[model]
        turns.append(model)
    return counts, seconds, turns


def test_the_defaults_of_each_model_come_first_in_their_order() -> None:
    assert simulated(EQUAL, 40)[2][:4] == list(COSTS)


def test_the_worse_half_is_left_behind_and_at_last_the_best_goes_on_alone() -> None:
    reached = {"slow": 0.1, "middle": 0.4, "fast": 0.3, "free": 0.2}
    turns = simulated(reached, 64)[2]
    assert set(turns[4:24]) == {"middle", "fast", "free"}  # slow has had its share of the time
    assert set(turns[25:44]) == {"middle", "fast"}
    assert set(turns[45:]) == {"middle"}


def test_the_slow_are_not_starved_nor_the_fast_favoured_where_trials_are_scarce() -> None:
    allocation = Allocation(list(COSTS), 10_000)  # so long that nothing is left behind here
    counts = Counter[str]()
    for _ in range(400):
        model = allocation.choose(0)
        assert model is not None
        allocation.begun(model)
        allocation.evaluated(model, 0.5, COSTS[model])
        allocation.ended(model, COSTS[model])
        counts[model] += 1
    whole = sum(n * COSTS[model] for model, n in counts.items())
    assert counts["slow"] * COSTS["slow"] > whole / 4  # as many seconds as anybody, or nearly
    assert counts["slow"] < counts["middle"] < counts["fast"]
    assert abs(counts["fast"] - counts["free"]) <= 1
    assert counts["fast"] < 200


def test_time_is_shared_where_time_is_scarce() -> None:
    counts, seconds, _ = simulated(EQUAL, 100_000, budget=3000.0)
    assert seconds["middle"] > 500
    assert counts["fast"] > counts["middle"] > counts["slow"]


def test_a_model_that_has_no_value_yet_is_not_judged() -> None:
    allocation = Allocation(["a", "b", "c", "d"], 8)
    for model in "abcd":
        allocation.begun(model)
    allocation.evaluated("a", 0.9, 1.0)
    allocation.evaluated("b", 0.1, 1.0)
    assert allocation.surviving(0.0) == ["c", "d", "a", "b"]
    for _ in range(3):
        allocation.begun("a")
    assert allocation.surviving(0.0) == ["c"]  # of the last phase


def test_a_model_without_new_points_leaves_its_turn_to_the_others() -> None:
    allocation = Allocation(["a", "b"], 6)
    for model in "ab":
        allocation.begun(model)
        allocation.evaluated(model, 0.5, 1.0)
    allocation.exhausted("a")
    assert allocation.choose(0.0) == "b"
    allocation.exhausted("b")
    assert allocation.choose(0.0) is None


def test_one_model_has_every_turn() -> None:
    allocation = Allocation(["only"], 3, budget=1.0)
    for _ in range(3):
        assert allocation.choose(9.0) == "only"
        allocation.begun("only")
