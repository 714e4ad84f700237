"""What mattered in simulated studies, where it is known: a rate, a loss, and a width for loss b."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from seqtune.study import importance
from seqtune.study.importance import FEWEST, Importances, importances

Value = Callable[[dict[str, Any]], float]


def study_of(values: Value, count: int, seed: int = 0) -> optuna.Study:
    """A study of random points: a learning rate, a loss, and a width only where the loss is b."""
    study = optuna.create_study(direction="maximize")
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(count):
        draft = draws.ask()
        draft.suggest_float("rate", 0, 1)
        draft.suggest_categorical("always", ["one"])
        if draft.suggest_categorical("loss", ["a", "b"]) == "b":
            draft.suggest_float("width", 0, 1)
        study.add_trial(
            create_trial(
                params=draft.params,
                distributions=draft.distributions,
                value=values(draft.params),
            )
        )
    return study


def of_rate(params: dict[str, Any]) -> float:
    return float(params["rate"] ** 3)


def shares(found: Importances) -> dict[str, float]:
    return {one.name: one.share for one in found.shares}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (of_rate, "rate"),
        (lambda p: (p["loss"] == "b") + p["rate"] / 10, "loss"),  # Optuna's default overlooks it
        (lambda p: p.get("width", 0.5), "width"),  # conditional
    ],
)
def test_what_matters_is_found(value: Value, name: str) -> None:
    found = importances(study_of(value, 40))
    assert found.why == ""
    assert shares(found).keys() == {"rate", "loss", "width"}
    assert sum(shares(found).values()) == pytest.approx(1)
    first, *others = found.shares
    assert first.name == name
    assert first.share > 0.75
    assert [one.share for one in others] == sorted((one.share for one in others), reverse=True)
    assert all(one.low <= one.share <= one.high for one in found.shares)
    assert all(first.low > one.high for one in others)


def test_two_that_matter_alike_have_intervals_that_say_so() -> None:
    rng = np.random.default_rng(0)
    mixed = importances(
        study_of(lambda p: p["rate"] + 0.58 * (p["loss"] == "b") + 0.1 * rng.normal(), 60)
    )
    one, two, three = mixed.shares  # the variances of rate and loss are both 1/12
    assert {one.name, two.name} == {"rate", "loss"}
    assert one.low < 0.5 < one.high
    assert two.low < 0.5 < two.high
    assert one.high - one.low > 0.1
    assert three.high < min(one.low, two.low)


@pytest.mark.parametrize("seed", range(6))
def test_noise_explains_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = importances(study_of(lambda _: float(rng.normal()), 30, seed))
    assert found.shares == ()
    assert found.why.startswith("The 30 trials do not say which hyperparameter mattered")


def test_the_same_study_says_the_same_twice() -> None:
    assert importances(study_of(of_rate, 30)) == importances(study_of(of_rate, 30))


def test_a_pruned_trial_counts_with_its_best_value() -> None:
    pruned = optuna.create_study(direction="maximize")
    for trial in study_of(of_rate, 40).trials:
        values = {1: 0.0, 2: trial.value, 3: -1.0}
        add(pruned, trial, TrialState.PRUNED, values)
    assert shares(importances(pruned))["rate"] > 0.8


def test_trials_that_have_not_ended_do_not_count() -> None:
    study = optuna.create_study(direction="maximize")
    for number, trial in enumerate(study_of(of_rate, FEWEST + 9).trials):
        ended = number < FEWEST - 1
        state = TrialState.PRUNED if ended else (TrialState.WAITING, TrialState.RUNNING)[number % 2]
        add(study, trial, state, {1: trial.value or 0.0})
    found = importances(study)
    assert found.shares == ()
    assert found.why == (
        "It is too early to say what mattered: 19 trials have ended with a value, and it takes 20."
    )


def add(
    study: optuna.Study, like: optuna.trial.FrozenTrial, state: TrialState, values: dict[int, Any]
) -> None:
    study.add_trial(
        create_trial(
            params=like.params,
            distributions=like.distributions,
            state=state,
            intermediate_values=values,
        )
    )


@pytest.mark.parametrize("count", [0, 1, 19])
def test_few_trials_say_nothing(count: int) -> None:
    have = "1 trial has" if count == 1 else f"{count} trials have"
    assert importances(study_of(of_rate, count)) == Importances(
        (), f"It is too early to say what mattered: {have} ended with a value, and it takes 20."
    )
    assert importances(study_of(of_rate, FEWEST)).shares[0].name == "rate"


def test_equal_trials_and_a_space_without_dimensions() -> None:
    equal = importances(study_of(lambda _: 0.5, 20))
    assert equal.shares == ()
    assert "do not say which hyperparameter mattered" in equal.why
    study = optuna.create_study(direction="maximize")
    for value in np.linspace(0, 1, 25):
        one: dict[str, Any] = {"one": CategoricalDistribution([1])}
        study.add_trial(create_trial(params={"one": 1}, distributions=one, value=value))
    assert "none was searched" in importances(study).why
    study = optuna.create_study(direction="maximize")
    for value in np.linspace(0, 1, 25):
        alone: dict[str, Any] = {"x": FloatDistribution(0, 1)}
        study.add_trial(create_trial(params={"x": value}, distributions=alone, value=value))
    assert shares(importances(study)) == {"x": 1}


def test_of_many_trials_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    shares_of = importance._shares

    def spy(filled: optuna.Study, names: list[str]) -> Any:
        seen.append(len(filled.get_trials(deepcopy=False)))
        return shares_of(filled, names)

    monkeypatch.setattr(importance, "_shares", spy)
    assert shares(importances(study_of(of_rate, 600)))["rate"] > 0.9
    assert seen == [importance.MOST]
