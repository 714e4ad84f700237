"""Points that earlier studies found good, for the next one to start with."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from typer.testing import CliRunner

from seqtune.cli.app import app
from seqtune.errors import UserError
from seqtune.options import StudyOptions
from seqtune.space import load_space
from seqtune.space.asked import ask_study
from seqtune.storage import Folder
from seqtune.study import record
from seqtune.study.identity import About, write_about
from seqtune.study.portfolio import greedy, portfolio, scaled, warm_started

SPACE = """
model: sasrec
space:
  learning_rate: {low: 1e-4, high: 1e-1, log: true}
  loss_type: {choice: [ce, bce]}
"""
NOW = datetime.now()


def trial(number: int, params: dict[str, Any], value: float) -> FrozenTrial:
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState.COMPLETE,
        value=value,
        params={},
        distributions={},
        user_attrs={"model": "sasrec", "params": params, "origin": "drawn"},
        system_attrs={},
        intermediate_values={1: value},
        datetime_start=NOW - timedelta(minutes=5),
        datetime_complete=NOW,
    )


def study(root: Path, name: str, best_rate: float, n: int = 20, model: str = "sasrec") -> None:
    """One whose best learning rate is known, and for which bce is never good."""
    folder, rng = Folder.at(root) / name, np.random.default_rng(len(name))
    file = root / "space.yaml"
    file.write_text(SPACE)
    spaces = {model: load_space(file, "sasrec").as_dict()}
    same = {"model": model, "metric": "ndcg@10"}
    write_about(folder, About(f"{name}-id", "seqtune tune", same, {"trials": n}, spaces=spaces))
    for number in range(n):
        rate = float(10 ** rng.uniform(-4, -1))
        loss = ("ce", "bce")[number % 2]
        value = 1 / (1 + abs(np.log10(rate / best_rate))) - 0.3 * (loss == "bce")
        params = {"learning_rate": rate, "loss_type": loss, "epochs": 3}
        made = trial(number, params, value)
        record.keep(folder / "trials" / f"{number:04d}", f"{name}-id", made)


def test_a_scale_on_which_the_best_of_each_study_is_1_and_its_median_0() -> None:
    values = np.array([[1.0, 2.0, 3.0, 5.0, 4.0], [0.1, 0.1, 0.1, 0.1, 0.1]])
    assert scaled(values).tolist() == [[0, 0, 0, 1, 0.5], [0, 0, 0, 0, 0]]


def test_each_point_adds_most_to_what_those_before_it_reach() -> None:
    values = np.array([[1.0, 0.9, 0.0, 0.3], [0.0, 0.0, 0.8, 0.6], [0.0, 0.0, 0.8, 0.6]])
    assert greedy(values, 1) == [2]  # not the one that is best somewhere
    assert greedy(values, 4) == [2, 0]  # the others add nothing
    assert greedy(values, 2, known=np.array([0.0, 0.9, 0.9])) == [0]


def test_points_for_a_space_file_are_good_in_every_study(tmp_path: Path) -> None:
    study(tmp_path, "slow", 1e-3)
    study(tmp_path, "quick", 3e-2)
    found = portfolio(["slow", "quick"], str(tmp_path), None, 2)
    rates = sorted(point["learning_rate"] for point in found.points)
    assert 3e-4 < rates[0] < 3e-3 < 1e-2 < rates[-1]
    assert {point["loss_type"] for point in found.points} == {"ce"}
    assert all(share > 0.9 for share in found.reached.values())
    assert all("epochs" not in point for point in found.points)

    done = CliRunner().invoke(
        app, ["portfolio", "slow", "quick", "--points", "2", "--storage", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert "slow: the best of these points reaches " in done.stderr
    own = tmp_path / "own.yaml"
    own.write_text(SPACE + done.stdout)
    assert len(yaml.safe_load(done.stdout)["start"]) == 2
    assert load_space(own, "sasrec").portfolio == found.points


def test_a_study_may_begin_with_the_best_points_of_another(tmp_path: Path) -> None:
    study(tmp_path, "one", 3e-2)
    own = tmp_path / "own.yaml"
    own.write_text(SPACE.replace("high: 1e-1", "high: 1e-2") + "start: [{loss_type: bce}]\n")
    options = StudyOptions("sasrec", space=str(own), warm_start="one", storage=str(tmp_path))
    space = warm_started(ask_study(options)).space
    first = [space.started(number) for number in range(8)]
    assert first[1] == {"learning_rate": 1e-2, "loss_type": "ce"}  # moved into the space
    assert first[6] == {"learning_rate": 1e-3, "loss_type": "bce"}  # that of the file
    assert first[7] is None
    with pytest.raises(UserError, match="--warm-start one: has no trial of gru4rec with a value"):
        warm_started(ask_study(replace(options, model="gru4rec", space=None)))


def test_studies_that_say_nothing_together_are_refused(tmp_path: Path) -> None:
    study(tmp_path, "one", 1e-3)
    study(tmp_path, "few", 1e-3, n=3)
    study(tmp_path, "other", 1e-3, model="gru4rec")
    with pytest.raises(UserError, match="few: has 3 trials of sasrec with a value, and 5 are"):
        portfolio(["one", "few"], str(tmp_path), None, 2)
    with pytest.raises(UserError, match="the studies have no model in common"):
        portfolio(["one", "other"], str(tmp_path), None, 2)
    with pytest.raises(UserError, match="--model sasrek: is not in all of the studies; did you"):
        portfolio(["one"], str(tmp_path), "sasrek", 2)
