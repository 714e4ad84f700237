"""The wiring of a study: who is given which seed, split, weights, budget and option.

Nothing here starts Ray: what Ray would call is called, and what would be handed to it is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.train import WorkerGroupError

from seqtune import batches, checkpoint, cluster, metrics, state
from seqtune.cluster import Joined
from seqtune.data import Protocol
from seqtune.data.generate import make_preset
from seqtune.errors import UserError
from seqtune.evaluate import evaluate
from seqtune.machines import Machine
from seqtune.model import model_class
from seqtune.options import StudyOptions, TrainOptions
from seqtune.schema import FORMAT
from seqtune.space.asked import AskedStudy, ask_study, ask_training, fit_study
from seqtune.state import Row
from seqtune.storage import Folder
from seqtune.study import final, lock, loop, once, past, resources, study, trial, tuner
from seqtune.study.ending import Ending
from seqtune.study.plan import Plan, trial_params
from seqtune.study.schedulers import Race
from seqtune.study.search import OptunaSearcher
from seqtune.study.tracked import tracked
from seqtune.study.weights import Weights
from seqtune.track import Tracker
from seqtune.train import DivergedError

TINY = make_preset("tiny")
SMALL: dict[str, Any] = {"embedding_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 16}
SMALL |= {"epochs": 2, "eval_every": 1}


def plan_in(folder: Path, **changes: Any) -> Plan:
    protocol = changes.pop("protocol", Protocol.of(TINY))
    return replace(Plan("sasrec", "ndcg@10", protocol, Folder.at(folder)), **changes)


def train_trial(plan: Plan, number: int, **values: Any) -> dict[str, Any]:
    """Trains a trial into its folder; returns its hyperparameters."""
    params = SMALL | values
    built = trial_params(plan.model, params)
    loop.train_here(plan, built, plan.trial_folder(number), TINY, lambda row: None)
    return params


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one | other)


# A trial in Tune's actor


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a trial reports to Tune, which is not there; objects are their own references."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", rows.append)
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    return rows


def run(plan: Plan, params: dict[str, Any], number: int = 3, **more: Any) -> None:
    config = {"number": number, "model": plan.model, "params": params, "origin": "drawn"}
    trial.run(config | more, plan, [TINY])


def test_a_trial_trains_with_its_own_hyperparameters(told: list[Any], tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    run(plan, SMALL | {"seed": 5, "learning_rate": 0.01})
    assert [row["epoch"] for row in told] == [1, 2]
    assert told[-1]["finished"]
    alone = plan_in(tmp_path / "alone")
    train_trial(alone, 3, seed=5, learning_rate=0.01)
    one, other = (state.load_state(p.trial_folder(3)) for p in (plan, alone))
    assert one is not None
    assert other is not None
    assert same(state.best_of(one)["weights"], state.best_of(other)["weights"])
    assert told[-1]["ndcg@10"] == other["history"][-1]["metrics"]["ndcg@10"]


LONGER = SMALL | {"epochs": 4, "learning_rate": 0.01}


class KilledError(Exception):
    """Stands for the scheduler, which ends a trial at a report."""


def until(plan: Plan, number: int, epoch: int) -> None:
    """Trains a trial until an epoch has been told, which improves on those before."""

    def stop(row: state.Row) -> None:
        if row["epoch"] == epoch:
            raise KilledError

    built = trial_params(plan.model, LONGER)
    lock.begin(plan.trial_folder(number), plan, built, 1)
    with pytest.raises(KilledError):
        loop.train_here(plan, built, plan.trial_folder(number), TINY, stop)


def test_a_trial_that_goes_on_comes_to_what_it_would_have_come_to(
    told: list[Any], tmp_path: Path
) -> None:
    plan, alone = plan_in(tmp_path), plan_in(tmp_path / "alone")
    until(plan, 1, epoch=2)
    run(plan, LONGER, 5, origin="continued", parent=1)
    assert [row["epoch"] for row in told] == [3, 4]
    train_trial(alone, 0, **LONGER)
    one, other = (state.load_state(f) for f in (plan.trial_folder(5), alone.trial_folder(0)))
    assert one is not None
    assert other is not None
    assert state.best_of(one)["metrics"] == state.best_of(other)["metrics"]
    assert same(state.best_of(one)["weights"], state.best_of(other)["weights"])
    assert [row["metrics"] for row in one["history"]] == [
        row["metrics"] for row in other["history"][2:]
    ]
    assert lock.read("", plan.trial_folder(5).read(lock.NAME) or b"").parent is None
    assert [row["epoch"] for row in state.told(plan.trial_folder(1))] == [1, 2]  # as it was


def test_one_that_goes_on_from_lost_weights_is_trained_from_the_start(
    told: list[Any], tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    run(plan, LONGER, 5, origin="continued", parent=1)
    assert [row["epoch"] for row in told] == [1, 2, 3, 4]


def test_a_trial_takes_over_weights_with_other_hyperparameters(
    told: list[Any], tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    until(plan, 1, epoch=2)
    run(plan, LONGER | {"learning_rate": 0.02}, 5, origin="evolved", parent=1)
    assert [row["epoch"] for row in told] == [3, 4]
    assert lock.read("", plan.trial_folder(5).read(lock.NAME) or b"").parent == 1
    ranks = state.ranks_in(plan.trial_folder(5).read("ranks.parquet") or b"")
    kept = state.load_state(plan.trial_folder(5))
    assert kept is not None
    assert np.array_equal(ranks, state.best_of(kept)["ranks"])
    run(plan, LONGER | {"learning_rate": 0.01}, 6, origin="evolved", parent=5)  # and on from there
    assert told[-1]["finished"]


def test_an_heir_of_one_that_never_got_better_begins_where_that_did(
    told: list[Any], tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    until(plan, 1, epoch=2)
    built = trial_params(plan.model, LONGER)
    assert state.hand_over(plan.trial_folder(1), plan.trial_folder(2), plan.owner(built))
    assert state.hand_over(plan.trial_folder(2), plan.trial_folder(3), plan.owner(built))
    one, other = (state.load_state(plan.trial_folder(n)) for n in (2, 3))
    assert one is not None
    assert other is not None
    assert (one["epoch"], one["step"], one["history"]) == (2, other["step"], [])
    assert other["step"] > 0


def test_there_is_no_taking_over_of_weights_that_are_lost(told: list[Any], tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    run(plan, LONGER, 5, origin="evolved", parent=1)
    reason = "the weights of trial 1, with which it begins, are lost"
    assert told == [{"failed": reason, "finished": True}]


def test_weights_that_were_taken_over_are_not_trained_again(
    told: list[Any], tmp_path: Path
) -> None:
    plan = plan_in(tmp_path)
    until(plan, 1, epoch=2)
    run(plan, LONGER, 5, origin="evolved", parent=1)
    plan.trial_folder(5).remove("state.pt")
    with pytest.raises(UserError, match=r"trial 5: its weights are lost, .* those of trial 1"):
        final.examine(plan, 5, LONGER, TINY, [], [3, 4])


def test_a_trial_of_several_workers_is_theirs(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, given = plan_in(tmp_path, workers=2), []
    monkeypatch.setattr(trial, "train_here", lambda *_, **__: pytest.fail("trained alone"))
    monkeypatch.setattr(trial, "train_in_group", lambda *words: given.append(words))
    run(plan, SMALL)
    ((passed, params, folder, data, report, say),) = given
    assert (passed, folder, data) == (plan, plan.trial_folder(3), TINY)
    assert params == trial_params("sasrec", SMALL)
    row: Any = {"epoch": 1, "losses": {"ce": 2.0}, "metrics": {"ndcg@10": 0.5}}
    report(row)
    say("a machine was lost")
    assert told == [
        {"epoch": 1, "train_ce": 2.0, "ndcg@10": 0.5},
        {"note": "a machine was lost"},
    ]


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_the_loop_gets_the_place_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int
) -> None:
    homes, waits = [], []

    class Saver(state.Saver):
        def __init__(self, write: Any, tell: Any, *, wait: bool) -> None:
            waits.append(wait)
            super().__init__(write, tell, wait=wait)

    def train(model: str, params: Any, split: Any, home: Any, **_: Any) -> None:
        homes.append((home.rank, home.world_size, home.device.type))

    monkeypatch.setattr("seqtune.train.train", train)
    monkeypatch.setattr(loop, "Saver", Saver)
    plan = plan_in(tmp_path)
    params, folder = trial_params("sasrec", SMALL), plan.trial_folder(0)
    loop.train_here(plan, params, folder, TINY, lambda row: None, rank=rank, world_size=ranks)
    assert homes == [(rank, ranks, loop.device().type)]
    assert waits == [ranks > 1]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({}, "1 at a time, 1 CPU each"),
        ({"concurrency": 3, "cpus": 2}, "3 at a time, 2 CPUs each"),
        (
            {"workers": 4, "gpus": 0.5},
            "1 at a time, 1 CPU, 0.5 GPU for each of 4 workers",
        ),
    ],
)
def test_a_plan_says_who_gets_what(plan: dict[str, Any], words: str) -> None:
    assert plan_in(Path("/nowhere"), **plan).describe() == words


def test_a_model_that_looks_at_times_is_tested_with_them(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, model="stan")
    split = plan.protocol.split(TINY)
    held = batches.sequences(split, torch.device("cpu"), times=True)
    model = model_class("stan")(trial_params("stan", {}), TINY.n_items, TINY.n_users)
    model.prepare(held)
    direct = evaluate(model, held, split, split.test, mask_seen=plan.protocol.mask_seen)
    found, ranks = final.evaluate_on_test(plan, {}, model.state_dict(), TINY)
    assert np.array_equal(ranks, direct.ranks)
    assert 0 < found["ndcg@10"] < 1


def ended_trial(**values: float) -> Any:
    """Trial 3 as Optuna has it, with the value of each epoch."""
    reported = {int(epoch): value for epoch, value in values.items()}
    return SimpleNamespace(
        number=3,
        user_attrs={"model": "sasrec", "params": SMALL, "origin": "drawn"},
        intermediate_values=reported,
        state=None,
    )


def test_the_curve_of_a_trial_that_has_ended_is_that_of_its_folder(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    train_trial(plan, 3)
    rows = state.told(plan.trial_folder(3))
    assert past.curve(plan, ended_trial(**{"1": 0.9})) == ([state.flat(row) for row in rows], "")
    owner = plan.owner(trial_params("sasrec", SMALL))
    state.keep_told(plan.trial_folder(3), rows[:1], owner)  # pruned, with a later state
    assert past.curve(plan, ended_trial())[0] == [state.flat(rows[0])]


def test_a_finished_trial_that_was_not_told_as_such_trains_nothing(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path)
    train_trial(plan, 3)
    monkeypatch.setattr(trial, "train_here", lambda *_, **__: pytest.fail("trained"))
    run(plan, SMALL)
    assert [row["epoch"] for row in told] == [1, 2]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "torn state": lambda f: (f / "state.pt").write_bytes((f / "state.pt").read_bytes()[:-999]),
    "empty state": lambda f: (f / "state.pt").write_bytes(b""),
    "noise in state": lambda f: (f / "state.pt").write_bytes(b"\0noise" * 999),
    "torn history": lambda f: (f / "history.json").write_text('{"format": 1, "owner": "a", "ro'),
    "empty history": lambda f: (f / "history.json").write_bytes(b""),
    "another kind": lambda f: (f / "history.json").write_text('{"format": 1, "rows": {}}'),
    "another format": lambda f: (f / "history.json").write_text(
        (f / "history.json").read_text().replace(f'"format": {FORMAT}', '"format": 99')
    ),
    "another owner": lambda f: (f / "history.json").write_text(
        (f / "history.json").read_text().replace('"owner": "', '"owner": "other')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_trial_is_set_aside_and_trained_again(
    told: list[Any], tmp_path: Path, damage: str
) -> None:
    plan, whole = plan_in(tmp_path / "a", study="s"), plan_in(tmp_path / "b", study="s")
    values, folder = SMALL | {"learning_rate": 0.01}, tmp_path / "a" / "trials" / "0003"
    train_trial(whole, 3, **values)
    train_trial(plan, 3, **values)
    owner = plan.owner(trial_params("sasrec", values))
    state.keep_told(plan.trial_folder(3), state.told(plan.trial_folder(3), owner)[:1], owner)
    DAMAGES[damage](folder)
    run(plan, values)
    note = told[0]["note"]
    assert f"{folder}/{'history.json' if 'state' not in damage else 'state.pt'}" in note
    assert "kept as 0003.aside-1, and the trial is trained again" in note
    assert [row["epoch"] for row in told[1:]] == [1, 2]
    ends = [state.best_of(state.load_state(p.trial_folder(3)) or {}) for p in (plan, whole)]  # type: ignore[typeddict-item]
    assert same(ends[0]["weights"], ends[1]["weights"])
    assert (tmp_path / "a" / "trials" / "0003.aside-1").is_dir()


def test_a_folder_of_other_hyperparameters_is_nobodys(told: list[Any], tmp_path: Path) -> None:
    plan = plan_in(tmp_path, study="s")
    train_trial(plan, 3, learning_rate=0.01)
    run(plan, SMALL | {"learning_rate": 0.02})
    assert "belongs to another study, or to other hyperparameters" in told[0]["note"]
    assert not any("replayed" in row for row in told)
    assert (tmp_path / "trials" / "0003.aside-1" / "state.pt").exists()


@pytest.mark.parametrize("lost", ["damaged", "missing"])
def test_a_curve_that_is_lost_is_that_of_optuna(tmp_path: Path, lost: str) -> None:
    plan = plan_in(tmp_path)
    if lost == "damaged":
        plan.trial_folder(3).write("history.json", b"no")
    rows, note = past.curve(plan, ended_trial(**{"1": 0.2, "10": 0.1, "2": 0.3}))
    assert [(row["epoch"], row["ndcg@10"], row["best"], row["best_epoch"]) for row in rows] == [
        (1, 0.2, 0.2, 1),
        (2, 0.3, 0.3, 2),
        (10, 0.1, 0.3, 2),
    ]
    assert ("kept as 0003.aside-1, and its values are Optuna's" in note) == (lost == "damaged")


def test_an_interrupted_trial_tells_what_was_and_goes_on(told: list[Any], tmp_path: Path) -> None:
    plan, straight = plan_in(tmp_path / "a"), plan_in(tmp_path / "b")
    values = SMALL | {"epochs": 3, "learning_rate": 0.01}
    folder, params = plan.trial_folder(3), trial_params("sasrec", values)

    def until_the_second(row: Row) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train_here(plan, params, folder, TINY, until_the_second)
    run(plan, values)
    assert [(row["epoch"], "replayed" in row) for row in told] == [(1, True), (2, True), (3, False)]
    loop.train_here(straight, params, straight.trial_folder(3), TINY, lambda row: None)
    ends = [state.best_of(state.load_state(p.trial_folder(3)) or {}) for p in (plan, straight)]  # type: ignore[typeddict-item]
    assert same(ends[0]["weights"], ends[1]["weights"])


def test_what_trying_again_cannot_mend_is_told_and_not_raised(
    told: list[Any], tmp_path: Path
) -> None:
    run(plan_in(tmp_path), SMALL | {"learning_rate": 10.0, "grad_clip_norm": 0, "epochs": 40})
    assert told[-1]["finished"]
    assert "failed" not in told[0] or "not finite" in told[0]["failed"]
    told.clear()
    run(plan_in(tmp_path), SMALL | {"batch_size": 1}, number=4)
    (row,) = told
    assert row["finished"]
    assert row["failed"].startswith("batch_size 1 must be at least 2")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("batch_size 1"), "batch_size 1"),
        (DivergedError("not finite"), "not finite"),
        (caused(RuntimeError("in a worker"), DivergedError("not finite")), "not finite"),
        (WorkerGroupError("failed", {0: OSError("x"), 1: UserError("too few")}), "too few"),
        (MemoryError(), "out of memory; a smaller batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; a smaller"),
        (OSError("no route to host"), None),
        (WorkerGroupError("failed", {0: OSError("x")}), None),
    ],
)
def test_what_trying_again_cannot_mend(error: Exception, reason: str | None) -> None:
    found = loop.hopeless(error)
    assert found is None if reason is None else (found or "").startswith(reason)


# What the trials share


def test_validation_is_on_the_users_that_the_protocol_draws(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, protocol=Protocol.of(TINY, None, 30, 7))
    train_trial(plan, 0)
    saved = state.load_state(plan.trial_folder(0))
    assert saved is not None
    everyone = plan_in(tmp_path / "all")
    train_trial(everyone, 0)
    whole = state.load_state(everyone.trial_folder(0))
    assert whole is not None
    users = plan.protocol.split(TINY).valid.users
    assert len(users) == 30
    at = [epoch["epoch"] for epoch in whole["history"]].index(state.best_of(saved)["epoch"])
    if whole["history"][at]["epoch"] == state.best_of(whole)["epoch"]:
        ranks = state.best_of(whole)["ranks"][users]
        assert np.array_equal(state.best_of(saved)["ranks"], ranks)


@pytest.mark.parametrize("mask_seen", [True, False])
def test_validation_ranks_seen_items_as_the_protocol_says(tmp_path: Path, mask_seen: bool) -> None:
    plan = plan_in(tmp_path, protocol=Protocol(mask_seen), metric="hr@3")
    params = train_trial(plan, 0, epochs=4)
    saved = state.load_state(plan.trial_folder(0))
    assert saved is not None
    best, split = state.best_of(saved), plan.protocol.split(TINY)
    data = batches.sequences(split, torch.device("cpu"))
    model = model_class("sasrec")(trial_params("sasrec", params), data.n_items, data.n_users)
    model.load_state_dict(best["weights"])
    ranks = evaluate(model, data, split, split.valid, mask_seen=mask_seen).ranks
    assert np.array_equal(best["ranks"], ranks)
    other = evaluate(model, data, split, split.valid, mask_seen=not mask_seen).ranks
    assert not np.array_equal(best["ranks"], other)
    by_metric = [row["metrics"]["hr@3"] for row in saved["history"]]
    assert best["metrics"]["hr@3"] == max(by_metric)  # the metric of the study decides


def asked_for(**options: Any) -> AskedStudy:
    return ask_study(StudyOptions(**({"model": "sasrec", "data": "tiny"} | options)))


BOX = (8, 2)  # CPUs, GPUs
PLAIN = (8, 0)
HEAD = (0, 0)  # of a cluster: it does no work


def plan_on(
    *has: tuple[float, float],
    grows: bool = False,
    kinds: tuple[tuple[float, float], ...] = (),
    **options: Any,
) -> Plan:
    """Plans a study for machines of so many CPUs and GPUs."""
    pulse: Any = None
    there, come = [Machine(*one) for one in has], [Machine(*one) for one in kinds]
    joined, asked = Joined(there, pulse, grows, come), asked_for(**options).options
    return resources.make_plan(asked, Protocol.of(TINY), Folder.at("/nowhere"), joined)


@pytest.mark.parametrize(
    ("options", "machines", "shares"),
    [
        ({}, [BOX], (1, 4, 1, 2)),  # a GPU each, and half of the CPUs with it
        ({}, [PLAIN], (1, 1, 0, 8)),
        ({}, [(64, 8)], (1, 8, 1, 8)),
        ({}, [(2, 4)], (1, 0.5, 1, 4)),
        ({}, [(64, 8), (8, 2)], (1, 4, 1, 10)),  # the machine with fewer decides
        ({}, [BOX, PLAIN], (1, 4, 1, 2)),
        ({"gpus_per_trial": 0.5}, [BOX], (1, 2, 0.5, 4)),
        ({"gpus_per_trial": 0.1}, [(10, 1)], (1, 1, 0.1, 10)),
        ({"gpus_per_trial": 0}, [BOX], (1, 1, 0, 8)),
        ({"gpus_per_trial": 1, "cpus_per_trial": 1}, [BOX], (1, 1, 1, 2)),
        ({"cpus_per_trial": 3}, [PLAIN], (1, 3, 0, 2)),
        ({"cpus_per_trial": 3}, [PLAIN, PLAIN], (1, 3, 0, 4)),  # not 16 / 3
        ({"workers_per_trial": 2}, [PLAIN], (2, 1, 0, 4)),
        ({"concurrency": 3}, [PLAIN], (1, 1, 0, 3)),
        ({"concurrency": 99}, [PLAIN], (1, 1, 0, 8)),
    ],
)
def test_a_plan_shares_what_there_is(
    options: dict[str, Any], machines: list[tuple[float, float]], shares: tuple[float, ...]
) -> None:
    plan = plan_on(*machines, **options)
    assert (plan.workers, plan.cpus, plan.gpus, plan.concurrency) == shares
    assert (plan.model, plan.metric, plan.grows) == ("sasrec", "ndcg@10", False)
    assert plan.protocol == Protocol.of(TINY)


def test_a_cluster_is_filled_as_machines_join() -> None:
    assert plan_on(HEAD, grows=True) == plan_on((1, 0), grows=True)  # nobody is there yet
    assert plan_on(HEAD, grows=True).grows
    plan = plan_on(HEAD, grows=True, kinds=((16, 4),))  # an autoscaler at zero
    assert (plan.cpus, plan.gpus, plan.concurrency, plan.grows) == (4, 1, 1, True)
    plan = plan_on(HEAD, PLAIN, grows=True, concurrency=40)
    assert (plan.concurrency, plan.grows) == (40, False)


def test_a_trial_that_does_not_fit_is_refused() -> None:
    for options, machines, sentence in (
        ({"cpus_per_trial": 3, "workers_per_trial": 3}, [PLAIN], "more than the 8 CPUs and 0"),
        ({"gpus_per_trial": 1}, [PLAIN], "more than the 8 CPUs and 0 GPUs there are; lower --work"),
        ({"cpus_per_trial": 9}, [PLAIN, PLAIN], "more than the 16 CPUs and 0 GPUs there are"),
    ):
        with pytest.raises(UserError, match=r"^a trial needs \d x \(") as refused:
            plan_on(*machines, **options)
        assert sentence in str(refused.value)


def test_a_shape_that_no_machine_of_a_cluster_holds_is_refused() -> None:
    needs = (
        r"a trial needs 1 x \(9 CPUs and 0 GPUs\), and the largest machine has 8 CPUs and 0 GPUs"
    )
    with pytest.raises(UserError, match=needs):
        plan_on(HEAD, PLAIN, grows=True, cpus_per_trial=9)
    with pytest.raises(UserError, match=needs):
        plan_on(HEAD, grows=True, kinds=(PLAIN,), cpus_per_trial=9)
    assert plan_on(HEAD, PLAIN, grows=True, kinds=((16, 0),), cpus_per_trial=9).cpus == 9
    assert plan_on(HEAD, grows=True, cpus_per_trial=9).cpus == 9  # who knows what will join


def test_several_workers_follow_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, there = plan_in(Path("/nowhere"), workers=2, cpus=2), [Machine(8), Machine(3)]
    monkeypatch.setattr(resources, "machines", lambda: there)
    joined: Any = SimpleNamespace(kinds=[])
    assert resources.at_a_time(plan, joined) == 2  # four and one fit
    there += [Machine(4)]
    assert resources.at_a_time(plan, joined) == 3
    joined.kinds = [Machine(8)]
    assert resources.at_a_time(plan, joined) == 4  # one waits, for which a machine may start
    there.clear()
    joined.kinds = []
    assert resources.at_a_time(plan, joined) == 1


# What is handed to Ray Tune


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Returns what Tune would be given for a study with some options."""

    def tuner_of(plan_changes: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        given: dict[str, Any] = {}

        class Spy:
            def __init__(self, trainable: Any, *, tune_config: Any, run_config: Any) -> None:
                given.update(trainable=trainable, tune=tune_config, run=run_config)

            def fit(self) -> None:
                given["fitted"] = True

        closed: list[bool] = []
        monkeypatch.setattr(tune, "Tuner", Spy)
        monkeypatch.setattr(
            tune, "with_parameters", lambda run, **more: given.update(more, function=run) or run
        )
        monkeypatch.setattr(
            tune, "with_resources", lambda run, group: given.update(resources=group) or run
        )
        asked = asked_for(**options)
        searcher = OptunaSearcher(asked.spaces, "sqlite://", "x", metric="ndcg@10")
        monkeypatch.setattr(searcher, "close", lambda *, rest: closed.append(rest))
        given["searcher"] = searcher
        plan = plan_in(Path("/nowhere"), **(plan_changes or {}))
        messenger: Any = SimpleNamespace(
            view=None,
            retell=lambda *_: pytest.fail("nothing ended"),
            ending=Ending(asked.options),
            counting=None,
        )
        tuner.search_all(asked, searcher, plan, "DATA", messenger)
        assert given["run"].callbacks == [messenger]
        assert closed == [True]
        return given | {"plan": plan}

    return tuner_of


def test_tune_gets_the_budget_the_bounds_and_the_searcher(tuned: Callable[..., Any]) -> None:
    given = tuned({"concurrency": 5}, time_budget=90.0, max_failures=4)
    assert given["fitted"]
    assert given["function"] is trial.run
    assert given["data"] == ["DATA"]
    config = given["tune"]
    assert config.time_budget_s == 90
    assert config.max_concurrent_trials == 5
    assert config.search_alg is given["searcher"]
    assert config.num_samples == -1
    assert config.reuse_actors is True
    assert given["run"].failure_config.max_failures == 4
    assert given["run"].storage_path == "/nowhere"
    assert given["resources"]({}).bundles == [{"CPU": 1.0}]
    share = {"CPU": 2.0, "GPU": 0.25}  # of a GPU that several trials share
    assert given["resources"]({"share": share}).bundles == [share]


def test_tune_gets_no_budget_where_none_is_asked_for(tuned: Callable[..., Any]) -> None:
    assert tuned()["tune"].time_budget_s is None
    assert tuned(data="demo")["tune"].time_budget_s == 180  # a first look


def test_the_scheduler_is_that_of_the_options(tuned: Callable[..., Any]) -> None:
    assert tuned()["tune"].scheduler.rule == "reach"
    assert tuned(scheduler="hyperband")["tune"].scheduler.rule == "hyperband"
    assert not isinstance(tuned(scheduler="none")["tune"].scheduler, Race)


Resumed = Callable[..., tuple[Any, list[Any]]]


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Resumed:
    """Resumes a study with one trial that has ended; returns its scheduler, and what is told."""

    def resume(**reported: float) -> tuple[Any, list[Any]]:
        known, retold = list[Any](), list[Any]()
        asked = asked_for()
        searcher = OptunaSearcher(asked.spaces, "sqlite://", "x", metric="ndcg@10")
        searcher.past = [ended_trial(**reported)]
        monkeypatch.setattr(searcher, "close", lambda *, rest: None)
        monkeypatch.setattr(
            tune,
            "Tuner",
            lambda *_, tune_config, **__: SimpleNamespace(
                fit=lambda: known.append(tune_config.scheduler)
            ),
        )
        messenger: Any = SimpleNamespace(
            view=SimpleNamespace(note=retold.append),
            retell=lambda *words: retold.append(words),
            ending=Ending(asked.options),
            counting=None,
        )
        tuner.search_all(asked, searcher, plan_in(tmp_path), "DATA", messenger)
        (scheduler,) = known
        return scheduler, retold

    return resume


def test_a_resumed_study_tells_the_scheduler_of_what_has_ended(
    resumed: Resumed, tmp_path: Path
) -> None:
    plan_in(tmp_path).trial_folder(3).write("history.json", b"no")
    scheduler, retold = resumed(**{"10": 0.2, "30": 0.3})
    assert "its values are Optuna's" in retold[0]
    assert [row["best"] for row in retold[1][1]] == [0.2, 0.3]
    assert scheduler.courses == {"sasrec": {}}  # Optuna knows no steps


def test_the_scheduler_remembers_the_curve_of_a_trial_that_has_ended(
    resumed: Resumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"epoch": 1, "step": 30, "best": 0.2, "finished": True}]
    monkeypatch.setattr(tuner, "curve", lambda plan, ended: (rows, ""))
    scheduler, _ = resumed(**{"1": 0.2})
    (course,) = scheduler.courses["sasrec"].values()
    assert (course.steps, course.best) == ([30], [0.2])


def test_workers_bring_their_own_resources(tuned: Callable[..., Any]) -> None:
    given = tuned({"workers": 2, "gpus": 1})
    assert given["resources"]({}).bundles == [{"memory": 1.0}]
    assert given["tune"].reuse_actors is True  # each keeps its workers
    assert tuned({"gpus": 0.5})["resources"]({}).bundles == [{"CPU": 1.0, "GPU": 0.5}]


def test_tune_sees_by_itself_what_joins(tuned: Callable[..., Any]) -> None:
    assert tuned({"concurrency": 2, "grows": True})["tune"].max_concurrent_trials is None


def test_the_searcher_is_made_from_what_is_asked(tmp_path: Path) -> None:
    asked = asked_for(trials=7, seed=3, metric="hr@5", name="mine", resume=True)
    about: Any = SimpleNamespace(folder=Folder.at(tmp_path), about=SimpleNamespace(id="mine-12"))
    found = study._searcher(asked, TINY, about, print)
    assert (found.folder, found.owner) == (Folder.at(tmp_path), "mine-12")
    assert (found.trials, found.seed, found.metric, found.resume) == (7, 3, "hr@5", True)
    assert (found.name, found.spaces) == ("mine", {"sasrec": asked.space})
    assert found.storage.endswith(f"{tmp_path}/study.db")


# After the last trial


def test_test_numbers_are_computed_on_the_test_items(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    params = train_trial(plan, 2)
    saved = state.load_state(plan.trial_folder(2))
    assert saved is not None
    best = state.best_of(saved)
    split = plan.protocol.split(TINY)
    data = batches.sequences(split, torch.device("cpu"))
    model = model_class("sasrec")(trial_params("sasrec", params), data.n_items, data.n_users)
    model.prepare(data)
    model.load_state_dict(best["weights"])
    ranks = evaluate(model, data, split, split.test, mask_seen=True).ranks
    assert not np.array_equal(ranks, best["ranks"])

    found = final.examine(plan, 2, params, TINY, [], [1])
    assert np.array_equal(found.test_ranks, ranks)
    assert found.test["hr@10"] == metrics.compute(ranks)["hr@10"]
    assert found.valid == best["metrics"]
    assert found.valid["hr@10"] == metrics.compute(best["ranks"])["hr@10"]
    assert found.number == 2

    unmasked = plan_in(tmp_path, protocol=Protocol(mask_seen=False))
    assert not np.array_equal(final.examine(unmasked, 2, params, TINY, [], [1]).test_ranks, ranks)


def test_the_metric_of_the_study_is_among_those_of_the_test(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, metric="hr@7")
    params = train_trial(plan, 0)
    assert "hr@7" in final.examine(plan, 0, params, TINY, [], [1]).test


def test_a_checkpoint_holds_the_weights_of_its_trial_and_what_training_counted(
    tmp_path: Path,
) -> None:
    plan = plan_in(tmp_path)
    params = [train_trial(plan, number, seed=number) for number in (0, 1)]
    finalist = final.examine(plan, 1, params[1], TINY, [plan.folder / "champion"], [1])
    loaded = checkpoint.load(plan.folder / "champion")
    saved = [state.load_state(plan.trial_folder(number)) for number in (0, 1)]
    own, other = (state.best_of(one)["weights"] for one in saved if one is not None)
    assert same(loaded.model.state_dict(), other)
    assert not same(loaded.model.state_dict(), own)
    split = plan.protocol.split(TINY)
    trained = [TINY.items[first:end] for first, end in zip(TINY.offsets, split.train_end)]  # noqa: B905
    counts = np.bincount(np.concatenate(trained), minlength=TINY.n_items + 1)[1:]
    assert np.array_equal(loaded.popularity, counts)
    assert loaded.mask_seen is True
    assert loaded.meta["test"] == finalist.test
    assert loaded.meta["valid"] == finalist.valid
    assert loaded.meta["trial"] == 1
    assert loaded.meta["protocol"] == plan.protocol.sentence(TINY)
    assert loaded.model.params == trial_params("sasrec", finalist.params)


# What is asked


def test_defaults_are_lowered_to_what_the_data_allow_in_the_whole_space() -> None:
    asked = fit_study(asked_for(model="gsasrec"), TINY.n_items)
    (dimension,) = [d for d in asked.space.dimensions if d.name == "neg_samples"]
    assert max(dimension.corners) <= TINY.n_items - 1
    assert asked.space.defaults()["neg_samples"] <= TINY.n_items - 1
    assert any("neg_samples" in note for note in asked.notes)
    with pytest.raises(UserError, match="neg_samples must be at most 59 with loss_type gbce"):
        fit_study(asked_for(model="gsasrec", set=("neg_samples=200",)), TINY.n_items)


def test_mlflow_is_told_what_decides_the_result() -> None:
    told = study._study_params(asked_for(seed=3, valid_users=20, min_item=2, trials=5))
    assert (
        told.items()
        >= {
            "model": "sasrec",
            "data": "tiny",
            "seed": 3,
            "valid_users": 20,
            "min_item": 2,
            "trials": 5,
            "scheduler": "reach",
        }.items()
    )


def test_a_study_that_ends_with_an_error_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []

    class Spy(Tracker):
        begun = True

        def __init__(self, *given: Any, **more: Any) -> None:
            ended.append(given[2:])

        def study_ended(self, status: str = "finished", *more: Any, **_: Any) -> None:
            ended.append(status)

        def close(self, timeout: float = 60.0) -> bool:
            ended.append("closed")
            return True

    monkeypatch.setattr("seqtune.study.tracked.Tracker", Spy)
    with study.claimed(
        asked_for(storage=str(tmp_path)).options, TINY, Protocol.of(TINY)
    ) as identity:
        about = identity
    for error, status in ((KeyboardInterrupt, "interrupted"), (ValueError, "failed")):
        ended.clear()
        given = ("sqlite://", about.name, about.about.id, about.folder, print)
        with pytest.raises(error), tracked(*given):
            raise error
        assert ended[1:] == [status, "closed"]
        assert ended[0] == (about.about.id, tmp_path / "sasrec-tiny" / "mlflow.journal")


# One training


class Told:
    """A view that remembers."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.where: list[str] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def started(self, model: str, data: str, where: str) -> None:
        self.where.append(where)

    def evaluated(self, row: Row) -> None:
        self.rows.append(row)


def train(view: Told, folder: Path, *set_: str, **options: Any) -> Any:
    fixed = [
        f"{name}={value}" for name, value in SMALL.items() if name not in ("epochs", "eval_every")
    ]
    epochs = [] if any(one.startswith("epochs") for one in set_) else ["epochs=2"]
    given = {"data": "tiny", "storage": str(folder), "set": (*fixed, *epochs, *set_)} | options
    return once.train_once(ask_training(TrainOptions("sasrec", **given)), view)  # type: ignore[arg-type]


def test_one_training_leaves_a_checkpoint_with_its_test_and_overwrites_none(tmp_path: Path) -> None:
    view = Told()
    first = train(view, tmp_path, "seed=1")
    second = train(view, tmp_path, "seed=2")
    folders = [tmp_path / "sasrec-tiny-train", tmp_path / "sasrec-tiny-train-2"]
    assert view.where == [first.checkpoint, second.checkpoint] == list(map(str, folders))
    loaded = [checkpoint.load(Folder.at(folder)) for folder in folders]
    assert [one.meta["test"] for one in loaded] == [first.test, second.test]
    assert first.test != second.test
    assert [row["epoch"] for row in view.rows] == [1, 2, 1, 2]
    assert (folders[0] / "ranks-test.parquet").exists()
    with pytest.raises(UserError, match="holds a training; go on with --resume, or give another"):
        train(view, tmp_path, out=str(folders[0]))


def test_a_training_that_is_refused_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("0 training windows cannot be split over 1 workers")

    monkeypatch.setattr(once, "train_here", refuse)
    with pytest.raises(UserError, match="0 training windows"):
        train(Told(), tmp_path / "results")
    assert not list(tmp_path.rglob("*train*"))


def test_a_training_stops_when_its_time_is_up(tmp_path: Path) -> None:
    view = Told()
    found = train(view, tmp_path, "epochs=100000", "eval_every=1", time_budget=1e-9)
    told = [row["epoch"] for row in view.rows]  # one, or what a busy disk lets pass until it is
    assert told == list(range(1, len(told) + 1))
    assert 1 <= found.epoch <= len(told) + 1 < 100  # the last one may be known and not yet told
    with pytest.raises(UserError, match="--time-budget: several workers cannot stop together"):
        train(view, tmp_path, time_budget=1.0, workers=2)


def test_a_training_goes_on_with_more_or_fewer_epochs(tmp_path: Path) -> None:
    view = Told()
    train(view, tmp_path, "epochs=2", "eval_every=1")
    train(view, tmp_path, "epochs=4", "eval_every=1", resume=True)
    assert [row["epoch"] for row in view.rows][-1] == 4
    train(view, tmp_path, "epochs=1", "eval_every=1", resume=True)
    with pytest.raises(
        UserError, match=r"holds no training with these options \(it differs in par"
    ):
        train(view, tmp_path, "learning_rate=0.1", resume=True)
    with pytest.raises(UserError, match="it differs in validation"):
        train(view, tmp_path, valid_users=10, resume=True)


def test_ctrl_c_leaves_the_best_weights_so_far(tmp_path: Path) -> None:
    class Stopped(Told):
        def evaluated(self, row: Row) -> None:
            super().evaluated(row)
            if row["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Stopped(), tmp_path, "epochs=50", "eval_every=1")
    loaded = checkpoint.load(Folder.at(tmp_path / "sasrec-tiny-train"))
    assert loaded.meta["test"] == {}
    assert 0 < loaded.meta["valid"]["hr@10"] <= 1


def test_a_training_that_is_refused_leaves_nothing_in_mlflow_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr(once, "train_here", refused)
    asked = ask_training(TrainOptions("sasrec", data="tiny", storage=str(tmp_path)))
    with pytest.raises(UserError, match=r"^no$"):
        once.train_once(asked, Told(), track=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_why_workers_of_a_training_stopped_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Fails:
        is_alive = False

        def __init__(self, plan: Plan, data: Any) -> None:
            said.append((plan.workers, plan.cpus, plan.gpus))

        def train(self, *_: Any) -> None:
            snippet = "[Rank 1 Error Snippet]:\nOSError: no route"
            raise WorkerGroupError(snippet, {1: OSError("no")})

    joined = Joined([Machine(4, 2)], pulse=None, grows=False, kinds=[])  # type: ignore[arg-type]
    monkeypatch.setattr(cluster, "connected", lambda: nullcontext(joined))
    monkeypatch.setattr(ray, "put", lambda data: data)
    monkeypatch.setattr("seqtune.study.workers.Group", Fails)
    monkeypatch.setattr("seqtune.study.workers._own", [])
    said = list[Any]()
    view: Any = SimpleNamespace(started=print, note=said.append, evaluated=print)
    out = str(tmp_path / "out")
    asked = ask_training(TrainOptions(model="sasrec", data="tiny", workers=2, out=out))
    with pytest.raises(UserError) as stopped:
        once.train_once(asked, view)
    assert str(stopped.value) == "the training stopped: OSError: no route"
    (who,) = {note for note in said if isinstance(note, str) and "gradients" in note}
    assert re.fullmatch("2 workers, 2 CPUs, 1 GPU each, exchange gradients by (gloo|NCCL)", who)
    again = "OSError: no route; others go on from the last evaluation"
    assert said[1:] == [(2, 2, 1), again, (2, 2, 1), again, (2, 2, 1)]
    assert not Path(out).exists()


def test_the_best_trials_and_the_first_keep_their_weights(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    weights = Weights(plan, 2)
    values = {0: 0.1, 1: 0.3, 2: 0.2, 3: None, 4: 0.5, 5: 0.3, 6: 0.5, 7: 0.2}
    for number, value in values.items():
        for name in ("state.pt", "history.json"):
            plan.trial_folder(number).write(name, b"x")
        weights.ended(number, "sasrec", value)
    left = [n for n in values if plan.trial_folder(n).read("state.pt")]
    assert left == [0, 3, 4, 6]  # the first, one that failed, and the best two
    assert all(plan.trial_folder(n).read("history.json") for n in values)
    equals = Weights(plan_in(tmp_path / "b"), 1)
    for number in (7, 5, 6):
        plan_in(tmp_path / "b").trial_folder(number).write("state.pt", b"x")
        equals.ended(number, "sasrec", 0.5)
    kept = [n for n in (5, 6, 7) if (tmp_path / "b" / "trials" / f"{n:04d}" / "state.pt").exists()]
    assert kept == [5]  # of equals the first, as the champion is
