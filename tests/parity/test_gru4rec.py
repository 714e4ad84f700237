"""GRU4Rec against loops written from its equations, and the authors' from those of their code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import Array, sigmoid, weights_of
from seqtune import batches
from seqtune.data import Split
from seqtune.model import Batch, Model, Sequences
from seqtune.models.gru4rec import GRU4Rec
from seqtune.negatives import Negatives, Popularity
from seqtune.nn import ByteDropout
from seqtune.params import Trained, build
from seqtune.train import train

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "hidden_size": 10,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
    "n_sample": 5,
}
SEQUENCE: list[dict[str, object]] = [
    {"num_layers": layers, "train_mode": mode} for layers in (1, 2) for mode in ("rows", "prefixes")
]
OFFICIAL: dict[str, object] = {"variant": "official", "train_mode": "sessions", "batch_size": 3}


def state_after(items: list[int], model: GRU4Rec) -> Array:
    """The state after a history, from that history alone.

    r = sg(W_r x + U_r h), z = sg(W_z x + U_z h), n = tanh(W_n x + r (U_n h)), h' = (1 - z) n + z h,
    with biases beside W and U in the official variant.
    """
    if model.params.variant == "official":
        exact = {key: value.detach().double() for key, value in model.state_dict().items()}
        h = [torch.zeros(size).double() for size in model.stepped.sizes]
        for item in items:
            h = official_step(exact, model.params.item_input, item, h, [ONE] * (len(h) + 1))
        found: Array = h[-1].numpy()
        return found
    w = weights_of(model)
    size = model.params.hidden_size
    inputs = [w["item_embedding.weight"][i] for i in items]
    for layer in range(model.params.n_layers):
        w_ih, w_hh = (w[f"gru.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh"))
        gates = [slice(gate * size, (gate + 1) * size) for gate in range(3)]
        state, states = np.zeros(size), []
        for x in inputs:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = (
                [matrix[g] @ vector for g in gates] for matrix, vector in ((w_ih, x), (w_hh, state))
            )
            z = sigmoid(x_z + h_z)
            state = (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * state
            states.append(state)
        inputs = states
    last: Array = w["dense.weight"] @ state + w["dense.bias"]
    return last


ONE = torch.ones(()).double()


def official_step(
    w: dict[str, Tensor], item_input: str, item: int, h: list[Tensor], masks: list[Tensor]
) -> list[Tensor]:
    """The new states of all layers, each times its mask; the first mask is that of the input.

    Into the gates of the first layer enters W x, with x a row of the output's table, of another, or
    one-hot: then W x is a row, with parts for candidate, reset and update, and z is that of the
    paper, h' = (1 - z) h + z n, not that of torch, h' = (1 - z) n + z h.
    """
    table = {"shared": "item_embedding.weight"}.get(item_input, "stepped.table.weight")
    x, after = w[table][item] * masks[0], []
    for layer, (state, mask) in enumerate(zip(h, masks[1:], strict=True)):
        name = f"stepped.layers.{layer}"
        if layer == 0 and item_input == "one_hot":
            x_n, x_r, x_z = (x + w[f"{name}.bias"]).chunk(3)
            h_n, h_r, h_z = (w[f"{name}.recurrent.weight"] @ state).chunk(3)
            z = 1 - 1 / (1 + torch.exp(-x_z - h_z))
        else:
            x_r, x_z, x_n = (w[f"{name}.weight_ih_l0"] @ x + w[f"{name}.bias_ih_l0"]).chunk(3)
            h_r, h_z, h_n = (w[f"{name}.weight_hh_l0"] @ state + w[f"{name}.bias_hh_l0"]).chunk(3)
            z = 1 / (1 + torch.exp(-x_z - h_z))
        r = 1 / (1 + torch.exp(-x_r - h_r))
        x = ((1 - z) * torch.tanh(x_n + r * h_n) + z * state) * mask
        after.append(x)
    return after


def scores_after(items: list[int], model: GRU4Rec) -> Array:
    """Scores of all items by id; that of the padding means nothing."""
    w = weights_of(model)
    scores: Array = w["item_embedding.weight"] @ state_after(items, model)
    return scores + w["item_bias.weight"][:, 0] if "item_bias.weight" in w else scores


def made(randomise: Callable[[Model], None], **values: object) -> GRU4Rec:
    model = GRU4Rec(build(GRU4Rec.Params, SMALL | values, "test"), N_ITEMS, N_USERS)
    randomise(model)
    return model


LAYERS: list[dict[str, object]] = [
    {},
    {"num_layers": 2},
    {"layers": "10/7"},
    {"layers": "7/10/4", "item_input": "separate"},
    {"layers": "7/10", "item_input": "one_hot"},
]


@pytest.mark.parametrize("values", [*SEQUENCE, *(OFFICIAL | own for own in LAYERS)], ids=str)
def test_scores_equal_the_equations(
    values: dict[str, object], randomise: Callable[[Model], None], data: Sequences
) -> None:
    model = made(randomise, **values).eval()
    history = data.before(data.targets, LENGTH)
    assert set(history.lengths.tolist()) == set(range(1, LENGTH + 1))
    expected = [
        scores_after(items[:length].tolist(), model)[1:]
        for items, length in zip(history.items, history.lengths, strict=True)
    ]
    found = model.score(history)[:, 1:].double()
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)), atol=1e-5, rtol=1e-5)


def history_at(batch: Batch, where: int) -> list[int]:
    """The items of a row up to a position with a target."""
    width = batch.items.shape[1]
    found: list[int] = batch.items[where // width, : where % width + 1].tolist()
    return found


@pytest.mark.parametrize("values", SEQUENCE, ids=str)
def test_cross_entropy_equals_the_equations(
    values: dict[str, object],
    randomise: Callable[[Model], None],
    data: Sequences,
    make_batch: Callable[[Trained], Batch],
) -> None:
    model = made(randomise, **values).train()
    batch, expected = make_batch(model.params), 0.0
    for where, target in zip(batch.where.tolist(), batch.targets.tolist(), strict=True):
        scores = scores_after(history_at(batch, where), model)
        expected += np.log(np.exp(scores[1:]).sum()) - scores[target]
    (term,) = model.loss(batch, torch.Generator()).values()
    assert (term.count, term.weight) == (len(batch.targets), 1)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)


def sampled_loss(kind: str, s: float, others: Array, k: int) -> float:
    """The loss of one target with score s; ``others`` are those of its k negatives that count."""
    better = np.log1p(np.exp(others - s))
    if kind == "sampled_softmax":
        return float(np.log(np.exp(s) + np.exp(others).sum()) - s)
    if kind == "bpr":
        return float(better.mean()) if len(others) else 0.0
    beta = 1.0
    if kind == "gbce":
        alpha, t = k / (N_ITEMS - 1), 0.75
        beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    total = -beta * np.log(sigmoid(np.float64(s))) - np.log(1 - sigmoid(others)).sum()
    return float(total / (k + 1 if kind == "gbce" else 1))


@pytest.mark.parametrize("kind", ["sampled_softmax", "bce", "bpr", "gbce"])
@pytest.mark.parametrize("sharing", ["position", "row", "batch"])
@pytest.mark.parametrize("mode", ["rows", "prefixes"])
def test_sampled_losses_equal_the_equations(
    kind: str,
    sharing: str,
    mode: str,
    randomise: Callable[[Model], None],
    make_batch: Callable[[Trained], Batch],
    drawn: list[Negatives],
) -> None:
    values = {"loss_type": kind, "neg_sharing": sharing, "train_mode": mode, "neg_samples": 4}
    model = made(randomise, **values).train()
    batch = make_batch(model.params)
    (term,) = model.loss(batch, torch.Generator().manual_seed(2)).values()
    (negatives,) = drawn
    masked, expected = 0, 0.0
    for n, (where, target) in enumerate(
        zip(batch.where.tolist(), batch.targets.tolist(), strict=True)
    ):
        row = where // batch.items.shape[1]
        own = {"position": n, "row": row, "batch": slice(None)}[negatives.sharing]
        items = negatives.items[own].tolist()
        assert len(items) == 4
        counted = [i for i in items if i != target]
        masked += len(items) - len(counted)
        scores = scores_after(history_at(batch, where), model)
        expected += sampled_loss(kind, scores[target], scores[counted], k=4)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert masked > 0 or negatives.sharing == "position"


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize(
    "kind", [{"loss_type": "ce", "logq": 0.8}, {"loss_type": "bpr_max", "bpreg": 1.3}], ids=str
)
def test_a_session_after_the_other_equals_the_equations(
    kind: dict[str, object],
    layers: dict[str, object],
    randomise: Callable[[Model], None],
    split: Split,
    data: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch of steps that carry states, against each target's whole history from its start."""
    drawn: list[list[int]] = []
    columns = Popularity.columns

    def remember(*given: Any) -> Any:
        found = columns(*given)
        drawn.append(found.tolist())
        return found

    monkeypatch.setattr(Popularity, "columns", remember)
    model = made(randomise, **OFFICIAL, **kind, **layers).train()
    model.prepare(data)
    count, items = data.counts().double().numpy(), data.items.tolist()
    windows, rng = batches.windows(split, model.params), torch.Generator().manual_seed(0)
    n_carried = 0
    for batch in batches.epoch(windows, data, batch_size=3, seed=(0, 0)):
        assert batch.continues is not None
        n_carried += int((batch.continues >= 0).sum())
        (term,) = model.loss(batch, rng).values()
        expected = 0.0
        for n, event in enumerate(batch.events.tolist()):
            s = scores_after(items[int(data.first[event]) : event], model)[drawn[-1]]
            assert drawn[-1][n] == items[event]
            others = np.arange(len(s)) != n
            if kind["loss_type"] == "ce":
                power = np.where(np.arange(len(s)) < len(batch.events), 1.0, 0.5)  # sample_alpha
                s = s - 0.8 * power * np.log(count[drawn[-1]])
                expected += np.log(np.exp(s).sum()) - s[n]
            else:
                r = np.where(s > 0, s, 0.5 * (np.exp(s) - 1))  # elu_param
                w = np.exp(r[others]) / np.exp(r[others]).sum()
                expected -= np.log((w * sigmoid(r[n] - r[others])).sum())
                expected += 1.3 * (w * r[others] ** 2).sum()
        assert len(drawn[-1]) == len(batch.events) + 5
        assert term.total.item() == pytest.approx(expected, rel=1e-5)
        assert term.count == 3
    assert n_carried > 10


# The settings that the author has published, and two with what none of them has.
SLOW = ("coveo", "diginetica", "yoochoose xe", "rees46 xe", "retailrocket")  # those of many steps

AUTHOR: dict[str, object] = OFFICIAL | {"optimizer": "adagrad", "n_sample": 2048, "epochs": 10}
XE, BPR_MAX = AUTHOR | {"loss_type": "ce", "logq": 1.0}, AUTHOR | {"loss_type": "bpr_max"}
# batch size, dropout of inputs and of states, learning rate, momentum, sample_alpha
COLUMNS = ["batch_size", "dropout_prob", "dropout_p_hidden"]
COLUMNS += ["learning_rate", "momentum", "sample_alpha"]


def setting(start: dict[str, object], *numbers: float, **more: object) -> dict[str, object]:
    return start | dict(zip(COLUMNS, numbers, strict=True)) | more


PUBLISHED = {
    "rsc15 xe": setting(XE, 32, 0, 0.4, 0.2, 0.2, 0.5, layers=100),
    "yoochoose xe": setting(XE, 48, 0, 0.2, 0.07, 0, 0.2, layers=480),
    "rees46 xe": setting(XE, 240, 0.45, 0, 0.065, 0, 0.5, layers=512),
    "coveo": setting(BPR_MAX, 144, 0.35, 0, 0.05, 0.4, 0.2, layers=512, bpreg=1.85, elu_param=1),
    "retailrocket": setting(BPR_MAX, 80, 0.5, 0.05, 0.05, 0.4, 0.4, layers=224, bpreg=1.95),
    "diginetica": setting(
        BPR_MAX, 128, 0.5, 0.3, 0.05, 0.15, 0.3, layers=512, bpreg=0.9, elu_param=1
    ),
    "rsc15 bpr-max": setting(BPR_MAX, 32, 0, 0, 0.2, 0.1, 0, layers=100, bpreg=0.5),
    "rsc15 bpr-max, one-hot": setting(
        BPR_MAX, 32, 0, 0, 0.2, 0.3, 0, layers=100, item_input="one_hot"
    ),
    "rsc15 xe, one-hot": setting(
        XE, 32, 0, 0.3, 0.1, 0.7, 0, layers=100, item_input="one_hot", logq=0
    ),
    "two unequal layers": setting(XE, 4, 0.25, 0.5, 0.1, 0.3, 0.5, layers="20/12"),
    "one-hot, two layers": setting(
        XE, 4, 0.25, 0.5, 0.1, 0.3, 0.5, layers="12/20", item_input="one_hot"
    ),
    "separate": setting(
        XE, 4, 0.25, 0.5, 0.1, 0.3, 0.5, layers="20/12", item_input="separate", embedding_size=9
    ),
}


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has the whole training computed in float64, its losses too: nothing is lost to rounding."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(usual)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], list[tuple[float, Tensor]]]:
    """The columns of each step, and the rate and mask of each dropout, as training draws them."""
    steps: list[list[int]] = []
    masks: list[tuple[float, Tensor]] = []
    columns, generator = Popularity.columns, torch.Generator().manual_seed(3)

    def sample(*given: Any) -> Tensor:
        found: Tensor = columns(*given)
        steps.append(found.tolist())
        return found

    def drop(self: ByteDropout, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = (torch.rand(x.shape, generator=generator) >= self.p) / (1 - self.p)
        masks.append((self.p, mask[:, 0].double()))
        return x * mask

    monkeypatch.setattr(Popularity, "columns", sample)
    monkeypatch.setattr(ByteDropout, "forward", drop)
    return steps, masks


def step_loss(
    s: Tensor, own: int, columns: list[int], n_targets: int, p: GRU4Rec.Params, count: Tensor
) -> Tensor:
    """The loss of the target in column ``own`` from the scores of all columns."""
    others = torch.arange(len(s)) != own
    if p.loss_type == "ce":
        power = torch.where(torch.arange(len(s)) < n_targets, 1.0, p.sample_alpha)
        s = s - p.logq * power * torch.log(count[columns])
        return torch.log(torch.exp(s).sum()) - s[own]
    r = torch.where(s > 0, s, p.elu_param * (torch.exp(s) - 1))
    w = torch.exp(r[others]) / torch.exp(r[others]).sum()
    better = (w / (1 + torch.exp(r[others] - r[own]))).sum()
    return p.bpreg * (w * r[others] ** 2).sum() - torch.log(better + 1e-24)


def adagrad(
    w: Tensor, g: Tensor, kept: tuple[Tensor, Tensor], p: GRU4Rec.Params, rows: set[int] | None
) -> None:
    """s += g^2, v = momentum v - lr g / sqrt(s + 1e-6), w += v, of the rows in use alone."""
    s, v = kept
    for row in range(len(w)) if rows is None else sorted(rows):
        s[row] += g[row] ** 2
        v[row] = p.momentum * v[row] - p.learning_rate * g[row] / (s[row] + 1e-6).sqrt()
        w[row] += v[row]


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in PUBLISHED]
)
def test_an_epoch_of_a_published_setting_equals_the_equations(
    name: str,
    split: Split,
    data: Sequences,
    noted: tuple[list[list[int]], list[tuple[float, Tensor]]],
) -> None:
    """All steps of an epoch in the training loop, against gradients and updates in float64."""
    p = build(GRU4Rec.Params, PUBLISHED[name], "test")
    assert p.epochs == 10
    p = p.model_copy(update={"epochs": 1})
    trained = train("gru4rec", p, split).model
    assert isinstance(trained, GRU4Rec)
    steps, masks = noted

    torch.manual_seed(p.seed)
    model = GRU4Rec(p, N_ITEMS, N_USERS)
    w = {key: x.detach().double().requires_grad_() for key, x in model.named_parameters()}
    kept = {key: (torch.zeros_like(x), torch.zeros_like(x)) for key, x in w.items()}
    start = {key: x.detach().clone() for key, x in w.items()}
    count, zeros = data.counts().double(), [torch.zeros(n).double() for n in model.stepped.sizes]
    one_hot = p.item_input == "one_hot"
    rates = [0 if one_hot else p.dropout_prob, *[p.dropout_p_hidden] * len(zeros)]
    rates[1] = p.dropout_prob if one_hot else rates[1]
    before: list[list[Tensor]] = []
    windows, drawn = batches.windows(split, p), iter(masks)
    epoch = list(batches.epoch(windows, data, batch_size=p.batch_size, seed=(0, 0)))
    for columns, batch in zip(steps, epoch, strict=True):
        assert batch.continues is not None
        of_step = [next(drawn) for _ in rates]
        assert [rate for rate, _ in of_step] == rates
        items, after, loss = batch.items[:, 0].tolist(), [], torch.zeros(()).double()
        for row, (item, place) in enumerate(zip(items, batch.continues.tolist(), strict=True)):
            h = zeros if place < 0 else before[place]
            h = official_step(w, p.item_input, item, h, [mask[row] for _, mask in of_step])
            s = w["item_embedding.weight"][columns] @ h[-1] + w["item_bias.weight"][columns, 0]
            loss = loss + step_loss(s, row, columns, len(items), p, count) / p.batch_size
            after.append([state.detach() for state in h])
        before = after
        gradients = torch.autograd.grad(loss, list(w.values()))
        own = set(items) if p.item_input == "shared" else set()
        rows = {"item_embedding.weight": own | set(columns), "item_bias.weight": set(columns)}
        rows |= {"stepped.table.weight": set(items)}
        with torch.no_grad():
            for (key, weight), g in zip(w.items(), gradients, strict=True):
                adagrad(weight, g, kept[key], p, rows.get(key))
    assert len(steps) > 5
    assert next(drawn, None) is None
    for key, weight in trained.named_parameters():
        assert (w[key] - start[key]).abs().max() > 0.1 * p.learning_rate, key
        torch.testing.assert_close(weight.detach().double(), w[key].detach(), atol=1e-9, rtol=0)
