"""STAN by hand: who is a neighbour, what each factor does, and how an index travels."""

import copy
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from seqtune import batches, checkpoint
from seqtune.catalogue import declaration
from seqtune.data import Dataset, leave_one_out
from seqtune.errors import UserError
from seqtune.evaluate import evaluate
from seqtune.model import History
from seqtune.models.stan import STAN
from seqtune.options import StudyOptions
from seqtune.params import build, training
from seqtune.recommend import recommend_file
from seqtune.space.asked import ask_study
from seqtune.state import Home
from seqtune.storage import Folder
from seqtune.train import train

DAY = 86_400_000
START = 1_600_000_000_000
SKNN = dict.fromkeys(("lambda_1", "lambda_2", "lambda_3"), math.inf)
NO_TIME = {"lambda_2": math.inf}


def days(number):
    return START + round(number * DAY)


def split_of(sessions):
    """Training histories with the day of their last event; 19 and 20 follow, held out."""
    items, offsets, times = [], [0], []
    for session, day in sessions:
        items += [*session, 19, 20]
        times += [days(day)] * len(session) + [days(day + 1000)] * 2
        offsets.append(len(items))
    dataset = Dataset(
        name="by hand",
        items=np.array(items, dtype=np.int32),
        offsets=np.array(offsets),
        times=np.array(times),
        user_ids=np.arange(len(sessions)),
        item_ids=np.arange(101, 121),
    )
    return leave_one_out(dataset)


def model_for(split, **values):
    p = build(STAN.Params, {"causal_neighbors": True} | values, "test")
    model = STAN(p, split.dataset.n_items, split.dataset.n_users)
    model.prepare(sequences(split))
    return model.eval()


def sequences(split):
    return batches.sequences(split, torch.device("cpu"), times=True)


def history(*items, day=100.0, user=10**6):
    times = [days(day - 1)] * (len(items) - 1) + [days(day)]
    return History(
        torch.tensor([user]),
        torch.tensor([items]),
        torch.tensor([len(items)]),
        torch.tensor([times]),
    )


def scores(split, *items, day=100.0, user=10**6, **values):
    """The scores of the items that some neighbour has, in the unit of the best neighbour."""
    found = model_for(split, **values).score(history(*items, day=day, user=user))[0].tolist()
    return {item: pytest.approx(score, rel=1e-5) for item, score in enumerate(found) if score > 0}


# 1 2 3 4 at day 90, 4 2 5 at day 95, 6 3 at day 98; the history 2 6 3 9 ends at day 100.
THREE = split_of([([1, 2, 3, 4], 90), ([4, 2, 5], 95), ([6, 3], 98)])


def test_three_sessions_by_hand():
    decay = {item: math.exp((position - 4) / 2) for item, position in ((2, 1), (6, 2), (3, 3))}
    w = [
        (decay[2] + decay[3]) / math.sqrt(4 * 4) * math.exp(-10 / 5),
        decay[2] / math.sqrt(4 * 3) * math.exp(-5 / 5),
        (decay[6] + decay[3]) / math.sqrt(4 * 2) * math.exp(-2 / 5),
    ]
    near = [1, math.exp(-1 / 3), math.exp(-2 / 3)]  # at a distance from i*
    # i* is 3 in the first (not 2, which comes earlier in the history), 2 in the second, 3 last.
    wanted = {
        1: w[0] * near[2],
        2: w[0] * near[1] + w[1] * near[0],
        3: w[0] * near[0] + w[2] * near[0],
        4: w[0] * near[1] + w[1] * near[1],
        5: w[1] * near[1],
        6: w[2] * near[1],
    }
    found = scores(THREE, 2, 6, 3, 9, lambda_1=2, lambda_2=5, lambda_3=3)
    assert w[2] == max(w)
    assert found == {item: score / w[2] for item, score in wanted.items()}


def test_the_item_they_share_is_the_most_recent_of_the_history_not_of_the_neighbour():
    split = split_of([([1, 2, 3, 4, 5], 90)])
    near = {1: 1, 2: 0, 3: 1, 4: 2, 5: 3}
    wanted = {item: math.exp(-away) for item, away in near.items()}
    assert scores(split, 4, 2, lambda_3=1) == wanted


def test_lambda_2_is_in_days():
    split = split_of([([1, 2], 93), ([1, 3], 99.5)])
    found = scores(split, 1, day=100, lambda_2=7, lambda_3=math.inf)
    assert found == {1: 1 + math.exp(-6.5 / 7), 2: math.exp(-6.5 / 7), 3: 1}


def test_far_away_in_time_nothing_vanishes():
    split = split_of([([1, 2], 0), ([1, 3], 2), ([1, 4], 3)])
    found = scores(split, 1, day=5000, lambda_2=1, lambda_3=math.inf)
    assert found[4] == 1
    assert found[3] == math.exp(-1)
    assert found[2] == math.exp(-3)


def test_the_own_session_is_no_neighbour():
    split = split_of([([1, 2], 90), ([1, 3], 91), ([1, 4], 92)])
    assert set(scores(split, 1, user=1)) == {1, 2, 4}
    assert set(scores(split, 1, user=3)) == {1, 2, 3, 4}  # a stranger
    # It takes no place of the sample either, where an item has more sessions than that.
    assert set(scores(split, 1, user=2, sample_size=1)) == {1, 3}
    assert set(scores(split, 1, user=2, sample_size=2)) == {1, 2, 3}


def test_sessions_that_end_at_the_same_time_or_later_are_no_neighbours():
    split = split_of([([1, 2], 90), ([1, 3], 91), ([1, 4], 92)])
    assert set(scores(split, 1, day=91)) == {1, 2}
    assert set(scores(split, 1, day=91.001)) == {1, 2, 3}
    assert scores(split, 1, day=90) == {}
    both = scores(split, 1, day=91, causal_neighbors=False, lambda_2=1, lambda_3=math.inf)
    assert both == {1: 1 + 2 * math.exp(-1), 2: math.exp(-1), 3: 1, 4: math.exp(-1)}


def test_times_that_are_an_order_alone_are_no_clock():
    """Positions of different users cannot be compared: nobody is later, and nothing is old."""
    data = THREE.dataset
    positions = np.concatenate([np.arange(n) for n in np.diff(data.offsets)])
    ordered = replace(THREE, dataset=replace(data, times=positions))
    assert ordered.dataset.clock == "order"
    assert data.clock == "clock"
    found = scores(ordered, 2, 6, 3, 9, day=-START / DAY)
    assert found == scores(THREE, 2, 6, 3, 9, causal_neighbors=False, **NO_TIME)
    saved = model_for(ordered).state_dict()
    assert not saved["sessions.clock"]


def test_without_its_factors_it_is_sknn():
    split = split_of([([1, 2, 3, 4], 10), ([2, 5, 3], 95), ([3, 6], 20), ([7, 8], 99)])
    found = scores(split, 2, 9, 3, **SKNN)
    cosine = {
        n: shared / math.sqrt(3 * size) for n, shared, size in ((0, 2, 4), (1, 2, 3), (2, 1, 2))
    }
    best = cosine[1]
    assert found == {
        1: cosine[0] / best,
        2: (cosine[0] + cosine[1]) / best,
        3: sum(cosine.values()) / best,
        4: cosine[0] / best,
        5: 1,
        6: cosine[2] / best,
    }


@pytest.mark.parametrize("name", ["lambda_1", "lambda_3"])
def test_null_is_half_the_average_length(name):
    split = split_of([([1, 2, 3, 4, 5], 90), ([6, 2, 7], 91)])  # on average 4
    values = SKNN | {name: None}
    found = scores(split, 2, 4, **values)
    assert found == scores(split, 2, 4, **values | {name: 2})
    assert found != scores(split, 2, 4, **values | {name: 2.5})


def test_the_sample_is_the_most_recent_sessions_that_share_an_item():
    split = split_of([([1, 2], 90), ([9, 8], 93), ([1, 3], 92), ([5, 4], 91)])
    for size, reached in ((1, {1, 3}), (2, {1, 3, 4, 5}), (3, {1, 2, 3, 4, 5})):
        assert set(scores(split, 1, 5, sample_size=size, lambda_2=1)) == reached


def test_the_k_most_similar_vote():
    split = split_of([([1, 2, 3], 80), ([1, 4], 90), ([1, 2, 5, 6], 92)])
    # Similarities, without time: 2 / sqrt(3), 1 / sqrt(2), 2 / sqrt(4).
    for k, reached in ((1, {1, 2, 3}), (2, {1, 2, 3, 5, 6}), (3, {1, 2, 3, 4, 5, 6})):
        assert set(scores(split, 1, 2, k=k, lambda_1=math.inf, **NO_TIME)) == reached


def test_an_item_counts_once_at_its_last_place():
    split = split_of([([1, 2, 1, 3, 3], 90)])
    near = {1: 0, 2: 1, 3: 2}
    wanted = {item: math.exp(-away) for item, away in near.items()}
    assert scores(split, 1, 1, lambda_3=1) == wanted
    two = split_of([([1, 2, 1], 90), ([3], 90)])
    found = scores(two, 1, 3, 1, lambda_1=1, **NO_TIME)
    assert found[3] == math.exp(-1) / (1 / math.sqrt(2))


def test_sessions_are_the_last_items_of_the_training_history():
    split = split_of([([1, 2, 3, 4], 90)])
    assert set(scores(split, 4, max_seq_len=2)) == {3, 4}
    assert scores(split, 2, max_seq_len=2) == {}


def test_held_out_events_are_not_in_the_index():
    split = split_of([([1, 2], 90), ([2, 3], 91)])
    sessions = model_for(split).sessions
    assert sorted(sessions.items.tolist()) == [1, 2, 2, 3]
    assert sessions.times.tolist() == [days(90), days(91)]
    assert sessions.counts.tolist() == [0, 1, 2, 1] + [0] * 17


def test_items_without_a_neighbour_follow_by_popularity():
    split = split_of([([1, 2], 90), ([3, 4, 5], 91), ([4, 5, 5], 92)])
    found = model_for(split).score(history(1))[0]
    assert found.argsort(descending=True, stable=True).tolist() == [1, 2, 5, 4, 3, *range(6, 21), 0]
    assert found[5].item() == pytest.approx(3 / 4 - 1)  # of 3 events, as many as any
    nothing = History(torch.tensor([0]), torch.zeros(1, 2, dtype=torch.long), torch.tensor([0]))
    assert model_for(split).score(nothing)[0].argmax() == 5


def test_a_history_without_times_ends_after_all_sessions():
    split = split_of([([1, 2], 90), ([1, 3], 91), ([1, 4], 92)])
    one = history(1)
    found = model_for(split, lambda_2=1).score(History(one.users, one.items, one.lengths))
    after = model_for(split, lambda_2=1).score(history(1, day=92 + 1e-6))
    torch.testing.assert_close(found, after)
    assert (found[0, 1:5] > 0).all()
    pair = History(one.users.repeat(2), one.items.repeat(2, 1), one.lengths.repeat(2))
    torch.testing.assert_close(model_for(split, lambda_2=1).score(pair), after.repeat(2, 1))


# The index travels.


def test_a_model_that_was_not_prepared_loads_the_index():
    split = split_of([([1, 2, 3], 90), ([1, 3, 4], 91), ([1, 4], 92)])
    first = model_for(split)
    state = copy.deepcopy(first.state_dict())
    bare = STAN(first.params, split.dataset.n_items, split.dataset.n_users).eval()
    bare.load_state_dict(state)
    other = model_for(split_of([([6, 1], 5)] * 3))
    other.load_state_dict(state)
    for user in (0, 1, 2, 3):
        asked = history(1, 4, day=91.5, user=user)
        assert bare.score(asked).equal(first.score(asked))
        assert other.score(asked).equal(first.score(asked))
    del state["sessions.items"]
    with pytest.raises(RuntimeError, match="Missing key"):
        bare.load_state_dict(state)


@pytest.fixture
def champion(tmp_path):
    split = split_of([([1, 2], 90), ([1, 3], 91), ([5, 4], 92)])
    model = model_for(split, lambda_2=1, lambda_3=math.inf)
    folder = Folder.at(tmp_path / "best")
    checkpoint.save(
        folder,
        model.state_dict(),
        checkpoint.Card(
            model="stan",
            params=model.params,
            n_users=3,
            item_ids=split.dataset.item_ids,
            popularity=model.sessions.counts[1:].numpy(),
            mask_seen=True,
        ),
    )
    return folder


def test_a_checkpoint_recommends(champion):
    loaded = checkpoint.load(champion)
    assert loaded.model.params.lambda_3 == math.inf
    (found,) = loaded.recommend([[101]], k=20)
    assert found.items[:2] == [103, 102]  # that of the newer session first
    assert found.scores[:2] == pytest.approx([1, math.exp(-1)])
    assert len(found.items) == 19  # all but the one it has seen


def test_a_file_brings_the_times_of_its_histories(champion, tmp_path):
    source = tmp_path / "new.csv"
    # ann's history ends between the two sessions with 101, bob's after both; 999 is unknown.
    rows = [("ann", 104, 80), ("ann", 101, 90.5), ("bob", 101, 95), ("ann", 999, 99)]
    lines = [f"{user},{item},{days(day)}" for user, item, day in rows]
    source.write_text("\n".join(["user,item,timestamp", *lines]))
    recommend_file(champion, str(source), tmp_path / "top.parquet", k=2)
    table = pq.read_table(tmp_path / "top.parquet").to_pylist()
    best = {(row["user"], row["rank"]): row["item"] for row in table}
    assert best["ann", 1] == 102
    assert best["bob", 1] == 103
    assert best["bob", 2] == 102
    scores_of = {(row["user"], row["item"]): row["score"] for row in table}
    assert scores_of["ann", 102] == pytest.approx(1)
    assert scores_of.get(("ann", 103), -1) < 0  # that session had not ended


# Nothing is trained.


def test_training_is_one_evaluation():
    split = cycles()
    rows = []
    p = build(STAN.Params, {"causal_neighbors": False}, "--set")
    trained = train("stan", p, split, Home(report=rows.append), metric="hr@1")
    assert [row["epoch"] for row in rows] == [0]
    assert rows[0]["finished"]
    assert trained.best["metrics"]["hr@1"] > 0.9


def test_there_is_nothing_to_set_about_training():
    with pytest.raises(UserError, match="--set: stan has no hyperparameter 'epochs'; there are"):
        build(STAN.Params, {"epochs": 10}, "--set")
    assert not declaration("stan").is_trained
    assert training(STAN.Params(seed=3)).epochs == 0
    assert training(STAN.Params(seed=3)).seed == 3


@pytest.mark.parametrize("name", ["lambda_1", "lambda_2", "lambda_3"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_decays_are_above_zero(name, value):
    with pytest.raises(UserError, match=f"test: {name} must be greater than 0, not"):
        build(STAN.Params, {name: value}, "test")


def test_validation_leaves_out_the_own_session_and_later_ones():
    split = split_of([([1, 2], 90), ([1, 3], 91), ([1, 4], 92)])
    model, data = model_for(split, lambda_2=1), sequences(split)
    for user, reached in enumerate([set(), {1, 2}, {1, 2, 3}]):
        found = model.score(data.before(torch.tensor([split.valid.events[user]]), 9))[0]
        assert {item for item, score in enumerate(found.tolist()) if score > 0} == reached
    # The item held out, 19, ties with 5 to 18 and 20: behind 1 to 4, of which two are seen.
    found = evaluate(model, data, split, split.valid, mask_seen=True).ranks
    assert found.tolist() == [2 + (1 + 16) / 2] * 3


def cycles(n_users=40, n_items=12, seed=0):
    """Users who walk 1, 2, .., n_items, 1, .., one after another."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(n_items, size=n_users), rng.integers(4, 10, size=n_users)
    walks = [(np.arange(n) + s) % n_items + 1 for s, n in zip(starts, lengths, strict=True)]
    return leave_one_out(
        Dataset(
            name="cycle",
            items=np.concatenate(walks).astype(np.int32),
            offsets=np.concatenate([[0], lengths.cumsum()]),
            times=START + 1000 * np.arange(lengths.sum()),
            user_ids=np.arange(n_users),
            item_ids=np.arange(1, n_items + 1),
        )
    )


@pytest.mark.parametrize(
    ("model", "chosen", "epochs", "words"),
    [
        ("sasrec", (), 30, "at most 30 epochs a trial and 3m 00s in all (--set epochs=, --time"),
        ("sasrec", ("epochs=100",), 100, "at most 100 epochs a trial and 3m 00s in all"),
        ("sasrec", ("epochs=7",), 7, "at most 7 epochs a trial and 3m 00s in all"),
        ("stan", (), 0, "takes at most 3m 00s in all (--time-budget)"),
    ],
)
def test_a_first_look_has_no_more_epochs_than_the_model(model, chosen, epochs, words):
    asked = ask_study(StudyOptions(model, data="demo", set=chosen))
    assert asked.space.epochs == epochs
    assert asked.time_budget == 180
    assert words in asked.notes[0]


def test_other_data_get_no_first_look():
    asked = ask_study(StudyOptions("sasrec", data="tiny"))
    assert (asked.space.epochs, asked.time_budget, asked.notes) == (200, None, ())
