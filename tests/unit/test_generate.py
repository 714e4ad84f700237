"""Generated sets: the same seed gives the same set, and the stated law is the one that is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seqtune.data import Dataset, leave_one_out, load
from seqtune.data import generate as generator
from seqtune.data.generate import PRESETS, Lengths, make, make_preset, next_item

USERS = {"demo": 1_500, "tiny": 200, "ml1m": 600, "beauty": 2_000, "yoochoose": 3_000}


@pytest.fixture(scope="module")
def sets() -> dict[str, Dataset]:
    """Every preset with fewer users; xl with fewer items too."""
    fewer = {name: make(replace(PRESETS[name], users=n), name) for name, n in USERS.items()}
    return fewer | {"xl": make_preset("xl", scale=0.002)}


def gaps(dataset: Dataset) -> np.ndarray:
    """Times between consecutive events of a user."""
    inside = np.ones(dataset.n_interactions, bool)
    inside[dataset.offsets[:-1]] = False
    return np.diff(dataset.times, prepend=0)[inside]


def hits_at_10(dataset: Dataset, score: object) -> float:
    """HR@10 on the test items of ``score(history) -> (I + 1,)``, seen items left out."""
    test = leave_one_out(dataset).test
    hits = 0
    for user, event in zip(test.users, test.events, strict=True):
        history = dataset.items[dataset.offsets[user] : event]
        scores = score(history)  # type: ignore[operator]
        if not dataset.has_repeats:
            scores[history] = -1
        hits += (scores[1:] > scores[dataset.items[event]]).sum() < 10
    return hits / len(test.users)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_sound_data_set(sets: dict[str, Dataset], preset: str) -> None:
    dataset, recipe = sets[preset], PRESETS[preset]
    lengths = np.diff(dataset.offsets)
    assert dataset.n_users == USERS.get(preset, 2_000)
    assert dataset.items.dtype == np.int32
    assert dataset.times.dtype == np.int64
    assert (np.unique(dataset.items) == np.arange(1, dataset.n_items + 1)).all()
    assert lengths.min() >= recipe.lengths.shortest >= 3
    assert lengths.max() <= recipe.lengths.longest
    assert dataset.has_repeats == (preset == "yoochoose")
    assert type(dataset.best_hit_10) is float
    assert 0.1 < dataset.best_hit_10 < 1
    assert gaps(dataset).min() >= 0
    assert np.ptp(dataset.times) <= recipe.clock.period
    assert len(np.unique(dataset.user_ids)) == dataset.n_users
    assert len(np.unique(dataset.item_ids)) == dataset.n_items
    assert not set(dataset.item_ids) & set(range(dataset.n_items + 1))  # never an index


def test_the_seed_decides() -> None:
    first, again, other = (make_preset("tiny", seed=seed) for seed in (1, 1, 2))
    assert first.fingerprint == again.fingerprint == make_preset("tiny", 1).fingerprint
    assert first.best_hit_10 == again.best_hit_10
    assert first.fingerprint != other.fingerprint
    assert load("tiny").fingerprint == make_preset("tiny", seed=0).fingerprint


def test_users_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "BLOCK", 64)
    dataset = make_preset("tiny")
    assert dataset.n_users == 200
    assert not dataset.has_repeats
    assert dataset.items.min() == 1
    assert dataset.best_hit_10 == pytest.approx(0.92, abs=0.04)


def test_lengths_follow_their_law(sets: dict[str, Dataset]) -> None:
    for preset, mean, sd in (
        ("ml1m", 4.62, 0.96),
        ("beauty", 2.02, 0.49),
        ("yoochoose", 1.55, 0.49),
    ):
        logarithms = np.log(np.diff(sets[preset].offsets))
        assert logarithms.mean() == pytest.approx(mean, abs=0.1)
        assert logarithms.std() == pytest.approx(sd, abs=0.06)


def test_times_tie_as_often_as_said(sets: dict[str, Dataset]) -> None:
    for preset, ties in (("ml1m", 0.58), ("beauty", 0.44), ("yoochoose", 0)):
        assert (gaps(sets[preset]) == 0).mean() == pytest.approx(ties, abs=0.02)
    assert (sets["beauty"].times % 86_400_000 == 0).all()
    assert (sets["ml1m"].times % 1000 == 0).all()
    assert (sets["yoochoose"].times % 1000 != 0).any()


def test_yoochoose_repeats(sets: dict[str, Dataset]) -> None:
    dataset = sets["yoochoose"]
    users = np.repeat(np.arange(dataset.n_users), np.diff(dataset.offsets))
    pairs = np.unique(np.column_stack([users, dataset.items]), axis=0)
    assert 1 - len(pairs) / dataset.n_interactions == pytest.approx(0.30, abs=0.04)
    same = (users[1:] == users[:-1]) & (dataset.items[1:] == dataset.items[:-1])
    assert same.sum() / dataset.n_interactions == pytest.approx(0.20, abs=0.03)


def test_popularity_follows_its_law() -> None:
    # Users that only browse the whole catalogue, once: the law itself.
    recipe = replace(
        PRESETS["tiny"],
        users=20_000,
        follow=0.0,
        browse=0.0,
        popularity=generator.zipf_mandelbrot(10, 1.0),
        lengths=Lengths(3, 0, 0, shortest=3, longest=3),
        again=1e-9,  # repeats allowed, so that nothing is redrawn
    )
    dataset = make(recipe, "x")
    later = np.delete(dataset.items, dataset.offsets[:-1])  # the first is from a cluster
    shares = np.sort(np.bincount(later)[1:] / len(later))[::-1]
    law = 1 / (np.arange(60) + 10)
    assert shares == pytest.approx(law / law.sum(), rel=0.1)


@pytest.mark.parametrize("preset", ["tiny", "demo", "yoochoose"])
def test_the_stated_distribution_is_the_one_that_is_drawn(preset: str) -> None:
    """Sums the stated chances of each item over many users and counts what came."""
    recipe = replace(PRESETS[preset], users=4_000, items=60, clusters=4, persistence=0.5)
    recipe = replace(recipe, kinds=12 if recipe.kinds else 0)
    rng = np.random.default_rng(0)
    world, lengths = generator._world(recipe, rng), generator._lengths(recipe, rng)
    ends = np.cumsum(lengths)
    items = np.empty(ends[-1], np.int32)
    walk = generator._walk(recipe, world, ends - lengths, lengths, items, rng)
    expected, variance, hits, mass = np.zeros(60), np.zeros(60), 0, 0.0
    for user, end in enumerate(ends):
        history = items[end - lengths[user] : end - 1]
        chances = next_item(recipe, world, history, walk.outlook(user, recipe))
        assert chances.sum() == pytest.approx(1)
        assert chances.min() >= 0
        top = np.argsort(chances)[-10:]
        hits += items[end - 1] in top
        mass += chances[top].sum()
        expected += chances
        variance += chances * (1 - chances)
    deviations = (np.bincount(items[ends - 1], minlength=60) - expected) / np.sqrt(variance)
    assert np.mean(deviations**2) == pytest.approx(1, abs=0.6)  # chi-squared: sd 0.18
    assert hits / 4_000 == pytest.approx(mass / 4_000, abs=0.03)


@pytest.mark.parametrize("preset", ["tiny", "demo", "yoochoose"])
def test_the_best_score_beats_simple_baselines_that_beat_popularity(
    sets: dict[str, Dataset], preset: str
) -> None:
    dataset = sets[preset]
    split = leave_one_out(dataset)
    trained = np.ones(dataset.n_interactions, bool)
    trained[split.test.events] = False
    popularity = np.bincount(dataset.items[trained], minlength=dataset.n_items + 1).astype(float)
    followed = trained.copy()
    followed[dataset.offsets[:-1]] = False
    events = np.flatnonzero(followed)
    transitions = np.zeros((dataset.n_items + 1, dataset.n_items + 1))
    np.add.at(transitions, (dataset.items[events - 1], dataset.items[events]), 1)

    by_popularity = hits_at_10(dataset, lambda history: popularity.copy())
    by_last_item = hits_at_10(
        dataset, lambda history: transitions[history[-1]] + popularity / popularity.sum()
    )
    assert dataset.best_hit_10 is not None
    assert by_popularity < by_last_item - 0.1
    assert by_last_item < dataset.best_hit_10 - 0.02
