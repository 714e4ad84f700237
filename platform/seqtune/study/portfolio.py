"""Which few points are good starts on data that nobody has seen, chosen on earlier studies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
