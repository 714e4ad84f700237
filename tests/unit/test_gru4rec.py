"""GRU4Rec as its authors train it: sessions in parallel, losses over the columns of a step.

tests/parity compares its states and losses with the equations.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from seqtune import batches, losses
from seqtune.data import Dataset, leave_one_out
from seqtune.errors import UserError
from seqtune.model import Batch, History
from seqtune.models.gru4rec import GRU4Rec
from seqtune.negatives import Popularity
from seqtune.params import build, check, parse_assignment
from seqtune.state import Home
from seqtune.train import train

CPU = torch.device("cpu")
OFFICIAL: dict[str, object] = {
    "variant": "official",
    "train_mode": "sessions",
    "hidden_size": 16,
    "n_sample": 8,
    "dropout_prob": 0.0,
    "optimizer": "adagrad",
    "learning_rate": 0.1,
    "batch_size": 4,
}


def params(**values):
    return build(GRU4Rec.Params, OFFICIAL | values, "test")


def dataset(histories, starts):
    """Histories with the time at which each begins."""
    items = np.concatenate([np.array(h, dtype=np.int32) for h in histories])
    times = [1000 * start + np.arange(len(h)) for h, start in zip(histories, starts, strict=True)]
    return Dataset(
        name="by hand",
        items=items,
        offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        times=np.concatenate(times),
        user_ids=np.arange(len(histories)),
        item_ids=np.arange(1, items.max() + 1),
    )


# The last two items are held out: trained on are 10 11 | 1 2 3 4 | 12 | 5 6 | 7 8 9 3 2, which
# start in the order 1 2 3 4 | 5 6 | 7 8 9 3 2 | 12 | 10 11; that of one item makes no step.
HISTORIES = [
    [10, 11, 1, 2],
    [1, 2, 3, 4, 5, 6],
    [12, 1, 2],
    [5, 6, 7, 8],
    [7, 8, 9, 3, 2, 1, 4],
]
SPLIT = leave_one_out(dataset(HISTORIES, starts=[9, 1, 4, 2, 3]))


def cycles(n_users=40, n_items=12, seed=0):
    """Users who walk 1, 2, .., n_items, 1, .."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(n_items, size=n_users), rng.integers(4, 10, size=n_users)
    walks = [(np.arange(n) + s) % n_items + 1 for s, n in zip(starts, lengths, strict=True)]
    return leave_one_out(dataset([w.tolist() for w in walks], starts=range(n_users)))


def one_epoch(split, n_slots, epoch=0):
    data = batches.sequences(split, CPU)
    windows = batches.sessions(split, n_slots)
    return list(batches.epoch(windows, data, batch_size=n_slots, seed=(0, epoch)))


def model_for(split, seed=0, **values):
    torch.manual_seed(seed)
    model = GRU4Rec(params(**values), split.dataset.n_items, split.dataset.n_users)
    model.prepare(batches.sequences(split, CPU))
    return model


# Session-parallel batches.


def test_two_slots_step_through_the_sessions_in_order_of_time():
    found = [
        (b.items[:, 0].tolist(), b.targets.tolist(), b.continues.tolist(), b.users.tolist())
        for b in one_epoch(SPLIT, n_slots=2)
    ]
    assert found == [
        ([1, 5], [2, 6], [-1, -1], [1, 3]),
        ([2, 7], [3, 8], [0, -1], [1, 4]),  # 5 6 is over: the next session takes its slot
        ([3, 8], [4, 9], [0, 1], [1, 4]),
        ([10, 9], [11, 3], [-1, 1], [0, 4]),
        ([3], [2], [1], [4]),  # no session is left for the first slot
    ]


def test_a_batch_of_sessions_is_one_event_wide_and_points_at_its_targets():
    for batch in one_epoch(SPLIT, n_slots=2):
        assert batch.items.shape == (len(batch.targets), 1)
        assert batch.lengths.eq(1).all()
        assert batch.where.tolist() == list(range(len(batch.targets)))
        assert SPLIT.dataset.items[batch.events.numpy()].tolist() == batch.targets.tolist()
        assert not batch.prefixes


@pytest.mark.parametrize("n_slots", [1, 3, 16, 500])
def test_every_target_is_trained_once_after_the_event_before_it(n_slots):
    split = cycles(n_users=60)
    events, before = [], torch.empty(0)
    found = one_epoch(split, n_slots)
    for batch in found:
        assert len(batch.events) <= n_slots
        carried = batch.continues >= 0
        begins = torch.from_numpy(split.dataset.offsets[:-1])[batch.users] == batch.events - 1
        assert carried.equal(~begins)
        assert before[batch.continues[carried]].equal(batch.events[carried] - 1)
        events += batch.events.tolist()
        before = batch.events
    assert sorted(events) == batches.target_events(split).tolist()
    assert len(found) == batches.sessions(split, n_slots).n_batches(n_slots)
    small = sum(len(batch.events) < n_slots for batch in found)
    assert small <= 6 or n_slots > 60  # the end alone, no longer than the longest session


def test_every_epoch_is_the_same():
    first, second = (one_epoch(SPLIT, 2, epoch) for epoch in (0, 1))
    assert [b.items.tolist() for b in first] == [b.items.tolist() for b in second]


def test_several_workers_are_refused():
    home = Home(world_size=2)
    with pytest.raises(UserError, match=r"train_mode sessions .* workers must be 1, not 2"):
        train("gru4rec", params(), SPLIT, home)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"train_mode": "rows"}, "train_mode must be sessions with variant official, not 'rows'"),
        (
            {"variant": "sequence"},
            "train_mode must be rows or prefixes with variant sequence, not 'sessions'",
        ),
        ({"loss_type": "bpr"}, "loss_type must be ce or bpr_max with variant official, not 'bpr'"),
    ],
)
def test_what_does_not_go_with_the_variant_is_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        params(**values)


# The state.


def step(model, items, continues):
    """One step by hand: (B,) items -> (B, H) states."""
    n = len(items)
    rows = torch.arange(n)
    batch = Batch(
        users=rows,
        items=torch.tensor(items)[:, None],
        lengths=torch.ones(n, dtype=torch.long),
        where=rows,
        targets=torch.ones(n, dtype=torch.long),
        events=rows,
        continues=torch.tensor(continues),
    )
    return model.states_at_targets(batch)


def history(*items):
    row = torch.tensor([items])
    return History(torch.tensor([0]), row, torch.tensor([len(items)]))


INPUTS = ["shared", "separate", "one_hot"]


@pytest.mark.parametrize("item_input", INPUTS)
@pytest.mark.parametrize("layers", [{}, {"num_layers": 2}, {"layers": "9/5/7"}], ids=str)
def test_stepping_through_a_session_gives_the_state_of_its_history(layers, item_input):
    model = model_for(SPLIT, item_input=item_input, **layers).eval()
    step(model, [1, 5], [-1, -1])
    step(model, [2, 7], [0, -1])
    states = step(model, [3, 8], [0, 1])
    torch.testing.assert_close(states[:1], model.encode_last(history(1, 2, 3)))
    torch.testing.assert_close(states[1:], model.encode_last(history(7, 8)))
    states = step(model, [9], [1])  # the first slot is gone
    torch.testing.assert_close(states, model.encode_last(history(7, 8, 9)))
    states = step(model, [9], [-1])  # a new session knows nothing of the one before
    torch.testing.assert_close(states, model.encode_last(history(9)))


@pytest.mark.parametrize("item_input", INPUTS)
def test_the_gradient_ends_with_the_step(item_input):
    model = model_for(SPLIT, item_input=item_input)
    step(model, [1, 2], [-1, -1])
    step(model, [3, 4], [0, 1]).sum().backward()
    table = model.item_embedding if item_input == "shared" else model.stepped.table
    assert table.weight.grad.any(1).nonzero().flatten().tolist() == [3, 4]


@pytest.mark.parametrize(
    "rates",
    [{"dropout_p_hidden": 0.5}, {"item_input": "one_hot", "dropout_prob": 0.5}],
    ids=str,
)
def test_the_dropped_state_is_what_is_carried(rates):
    model = model_for(SPLIT, hidden_size=64, **rates)
    torch.manual_seed(0)
    states = step(model, [1, 2, 3], [-1, -1, -1])
    assert 0.3 < (states == 0).float().mean() < 0.7
    assert model.stepped.carried.equal(states)


def test_scoring_leaves_the_carried_state_alone():
    model = model_for(SPLIT)
    step(model, [1, 2], [-1, -1])
    carried = model.stepped.carried
    model.score(history(5, 6, 7))
    assert model.stepped.carried is carried
    assert not [key for key in model.state_dict() if "carried" in key]


# The losses, against loops over the equations.


def columns(seed=0, n=5, k=7):
    torch.manual_seed(seed)
    return 2 * torch.randn(n, n + k, dtype=torch.float64)


def test_cross_entropy_with_logq():
    scores, counts, alpha, logq = columns(), np.arange(1, 13), 0.5, 0.7
    popularity = Popularity.of(torch.tensor([0, *counts]), alpha)
    items = torch.arange(1, 13)
    found = losses.in_batch_ce(scores, logq * popularity.log_q(items, n_targets=5))
    wanted = 0.0
    for n in range(5):
        z = [
            float(scores[n, c]) - logq * math.log(counts[c] if c < 5 else counts[c] ** alpha)
            for c in range(12)
        ]
        wanted -= math.log(math.exp(z[n]) / sum(map(math.exp, z)))
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    plain = torch.nn.functional.cross_entropy(scores, torch.arange(5), reduction="sum")
    assert losses.in_batch_ce(scores).item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("elu_param", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bpreg", [0.0, 1.3])
def test_bpr_max(elu_param, bpreg):
    scores = columns()
    wanted = 0.0
    for row, target in zip(scores.tolist(), range(5), strict=True):
        r = [elu_param * (math.exp(s) - 1) if elu_param and s < 0 else s for s in row]
        others = [c for c in range(12) if c != target]
        total = sum(math.exp(r[c]) for c in others)
        w = {c: math.exp(r[c]) / total for c in others}
        better = sum(w[c] / (1 + math.exp(r[c] - r[target])) for c in others)
        wanted += -math.log(better + 1e-24) + bpreg * sum(w[c] * r[c] ** 2 for c in others)
    found = losses.bpr_max(scores, bpreg, elu_param)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_lone_row_without_samples_teaches_nothing():
    scores = torch.tensor([[3.0]], requires_grad=True)
    total = losses.bpr_max(scores) + losses.in_batch_ce(scores)
    total.backward()
    assert total.item() == 0
    assert scores.grad.item() == 0


def test_samples_follow_the_counts():
    popularity = Popularity.of(torch.tensor([0, 0, 1, 4, 0, 9, 0]), alpha=0.5)
    rng = torch.Generator().manual_seed(0)
    found = popularity.columns(torch.tensor([6, 1]), 60_000, rng)
    assert found[:2].tolist() == [6, 1]
    shares = found[2:].bincount(minlength=7) / 60_000
    wanted = torch.tensor([0, 0, 1 / 6, 2 / 6, 0, 3 / 6, 0])
    torch.testing.assert_close(shares, wanted, atol=0.01, rtol=0)
    assert shares[[0, 1, 4, 6]].eq(0).all()
    even = Popularity.of(torch.tensor([0, 0, 1, 4, 0, 9, 0]), alpha=0.0)
    assert set(even.columns(torch.tensor([1]), 1000, rng)[1:].tolist()) == {2, 3, 5}


def test_popularity_counts_training_events_alone():
    counts = batches.sequences(SPLIT, CPU).counts()
    trained = [i for h in HISTORIES for i in h[:-2]]
    assert counts.tolist() == np.bincount(trained, minlength=13).tolist()


@pytest.mark.parametrize("loss_type", ["ce", "bpr_max"])
def test_the_loss_of_a_step_is_over_its_targets_and_samples_by_the_batch_size(loss_type):
    model = model_for(SPLIT, loss_type=loss_type, logq=1.0)
    with torch.no_grad():
        model.item_bias.weight[1:].normal_()
    last = one_epoch(SPLIT, 2)[-1]
    batch = replace(last, continues=torch.tensor([-1]))
    terms = model(batch, torch.Generator().manual_seed(3))
    items = model.popularity.columns(batch.targets, 8, torch.Generator().manual_seed(3))
    state = model.encode_last(history(3))
    scores = model.score(history(3))[:, items]
    assert len(items) == 9
    log_q = torch.tensor([1.0, *[0.5] * 8]) * model.popularity.log_count[items]
    wanted = losses.in_batch_ce(scores, log_q) if loss_type == "ce" else losses.bpr_max(scores)
    assert list(terms) == [loss_type]
    assert terms[loss_type].total.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert terms[loss_type].count == 4  # the batch size, although one row is left
    bias = model.item_bias.weight[items, 0]
    by_hand = state @ model.item_embedding.weight[items].T + bias
    torch.testing.assert_close(scores, by_hand)


# The whole.


def gates(before, h):
    """A GRU layer: two matrices and two biases for each of three gates."""
    return 3 * h * before + 3 * h * h + 6 * h


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"hidden_size": 48}, 500 * 48 + gates(48, 48)),
        ({"layers": "100/50"}, 500 * 50 + gates(50, 100) + gates(100, 50)),
        (
            {"layers": 48, "item_input": "separate", "embedding_size": 20},
            500 * 48 + 500 * 20 + gates(20, 48),
        ),
        (
            {"layers": "48/30", "item_input": "one_hot"},  # 3 H numbers an item, one bias a gate
            500 * 30 + 500 * 3 * 48 + 3 * 48 * 48 + 3 * 48 + gates(48, 30),
        ),
    ],
    ids=str,
)
def test_the_parameters_are_those_of_the_authors(values, count):
    n_items = 500
    model = GRU4Rec(params(**values), n_items, n_users=9)
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    padding = sum(table.embedding_dim for table in tables)  # our row 0, also of the biases
    assert sum(w.numel() for w in model.parameters()) - padding == count + n_items


def assert_drawn(matrix, bound):
    assert matrix.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("item_input", INPUTS)
def test_weights_start_as_the_authors_do(item_input):
    """Each gate's matrix is uniform in +-sqrt(6 / (rows + columns)), and biases are 0."""
    n_items, h, d = 500, 48, 24
    torch.manual_seed(0)
    given = {"hidden_size": h, "num_layers": 2, "item_input": item_input, "embedding_size": d}
    model = GRU4Rec(params(**given), n_items, n_users=9)
    sizes = {"shared": h, "separate": d, "one_hot": h}
    for name, weight in model.named_parameters():
        if weight.dim() == 1 or name == "item_bias.weight":
            assert not weight.any()
        elif name == "stepped.table.weight" and item_input == "one_hot":
            for gate in weight[1:].chunk(3, 1):
                assert_drawn(gate, math.sqrt(6 / (n_items + h)))
        elif name.endswith("embedding.weight") or name == "stepped.table.weight":
            assert_drawn(weight[1:], math.sqrt(6 / (n_items + weight.shape[1])))
            assert not weight[0].any()
        else:
            columns = sizes[item_input] if name == "stepped.layers.0.weight_ih_l0" else h
            for gate in weight.chunk(3):
                assert_drawn(gate, math.sqrt(6 / (h + columns)))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layers": "100/0"}, "test: layers must be up to 8 sizes from 1 to 8192, such as 100 or"),
        ({"layers": "100,50"}, "layers must be up to 8 sizes .*, not '100,50'"),
        ({"layers": "1/" * 8 + "1"}, "layers must be up to 8 sizes"),
        (
            {"variant": "sequence", "train_mode": "rows", "layers": "100/50"},
            "layers must be empty with variant sequence, not '100/50'",
        ),
        (
            {"variant": "sequence", "train_mode": "rows", "item_input": "one_hot"},
            "item_input must be shared with variant sequence, not 'one_hot'",
        ),
    ],
)
def test_layers_that_cannot_be_are_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        params(**values)


def test_layers_are_written_on_a_command_line_and_in_yaml():
    for text, sizes in (("layers=100", [100]), ("layers=100/50", [100, 50])):
        name, value = parse_assignment(text)
        built = params(**{name: check(GRU4Rec.Params, name, value, "--set")})
        assert GRU4Rec(built, 20, 9).stepped.sizes == sizes


@pytest.mark.parametrize("loss_type", ["ce", "bpr_max"])
@pytest.mark.parametrize("item_input", INPUTS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"layers": "24/16"}, marks=pytest.mark.slow),
        pytest.param({"momentum": 0.3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_cycle_is_learned(loss_type, item_input, more):
    split = cycles()
    trained = train(
        "gru4rec",
        params(loss_type=loss_type, item_input=item_input, epochs=15, dropout_p_hidden=0.1, **more),
        split,
        metric="hr@1",
    )
    assert trained.best["metrics"]["hr@1"] > 0.95


def test_half_precision_carries_states_too(monkeypatch):
    monkeypatch.setattr("seqtune.train.cpu_has_bf16", lambda: True)  # slow where it has not
    p = params(epochs=3, precision="bf16", dropout_p_hidden=0.1, num_layers=2)
    trained = train("gru4rec", p, cycles(), metric="hr@1")
    assert all(w.dtype == torch.float32 for w in trained.model.parameters())
    assert trained.history[-1]["losses"]["ce"] < trained.history[0]["losses"]["ce"] / 2


def test_a_resumed_run_equals_an_uninterrupted_one():
    split, states = cycles(), []
    p = params(
        epochs=4, dropout_prob=0.2, dropout_p_hidden=0.2, layers="9/7", eval_every=1, momentum=0.4
    )
    whole = train("gru4rec", p, split, Home(save=lambda s: states.append(copy.deepcopy(s))))
    rest = train("gru4rec", p, split, Home(load=lambda: states[1]))
    for key, weight in whole.model.state_dict().items():
        assert rest.model.state_dict()[key].equal(weight), key
    losses_of = [[row["losses"]["ce"] for row in run.history] for run in (whole, rest)]
    assert losses_of[0] == losses_of[1]
    assert len(losses_of[0]) == 4
