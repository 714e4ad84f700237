"""The training loop: what it reports and keeps, where it stops, and that it can be interrupted."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from seqtune import batches, catalogue, metrics, optimizer, train
from seqtune import state as files
from seqtune.data import Protocol, Split, leave_one_out
from seqtune.data.generate import make_preset
from seqtune.errors import UserError
from seqtune.evaluate import Ranking
from seqtune.model import Batch, Sequences, Term, model_class
from seqtune.models.sasrec import SASRec
from seqtune.params import Params
from seqtune.state import Home, Row, State
from seqtune.storage import Folder
from seqtune.study import final, loop
from seqtune.study.plan import Plan
from seqtune.train import DivergedError, Outcome

SPLIT = leave_one_out(make_preset("tiny"))
STEPS = 7  # batches of 32 of the 200 windows
TRANSFORMER = {"n_layers": 1, "n_heads": 1, "inner_size": 16}
SMALL = {"embedding_size": 8, "max_seq_len": 20, "batch_size": 32, "epochs": 6} | {
    "learning_rate": 0.01,
    "eval_every": 1,
}


def params(model: str = "sasrec", **values: Any) -> Params:
    """Hyperparameters with which an epoch takes a few hundredths of a second."""
    own: dict[str, Any] = {"hidden_size": 8} if model == "gru4rec" else TRANSFORMER
    return model_class(model).Params.model_validate(SMALL | own | values)


def run(model: str = "sasrec", home: Home | None = None, **values: Any) -> Outcome:
    return train.train(model, params(model, **values), SPLIT, home)


def numbers(history: list[Row]) -> list[dict[str, Any]]:
    """What a run reported, without the times."""
    clocks = ("time", "train_seconds", "eval_seconds")
    return [
        {k: v for k, v in files.flat(row).items() if k not in clocks and "system/" not in k}
        for row in history
    ]


def weights(trained: Outcome) -> dict[str, Tensor]:
    state: dict[str, Tensor] = trained.model.state_dict()
    return state


def assert_same(one: Outcome, other: Outcome) -> None:
    """Bit for bit."""
    assert numbers(one.history) == numbers(other.history)
    assert one.best["epoch"] == other.best["epoch"]
    assert one.best["metrics"] == other.best["metrics"]
    assert np.array_equal(one.best["ranks"], other.best["ranks"])
    assert weights(one).keys() == weights(other).keys()
    different = [k for k in weights(one) if not torch.equal(weights(one)[k], weights(other)[k])]
    assert not different


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces evaluation: every user has the rank that is next in a script.

    The fixture takes the script and returns the weights that were evaluated, in order.
    """

    def write(*ranks: float) -> list[dict[str, Tensor]]:
        left, seen = list(ranks), []

        def evaluate(model: nn.Module, *_: Any, **__: Any) -> Ranking:
            seen.append({name: w.clone() for name, w in model.state_dict().items()})
            return Ranking(np.full(len(SPLIT.valid.users), left.pop(0), dtype=np.float32))

        monkeypatch.setattr(train, "evaluate", evaluate)
        return seen

    return write


# Interrupted and continued


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("sasrec", {}),
        ("sasrec", {"loss_type": "bce", "lr_scheduler": "cosine", "warmup_steps": 10}),
        ("gru4rec", {"loss_type": "sampled_softmax", "neg_samples": 4, "optimizer": "adagrad"}),
        ("duorec", {"train_mode": "rows"}),
    ],
)
@pytest.mark.parametrize("moment", ["after a report", "within an epoch"])
def test_a_continued_run_equals_an_uninterrupted_one(
    model: str, values: dict[str, Any], moment: str, tmp_path: Path
) -> None:
    straight = run(model, **values)
    assert [row["epoch"] for row in straight.history] == [1, 2, 3, 4, 5, 6]

    folder, steps, reports = Folder.at(tmp_path), [], []

    def stepped(targets: int) -> None:
        steps.append(targets)
        if moment == "within an epoch" and len(steps) == 3 * STEPS + 2:
            raise KilledError  # the fourth epoch is lost

    def report(row: Row) -> None:
        reports.append(row["epoch"])
        if moment == "after a report" and len(reports) == 3:
            raise KilledError

    home = Home(save=lambda state: files.save_state(folder, state, SPLIT))
    home.report, home.stepped = report, stepped
    with pytest.raises(KilledError):
        run(model, home, **values)
    assert reports == [1, 2, 3]
    state = files.load_state(folder)
    assert state is not None
    saved = state["epoch"]
    assert saved == straight.history[2]["best_epoch"]

    home = Home(load=lambda: files.load_state(folder), report=lambda r: reports.append(r["epoch"]))
    continued = run(model, home, **values)
    assert reports == [1, 2, 3, *range(saved + 1, 7)]  # what was trained after the best, again
    assert_same(continued, straight)


def test_a_run_continues_at_the_pace_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[State] = []
    monkeypatch.setattr(train, "cadence", lambda *_: 2)
    straight = run(home=Home(save=states.append), eval_every=0)
    assert [row["epoch"] for row in straight.history] == [1, 2, 4, 6]

    monkeypatch.setattr(train, "cadence", lambda *_: pytest.fail("decided twice"))
    for state in copy.deepcopy(states[:-1]):
        assert_same(run(home=Home(load=lambda state=state: state), eval_every=0), straight)


def test_states_are_saved_where_the_best_improves_and_at_the_end(script: Any) -> None:
    script(3, 2, 4, 2, 1, 6)
    told: list[tuple[str, int]] = []
    home = Home(save=lambda state: told.append(("saved", state["epoch"])))
    home.report = lambda row: told.append(("told", row["epoch"]))
    run(home=home)
    assert [epoch for what, epoch in told if what == "told"] == [1, 2, 3, 4, 5, 6]
    saved = [place for place, (what, _) in enumerate(told) if what == "saved"]
    assert [told[place + 1] for place in saved] == [("told", n) for n in (1, 2, 5, 6)]
    assert [told[place][1] for place in saved] == [1, 2, 5, 6]


def test_training_does_not_change_what_was_saved() -> None:
    def content(state: State) -> bytes:
        out = io.BytesIO()
        torch.save(state, out)
        return out.getvalue()

    saved: list[tuple[State, bytes]] = []
    run(home=Home(save=lambda state: saved.append((state, content(state)))))
    assert len(saved) > 2
    assert all(content(state) == before for state, before in saved)


def test_a_finished_run_is_not_continued(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    first = run(home=Home(save=lambda state: files.save_state(folder, state, SPLIT)), epochs=2)
    state = files.load_state(folder)
    assert state is not None
    assert not {"model", "optimizer"} & state.keys()  # they would double the file for nothing

    told: list[Row] = []
    again = run(home=Home(load=lambda: files.load_state(folder), report=told.append), epochs=2)
    assert told == []
    assert_same(again, first)


# In a trial's folder


def ranks_in(folder: Folder) -> dict[str, list[Any]]:
    content: dict[str, list[Any]] = pq.read_table(
        io.BytesIO(folder.read("ranks.parquet") or b"")
    ).to_pydict()
    return content


def plan_in(folder: Folder, **values: Any) -> Plan:
    return Plan("sasrec", "ndcg@10", Protocol(mask_seen=True, **values), folder)


def test_the_ranks_of_the_best_evaluation_are_kept(script: Any, tmp_path: Path) -> None:
    script(3, 2, 5)
    folder = Folder.at(tmp_path)
    run(home=Home(save=lambda state: files.save_state(folder, state, SPLIT)), epochs=3)
    users = SPLIT.dataset.user_ids[SPLIT.valid.users].tolist()
    assert ranks_in(folder) == {"user": users, "rank": [2.0] * len(users)}


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5])
def test_a_trial_that_is_ended_by_the_scheduler_has_its_best_on_disk(
    script: Any, last: int, tmp_path: Path
) -> None:
    ranks = (5, 4, 7, 3, 8, 2)
    script(*ranks)
    told: list[Row] = []

    def report(row: Row) -> None:
        told.append(row)
        if row["epoch"] == last:
            raise SystemExit  # as Ray ends the thread of a trial

    folder, p = Folder.at(tmp_path), params()
    with pytest.raises(SystemExit):
        loop.train_here(plan_in(folder), p, folder, SPLIT.dataset, report)
    state = files.load_state(folder)
    assert state is not None
    assert state["best"]["epoch"] == told[-1]["best_epoch"]
    assert set(ranks_in(folder)["rank"]) == {min(ranks[:last])}
    assert files.told(folder) == told


@pytest.mark.parametrize("last", [2, 3, 5])
def test_a_trial_that_is_tried_again_tells_every_row_once(
    script: Any, last: int, tmp_path: Path
) -> None:
    ranks = (5, 4, 7, 6, 8, 2)
    script(*ranks)
    straight = run()
    folder, p, told = Folder.at(tmp_path), params(), []

    def report(row: Row) -> None:
        told.append(row)
        if len(told) == last:
            raise KilledError

    script(*ranks)
    with pytest.raises(KilledError):
        loop.train_here(plan_in(folder), p, folder, SPLIT.dataset, report)
    assert files.told(folder) == told
    script(*ranks[2:])  # the best was at the second epoch
    continued = loop.train_here(plan_in(folder), p, folder, SPLIT.dataset, report)
    assert_same(continued, straight)
    assert numbers(told) == numbers(straight.history)
    assert files.told(folder) == told


def test_a_row_that_was_saved_and_not_told_is_in_the_history(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)

    def save(state: State) -> None:
        files.save_state(folder, state, SPLIT)
        raise KilledError

    with pytest.raises(KilledError):
        run(home=Home(save=save))
    assert files.told(folder) == []
    rows = files.all_told([], files.load_state(folder))
    assert [row["epoch"] for row in rows] == [1]


def test_validation_on_some_users_and_test_on_all(tmp_path: Path) -> None:
    folder, p = Folder.at(tmp_path), params(epochs=1)
    plan = plan_in(folder, valid_users=30, seed=5)
    trained = loop.train_here(plan, p, folder, SPLIT.dataset, lambda row: None)
    some = SPLIT.valid.sample(30, seed=5).users
    ranks = ranks_in(folder)
    assert ranks["user"] == SPLIT.dataset.user_ids[some].tolist()
    assert trained.best["metrics"]["hr@10"] == pytest.approx(np.mean(np.array(ranks["rank"]) <= 10))
    everyone = run(epochs=1)  # the same weights, and the same ranks of these users
    assert all(torch.equal(weights(everyone)[name], w) for name, w in weights(trained).items())
    assert everyone.best["ranks"][some].tolist() == ranks["rank"]
    _, tested = final.evaluate_on_test(plan, p.model_dump(), weights(trained), SPLIT.dataset)
    assert len(tested) == len(SPLIT.test.users)


def test_the_hyperparameters_of_a_tested_trial_repeat_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "cadence", lambda *_: 4)
    plan, p = plan_in(Folder.at(tmp_path)), params(eval_every=0)
    trained = loop.train_here(plan, p, plan.trial_folder(3), SPLIT.dataset, lambda row: None)
    finalist = final.examine(plan, 3, p.model_dump(), SPLIT.dataset, [], [1])
    assert finalist.params == p.model_dump() | {"eval_every": 4}
    assert_same(train.train("sasrec", params(eval_every=4), SPLIT), trained)


# Same seed, same run


def test_the_seed_alone_decides() -> None:
    one, same, other = run(epochs=2), run(epochs=2), run(epochs=2, seed=1)
    assert_same(one, same)
    assert not torch.equal(
        weights(one)["item_embedding.weight"], weights(other)["item_embedding.weight"]
    )


def fresh(seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class("sasrec")(params(), SPLIT.dataset.n_items, SPLIT.dataset.n_users)
    state: dict[str, Tensor] = model.state_dict()
    return state


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_first_weights_are_those_of_the_seed(seed: int) -> None:
    found, expected = weights(run(epochs=0, seed=seed)), fresh(seed)
    assert all(torch.equal(found[name], w) for name, w in expected.items())
    other = fresh(seed + 1)
    assert any(not torch.equal(found[name], w) for name, w in other.items())


class Dice(NamedTuple):
    """What chance did in an epoch."""

    order: list[int]  # the targets' events, as they came
    dropout: bytes  # the state of torch's generator before its first step
    negatives: bytes  # and of the one that is handed to the model


def dice(monkeypatch: pytest.MonkeyPatch, home: Home | None = None, **values: Any) -> list[Dice]:
    """What chance did in each of two epochs, or the second alone where a state is loaded."""
    found: list[Dice] = []
    steps, honest = count(), SASRec.loss

    def loss(self: SASRec, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        if next(steps) % STEPS == 0:
            states = (state.numpy().tobytes() for state in (torch.get_rng_state(), rng.get_state()))
            found.append(Dice([], *states))
        found[-1].order.extend(batch.events.tolist())
        return honest(self, batch, rng)

    ranks = np.ones(len(SPLIT.valid.users), dtype=np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(SASRec, "loss", loss)
        patch.setattr(train, "evaluate", lambda *_, **__: Ranking(ranks))
        run(home=home, epochs=2, **values)
    return found


def test_chance_is_another_in_each_epoch_and_for_each_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order, dropout and negatives each depend on the seed and on the epoch."""
    found = [*dice(monkeypatch, seed=0), *dice(monkeypatch, seed=1)]
    assert len(found) == 4
    for one, other in combinations(found, 2):
        assert sorted(one.order) == sorted(other.order)
        assert one.order != other.order
        assert one.dropout != other.dropout
        assert one.negatives != other.negatives
    assert all(one.dropout != one.negatives for one in found)
    assert dice(monkeypatch, seed=1) == found[2:]


def test_ranks_share_the_order_and_no_dropout_or_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank takes its part of the same batches, so the order must be the same on all."""
    seen: list[list[int]] = []
    honest = batches.epoch

    def epoch(*given: Any, shard: tuple[int, int], **named: Any) -> Iterator[Batch]:
        assert shard == (len(seen) // 2, 1)
        seen.append([])
        for batch in honest(*given, **named):  # all of it, whatever the rank
            seen[-1].extend(batch.events.tolist())
            yield batch

    monkeypatch.setattr(batches, "epoch", epoch)
    first, second = (dice(monkeypatch, Home(rank=rank)) for rank in (0, 1))
    assert seen[:2] == seen[2:]
    everything = [d.dropout for d in (*first, *second)] + [d.negatives for d in (*first, *second)]
    assert len(set(everything)) == 8


def test_a_resumed_epoch_has_the_chance_of_that_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[State] = []
    straight = dice(monkeypatch, Home(save=states.append))
    (second,) = dice(monkeypatch, Home(load=lambda: states[0]))
    assert second == straight[1]


def test_the_callers_generators_stay_as_they_were() -> None:
    torch.manual_seed(7)
    rng_of_torch, rng_of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(epochs=1)
    assert torch.equal(torch.get_rng_state(), rng_of_torch)
    assert np.array_equal(np.random.get_state()[1], rng_of_numpy)  # noqa: NPY002


# A process that trains again

CPU = torch.device("cpu")


def tensors(data: Sequences) -> list[Tensor]:
    return [
        x for x in (data.items, data.first, data.users, data.targets, data.times) if x is not None
    ]


@pytest.mark.parametrize("model", ["sasrec", "duorec", "bert4rec", "esasrec", "gru4rec", "stan"])
def test_the_next_training_takes_the_events_that_are_on_the_device(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sequences] = []
    make = batches.sequences
    monkeypatch.setattr(batches, "sequences", lambda *given: made.append(make(*given)) or made[-1])
    batches._kept.clear()
    kind = model_class(model)
    trains = {} if model == "stan" else {"epochs": 1, "eval_every": 1}
    p = kind.Params.model_validate({"max_seq_len": 20} | trains)
    first, second = (train.train(model, p, SPLIT) for _ in range(2))
    assert_same(first, second)
    (data,) = made
    expected = make(SPLIT, CPU, kind.uses_times)  # training has left them as they were
    assert all(map(torch.equal, tensors(data), tensors(expected)))
    assert data.counts().equal(expected.counts())


def test_other_data_another_split_or_times_are_not_those_of_before() -> None:
    def content(split: Split, times: bool = False) -> list[list[int]]:
        return [x.tolist() for x in tensors(batches.kept_sequences(split, CPU, times))]

    def fresh(split: Split, times: bool = False) -> list[list[int]]:
        return [x.tolist() for x in tensors(batches.sequences(split, CPU, times))]

    data = SPLIT.dataset
    items, later = data.items.copy(), data.times.copy()
    items[3] = items[3] % data.n_items + 1
    later[-1] += 1
    first_longer = SPLIT.train_end.copy()
    first_longer[0] += 1
    asked = [(SPLIT, False), (SPLIT, True), (replace(SPLIT, train_end=first_longer), True)]
    for changed in (replace(data, items=items), replace(data, times=later)):
        asked += [(replace(SPLIT, dataset=changed), True), (SPLIT, True)]
    for split, times in asked:
        assert content(split, times) == fresh(split, times)
        assert len(batches._kept) == 1
    before = batches.kept_sequences(SPLIT, CPU, True)
    again = replace(SPLIT, dataset=replace(data, items=data.items.copy()), valid=SPLIT.test)
    assert batches.kept_sequences(again, CPU, True) is before


# When to evaluate, what to keep, when to stop


def ndcg(rank: float) -> float:
    return 1 / math.log2(rank + 1)


def test_training_stops_when_patience_is_over_and_returns_the_best(script: Any) -> None:
    seen = script(3, 2, 2, 4, 1)  # an equal value is no improvement
    trained = run(epochs=20, patience=2)
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4]
    assert [row["metrics"]["ndcg@10"] for row in trained.history] == pytest.approx(
        [ndcg(3), ndcg(2), ndcg(2), ndcg(4)]
    )
    assert [row["best"] for row in trained.history] == pytest.approx([ndcg(3)] + [ndcg(2)] * 3)
    assert [row["best_epoch"] for row in trained.history] == [1, 2, 2, 2]
    assert [row["finished"] for row in trained.history] == [False, False, False, True]
    assert trained.best["epoch"] == 2
    assert trained.best["metrics"]["hr@5"] == 1
    assert trained.best["ranks"].tolist() == [2.0] * len(SPLIT.valid.users)
    assert all(torch.equal(weights(trained)[name], w) for name, w in seen[1].items())
    assert any(not torch.equal(weights(trained)[name], w) for name, w in seen[3].items())
    assert not trained.model.training


def test_patience_counts_from_the_last_improvement(script: Any) -> None:
    script(5, 6, 4, 6, 3, 6, 6, 1)
    trained = run(epochs=20, patience=2)
    assert [row["epoch"] for row in trained.history] == [1, 2, 3, 4, 5, 6, 7]
    assert trained.best["epoch"] == 5


def test_patience_counts_epochs_and_ends_at_an_evaluation(script: Any) -> None:
    script(4, 3, 3, 3)
    trained = run(epochs=40, patience=5, eval_every=4)
    assert [row["epoch"] for row in trained.history] == [1, 4, 8, 12]
    assert [row["finished"] for row in trained.history] == [False, False, False, True]


def test_the_first_epoch_and_the_last_are_evaluated_whatever_eval_every() -> None:
    trained = run(epochs=5, eval_every=2)
    assert [row["epoch"] for row in trained.history] == [1, 2, 4, 5]
    assert [row["step"] for row in trained.history] == [n * STEPS for n in (1, 2, 4, 5)]
    assert [row["finished"] for row in trained.history] == [False, False, False, True]
    assert {row["eval_every"] for row in trained.history} == {2}


@pytest.mark.parametrize(
    ("train_seconds", "cost", "values", "every"),
    [
        (10, 0.9, {}, 1),
        (10, 1.1, {}, 2),
        (10, 3.3, {}, 4),
        (10, 1000, {}, 10),
        (0, 0, {}, 1),
        (10, 3.3, {"patience": 4}, 2),  # so that there are two evaluations within it
        (10, 3.3, {"patience": 1}, 1),
        (0, 1, {"epochs": 0}, 1),
    ],
)
def test_evaluations_cost_a_tenth_of_training(
    train_seconds: float, cost: float, values: dict[str, Any], every: int
) -> None:
    assert train.cadence(train_seconds, cost, params(**values), Home()) == every


def test_the_first_epoch_says_how_often_to_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def cadence(train_seconds: float, cost: float, *_: Any) -> int:
        asked.append((train_seconds, cost))
        return 3

    monkeypatch.setattr(train, "cadence", cadence)
    monkeypatch.setattr(train, "saving_seconds", lambda *_: 100.0)
    rows = run(epochs=7, eval_every=0).history
    assert [row["epoch"] for row in rows] == [1, 3, 6, 7]
    assert {row["eval_every"] for row in rows} == {3}
    assert asked == [(rows[0]["train_seconds"], rows[0]["eval_seconds"] + 100)]
    assert numbers(rows) == numbers(run(epochs=7, eval_every=3).history)


def test_without_epochs_the_first_weights_are_evaluated_once() -> None:
    trained = run(epochs=0)
    (row,) = trained.history
    assert (row["epoch"], row["step"], row["finished"]) == (0, 0, True)
    assert "train_ce" not in row
    assert all(torch.equal(weights(trained)[name], w) for name, w in fresh(seed=0).items())


def test_reports_are_complete() -> None:
    rows: list[Row] = []
    home = Home(report=rows.append)
    values = {"loss_type": "bce", "reg_weight": 0.1, "epochs": 2}
    trained = train.train("sasrec", params(**values), SPLIT, home, metric="mrr@7")
    assert rows == trained.history
    expected = {f"{name}@{k}" for name in metrics.METRICS for k in metrics.KS} | {"mrr@7"}
    expected |= {"epoch", "step", "best", "best_epoch", "finished", "train_bce", "train_l2"}
    expected |= {"time", "train_seconds", "eval_seconds", "eval_every", "train_targets"}
    for row in rows:
        assert files.flat(row).keys() == expected
        assert row["train_seconds"] > 0
        assert row["eval_seconds"] > 0
        assert json.loads(json.dumps(row)) == row  # plain numbers, for every reader
    assert rows[0]["time"] < rows[1]["time"]
    assert trained.best["metrics"]["mrr@7"] == max(row["metrics"]["mrr@7"] for row in rows)
    assert metrics.compute(trained.best["ranks"])["hr@10"] == trained.best["metrics"]["hr@10"]


def test_the_reported_loss_is_the_mean_over_the_steps() -> None:
    settings = params(epochs=1, learning_rate=1e-30, dropout_prob=0, loss_type="ce")
    (row,) = train.train("sasrec", settings, SPLIT).history
    data = batches.sequences(SPLIT, torch.device("cpu"))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = model_class("sasrec")(settings, data.n_items, data.n_users)
        losses = []
        windows = batches.windows(SPLIT, settings)
        for batch in batches.epoch(windows, data, batch_size=32, seed=(0, 0)):
            assert isinstance(model, SASRec)
            states = model.states_at_targets(batch)
            scores = states @ model.item_embedding.weight[1 : data.n_items + 1].T
            losses.append(float(nn.functional.cross_entropy(scores, batch.targets - 1)))
    assert len(losses) == STEPS
    assert row["losses"]["ce"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_training_learns() -> None:
    trained = run(epochs=6)
    losses = [row["losses"]["ce"] for row in trained.history]
    assert losses == sorted(losses, reverse=True)
    assert trained.best["metrics"]["hr@10"] > 1.5 * run(epochs=0).best["metrics"]["hr@10"]


# The optimizer


def test_the_schedule_spans_all_steps_of_all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        train, "set_learning_rate", lambda _, __, step, total: asked.append((step, total))
    )
    run(epochs=3)
    assert asked == [(step, 3 * STEPS) for step in range(3 * STEPS)]


def gradient_norms(monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[float]:
    """The norm of the whole gradient in each step."""
    norms: list[float] = []
    make = train.make_optimizer

    def spied(model: nn.Module, p: Any) -> torch.optim.Optimizer | None:
        optimizer = make(model, p)
        assert optimizer is not None

        def note(*_: Any) -> None:
            grads = [w.grad.flatten() for w in model.parameters() if w.grad is not None]
            norms.append(float(torch.cat(grads).norm()))

        optimizer.register_step_pre_hook(note)
        return optimizer

    monkeypatch.setattr(train, "make_optimizer", spied)
    run(epochs=1, **values)
    monkeypatch.undo()
    return norms


def test_gradients_are_clipped_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    free = gradient_norms(monkeypatch)
    bound = float(np.median(free))
    clipped = gradient_norms(monkeypatch, grad_clip_norm=bound)
    assert max(free) > 1.05 * bound
    assert max(clipped) <= bound * 1.0001
    assert clipped[0] == pytest.approx(min(free[0], bound), rel=1e-4)


def test_a_run_with_row_sparse_gradients_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"loss_type": "sampled_softmax", "neg_samples": 8}
    dense = run(**values)
    monkeypatch.setattr(optimizer, "LARGE_TABLE", 1)
    states: list[State] = []
    whole = run(home=Home(save=states.append), **values)
    assert whole.history[-1]["losses"]["sampled_softmax"] == pytest.approx(
        dense.history[-1]["losses"]["sampled_softmax"], rel=1e-3
    )
    unfinished = next(state for state in states if "optimizer" in state)
    assert_same(run(home=Home(load=lambda: copy.deepcopy(unfinished)), **values), whole)
    assert all(w.grad is None or not w.grad.is_sparse for w in whole.model.parameters())
    assert not any(m.sparse for m in whole.model.modules() if isinstance(m, nn.Embedding))


# What goes wrong


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest, calls = SASRec.loss, [0]

    def loss(self: SASRec, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        terms = honest(self, batch, rng)
        calls[0] += 1
        worth = math.nan if calls[0] == 10 else 1.0
        return {name: term._replace(total=term.total * worth) for name, term in terms.items()}

    monkeypatch.setattr(SASRec, "loss", loss)
    rows: list[Row] = []
    with pytest.raises(DivergedError, match="not finite at step 9; try a smaller learning_rate"):
        run(home=Home(report=rows.append))
    assert [row["epoch"] for row in rows] == [1]


def test_a_batch_must_have_two_windows_for_each_worker() -> None:
    with pytest.raises(UserError, match="batch_size 3 must be at least 4: 2 per worker"):
        run(home=Home(world_size=2), batch_size=3)
    with pytest.raises(UserError, match=r"tokens_per_batch 9 makes a batch of . windows, which"):
        run(home=Home(world_size=2), tokens_per_batch=9)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_training_multiplies_as_asked_and_evaluation_in_fp32(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, set[bool]] = {"loss": set(), "score": set()}
    for name, seen in used.items():
        real = getattr(SASRec, name)

        def watched(*args: Any, real: Any = real, seen: set[bool] = seen) -> Any:
            seen.add(torch.backends.cuda.matmul.allow_tf32)
            return real(*args)

        monkeypatch.setattr(SASRec, name, watched)
    run(precision=precision, epochs=1)
    assert used == {"loss": {precision == "tf32"}, "score": {False}}
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_is_asked_about_bf16_is_what_the_processor_has() -> None:
    """The question is private to torch: it was seen in 2.13. This is what it comes to on x86."""
    has = torch.cpu.get_capabilities()
    if has["architecture"] != "x86_64":
        pytest.skip("the capabilities of other processors have other names")
    assert train.cpu_has_bf16() == (has["avx512_bw"] and has["avx512_vl"] and has["avx512_dq"])


def test_a_cpu_without_bf16_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "cpu_has_bf16", lambda: False)
    with pytest.raises(UserError, match="precision bf16: this CPU has no such arithmetic"):
        run(precision="bf16")
    assert run(epochs=1, precision="fp32").history


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_trains_the_same() -> None:
    plain, compiled = (run(epochs=2, dropout_prob=0, compile=on) for on in (False, True))
    for row, other in zip(plain.history, compiled.history, strict=True):
        assert other["losses"]["ce"] == pytest.approx(row["losses"]["ce"], rel=1e-5)
    for key, weight in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[key], weight, rtol=1e-3, atol=1e-4)


LARGE_CATALOGUE = """
import resource, sys
import numpy as np, torch
from seqtune import train
from seqtune.data import Dataset, leave_one_out
from seqtune.model import model_class

torch.set_num_threads(1)
n_users, length, n_items = 160, 40, 200_000
rng = np.random.default_rng(0)
items = np.concatenate(
    [rng.choice(n_items, length, replace=False) + 1 for _ in range(n_users)]
).astype(np.int32)
dataset = Dataset(
    "large",
    items,
    np.arange(n_users + 1) * length,
    np.arange(n_users * length),
    np.arange(n_users),
    np.arange(n_items),
)
values = {"loss_type": sys.argv[1], "neg_samples": 256, "neg_sharing": "batch"}
p = model_class("sasrec").Params(epochs=2, batch_size=n_users, **values)
trained = train.train("sasrec", p, leave_one_out(dataset))
assert trained.history[-1]["step"] == 2
assert len(trained.best["ranks"]) == n_users
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of memory differs")
@pytest.mark.parametrize("loss", ["sampled_softmax", "ce"])
def test_a_large_catalogue_needs_little_memory(loss: str) -> None:
    """The scores of a step's 5,920 targets against all items would take 4,500 MB alone."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_CATALOGUE, loss],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(train.__file__).parents[1])},
    )
    assert float(done.stdout) < 1_500


def test_there_must_be_a_window_for_each_worker() -> None:
    with pytest.raises(UserError, match="tiny: 200 training windows cannot be split over 201"):
        run(home=Home(world_size=201))


# Two ranks


RANK = textwrap.dedent("""
    import os, sys, torch
    from datetime import timedelta
    from seqtune import train
    from seqtune.data import leave_one_out
    from seqtune.data.generate import make_preset
    from seqtune.model import model_class
    from seqtune.state import Home
    torch.set_num_threads(1)
    rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    train.EVALUATION_SHARE = (1e9, 1e-9)[rank]  # as if their clocks disagreed
    jobs = torch.load(out + "/jobs.pt", weights_only=True)
    torch.distributed.init_process_group(
        "gloo", init_method="file://" + store, rank=rank, world_size=2,
        timeout=timedelta(seconds=300))
    results = []
    for model, values, *large in jobs:
        states = []
        if large:
            train.sparse_tables.__globals__["LARGE_TABLE"] = large[0]
        home = Home(rank=rank, world_size=2, save=states.append)
        params = model_class(model).Params.model_validate(values)
        done = train.train(model, params, leave_one_out(make_preset("tiny")), home)
        results.append({"history": done.history, "best": done.best["metrics"],
                        "ranks": torch.from_numpy(done.best["ranks"]),
                        "weights": done.model.state_dict(),
                        "moments": [one["optimizer"] for one in states[:1]]})
        print("trained", model, flush=True)
    torch.save(results, f"{out}/{rank}.pt")
    print("saved", flush=True)
    torch.distributed.barrier()
    os._exit(0)  # without the teardown of torch.distributed, which is not what is tested
""")


def trained_in_two(jobs: list[tuple[Any, ...]], folder: Path) -> list[list[Any]]:
    """Trains models in two processes that share each batch; what either has found of each."""
    torch.save(jobs, folder / "jobs.pt")
    environment = os.environ | {
        "PYTHONPATH": str(Path(train.__file__).parents[1]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(folder / "store"), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for one in ranks:
            said, _ = one.communicate(timeout=300)
            assert one.returncode == 0, f"rank {ranks.index(one)}: {said}"
    finally:
        for one in ranks:
            one.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def expect_one(job: tuple[str, dict[str, Any]], first: Any, second: Any) -> None:
    """Two ranks have found what one process does, which trains the same."""
    model, values = job
    values = values | {"eval_every": 1}  # which rank 0 has chosen
    alone = train.train(model, model_class(model).Params.model_validate(values), SPLIT)
    for found in (first, second):
        assert torch.equal(found["ranks"], torch.from_numpy(alone.best["ranks"])), model
        assert found["best"] == pytest.approx(alone.best["metrics"], abs=1e-5)
        for row, expected in zip(found["history"], alone.history, strict=True):
            (row,), (expected,) = numbers([row]), numbers([expected])
            assert row == pytest.approx(expected, abs=1e-5), model
    assert all(torch.equal(w, second["weights"][k]) for k, w in first["weights"].items())
    if model in CLOSE:
        for name, w in weights(alone).items():
            assert torch.allclose(first["weights"][name], w, rtol=0, atol=1e-5), (model, name)


CLOSE = ("sasrec", "gru4rec")  # elsewhere some gradients are noise alone, which Adam makes large


def first_gradients(kept: Any) -> list[Tensor]:
    """The gradients of the first step, which Adam keeps a tenth of."""
    return [10 * moments["exp_avg"] for moments in kept["state"].values()]


# 200 windows in 7 batches of 28 or 29 with unequal numbers of targets.
SHARED: dict[str, Any] = {"batch_size": 29, "epochs": 2, "learning_rate": 1e-3}
SHARED |= {"dropout_prob": 0.0, "grad_clip_norm": 1.0}


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    jobs = [
        ("sasrec", params("sasrec", **SHARED).model_dump()),
        ("gru4rec", params("gru4rec", **SHARED).model_dump()),
        ("sasrec", params("sasrec", **SHARED | {"epochs": 3, "eval_every": 0}).model_dump()),
    ]
    for job, first, second in zip(jobs, *trained_in_two(jobs, tmp_path), strict=True):
        expect_one(job, first, second)


def test_two_ranks_exchange_the_rows_in_use_of_a_large_table(tmp_path: Path) -> None:
    """With what each draws by itself: rows of a table alone train as the whole table does."""
    jobs: list[tuple[Any, ...]] = []
    for name in ("sasrec", "fossil"):  # the second has two tables, and one of users
        for loss_type in ("sampled_softmax", "bce"):
            own = SMALL | TRANSFORMER | SHARED | {"loss_type": loss_type, "neg_samples": 4}
            known = model_class(name).Params.model_fields
            own = {n: v for n, v in own.items() if n in known} | {"tie_weights": False}
            values = model_class(name).Params.model_validate(own).model_dump()
            jobs += [(name, values, large) for large in (10**9, 10)]
    first, second = trained_in_two(jobs, tmp_path)
    for whole, rows, other in zip(first[::2], first[1::2], second[1::2], strict=True):
        for name, w in rows["weights"].items():
            assert torch.equal(w, other["weights"][name]), "both workers have the same"
            assert torch.allclose(w, whole["weights"][name], rtol=0, atol=1e-5), name
        assert rows["best"] == pytest.approx(whole["best"], abs=1e-5)


# What is left to chance in a model, each worker's own, is left out: views that change nothing.
CERTAIN: dict[str, dict[str, Any]] = {
    "bert4rec": {"mask_prob": 1.0, "last_mask_prob": 0.0},
    "cl4srec": {"crop_eta": 1.0, "mask_gamma": 0.0, "reorder_beta": 0.0},
    "duorec": {"ssl_type": "un", "mask_same_target": True},
    "fossil": {"reg_weight": 0.1},
}


@pytest.mark.slow
def test_two_ranks_equal_one_for_every_model(tmp_path: Path) -> None:
    jobs = []
    for name in catalogue.model_names():
        kind = model_class(name)
        if not catalogue.declaration(name).is_trained:
            continue
        known = kind.Params.model_fields
        values = {n: v for n, v in (SMALL | TRANSFORMER | SHARED).items() if n in known}
        values |= {n: 0.0 for n in known if "dropout" in n} | {"loss_type": "ce"}
        values |= {"reg_weight": 0.01} if "reg_weight" in known else {}
        values |= CERTAIN.get(name, {})
        jobs.append((name, kind.Params.model_validate(values).model_dump()))
    assert len(jobs) == 14
    whole = [(name, values | {"batch_size": 4000}) for name, values in jobs]  # one step an epoch
    found = trained_in_two([*jobs, *whole], tmp_path)
    for job, first, second in zip(jobs, *(one[:14] for one in found), strict=True):
        expect_one(job, first, second)
    for (name, values), first in zip(whole, found[0][14:], strict=True):
        states: list[State] = []
        p = model_class(name).Params.model_validate(values)
        train.train(name, p, SPLIT, Home(save=states.append))
        both = zip(*map(first_gradients, (*first["moments"], states[0]["optimizer"])), strict=True)
        for got, wanted in both:
            assert torch.allclose(got, wanted, rtol=0, atol=1e-6), name


@pytest.mark.slow
def test_negatives_of_one_worker_alone_make_another_loss(tmp_path: Path) -> None:
    own = SHARED | CERTAIN["cl4srec"]
    jobs = [
        ("cl4srec", params("cl4srec", **own, gather_negatives=gather).model_dump())
        for gather in (True, False)
    ]
    (gathered, alone), _ = trained_in_two(jobs, tmp_path)
    both = [found["history"][0]["losses"]["ssl"] for found in (gathered, alone)]
    assert both[0] > both[1] + 0.5  # log of twice as many
