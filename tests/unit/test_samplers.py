"""Draws: the start first, then new points by TPE, at the same cost however long the study is."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from seqtune.errors import UserError
from seqtune.space import Dimension, Space, load_space
from seqtune.study import samplers
from seqtune.study.samplers import WINDOW, Draws, best_and_newest, check_sampler


@pytest.fixture
def space() -> Space:
    return load_space(None, "sasrec")


def ended(value: float, rate: float = 0.01) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        value=value,
        params={"learning_rate": rate},
        distributions={"learning_rate": FloatDistribution(1e-4, 5e-2, log=True)},
    )


def pruned(*values: float) -> FrozenTrial:
    steps = dict(enumerate(values, start=1))
    return create_trial(state=TrialState.PRUNED, intermediate_values=steps)


def test_the_first_draw_is_the_start_of_the_space(space: Space) -> None:
    draft = Draws(space, seed=3).draw(0, lambda values: False)
    assert draft is not None
    assert draft.values == space.defaults()
    assert draft.params.keys() == draft.distributions.keys() <= space.start.keys()


def test_the_portfolio_comes_next_and_takes_the_place_of_random_draws(space: Space) -> None:
    points = ({"learning_rate": 0.002}, {"n_layers": 3, "dropout_prob": 0.2}, {"n_layers": 1})
    draws = Draws(dataclasses.replace(space, portfolio=points), seed=0)
    drafts = [draws.draw(number, lambda values: values.get("n_layers") != 1) for number in range(5)]
    origins = [draft.origin for draft in drafts if draft is not None]
    assert origins == ["default", "portfolio", "portfolio", "drawn", "drawn"]  # one is not allowed
    assert drafts[1] is not None
    assert drafts[1].values == space.defaults() | points[0]
    assert drafts[2] is not None
    assert drafts[2].values == space.defaults() | points[1]
    sampler = draws._scratch.sampler
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert sampler._n_startup_trials == 4


def test_a_draw_depends_on_the_seed_the_number_and_what_has_ended(space: Space) -> None:
    def drawn(seed: int, number: int, *known: FrozenTrial) -> object:
        draws = Draws(space, seed)
        for trial in known:
            draws.learn(trial)
        draft = draws.draw(number, lambda values: True)
        assert draft is not None
        return draft.values

    assert drawn(0, 5) == drawn(0, 5)
    assert drawn(0, 5) != drawn(1, 5)
    assert drawn(0, 5) != drawn(0, 6)
    draws = Draws(space, 0)  # whatever was drawn before
    for number in range(1, 5):
        draws.draw(number, lambda values: True)
    draft = draws.draw(5, lambda values: True)
    assert draft is not None
    assert draft.values == drawn(0, 5)


def test_tpe_goes_where_values_were_good(space: Space) -> None:
    draws = Draws(space, seed=0)
    for n in range(60):
        rate = 1e-4 * (500 ** (n / 59))
        draws.learn(ended(1.0 if rate < 3e-4 else 0.1, rate))
    found = [draws.draw(60 + n, lambda values: True) for n in range(20)]
    rates = [draft.params["learning_rate"] for draft in found if draft]
    assert sum(rate < 6e-4 for rate in rates) > 10


def test_what_is_not_allowed_is_drawn_again_and_given_up_in_the_end(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    draft = Draws(space, 0).draw(1, lambda values: asked.append(values) or len(asked) == 4)
    assert len(asked) == 4
    assert draft is not None
    assert draft.values == asked[-1]
    monkeypatch.setattr(samplers, "DRAWS", 20)
    assert Draws(space, 0).draw(1, lambda values: False) is None


def test_the_best_and_the_newest_are_kept_in_their_order() -> None:
    values = [0.9, 0.1, 0.8, 0.2, 0.3, 0.4, 0.5]
    kept = best_and_newest([ended(value) for value in values], 4)
    assert [trial.value for trial in kept] == [0.9, 0.8, 0.4, 0.5]
    mixed = [pruned(0.1, 0.7, 0.2), ended(0.5), pruned(), ended(0.1)]
    assert best_and_newest(mixed, 2) == [mixed[0], mixed[3]]  # a pruned one counts with its best


def test_a_long_study_is_seen_in_part_and_a_resumed_one_sees_the_same(space: Space) -> None:
    trials = [ended(((37 * n) % 101) / 101, 1e-4 * (1 + n % 400)) for n in range(5 * WINDOW + 7)]
    first = Draws(space, 0)
    sizes = []
    for n, trial in enumerate(trials, start=1):
        first.learn(trial)
        if n == 3 * WINDOW:
            first.draw(n, lambda values: True)  # leaves nothing behind
        sizes.append(sum(t.state == TrialState.COMPLETE for t in first._scratch.trials))
    assert max(sizes) < 2 * WINDOW
    assert sizes[2 * WINDOW - 1] == WINDOW
    again = Draws(space, 0)
    for trial in trials:
        again.learn(trial)
    ways = [draws.draw(len(trials), lambda values: True) for draws in (first, again)]
    assert ways[0] is not None
    assert ways[0] == ways[1]


# Other samplers.


def ours(seed: int) -> optuna.samplers.BaseSampler:
    """What a person may name: module:function."""
    return optuna.samplers.RandomSampler(seed=seed + 1)


OWN = f"{__name__}:ours"


@pytest.mark.parametrize("name", [*samplers.SAMPLERS, OWN])
def test_a_resumed_study_draws_what_it_would_have_drawn(name: str, space: Space) -> None:
    first, drafts = Draws(space, 3, name), []
    for number in range(14):
        draft = first.draw(number, space.allows)
        assert draft is not None
        drafts.append(draft)
        if number < 13:
            first.learn(completed(draft, number))
    assert len({str(draft.values) for draft in drafts}) == 14
    again = Draws(space, 3, name)
    for number, draft in enumerate(drafts[:13]):
        again.learn(completed(draft, number))
    last = again.draw(13, space.allows)
    assert last is not None
    assert last.values == drafts[13].values


def completed(draft: samplers.Draft, number: int) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        value=1 / (1 + number % 5),
        params=draft.params,
        distributions=draft.distributions,
    )


def test_a_sobol_sequence_fills_the_space_more_evenly_than_chance(space: Space) -> None:
    (place,) = [n for n, d in enumerate(space.dimensions) if d.name == "dropout_prob"]
    values: dict[str, list[float]] = {"qmc": [], "random": []}
    for name, found in values.items():
        draws = Draws(space, 0, name)
        for number in range(1, 65):
            draft = draws.draw(number, lambda values: True)
            assert draft is not None
            found.append(draft.values["dropout_prob"])
    spread = {
        name: np.bincount([round(10 * v) for v in found]).std() for name, found in values.items()
    }
    assert spread["qmc"] < spread["random"]
    assert space.dimensions[place].at(0.0) == 0.1
    assert space.dimensions[place].at(1.0) == 0.6


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tpee", "--sampler tpee: there is no such sampler; did you mean 'tpe'?"),
        ("nowhere:make", "--sampler nowhere:make: cannot be imported (No module named 'nowhere')"),
        ("math:nothing", "--sampler math:nothing: cannot be imported"),
    ],
)
def test_a_sampler_that_there_is_not(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        check_sampler(name)
    assert sentence in str(refused.value)
    assert check_sampler(OWN) == OWN


def small_space() -> Space:
    return dataclasses.replace(
        load_space(None, "sasrec"),
        dimensions=(
            Dimension("n_layers", choice=(1, 2, 3)),
            Dimension("norm", choice=("pre", "post")),
            Dimension("learning_rate", low=1e-4, high=1e-2, log=True),
        ),
        fixed={},
        portfolio=(),
        start={"n_layers": 2, "norm": "post", "learning_rate": 0.001},
    )


def test_a_grid_has_each_of_its_points_once() -> None:
    draws, seen = Draws(small_space(), 0, "grid"), set[object]()
    points = []
    for number in range(1, 19):
        draft = draws.draw(number, lambda values: tuple(values.items()) not in seen)
        assert draft is not None
        points.append(tuple(draft.values[d.name] for d in small_space().dimensions))
        seen.add(tuple(draft.values.items()))
    assert len(set(points)) == 18
    assert sorted({round(rate, 9) for _, _, rate in points}) == [1e-4, 1e-3, 1e-2]
    assert len({layers for layers, _, _ in points[:4]}) > 1  # it is no walk along one side
    assert draws.draw(19, lambda values: tuple(values.items()) not in seen) is None


def test_evolution_goes_where_values_were_good() -> None:
    space = dataclasses.replace(
        small_space(),
        dimensions=(
            Dimension("dropout_prob", low=0.0, high=0.9),
            Dimension("learning_rate", low=1e-4, high=1e-1, log=True),
        ),
        start={"dropout_prob": 0.5, "learning_rate": 0.001},
    )

    def reach(values: object) -> float:
        assert isinstance(values, dict)
        rate = np.log10(values["learning_rate"] / 3e-2)
        return -((values["dropout_prob"] - 0.2) ** 2) - rate**2

    draws = Draws(space, 0, "cma-es")
    found = []
    for number in range(90):
        draft = draws.draw(number, lambda values: True)
        assert draft is not None
        found.append(reach(draft.values))
        trial = create_trial(
            params=draft.params, distributions=draft.distributions, value=found[-1]
        )
        draws.learn(trial)
    assert np.mean(found[-20:]) > np.mean(found[1:21]) + 0.3
    assert max(found) > -0.02


@pytest.mark.parametrize("sampler", ["qmc", "grid", "cma-es"])
def test_the_cube_is_drawn_from_the_seed_and_the_number(sampler: str) -> None:
    def drawn(seed: int, number: int) -> object:
        draft = Draws(small_space(), seed, sampler).draw(number, lambda values: True)
        assert draft is not None
        return draft.values

    assert drawn(0, 5) == drawn(0, 5)
    assert drawn(0, 5) != drawn(0, 6)
    assert any(drawn(0, n) != drawn(1, n) for n in range(1, 5))


@pytest.mark.parametrize("sampler", ["qmc", "grid", "cma-es"])
def test_conditions_hold_in_the_cube(space: Space, sampler: str) -> None:
    draws = Draws(space, 0, sampler)
    for number in range(1, 12):
        draft = draws.draw(number, space.allows)
        assert draft is not None
        assert ("neg_samples" in draft.params) == (draft.values["loss_type"] != "ce")


def test_evolution_in_one_dimension() -> None:
    only = (Dimension("learning_rate", low=1e-4, high=1e-1, log=True),)
    one = dataclasses.replace(small_space(), dimensions=only, start={"learning_rate": 0.001})
    draft = Draws(one, 0, "cma-es").draw(3, lambda values: True)
    assert draft is not None
    assert 1e-4 <= draft.values["learning_rate"] <= 1e-1
