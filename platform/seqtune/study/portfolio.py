"""Which few points are good starts on data that nobody has seen, chosen on earlier studies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtune.errors import UserError, nearest
from seqtune.results import TrialRow
from seqtune.space.asked import AskedStudy
from seqtune.study.shelf import Known, find, whole
from seqtune.words import both, written

FEW = 5  # trials of a study, below which they say nothing
TREES = 200
POINTS = 5  # of an earlier study


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Puts the values of each study on one scale: its median is 0 and its best 1: (S, N) -> (S, N).

    What is worse than the median counts as the median: how bad a point is that is not taken has no
    meaning.
    """
    best, middle = np.nanmax(values, axis=1), np.nanmedian(values, axis=1)
    width = np.where(best > middle, best - middle, 1.0)
    return np.maximum(np.nan_to_num((values - middle[:, None]) / width[:, None], nan=0.0), 0.0)


def greedy(
    values: NDArray[np.float64], n: int, known: NDArray[np.float64] | None = None
) -> list[int]:
    """Chooses points so that the best of them does well in every study; the best one first.

    Each next point is the one that adds most to the mean over studies of the best value so far
    (Xu, Hoos and Leyton-Brown, AAAI 2010, with studies for instances).

    Args:
        values: of each point in each study, ``scaled``: (S, N).
        n: how many; fewer come back where no more add anything.
        known: what each study has without them, those of its defaults: (S,).
    """
    best = np.zeros(len(values)) if known is None else known.copy()
    chosen: list[int] = []
    while len(chosen) < n:
        gains = np.maximum(values, best[:, None]).mean(axis=0) - best.mean()
        point = int(gains.argmax())
        if gains[point] <= 0:
            break
        chosen.append(point)
        best = np.maximum(best, values[:, point])
    return chosen


@dataclass(frozen=True)
class Portfolio:
    """Points for a space file, and how well they do in the studies that they come from."""

    model: str
    points: tuple[dict[str, Any], ...]
    reached: dict[str, float]  # study -> what the best of them reaches, of its best: 1 is all

    @property
    def yaml(self) -> str:
        """The points as a space file has them."""
        rows = [", ".join(f"{n}: {written(v)}" for n, v in point.items()) for point in self.points]
        return "\n".join(["start:", *(f"  - {{{row}}}" for row in rows)])


def portfolio(names: Sequence[str], storage: str, model: str | None, n: int) -> Portfolio:
    """Chooses points of the trials of earlier studies.

    What a point would reach in a study that has not tried it is told by a random forest of the
    trials that it has tried.

    Raises:
        UserError: there is no such study, they have no model in common, or too few trials of it.
    """
    studies = [find(name, storage) for name in names]
    for one in studies:
        whole(one)
    found = _model(studies, model)
    rows = {one.name: [row for row in one.trials if _counts(row, found)] for one in studies}
    for name, own in rows.items():
        if len(own) < FEW:
            raise UserError(
                f"{name}: has {len(own)} trials of {found} with a value, and {FEW} are needed to "
                "tell good points from bad ones"
            )
    searched = _searched(studies, found)
    points = list({_key(row, searched): row for own in rows.values() for row in own}.values())
    features = _features(points, searched)
    values = np.stack(
        [_predicted(own, points, features, searched) for own in rows.values()]
    )  # (S, N)
    levels = scaled(values)
    chosen = greedy(levels, n)
    best = values[:, chosen].max(axis=1) / values.max(axis=1)
    return Portfolio(
        found,
        tuple(
            {m: points[at].params[m] for m in searched if m in points[at].params} for at in chosen
        ),
        dict(zip(rows, best.tolist(), strict=True)),
    )


def warm_started(asked: AskedStudy) -> AskedStudy:
    """Puts the best points of ``--warm-start`` before those of the space files.

    They may be of any data, and of a wider space: they are moved into the one that is searched.

    Raises:
        UserError: there is no such study, or it has no trial of a model.
    """
    name = asked.options.warm_start
    if name is None:
        return asked
    known = find(name, asked.options.storage)
    whole(known)
    spaces = []
    for space in asked.spaces:
        rows = [row for row in known.trials if _counts(row, space.model)]
        if not rows:
            raise UserError(f"--warm-start {name}: has no trial of {space.model} with a value")
        best = sorted(rows, key=lambda row: -(row.value or 0.0))[:POINTS]
        names = {dimension.name for dimension in space.dimensions}
        points = tuple({n: v for n, v in row.params.items() if n in names} for row in best)
        spaces.append(replace(space, portfolio=(*points, *space.portfolio)))
    return replace(asked, spaces=tuple(spaces))


def _model(studies: Sequence[Known], model: str | None) -> str:
    """Returns the model that all studies have tuned."""
    common = [m for m in studies[0].models if all(m in one.models for one in studies)]
    if model is not None:
        if model not in common:
            raise UserError(
                f"--model {model}: is not in all of the studies{nearest(model, common)}"
            )
        return model
    if len(common) != 1:
        what = (
            f"{both(common)} in common; name one with --model" if common else "no model in common"
        )
        raise UserError(f"NAME...: the studies have {what}")
    return common[0]


def _counts(row: TrialRow, model: str) -> bool:
    return row.model == model and row.value is not None and row.status in ("complete", "pruned")


def _searched(studies: Sequence[Known], model: str) -> list[str]:
    """Returns the names that any of the studies has searched, in order."""
    spaces = [whole(one).spaces.get(model, {}) for one in studies]
    return list(dict.fromkeys(name for space in spaces for name in space.get("space", {})))


def _key(row: TrialRow, searched: Sequence[str]) -> str:
    return json.dumps([row.params.get(name) for name in searched])


def _features(points: Sequence[TrialRow], searched: Sequence[str]) -> NDArray[np.float64]:
    """Returns the points as numbers: (N, D); a name is a column for each of its values."""
    columns = []
    for name in searched:
        values = [point.params.get(name) for point in points]
        if all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values if v is not None
        ):
            known = np.array([np.nan if v is None else v for v in values], np.float64)
            columns.append(np.nan_to_num(known, nan=-1.0))
        else:
            columns += [np.array([v == one for v in values]) for one in dict.fromkeys(values)]
    return np.stack(columns, axis=1).astype(np.float64)


def _predicted(
    own: Sequence[TrialRow],
    points: Sequence[TrialRow],
    features: NDArray[np.float64],
    searched: Sequence[str],
) -> NDArray[np.float64]:
    """Returns what each point reaches in a study, as tried or as a forest tells: (N,)."""
    from sklearn.ensemble import RandomForestRegressor

    tried = {_key(row, searched): float(row.value or 0.0) for row in own}
    keys = [_key(point, searched) for point in points]
    inside = np.array([key in tried for key in keys])
    values = np.array([tried.get(key, 0.0) for key in keys])
    if not inside.all():
        forest = RandomForestRegressor(TREES, random_state=0)
        forest.fit(features[inside], values[inside])
        values[~inside] = forest.predict(features[~inside])
    return values
