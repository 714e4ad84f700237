"""The optimizers by hand, the step sizes, and gradients of the rows in use alone."""

from __future__ import annotations

import copy
import math
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqtune import batches, optimizer, train
from seqtune.data import leave_one_out
from seqtune.data.generate import make_preset
from seqtune.errors import UserError
from seqtune.model import model_class
from seqtune.optimizer import Adagrad, make_optimizer, set_learning_rate
from seqtune.params import Trained, build
from seqtune.state import Home

SPLIT = leave_one_out(make_preset("tiny"))
TRANSFORMER = {"n_layers": 1, "n_heads": 1, "inner_size": 16}
SMALL = {"embedding_size": 8, "max_seq_len": 20, "batch_size": 32, "epochs": 6} | {
    "learning_rate": 0.01,
    "eval_every": 1,
}


def params(model: str = "sasrec", **values: Any) -> Trained:
    own: dict[str, Any] = {"hidden_size": 8} if model == "gru4rec" else TRANSFORMER
    return model_class(model).Params.model_validate(SMALL | own | values)


# Step sizes


@pytest.mark.parametrize(
    ("shape", "warmup", "expected"),
    [  # of 12 steps: at 0, 1, 3, 4, 6, 8, 11, 12
        ("constant", 0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("constant", 4, [1 / 4, 2 / 4, 1, 1, 1, 1, 1, 1]),
        ("linear", 4, [1 / 4, 2 / 4, 1, 1, 6 / 8, 4 / 8, 1 / 8, 0]),
        ("linear", 0, [1, 11 / 12, 9 / 12, 8 / 12, 1 / 2, 4 / 12, 1 / 12, 0]),
        # (1 + cos(pi * done)) / 2 with done = 0, 2/8, 4/8, 7/8, 1 of what follows the warm-up
        ("cosine", 4, [1 / 4, 2 / 4, 1, 1, 0.8535534, 0.5, 0.0380602, 0]),
    ],
)
def test_the_step_size_follows_its_shape(shape: str, warmup: int, expected: list[float]) -> None:
    p = params(lr_scheduler=shape, warmup_steps=warmup, learning_rate=0.2)
    steps = torch.optim.SGD([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))], lr=9)
    found = []
    for step in (0, 1, 3, 4, 6, 8, 11, 12):
        set_learning_rate(steps, p, step, total_steps=12)
        found.append(steps.param_groups[0]["lr"] / 0.2)
    assert found == pytest.approx(expected, abs=1e-6)


# Adagrad, against loops over its equations


def by_hand(
    start: list[float], gradients: list[list[float]], lr: float, momentum: float
) -> list[float]:
    """Each number on its own: s += g^2, v = momentum v - lr g / sqrt(s + 1e-6), w += v."""
    found = []
    for place, w in enumerate(start):
        s = v = 0.0
        for gradient in gradients:
            g = gradient[place]
            s += g * g
            v = momentum * v - lr * g / math.sqrt(s + 1e-6)
            w += v
        found.append(w)
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_adagrad_by_hand(momentum: float) -> None:
    start = [1.0, -2.0, 0.5]
    gradients = [[0.3, -1e-3, 0.0], [-0.2, 4e-4, 2.0], [0.0, 0.0, -1.0]]
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    steps = Adagrad([{"params": [weight]}], lr=0.05, momentum=momentum)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        steps.step()
    assert weight.tolist() == pytest.approx(by_hand(start, gradients, 0.05, momentum), rel=1e-12)


def test_eps_is_within_the_root() -> None:
    """A gradient of eps: lr eps / sqrt(eps^2 + eps) = lr / 1000, half of what torch's would do."""
    ours, theirs = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    ours.grad = theirs.grad = torch.full((1,), 1e-6, dtype=torch.float64)
    Adagrad([{"params": [ours]}], lr=0.2).step()
    torch.optim.Adagrad([theirs], lr=0.2, eps=1e-6).step()
    assert ours.item() == pytest.approx(-0.2e-3, rel=1e-5)
    assert theirs.item() == pytest.approx(-0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rows_of_a_table_that_are_not_in_use_stay_with_all_their_state(momentum: float) -> None:
    """A row is stepped as if the steps that left it out had not been; a matrix goes on moving."""
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    matrix = nn.Parameter(table.detach().clone())
    before = table.detach().clone()
    steps = Adagrad([{"params": [matrix]}, {"params": [table], "tables": True}], 0.1, momentum)
    gradients = torch.randn(5, 4, 3, dtype=torch.float64)
    used = [[0, 1], [1, 2], [1], [0, 2], [1]]  # row 3 never
    for gradient, rows in zip(gradients, used, strict=True):
        off = [row for row in range(4) if row not in rows]
        gradient[off] = 0
        gradient[rows[0], 0] = 0  # a row in use may have a zero in its gradient
        table.grad, matrix.grad = gradient.clone(), gradient.clone()
        steps.step()
    for row in range(4):
        own = [g[row].tolist() for g, rows in zip(gradients, used, strict=True) if row in rows]
        assert table[row].tolist() == pytest.approx(
            by_hand(before[row].tolist(), own, 0.1, momentum), rel=1e-12
        )
    assert table[3].equal(before[3])
    assert matrix[[0, 2]].equal(table[[0, 2]]) == (momentum == 0)


def test_a_table_is_a_table_and_momentum_is_the_hyperparameter() -> None:
    p = params("gru4rec", optimizer="adagrad", momentum=0.4, learning_rate=0.07)
    model = model_class("gru4rec")(p, 60, 200)
    made = make_optimizer(model, p)
    assert isinstance(made, Adagrad)
    ids = {id(w) for group in made.param_groups if group["tables"] for w in group["params"]}
    assert ids == {id(model.get_parameter("item_embedding.weight"))}
    assert {(g["momentum"], g["lr"], g["eps"]) for g in made.param_groups} == {(0.4, 0.07, 1e-6)}
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(model.parameters()))


def test_momentum_belongs_to_adagrad() -> None:
    sentence = r"test: momentum must be 0 with optimizer adamw, .*, not 0.4; optimizer adagrad"
    with pytest.raises(UserError, match=sentence):
        build(model_class("sasrec").Params, {"momentum": 0.4}, "test")


def test_a_state_that_was_kept_goes_on() -> None:
    def stepped(weight: nn.Parameter, steps: Adagrad, seed: int) -> None:
        weight.grad = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed))
        steps.step()

    straight, other = (nn.Parameter(torch.ones(5, 2)) for _ in range(2))
    first, second = (Adagrad([{"params": [w]}], 0.1, 0.5) for w in (straight, other))
    stepped(straight, first, seed=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.data = straight.detach().clone()
    for weight, steps in ((straight, first), (other, second)):
        stepped(weight, steps, seed=2)
    assert straight.equal(other)


# Weight decay


@pytest.mark.parametrize("kind", ["adamw", "adagrad"])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_weight_decay_spares_tables_biases_and_gains(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = model_class(name)(params(name), 60, 200)
    optimizer = make_optimizer(
        model, params(name, weight_decay=0.5, learning_rate=0.1, optimizer=kind)
    )
    assert optimizer is not None
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    moved = {k for k, w in model.named_parameters() if not torch.equal(w, before[k])}
    spared = before.keys() - moved
    kept = ("bias", "embedding.weight", "norm.weight", "norm1.weight", "norm2.weight")
    assert moved
    for one in moved:  # decoupled: w * (1 - learning_rate * weight_decay)
        assert torch.allclose(model.get_parameter(one), before[one] * 0.95)
        assert before[one].dim() == 2
        assert "embedding" not in one
    assert "item_embedding.weight" in spared
    assert all(before[one].dim() == 1 or one.endswith(kept) for one in spared)


# Gradients of the rows in use


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("sasrec", TRANSFORMER | {"loss_type": "sampled_softmax", "neg_samples": 8}),
        ("sasrec", TRANSFORMER | {"loss_type": "bce", "tie_weights": False, "grad_clip_norm": 0.1}),
        ("sasrec", TRANSFORMER | {"reg_weight": 0.01, "optimizer": "adagrad"}),
        ("esasrec", TRANSFORMER | {"neg_samples": 8, "logq": True}),
        ("bert4rec", TRANSFORMER),
        ("duorec", TRANSFORMER | {"train_mode": "rows"}),
        ("core", {}),
        ("caser", {}),
        ("fossil", {}),
        ("gru4rec", {"loss_type": "bpr", "hidden_size": 8}),
    ],
)
def test_row_sparse_gradients_are_those_of_all_rows(
    monkeypatch: pytest.MonkeyPatch, model: str, values: dict[str, Any]
) -> None:
    """Only large tables take them; here all do, for two steps, and the optimizer cannot tell."""
    kind = model_class(model)
    p = kind.Params.model_validate(SMALL | values)
    data = batches.sequences(SPLIT, torch.device("cpu"), times=kind.uses_times)
    windows = batches.windows(SPLIT, p)

    def gradients(large: int) -> list[Tensor]:
        monkeypatch.setattr(optimizer, "LARGE_TABLE", large)
        torch.manual_seed(0)
        net = kind(p, data.n_items, data.n_users)
        net.prepare(data)
        tables = optimizer.sparse_tables(net, torch.device("cpu"))
        assert bool(tables) == (large == 1)
        rng, found = torch.Generator().manual_seed(0), []
        for batch in islice(batches.epoch(windows, data, batch_size=32, seed=(0, 0)), 2):
            loss = train.combine(net(batch, rng), Home(), {})
            optimizer.clear_gradients(net, tables)
            loss.backward()
            found += [w.grad.clone() for w in net.parameters() if w.grad is not None]
        return found

    rows, dense = gradients(1), gradients(10**9)
    assert len(rows) == len(dense)
    for ours, wanted in zip(rows, dense, strict=True):
        assert not ours.is_sparse
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
