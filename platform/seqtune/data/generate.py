"""Made interactions with a known structure: realistic to train on, and with a known best score.

The recipe. Items are split into clusters, and every item has a list of successors, most of them
in its own cluster, with geometric weights. Where the preset has kinds, each kind is a few items of
one cluster that are alike: they share one list, of kinds, and a successor is an item of a listed
kind, by popularity. A user has a taste for a few clusters and is in one of
them at a time. The next item is

- where the preset has repeats, the last item again, or an earlier one; else
- a successor of the last item, or of the one before it, ... (geometric in the lag), or
- an item of the user's present cluster, by popularity, or
- any item, by popularity;

and where the preset has no repeats, the draw is repeated until the item is new to the user, so
that the distribution of the next item is the mixture of these, cut to unseen items and rescaled.
All users take a step at once, so a million events take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtune.data.dataset import Dataset

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

SECOND, DAY = 1_000, 86_400_000  # in milliseconds
FIRST_DAY = 14_610 * DAY  # 2010-01-01
MAX_LAG = 20  # successors of older items are not considered
TASTES = 8  # clusters a user may move between
REDRAWS = 12  # of seen items, before the next item is drawn from its whole distribution
BLOCK = 65_536  # users that walk at once: bounds the memory of large sets
ORACLE_USERS = 2_000  # sample for best_hit_10


def exponential(scale: float) -> Callable[[Floats], Floats]:
    """Popularity falls by e every ``scale`` of the catalogue."""
    return lambda rank: np.exp(-rank / (scale * len(rank)))


def zipf_mandelbrot(shift: float, power: float) -> Callable[[Floats], Floats]:
    """Popularity is (rank + shift) ** -power."""
    return lambda rank: (rank + shift) ** -power


@dataclass(frozen=True)
class Lengths:
    """Events of a user: shift + a log-normal number, between shortest and longest."""

    shift: int
    ln_mean: float
    ln_sd: float
    shortest: int
    longest: int


@dataclass(frozen=True)
class Clock:
    """Times: the share of events that tie with the one before, and log-normal pauses for others."""

    tick: int  # ms; times are multiples of it
    ties: float
    pause: float  # ms, median
    pause_ln_sd: float
    breaks: float  # share of pauses that are long ones, with a median of two days
    period: int  # ms; a user's history fits into it


@dataclass(frozen=True)
class Recipe:
    """All that makes a generated set; the module's docstring says what the parts do."""

    users: int
    items: int
    popularity: Callable[[Floats], Floats]
    clusters: int
    lengths: Lengths
    clock: Clock
    follow: float  # share of next items that are successors of a recent item
    browse: float  # share from the user's present cluster; the rest is from the whole catalogue
    lag_decay: float  # P(lag) falls by this factor per lag
    successors: int  # length of an item's list
    successor_decay: float  # P(place in the list) falls by this factor per place
    inside: float  # share of successors in the item's own cluster
    persistence: float  # probability to stay in the present cluster
    kinds: int = 0  # items alike share a list of successors, which are kinds; 0: no two are alike
    taste: float = 1.0  # concentration of a user's taste: small is one cluster, large is many
    again: float = 0.0  # probability to repeat the last item
    earlier: float = 0.0  # probability to repeat an item before the last

    @property
    def repeats(self) -> bool:
        """Whether a user may meet an item twice."""
        return self.again + self.earlier > 0


PRESETS: dict[str, Recipe] = {
    "demo": Recipe(
        users=1_500,
        items=1_200,
        popularity=zipf_mandelbrot(20, 0.9),
        clusters=12,
        lengths=Lengths(0, 2.2, 0.5, shortest=5, longest=50),
        clock=Clock(SECOND, 0.2, 60 * SECOND, 1.2, 0.1, 365 * DAY),
        follow=0.55,
        browse=0.40,
        lag_decay=0.4,
        successors=2,
        successor_decay=0.5,
        inside=0.8,
        persistence=0.9,
        kinds=60,
    ),
    "tiny": Recipe(
        users=200,
        items=60,
        popularity=zipf_mandelbrot(10, 0.8),
        clusters=4,
        lengths=Lengths(0, 2.5, 0.4, shortest=5, longest=40),
        clock=Clock(SECOND, 0.2, 60 * SECOND, 1.2, 0.1, 365 * DAY),
        follow=0.85,
        browse=0.10,
        lag_decay=0.1,
        successors=3,
        successor_decay=0.4,
        inside=0.7,
        persistence=0.95,
    ),
    "ml1m": Recipe(
        users=6_040,
        items=3_416,
        popularity=exponential(1.1 / 7),
        clusters=30,
        lengths=Lengths(0, 4.60, 0.99, shortest=18, longest=2_277),
        clock=Clock(SECOND, 0.58, 25 * SECOND, 0.8, 0.03, 3 * 365 * DAY),
        follow=0.52,
        browse=0.34,
        lag_decay=0.77,
        successors=22,
        successor_decay=0.75,
        inside=0.93,
        persistence=0.96,
    ),
    "beauty": Recipe(
        users=22_363,
        items=12_101,
        popularity=zipf_mandelbrot(100, 0.82),
        clusters=90,
        lengths=Lengths(5, 0.647, 1.289, shortest=5, longest=204),
        clock=Clock(DAY, 0.44, 47 * DAY, 1.8, 0.0, 12 * 365 * DAY),
        follow=0.20,
        browse=0.40,
        lag_decay=0.45,
        successors=6,
        successor_decay=0.55,
        inside=0.8,
        persistence=1.0,
    ),
    "yoochoose": Recipe(
        users=12_057,
        items=2_916,
        popularity=zipf_mandelbrot(30, 1.12),
        clusters=80,
        lengths=Lengths(3, 0.469, 1.111, shortest=3, longest=78),
        clock=Clock(1, 0.0, 55 * SECOND, 1.25, 0.0, 7 * DAY),
        follow=0.60,
        browse=0.23,
        lag_decay=0.67,
        successors=20,
        successor_decay=0.73,
        inside=0.85,
        persistence=1.0,
        again=0.16,
        earlier=0.05,
        taste=2.0,
    ),
    "xl": Recipe(
        users=1_000_000,
        items=200_000,
        popularity=zipf_mandelbrot(100, 0.9),
        clusters=500,
        lengths=Lengths(5, 2.0, 0.9, shortest=5, longest=200),
        clock=Clock(SECOND, 0.2, 60 * SECOND, 1.2, 0.2, 3 * 365 * DAY),
        follow=0.45,
        browse=0.35,
        lag_decay=0.5,
        successors=15,
        successor_decay=0.7,
        inside=0.8,
        persistence=0.96,
    ),
}


def make_preset(preset: str, seed: int = 0, scale: float = 1.0) -> Dataset:
    """Makes a preset; the same seed and scale give the same arrays.

    ``scale`` multiplies the number of users and of items, so that a smaller set keeps the shape.
    """
    return make(PRESETS[preset], preset, seed, scale)


def make(recipe: Recipe, name: str, seed: int = 0, scale: float = 1.0) -> Dataset:
    """Makes a set by any recipe; see ``make_preset``."""
    recipe = replace(
        recipe,
        users=max(1, round(recipe.users * scale)),
        items=max(10 * recipe.clusters, round(recipe.items * scale)),
    )
    rng = np.random.default_rng(seed)
    world = _world(recipe, rng)
    lengths = _lengths(recipe, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    asked = rng.permutation(recipe.users)[:ORACLE_USERS]
    items = np.empty(offsets[-1], np.int32)
    best = 0.0
    for first in range(0, recipe.users, BLOCK):
        users = np.arange(first, min(first + BLOCK, recipe.users))
        walk = _walk(recipe, world, offsets[users], lengths[users], items, rng)
        for user in asked[(asked >= first) & (asked < first + BLOCK)]:
            history = items[offsets[user] : offsets[user + 1] - 1]
            chances = next_item(recipe, world, history, walk.outlook(user - first, recipe))
            best += float(np.partition(chances, -10)[-10:].sum()) / len(asked)

    times = _times(recipe, lengths, offsets, rng)
    met = np.bincount(items, minlength=recipe.items) > 0
    return Dataset(
        name=name,
        items=np.cumsum(met, dtype=np.int32)[items],
        offsets=offsets,
        times=times,
        user_ids=np.arange(1, recipe.users + 1),
        item_ids=10 ** len(str(recipe.items)) + 1 + np.flatnonzero(met),
        best_hit_10=best,
    )


# The world: what does not depend on the users.


@dataclass(frozen=True)
class World:
    """Items in the order of their clusters, so that a cluster is an interval of item numbers."""

    popularity: Floats  # (I,) sums to one
    cumulative: Floats  # (I,) of popularity
    firsts: Ints  # (K,) first item of each cluster
    edges: Floats  # (K + 1,) cumulative popularity where each cluster begins
    cluster: Ints  # (I,) cluster of each item
    kind: Ints  # (I,) kind of each item; also an interval, inside of a cluster
    borders: Floats  # (G + 1,) cumulative popularity where each kind begins
    share: Floats  # (I,) of an item in the popularity of its kind
    successors: Ints  # (G, S) kinds


def _world(recipe: Recipe, rng: np.random.Generator) -> World:
    n, k = recipe.items, recipe.clusters
    popularity = recipe.popularity(np.arange(n, dtype=float))
    popularity = rng.permutation(popularity / popularity.sum())
    cumulative = np.cumsum(popularity)
    cluster = np.arange(n) * k // n
    firsts = np.searchsorted(cluster, np.arange(k))
    edges = np.append(np.append(0.0, cumulative)[firsts], 1.0)
    g = recipe.kinds or n
    kind = np.arange(n) * g // n
    first_of_kind = np.searchsorted(kind, np.arange(g))
    borders = np.append(np.append(0.0, cumulative)[first_of_kind], 1.0)
    share = popularity / np.add.reduceat(popularity, first_of_kind)[kind]
    shape = (g, recipe.successors)
    own = rng.random(shape) < recipe.inside
    home = cluster[first_of_kind]  # (G,)
    low = np.where(own, edges[home][:, None], 0.0)
    high = np.where(own, edges[home + 1][:, None], 1.0)
    successors = kind[_pick(cumulative, low, high, rng)]
    return World(popularity, cumulative, firsts, edges, cluster, kind, borders, share, successors)


def _pick(cumulative: Floats, low: Floats, high: Floats, rng: np.random.Generator) -> Ints:
    """Draws items by popularity, from those whose cumulative popularity is in [low, high)."""
    at = low + rng.random(low.shape) * (high - low)
    found = np.searchsorted(cumulative, at, side="right")
    return found.clip(max=len(cumulative) - 1)


def _geometric(decay: float, n: int, shape: int, rng: np.random.Generator) -> Ints:
    """Draws 0 .. n-1 with P(k) proportional to decay ** k."""
    u = rng.random(shape)
    draw: Ints = (np.log1p(-u * (1 - decay**n)) / np.log(decay)).astype(np.int64)
    return draw.clip(max=n - 1)


# The users' walks through it.


def _lengths(recipe: Recipe, rng: np.random.Generator) -> Ints:
    law = recipe.lengths
    longest = law.longest if recipe.repeats else min(law.longest, 2 * recipe.items // 3)
    draw = law.shift + np.exp(rng.normal(law.ln_mean, law.ln_sd, recipe.users))
    return draw.astype(np.int64).clip(law.shortest, longest)


@dataclass(frozen=True)
class Walk:
    """What only the generator knows of its users: their taste, and where they stood at the end."""

    tastes: Ints  # (n, TASTES) clusters
    weights: Floats  # (n, TASTES) of each; sums to one
    before_last: Ints  # (n,) cluster at the event before the last

    def outlook(self, user: int, recipe: Recipe) -> Floats:
        """Returns the chances of each cluster at the last event, known before it: (K,)."""
        chances = np.zeros(recipe.clusters)
        np.add.at(chances, self.tastes[user], (1 - recipe.persistence) * self.weights[user])
        chances[self.before_last[user]] += recipe.persistence
        return chances


def _walk(
    recipe: Recipe,
    world: World,
    starts: Ints,
    lengths: Ints,
    items: Ints,
    rng: np.random.Generator,
) -> Walk:
    """Walks n users, and writes user u's items to ``items[starts[u]:starts[u] + lengths[u]]``."""
    n = len(lengths)
    mass = np.diff(world.edges)
    # A Dirichlet process over clusters by stick breaking: sparse, without a (users, K) table.
    tastes = rng.choice(recipe.clusters, (n, TASTES), p=mass)
    sticks = rng.beta(1, recipe.taste, (n, TASTES))
    sticks[:, -1] = 1
    weights = sticks * np.cumprod(np.column_stack([np.ones(n), 1 - sticks[:, :-1]]), axis=1)
    heap = np.cumsum(weights, axis=1)

    order = np.argsort(-lengths, kind="stable")  # who still walks at step t is a prefix
    walking = n - np.searchsorted(np.sort(lengths), np.arange(lengths.max()), side="right")
    history = np.empty((lengths.max(), n), np.int32)  # (step, place in order)
    cluster = np.empty(n, np.int64)  # present cluster, by place in order
    before_last = np.empty(n, np.int64)

    for t, n_walking in enumerate(walking):
        who = order[:n_walking]
        before_last[who] = cluster[:n_walking]
        moves = np.flatnonzero(rng.random(n_walking) >= recipe.persistence if t else who >= 0)
        taste = (heap[who[moves]] < rng.random((len(moves), 1))).sum(axis=1)
        cluster[moves] = tastes[who[moves], np.minimum(taste, TASTES - 1)]

        places = np.arange(n_walking)
        chosen = _draw(recipe, world, history[:t], places, cluster[:n_walking], rng)
        if not recipe.repeats:
            for _ in range(REDRAWS):
                places = places[(history[:t, places] == chosen[places]).any(axis=0)]
                if not len(places):
                    break
                chosen[places] = _draw(recipe, world, history[:t], places, cluster[places], rng)
            for place in places[(history[:t, places] == chosen[places]).any(axis=0)]:
                inside = np.eye(1, recipe.clusters, cluster[place])[0]
                chances = next_item(recipe, world, history[:t, place], inside)
                chosen[place] = np.searchsorted(np.cumsum(chances), rng.random(), side="right")
        history[t, :n_walking] = chosen
        items[starts[who] + t] = chosen
    return Walk(tastes, weights, before_last)


def _draw(
    recipe: Recipe,
    world: World,
    history: Ints,
    places: Ints,
    cluster: Ints,
    rng: np.random.Generator,
) -> Ints:
    """Draws next items, seen or not, for the users at ``places`` (n,) of ``history`` (t, users)."""
    t, n = len(history), len(places)
    source = rng.random(n)
    browsing = (source < recipe.follow + recipe.browse) if t else np.ones(n, bool)
    low = np.where(browsing, world.edges[cluster], 0.0)
    high = np.where(browsing, world.edges[cluster + 1], 1.0)
    chosen = _pick(world.cumulative, low, high, rng)
    if t:
        following = np.flatnonzero(source < recipe.follow)
        lag = _geometric(recipe.lag_decay, min(t, MAX_LAG), len(following), rng)
        place = _geometric(recipe.successor_decay, recipe.successors, len(following), rng)
        last = world.kind[history[t - 1 - lag, places[following]]]
        chosen[following] = next_kind = world.successors[last, place]
        if recipe.kinds:
            low, high = world.borders[next_kind], world.borders[next_kind + 1]
            chosen[following] = _pick(world.cumulative, low, high, rng)
    if t and recipe.repeats:
        source = rng.random(n)
        again = source < recipe.again
        chosen[again] = history[t - 1, places[again]]
        earlier = np.flatnonzero(~again & (source < recipe.again + recipe.earlier))
        if t > 1:
            chosen[earlier] = history[rng.integers(0, t - 1, len(earlier)), places[earlier]]
    return chosen


def next_item(recipe: Recipe, world: World, history: Ints, cluster: Floats) -> Floats:
    """Returns the true distribution of the next item: history (t,), cluster chances (K,) -> (I,).

    The same law as ``_draw``, written out. Needs two items of history.
    """
    lags = np.arange(min(len(history), MAX_LAG))
    lag_weights = recipe.lag_decay**lags
    list_weights = recipe.successor_decay ** np.arange(recipe.successors)
    weights = np.outer(lag_weights / lag_weights.sum(), list_weights / list_weights.sum())
    anywhere = (1 - recipe.follow - recipe.browse) * world.popularity  # whatever the cluster
    of_kind = np.zeros(len(world.successors))  # (G,)
    np.add.at(of_kind, world.successors[world.kind[history[-1 - lags]]], recipe.follow * weights)
    anywhere += of_kind[world.kind] * world.share
    browse = recipe.browse * world.popularity / np.diff(world.edges)[world.cluster]  # if in it

    scale = cluster
    if not recipe.repeats:  # what is unseen is rescaled, in each cluster by itself
        anywhere[history] = browse[history] = 0
        scale = cluster / (anywhere.sum() + np.add.reduceat(browse, world.firsts))
    chances: Floats = anywhere * scale.sum() + browse * scale[world.cluster]
    if recipe.repeats:
        chances *= 1 - recipe.again - recipe.earlier
        chances[history[-1]] += recipe.again
        np.add.at(chances, history[:-1], recipe.earlier / (len(history) - 1))
    return chances


def _times(
    recipe: Recipe, lengths: Ints, offsets: Ints, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draws times in milliseconds, (E,): not decreasing along a user's events."""
    clock, n_events = recipe.clock, int(offsets[-1])
    gaps = clock.pause * np.exp(rng.normal(0, clock.pause_ln_sd, n_events))
    breaks = rng.random(n_events) < clock.breaks
    gaps[breaks] = 2 * DAY * np.exp(rng.normal(0, 1.5, np.count_nonzero(breaks)))
    gaps = np.maximum(np.round(gaps / clock.tick), 1)
    gaps[rng.random(n_events) < clock.ties] = 0
    gaps[offsets[:-1]] = 0
    elapsed = np.cumsum(gaps)  # in ticks, from each user's first event
    elapsed -= np.repeat(elapsed[offsets[:-1]], lengths)
    span = elapsed[offsets[1:] - 1]
    period = clock.period // clock.tick
    squeeze = np.minimum(1, period / np.maximum(span, 1))
    begin = rng.random(len(lengths)) * (period - span * squeeze)
    ticks = np.floor(elapsed * np.repeat(squeeze, lengths)) + np.repeat(np.floor(begin), lengths)
    times: NDArray[np.int64] = FIRST_DAY + ticks.astype(np.int64) * clock.tick
    return times
