from __future__ import annotations

import dataclasses
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import pytest
from optuna.trial import TrialState
from pydantic import Field, model_validator
from ray.tune.search import Searcher

from seqtune.errors import UserError
from seqtune.params import Depth, Dropout, Heads, Trained
from seqtune.results import TrialRow
from seqtune.space import Space, load_space
from seqtune.study.search import OptunaSearcher
from seqtune.study.store import best_epoch, open_study, storage_url, trial_rows


class Toy:
    class Params(Trained):
        n_layers: Depth = 2
        n_heads: Heads = 2
        dropout_prob: Dropout = 0.2
        loss_type: Literal["ce", "bce"] = "ce"
        ssl_lambda: float = Field(0.1, ge=0, le=100)

        @model_validator(mode="after")
        def _heads_divide_size(self) -> Self:
            if self.embedding_size % self.n_heads:
                raise ValueError(f"n_heads must divide embedding_size {self.embedding_size}")
            return self


WIDE = """
model: toy
fixed: {max_seq_len: 20}
space:
  n_layers: {low: 1, high: 4}
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
  loss_type: {choice: [ce, bce]}
  neg_samples: {choice: [1, 4], when: {loss_type: [bce]}}
"""


def toy_space(folder: Path, text: str) -> Space:
    file = folder / "toy.yaml"
    file.write_text(text)
    return load_space(file, "toy", {}, Toy.Params)


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return toy_space(tmp_path, WIDE)


Make = Callable[..., OptunaSearcher]


@pytest.fixture
def make(tmp_path: Path, space: Space) -> Iterator[Make]:
    """Makes searchers of one study in one SQLite file; closes them at the end."""
    made: list[OptunaSearcher] = []

    def make(**changes: Any) -> OptunaSearcher:
        given = {
            "spaces": [space],
            "storage": storage_url(tmp_path),
            "name": "study",
            "metric": "m",
        }
        made.append(OptunaSearcher(**(given | changes)))
        return made[-1]

    yield make
    for searcher in made:
        searcher.close()


def epochs(searcher: OptunaSearcher, trial: str, *values: float) -> dict[str, Any]:
    """Reports one value per epoch; returns the last report."""
    for epoch, value in enumerate(values, start=1):
        so_far = list(values[:epoch])
        report = {"epoch": epoch, "m": value, "best": max(so_far), "finished": False}
        report |= {"best_epoch": so_far.index(report["best"]) + 1, "training_iteration": 99}
        searcher.on_trial_result(trial, report)
    return report


def finish(searcher: OptunaSearcher, trial: str, *values: float) -> None:
    report = epochs(searcher, trial, *values)
    searcher.on_trial_complete(trial, report | {"finished": True})


def states(searcher: OptunaSearcher) -> list[str]:
    return [t.state.name for t in searcher.open().study.trials]


# A new study


def test_trial_0_is_the_defaults_and_is_stored_as_running(make: Make, space: Space) -> None:
    searcher = make()
    config = searcher.suggest("tune0")
    assert config == {
        "number": 0,
        "model": "toy",
        "origin": "default",
        "params": {"max_seq_len": 20, "n_layers": 2, "learning_rate": 1e-3, "loss_type": "ce"},
    }
    assert config["params"] == space.defaults()
    (stored,) = searcher.open().study.trials
    assert stored.state == TrialState.RUNNING
    assert stored.params == {"n_layers": 2, "learning_rate": 1e-3, "loss_type": "ce"}
    del config["number"]
    assert stored.user_attrs == config | {"tune_trial_id": "tune0"}


def test_there_are_exactly_as_many_trials_as_asked_for(make: Make) -> None:
    searcher = make(trials=12)
    numbers = []
    for n in range(12):
        config = searcher.suggest(f"t{n}")
        numbers.append(config["number"])
        assert ("neg_samples" in config["params"]) == (config["params"]["loss_type"] == "bce")
        finish(searcher, f"t{n}", 0.1 * n)
    assert searcher.suggest("more") == Searcher.FINISHED
    assert numbers == list(range(12))
    assert states(searcher) == ["COMPLETE"] * 12
    assert searcher.notes == []


def test_fewer_trials_run_at_a_time_while_they_are_held_back(make: Make) -> None:
    searcher = make(trials=5)
    assert [searcher.suggest(f"t{n}")["number"] for n in range(3)] == [0, 1, 2]
    searcher.hold_back(seconds=60)
    assert searcher.suggest("t3") is None
    finish(searcher, "t0", 0.5)
    assert searcher.suggest("t3") is None  # two run still
    finish(searcher, "t1", 0.5)
    assert searcher.suggest("t3")["number"] == 3
    searcher.hold_back(seconds=0)
    assert searcher.suggest("t4")["number"] == 4


def test_a_trial_that_is_alone_is_not_held_back(make: Make) -> None:
    searcher = make(trials=3)
    searcher.suggest("t0")
    searcher.hold_back(seconds=60)
    assert searcher.suggest("t1") is None
    finish(searcher, "t0", 0.5)
    assert searcher.suggest("t1")["number"] == 1


def test_a_finished_trial_is_told_with_its_best_value(make: Make) -> None:
    searcher = make()
    searcher.suggest("a")
    finish(searcher, "a", 0.1, 0.3, 0.2)
    (stored,) = searcher.open().study.trials
    assert stored.state == TrialState.COMPLETE
    assert stored.value == 0.3  # not 0.2, the last
    assert stored.intermediate_values == {1: 0.1, 2: 0.3, 3: 0.2}
    assert stored.user_attrs["best_epoch"] == 2


def test_a_trial_that_the_scheduler_stopped_is_pruned_with_all_its_values(make: Make) -> None:
    searcher = make()
    searcher.suggest("a")
    epochs(searcher, "a", 0.2, 0.1)
    # The result that made the scheduler stop reaches on_trial_complete alone.
    last = {"epoch": 3, "m": 0.15, "best": 0.2, "best_epoch": 1, "finished": False, "done": True}
    searcher.on_trial_complete("a", last)
    (stored,) = searcher.open().study.trials
    assert stored.state == TrialState.PRUNED
    assert stored.intermediate_values == {1: 0.2, 2: 0.1, 3: 0.15}
    assert stored.user_attrs["best_epoch"] == 1


def test_results_that_come_twice_count_once(make: Make) -> None:
    # After a retry a trial reports its past again; when it ends, Tune repeats the last result.
    searcher = make()
    searcher.suggest("a")
    epochs(searcher, "a", 0.1, 0.2)
    epochs(searcher, "a", 0.9, 0.9, 0.3)
    assert searcher.open().study.trials[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"failed": "out of memory", "finished": True}, "out of memory"),
        ({"failed": "out of memory", "finished": True, "m": 0.0}, "out of memory"),
        ({"epoch": 1, "m": math.nan, "best": math.nan, "finished": True}, "m is nan"),
        ({"done": True}, "ended without a report"),
        (None, "ended without a report"),
    ],
)
def test_trials_that_fail_without_raising(make: Make, report: Any, reason: str) -> None:
    searcher = make(trials=1)
    searcher.suggest("a")
    searcher.on_trial_complete("a", report)
    (stored,) = searcher.open().study.trials
    assert (stored.state, stored.user_attrs["reason"]) == (TrialState.FAIL, reason)
    assert searcher.suggest("b") == Searcher.FINISHED  # a failed trial keeps its place


def test_a_trial_that_raises_fails_with_the_reason_that_a_callback_gives(make: Make) -> None:
    searcher = make()
    for name in "ab":
        searcher.suggest(name)
        searcher.on_trial_complete(name, error=True)
    searcher.give_reason("b", "ValueError: boom")
    searcher.give_reason("stranger", "of another study")
    searcher.suggest("c")
    trials = searcher.open().study.trials
    assert [t.state for t in trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    assert [t.user_attrs.get("reason") for t in trials] == ["unknown", "ValueError: boom", None]


# Trials that go on from others


def stop(searcher: OptunaSearcher, trial: str, *values: float) -> None:
    """The scheduler stops a trial after some epochs."""
    searcher.on_trial_complete(trial, epochs(searcher, trial, *values))


def test_idle_workers_go_on_with_what_was_stopped_while_others_run(make: Make) -> None:
    searcher = make(trials=4, continues=True)
    points = [searcher.suggest(f"t{n}") for n in range(4)]
    assert searcher.suggest("idle") is None  # somebody may be stopped yet
    finish(searcher, "t0", 0.5)
    stop(searcher, "t1", 0.2)
    stop(searcher, "t2", 0.3)
    assert searcher.suggest("a") == points[2] | {"number": 4, "origin": "continued", "parent": 2}
    assert searcher.suggest("b")["parent"] == 1
    assert searcher.suggest("c") is None
    finish(searcher, "t3", 0.1)
    assert searcher.suggest("d") == Searcher.FINISHED
    finish(searcher, "a", 0.6)
    stop(searcher, "b", 0.25)
    rows = trial_rows(searcher.open().study)
    assert [(row.status, row.parent) for row in rows[3:]] == [
        ("complete", None),
        ("complete", 2),
        ("pruned", 1),
    ]


def test_one_that_goes_on_does_so_after_a_resume(make: Make) -> None:
    searcher = make(trials=3, continues=True)
    for n in range(3):
        searcher.suggest(f"t{n}")
    finish(searcher, "t0", 0.5)
    stop(searcher, "t1", 0.2)
    config = searcher.suggest("a")
    searcher.close()
    again = make(trials=3, continues=True, resume=True)
    assert again.suggest("t2b")["number"] == 2
    assert again.suggest("ab") == config
    assert again.suggest("b") is None
    finish(again, "t2b", 0.1)
    assert again.suggest("b") == Searcher.FINISHED


def test_with_one_worker_nobody_goes_on(make: Make) -> None:
    searcher = make(trials=2, continues=True)
    searcher.suggest("t0")
    finish(searcher, "t0", 0.5)
    searcher.suggest("t1")
    stop(searcher, "t1", 0.2)
    assert searcher.suggest("more") == Searcher.FINISHED


def test_nobody_goes_on_unless_the_scheduler_may_be_wrong(make: Make) -> None:
    searcher = make(trials=2)
    searcher.suggest("t0")
    searcher.suggest("t1")
    stop(searcher, "t1", 0.2)
    assert searcher.suggest("more") == Searcher.FINISHED


def test_the_trials_of_a_population_follow_one_another(make: Make) -> None:
    def evolved(cut: int) -> list[Any]:
        how: Any = {"trials": 12, "evolves": True, "name": f"cut{cut}", "seed": 5}
        searcher = make(**how)
        configs = []
        for n in range(12):
            if n == cut:
                searcher.close()
                searcher = make(**how, resume=True)
            configs.append(searcher.suggest(f"t{n}"))
            (finish if n == 0 else stop)(searcher, f"t{n}", 0.1 * (n % 3))
        assert searcher.suggest("more") == Searcher.FINISHED
        return configs

    whole = evolved(99)
    assert [config["origin"] for config in whole] == ["default"] + ["drawn"] * 2 + ["evolved"] * 9
    assert all(config["parent"] < config["number"] for config in whole[3:])
    assert evolved(7) == whole


def test_a_population_waits_for_those_that_run(make: Make) -> None:
    searcher = make(trials=12, evolves=True)
    for n in range(3):
        searcher.suggest(f"t{n}")
    assert searcher.suggest("t3") is None
    stop(searcher, "t1", 0.2)
    assert searcher.suggest("t3")["parent"] == 1
    assert searcher.suggest("t4") is None


# Which points become trials


def test_points_that_break_a_rule_never_become_trials(make: Make, tmp_path: Path) -> None:
    space = toy_space(
        tmp_path,
        "model: toy\nspace:\n  embedding_size: {choice: [32, 45, 64]}\n"
        "  n_heads: {low: 1, high: 8}\n  dropout_prob: {low: 0, high: 0.5}\n",
    )
    searcher = make(spaces=[space], trials=15)
    for n in range(15):
        config = searcher.suggest(f"t{n}")
        assert config["number"] == n
        assert config["params"]["embedding_size"] % config["params"]["n_heads"] == 0
        finish(searcher, f"t{n}", config["params"]["n_heads"])
    assert states(searcher) == ["COMPLETE"] * 15


def test_a_study_ends_early_with_a_note_when_the_space_is_exhausted(
    make: Make, tmp_path: Path
) -> None:
    # Of 6 combinations, (45, 2) breaks a rule.
    space = toy_space(
        tmp_path,
        "model: toy\nspace:\n  embedding_size: {choice: [32, 45, 64]}\n"
        "  n_heads: {choice: [1, 2]}\n",
    )
    searcher = make(spaces=[space], trials=20)
    points = []
    for n in range(5):
        params = searcher.suggest(f"t{n}")["params"]
        points.append((params["embedding_size"], params["n_heads"]))
        finish(searcher, f"t{n}", params["embedding_size"])
    assert points[0] == (64, 2)
    assert sorted(points) == [(32, 1), (32, 2), (45, 1), (64, 1), (64, 2)]
    assert searcher.suggest("more") == Searcher.FINISHED
    assert searcher.notes == [
        (
            "the study ends after 5 of 20 trials: 500 draws gave no point of the search space that "
            "is new and obeys the model's rules"
        )
    ]
    assert states(searcher) == ["COMPLETE"] * 5


def test_a_value_given_and_the_same_value_by_default_are_the_same_point(
    make: Make, tmp_path: Path
) -> None:
    # loss_type ce leaves neg_samples at its default 1, whatever was drawn before.
    text = (
        "model: toy\nspace:\n  loss_type: {choice: [ce]}\n"
        "  neg_samples: {choice: [1, 2], when: {loss_type: [bce]}}\n"
    )
    searcher = make(spaces=[toy_space(tmp_path, text)])
    assert searcher.suggest("a")["params"] == {"loss_type": "ce"}
    finish(searcher, "a", 0.1)
    assert searcher.suggest("b") == Searcher.FINISHED


def test_an_empty_space_is_one_trial(make: Make, tmp_path: Path) -> None:
    searcher = make(spaces=[toy_space(tmp_path, "model: toy\nfixed: {n_layers: 1}")])
    assert searcher.suggest("a")["params"] == {"n_layers": 1}
    finish(searcher, "a", 0.1)
    assert searcher.suggest("b") == Searcher.FINISHED


def test_draws_depend_on_the_seed_and_the_past_alone(make: Make, tmp_path: Path) -> None:
    def points(seed: int, cut: int) -> list[dict[str, Any]]:
        storage = storage_url(tmp_path / f"{seed}-{cut}")
        searcher = make(storage=storage, seed=seed, trials=14)
        configs = []
        for n in range(14):
            if n == cut:  # another driver goes on
                searcher = make(storage=storage, seed=seed, trials=14, resume=True)
                searcher.open()
                assert [t.number for t in searcher.past] == list(range(n))
            configs.append(searcher.suggest(f"t{n}")["params"])
            finish(searcher, f"t{n}", configs[-1]["learning_rate"])
        return configs

    whole, other = points(seed=3, cut=99), points(seed=4, cut=99)
    assert points(seed=3, cut=12) == whole  # cut after TPE has begun
    assert other[0] == whole[0]  # the defaults
    assert not [point for point in other[1:] if point in whole]


def test_the_sampler_learns(make: Make) -> None:
    searcher = make(trials=30, seed=1)
    rates = []
    for n in range(30):
        params = searcher.suggest(f"t{n}")["params"]
        rates.append(params["learning_rate"])
        finish(searcher, f"t{n}", -abs(math.log10(params["learning_rate"] / 5e-4)))
    near = [2.5e-4 < rate < 1e-3 for rate in rates]
    assert sum(near[12:]) >= 9  # at random: 5 of 18


def test_running_trials_are_not_asked_again(make: Make) -> None:
    searcher = make(trials=8)
    configs = [searcher.suggest(f"t{n}") for n in range(8)]
    assert [c["number"] for c in configs] == list(range(8))
    assert len({str(c["params"]) for c in configs}) == 8


# The next driver


def interrupted(make: Make) -> list[dict[str, Any]]:
    """Leaves a study like a driver that was killed: complete, pruned, failed, running, running."""
    searcher = make(trials=7)
    configs = [searcher.suggest(name) for name in "abcde"]
    finish(searcher, "a", 0.1, 0.4)
    searcher.on_trial_complete("b", epochs(searcher, "b", 0.2))
    searcher.on_trial_complete("c", error=True)
    searcher.give_reason("c", "boom")
    epochs(searcher, "d", 0.3, 0.35)
    assert states(searcher) == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "RUNNING"]
    return configs


def test_resume_hands_out_what_had_not_ended_then_new_trials(make: Make) -> None:
    before = interrupted(make)
    searcher = make(trials=7, resume=True)
    configs = [searcher.suggest(f"again{n}") for n in range(4)]
    assert [c["number"] for c in configs] == [3, 4, 5, 6]
    assert [c["params"] for c in configs[:2]] == [before[n]["params"] for n in (3, 4)]
    assert [(t.number, t.state.name) for t in searcher.past] == [(0, "COMPLETE"), (1, "PRUNED")]
    assert [t.intermediate_values for t in searcher.past] == [{1: 0.1, 2: 0.4}, {1: 0.2}]

    finish(searcher, "again0", 0.3, 0.35, 0.2)
    for n in (1, 2):
        finish(searcher, f"again{n}", 0.5)
    searcher.on_trial_complete("again3", epochs(searcher, "again3", 0.0))
    assert searcher.suggest("more") == Searcher.FINISHED
    searcher.close()
    trials = searcher.open().study.trials
    assert [t.state.name for t in trials] == [
        *("COMPLETE", "PRUNED", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE", "PRUNED")
    ]
    assert [t.value for t in trials] == [0.4, 0.2, None, 0.35, 0.5, 0.5, 0.0]
    assert trials[3].intermediate_values == {1: 0.3, 2: 0.35, 3: 0.2}
    assert trials[3].user_attrs["tune_trial_id"] == "again0"


def test_a_study_without_trials_can_begin_in_every_way(make: Make, tmp_path: Path) -> None:
    make().open()
    make(spaces=[toy_space(tmp_path, "model: toy\nfixed: {n_layers: 1}")]).open()
    assert make(resume=True).suggest("a")["number"] == 0


def test_resume_with_fewer_trials_ends_what_had_begun(make: Make) -> None:
    interrupted(make)
    fewer = make(trials=2, resume=True)
    assert [fewer.suggest(f"t{n}")["number"] for n in range(2)] == [3, 4]
    for n in range(2):
        finish(fewer, f"t{n}", 0.5)
    assert fewer.suggest("more") == Searcher.FINISHED


def test_closing_lets_trials_wait_until_the_study_goes_on(make: Make) -> None:
    interrupted(make)
    searcher = make(resume=True)
    searcher.close()  # it has not opened the study, and leaves it alone
    assert Counter(states(searcher))["RUNNING"] == 2
    searcher.close()
    assert Counter(states(searcher))["WAITING"] == 2
    again = [make(resume=True)]
    assert [again[0].suggest(f"b{n}")["number"] for n in range(2)] == [3, 4]
    assert Counter(states(again[0])) == {"COMPLETE": 1, "PRUNED": 1, "FAIL": 1, "RUNNING": 2}
    assert again[0].open().study.trials[3].intermediate_values == {1: 0.3, 2: 0.35}
    assert again[0].suggest("new")["number"] == 5


def test_closing_tells_a_failed_trial_whose_reason_nobody_gave(make: Make) -> None:
    searcher = make()
    searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    searcher.close()
    assert states(searcher) == ["FAIL"]


def test_an_existing_study_needs_resume(make: Make) -> None:
    interrupted(make)
    with pytest.raises(UserError) as mistake:
        make().open()
    assert str(mistake.value) == (
        "study 'study' exists and has 5 trials; go on with --resume, or give another --name"
    )
    assert make(name="other").suggest("a")["number"] == 0


def test_a_study_keeps_its_search_space(make: Make, tmp_path: Path) -> None:
    interrupted(make)
    changed = WIDE.replace("high: 4", "high: 3").replace("max_seq_len: 20", "max_seq_len: 30")
    with pytest.raises(UserError) as mistake:
        make(spaces=[toy_space(tmp_path, changed)], resume=True).open()
    assert str(mistake.value) == (
        "study 'study' was started with another search space (max_seq_len, n_layers changed); "
        "restore it, or give another --name"
    )
    other = dataclasses.replace(toy_space(tmp_path, WIDE), model="other")
    with pytest.raises(UserError) as mistake:
        make(spaces=[other], resume=True).open()
    assert str(mistake.value) == ("study 'study' is of model toy, not other; give another --name")


# Storage, pickling


def test_the_storage_url_is_read_late_and_never_pickled(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = make(storage="sqlite:///$FOLDER/deep/secret.db")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    searcher.suggest("a")
    epochs(searcher, "a", 0.1)
    assert (tmp_path / "deep" / "secret.db").is_file()

    pickled = pickle.dumps(searcher)
    assert b"secret" not in pickled
    copy: OptunaSearcher = pickle.loads(pickled)
    copy.storage = searcher.storage
    finish(copy, "a", 0.1, 0.5)
    assert copy.suggest("b")["number"] == 1
    assert states(copy) == ["COMPLETE", "RUNNING"]
    copy.close()


def test_save_and_restore(make: Make, tmp_path: Path) -> None:
    interrupted(make)
    searcher = make(resume=True)
    searcher.suggest("z")
    searcher.save_to_dir(str(tmp_path))  # as Tune does
    assert "sqlite" not in (tmp_path / "searcher-state-default.pkl").read_text()
    copy = make(resume=True)
    copy.restore_from_dir(str(tmp_path))
    finish(copy, "z", 0.3, 0.35)  # trial 3
    assert copy.suggest("u")["number"] == 4
    assert states(copy) == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "RUNNING"]


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("nonsense://who:secret@host/db", "the Optuna storage nonsense://who:***@host/db cannot"),
        ("no url with secret", "the Optuna storage cannot be opened: "),
        ("sqlite:////proc/secret/study.db", "the Optuna storage sqlite:////proc/secret/study.db"),
    ],
)
def test_a_storage_that_cannot_be_opened(make: Make, storage: str, shown: str) -> None:
    with pytest.raises(UserError) as mistake:
        make(storage=storage).open()
    assert str(mistake.value).startswith(shown)
    assert "who:secret" not in str(mistake.value)
    assert "\n" not in str(mistake.value)


# What the report reads


def test_trials_as_rows(make: Make) -> None:
    configs = interrupted(make)
    opened = open_study(make().storage, "study")
    rows = trial_rows(opened.study)
    opened.close()
    assert [row.origin for row in rows] == ["default", *["drawn"] * 4]
    assert [dataclasses.replace(row, seconds=None, origin="drawn") for row in rows] == [
        TrialRow(0, "toy", "complete", configs[0]["params"], 0.4, 2, None),
        TrialRow(1, "toy", "pruned", configs[1]["params"], 0.2, 1, None),
        TrialRow(2, "toy", "failed", configs[2]["params"], None, None, None, "boom"),
        TrialRow(3, "toy", "running", configs[3]["params"], 0.35, 2, None),
        TrialRow(4, "toy", "running", configs[4]["params"], None, None, None),
    ]
    assert rows[0].seconds > 0
    assert rows[3].seconds is None


@pytest.mark.parametrize(
    ("reported", "epoch"),
    [({1: 0.1, 2: 0.3, 3: 0.3}, 2), ({1: math.nan, 2: 0.1}, 2), ({1: math.inf}, None), ({}, None)],
)
def test_best_epoch(reported: dict[int, float], epoch: int | None) -> None:
    assert best_epoch(reported) == epoch


# With Ray Tune itself


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_a_study_under_tune(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    monkeypatch.setenv("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")

    def train(config: dict[str, Any]) -> None:
        number = config["number"]
        # Trial 1 is the worst, so that ASHA stops it; trial 2 raises; the others get better.
        level = 0.1 if number == 1 else 0.5 + number / 100
        values = [level, level + 0.2, level + 0.1]
        for epoch, value in enumerate(values, start=1):
            if number == 2 and epoch == 2:
                raise ValueError("boom")
            best = max(values[:epoch])
            tune.report(
                {
                    "epoch": epoch,
                    "m": value,
                    "best": best,
                    "best_epoch": values.index(best) + 1,
                    "finished": epoch == 3,
                }
            )

    class Reasons(tune.Callback):
        def __init__(self, searcher: OptunaSearcher) -> None:
            self.searcher = searcher
            self.retries = 0

        def on_trial_recover(self, *_: Any, **__: Any) -> None:
            self.retries += 1

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            error = Path(trial.error_file).read_text()
            self.searcher.give_reason(trial.trial_id, error.strip().splitlines()[-1])

    def run(searcher: OptunaSearcher, concurrency: int) -> tuple[Reasons, int]:
        callback = Reasons(searcher)
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=ASHAScheduler(
                    time_attr="epoch", metric="best", mode="max", grace_period=1, max_t=100
                ),
                num_samples=-1,
                max_concurrent_trials=concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=str(tmp_path / "tune"),
                verbose=0,
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
        results = tuner.fit()
        return callback, len(results)

    first = make(trials=4)
    callback, count = run(first, concurrency=1)
    assert (callback.retries, count) == (1, 4)
    assert states(first) == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    trials = first.open().study.trials
    assert [t.value for t in trials] == pytest.approx([0.7, 0.1, None, 0.73])
    assert [t.intermediate_values for t in trials[:3]] == [
        {1: 0.5, 2: 0.7, 3: pytest.approx(0.6)},
        {1: 0.1},
        {1: 0.52},
    ]
    assert trials[2].user_attrs["reason"] == "ValueError: boom"

    # A driver that dies with trial 4 under way, and the next one.
    dying = make(trials=6, resume=True)
    assert dying.suggest("lost0")["number"] == 4
    epochs(dying, "lost0", 0.54)
    assert states(dying)[4] == "RUNNING"
    next_one = make(trials=6, resume=True)
    callback, count = run(next_one, concurrency=1)  # with two, the faster one may end the other
    assert count == 2  # 4 continued, 5 new
    assert states(next_one) == ["COMPLETE", "PRUNED", "FAIL", *["COMPLETE"] * 3]
    after = next_one.open().study.trials
    assert [t.value for t in after] == pytest.approx([0.7, 0.1, None, 0.73, 0.74, 0.75])
    assert after[4].params == dying.open().study.trials[4].params
    assert [t.user_attrs for t in after[:4]] == [t.user_attrs for t in trials]
    next_one.close()

    files = [f for f in (tmp_path / "tune").rglob("*") if f.is_file()]
    assert files
    assert not [f for f in files if b"study.db" in f.read_bytes()]  # no URL in Tune's files
