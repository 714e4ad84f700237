"""Recorded studies: every setting of a space, with the curve that its training had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import create_model

from seqtune.params import Params, Trained
from seqtune.space import Dimension, Space

FLOORS = "popularity.json"  # what popularity reaches on validation, of each data set
FEW = 10  # settings, below which a table says nothing
Floats = NDArray[np.float64]


@dataclass
class Table:
    """N settings with T evaluations each; larger is better."""

    group: str  # of tables that share a space, so that one may teach another
    name: str
    space: Space
    settings: pd.DataFrame  # (N, D) as the space names them
    valid: Floats  # (N, T) nan after the end of a training
    test: Floats  # (N, T) the same on test; on validation where nothing else was recorded
    seconds: Floats  # (N,) between two evaluations
    epochs: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, int))  # (T,) of them
    steps: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, int))  # (N, T)
    popularity: float | None = None  # what it reaches on validation; None where nobody knows
    defaults: int | None = None  # the setting that they are; None where there are none

    def __post_init__(self) -> None:
        if not len(self.epochs):
            self.epochs = np.arange(1, self.valid.shape[1] + 1)
        if not len(self.steps):
            self.steps = np.tile(self.epochs, (self.n, 1))
        self._places = self._place(self.settings.to_dict("list"))

    @property
    def n(self) -> int:
        """The number of settings."""
        return len(self.settings)

    def best(self) -> tuple[Floats, Floats]:
        """Returns the best validation value of each setting, and the test value there: (N,)."""
        at = np.nanargmax(self.valid, axis=1)
        rows = np.arange(self.n)
        return self.valid[rows, at], self.test[rows, at]

    def error(self) -> float:
        """Returns the standard error of the difference between two settings on validation.

        It is what test scatters about a line over validation: twice the variance of a setting's own
        noise, as the difference of two has. nan where nothing is told of a test.
        """
        valid, test = self.best()
        if np.array_equal(valid, test):
            return float("nan")
        line = np.polyfit(valid, test, 1)
        return float(np.std(test - np.polyval(line, valid), ddof=2))

    def point(self, setting: int) -> dict[str, Any]:
        """Returns a setting as the space has it; what it does not sample there is left out."""
        values = self.settings.iloc[setting].to_dict()
        return {
            d.name: d.nearest(values[d.name])
            for d in self.space.dimensions
            if values[d.name] == values[d.name]
        }

    def answer(self, values: dict[str, Any], used: set[int]) -> int:
        """Returns the row that answers a point: here the nearest setting that was not used."""
        return self.nearest(values, used)

    def nearest(self, values: dict[str, Any], used: set[int]) -> int:
        """Returns the setting next to a point that was not used before."""
        one = self._place({d.name: [values.get(d.name)] for d in self.space.dimensions})
        distance = np.abs(self._places - one).sum(axis=1)
        distance[list(used)] = np.inf
        return int(distance.argmin())

    def _place(self, columns: dict[str, list[Any]]) -> Floats:
        """Places points in a cube of side 1; a name has a side for each of its choices."""
        sides = []
        for d in self.space.dimensions:
            values = columns[d.name]
            if d.choice:
                ranked = all(isinstance(one, int | float) for one in d.choice)
                order = {one: n for n, one in enumerate(d.choice)}
                if ranked:  # by rank, as the choices of a size double
                    place = [order.get(v, 0) / max(len(d.choice) - 1, 1) for v in values]
                    sides.append(np.array(place))
                else:
                    sides += [np.array([float(v == one) / 2 for v in values]) for one in d.choice]
                continue
            low, high = (np.log(d.low), np.log(d.high)) if d.log else (d.low, d.high)
            known = np.array([d.low if v is None or v != v else v for v in values], float)
            sides.append(((np.log(known) if d.log else known) - low) / ((high - low) or 1))
        return np.stack(sides, axis=1)


class Forest(Table):
    """A table that answers any point of its space, by a random forest of its settings."""

    LEAST = 0.9  # rank correlation on settings that the forest has not seen

    @classmethod
    def of(cls, table: Table) -> tuple[Forest, float]:
        """Returns the table with a forest, and the rank correlation of its best values.

        Raises:
            ValueError: that is below ``LEAST``.
        """
        from scipy.stats import spearmanr
        from sklearn.ensemble import RandomForestRegressor
        from sklearn.model_selection import cross_val_predict

        made = cls(**{f.name: getattr(table, f.name) for f in fields(table)})
        ends = table.best()[0]
        trees = {"n_estimators": 100, "min_samples_leaf": 1, "random_state": 0, "n_jobs": 1}
        ranked = np.argsort(np.argsort(ends))  # a diverged one is far away, and only the last
        told = cross_val_predict(RandomForestRegressor(**trees), table._places, ranked, cv=5)
        found = float(spearmanr(told, ends).statistic)
        if found < cls.LEAST:
            raise ValueError(f"{table.group} {table.name}: a forest ranks with {found:.2f} only")
        both = np.concatenate([table.valid, table.test], axis=1)
        made._known = np.sort(both[np.isfinite(both)])
        shares = np.searchsorted(made._known, np.nan_to_num(both)) / len(made._known)
        made._forest = RandomForestRegressor(**trees).fit(table._places, shares)
        return made, found

    def answer(self, values: dict[str, Any], used: set[int]) -> int:
        """Adds a row of what the forest says of a point; it lasts as long as the nearest one."""
        near = self.nearest(values, set())
        place = self._place({d.name: [values.get(d.name)] for d in self.space.dimensions})
        shares = self._forest.predict(place)[0]
        valid, test = np.split(np.quantile(self._known, np.clip(shares, 0, 1)), 2)
        for name, told in (("valid", valid), ("test", test)):
            known = getattr(self, name)
            row = np.where(np.isnan(known[near]), np.nan, told)
            setattr(self, name, np.vstack([known, row]))
        self.seconds = np.append(self.seconds, self.seconds[near])
        self.steps = np.vstack([self.steps, self.steps[near]])
        return len(self.valid) - 1


def made_space(name: str, dimensions: list[Dimension], start: dict[str, Any], epochs: int) -> Space:
    """Returns a space of hyperparameters that no model of ours has."""
    fields: dict[str, Any] = {d.name: (type(d.corners[0]), start[d.name]) for d in dimensions}
    declared: type[Params] = create_model(name, __base__=Trained, epochs=(int, epochs), **fields)
    return Space(name, {}, tuple(dimensions), name, start=start, declared=declared)


# Adam as everybody knows it: 1 - beta1 and 1 - beta2 are what the space has.
ADAM = {"learning_rate": 1e-3, "beta1": 0.1, "beta2": 1e-3, "epsilon": 1e-8}


def task_set(file: Path) -> Iterator[Table]:
    """The 12 tasks of TaskSet: curves of small recurrent networks; nothing is told of a test.

    Each comes twice: trial 0 is any setting, and is what Adam's defaults are.
    """
    for task, rows in pd.read_parquet(file).groupby("task", observed=True):
        settings = rows.drop(columns=["task", "config", "valid_loss"]).reset_index(drop=True)
        for name in ("beta1", "beta2"):
            settings[name] = (1 - settings[name]).clip(lower=1e-7)
        log = {name: column > 0 for name, column in settings.items()}
        settings = settings.where(pd.DataFrame(log), np.nan)
        settings = settings.fillna(settings.min())
        dimensions = [
            Dimension(str(name), low=float(column.min()), high=float(column.max()), log=True)
            for name, column in settings.items()
        ]
        start = {d.name: d.low for d in dimensions}
        curves = -np.array(rows["valid_loss"].tolist(), dtype=float)
        curves[~np.isfinite(curves)] = np.nanmin(curves)
        space = made_space("taskset", dimensions, start, curves.shape[1])
        table = Table("taskset", str(task), space, settings, curves, curves, np.ones(len(rows)))
        adam = {d.name: d.nearest(max(ADAM.get(d.name, 0.0), d.low)) for d in dimensions}
        yield table
        yield replace(table, group="taskset, Adam", defaults=table.nearest(adam, set()))


def time_to_split(file: Path) -> Iterator[Table]:
    """24 grids of SASRec, GRU4Rec and BERT4Rec, leave-one-out: their ends, without curves."""
    frame = pd.read_parquet(file)
    frame = frame[(frame["split"] == "loo") & (frame["target"] == "last")]
    for (data, model), rows in frame.groupby(["data", "model"], observed=True):
        valid = rows[rows["part"] == "val"].set_index("config").sort_index()
        test = rows[rows["part"] == "test"].set_index("config").reindex(valid.index)
        names = ["hidden_units", "num_blocks", "num_heads", "dropout", "hidden_size", "num_layers"]
        names = [name for name in names if valid[name].notna().all()]
        settings = valid[names].reset_index(drop=True)
        dimensions = [Dimension(name, choice=tuple(sorted(set(settings[name])))) for name in names]
        middle = {d.name: d.choice[len(d.choice) // 2] for d in dimensions}
        space = made_space(str(model), dimensions, middle, 1)
        ends = (one["NDCG@10"].to_numpy(float)[:, None] for one in (valid, test))
        group = f"time-to-split {model}"
        yield Table(group, str(data), space, settings, *ends, np.ones(len(valid)))


def exported(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns what ``seqtune export STUDY --what curves`` wrote, as a recorded table.

    Its trials may be evaluated after different epochs: an evaluation counts as one here.
    """
    named = rows.rename(columns=lambda name: name.removeprefix("param:"))
    return named.assign(
        config=rows["trial"],
        epoch=rows.groupby("trial").cumcount() + 1,
        seed=0,
        valid=rows["ndcg@10"],
        test=rows["ndcg@10"],
        seconds=rows["train_seconds"] + rows["eval_seconds"],
    )


def own(folder: Path) -> Iterator[Table]:
    """Studies that were recorded with ``record.py``: a parquet file and a space each."""
    from seqtune.space import load_space

    place = folder / FLOORS
    floors = json.loads(place.read_text()) if place.exists() else {}
    for file in sorted(folder.glob("*.parquet")):
        rows = pd.read_parquet(file)
        model, _, data = file.stem.partition("-")
        if "trial" in rows:
            model, rows = str(rows["model"].iloc[0]), exported(rows)
        space = load_space(None, model)
        first = rows[rows["seed"] == rows["seed"].min()]
        numbers = sorted(first["config"].unique())
        names = [d.name for d in space.dimensions]
        if len(numbers) < FEW:
            continue
        rows_of = first.groupby("config").first().reindex(columns=names)
        settings = rows_of.loc[numbers].reset_index(drop=True)
        epochs = np.sort(first["epoch"].unique())
        curves = [
            first.pivot(index="config", columns="epoch", values=part)
            .reindex(index=numbers, columns=epochs)
            .to_numpy(float)
            for part in ("valid", "test", "step")
        ]
        steps = np.nan_to_num(curves.pop()).astype(np.int64)
        seconds = first.groupby("config")["seconds"].mean().loc[numbers].to_numpy(float)
        known = {"defaults": 0, "popularity": floors.get(data)}
        yield Table(model, data, space, settings, *curves, seconds, epochs, steps, **known)
