"""GRU4Rec against loops written from its equations, and the authors' from those of their code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqtune import batches, losses
from seqtune.data import Split
from seqtune.model import Batch, Model, Sequences
from seqtune.models.gru4rec import GRU4Rec
from seqtune.params import Trained, build

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
Array = NDArray[np.float64]


def sg(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def state_after(items: list[int], model: GRU4Rec) -> Array:
    """The state after a history, from that history alone.

    r = sg(W_r x + U_r h), z = sg(W_z x + U_z h), n = tanh(W_n x + r (U_n h)), h' = (1 - z) n + z h,
    with biases beside W and U in the official variant.
    """
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    official, size = model.params.variant == "official", model.params.hidden_size
    inputs = [w["item_embedding.weight"][i] for i in items]
    for layer in range(model.params.n_layers):
        names = [f"gru.{kind}_l{layer}" for kind in ("weight_ih", "weight_hh")]
        if official:
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            names = [f"gru.layers.{layer}.{kind}_l0" for kind in kinds]
        w_ih, w_hh, *b = (w[name] for name in names)
        b_ih, b_hh = b or (np.zeros(3 * size), np.zeros(3 * size))
        gates = [slice(gate * size, (gate + 1) * size) for gate in range(3)]
        h, states = np.zeros(size), []
        for x in inputs:
            (x_r, x_z, x_n), (h_r, h_z, h_n) = (
                [matrix[g] @ vector + bias[g] for g in gates]
                for matrix, vector, bias in ((w_ih, x, b_ih), (w_hh, h, b_hh))
            )
            z = sg(x_z + h_z)
            h = (1 - z) * np.tanh(x_n + sg(x_r + h_r) * h_n) + z * h
            states.append(h)
        inputs = states
    return h if official else w["dense.weight"] @ h + w["dense.bias"]


def scores_after(items: list[int], model: GRU4Rec) -> Array:
    """Scores of all items by id; that of the padding means nothing."""
    scores: Array = model.item_embedding.weight.detach().double().numpy() @ state_after(
        items, model
    )
    bias = getattr(model, "item_bias", None)
    return scores if bias is None else scores + bias.detach().double().numpy()


def made(randomise: Callable[[Model], None], **values: object) -> GRU4Rec:
    model = GRU4Rec(build(GRU4Rec.Params, SMALL | values, "test"), N_ITEMS, N_USERS)
    randomise(model)
    return model


@pytest.mark.parametrize("values", [*SEQUENCE, OFFICIAL, OFFICIAL | {"num_layers": 2}], ids=str)
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
    total = -beta * np.log(sg(np.float64(s))) - np.log(1 - sg(others)).sum()
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
    drawn: list[losses.Negatives],
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


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(
    "kind", [{"loss_type": "ce", "logq": 0.8}, {"loss_type": "bpr_max", "bpreg": 1.3}], ids=str
)
def test_a_session_after_the_other_equals_the_equations(
    kind: dict[str, object],
    num_layers: int,
    randomise: Callable[[Model], None],
    split: Split,
    data: Sequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch of steps that carry states, against each target's whole history from its start."""
    drawn: list[list[int]] = []
    columns = losses.Popularity.columns

    def remember(*given: Any) -> Any:
        found = columns(*given)
        drawn.append(found.tolist())
        return found

    monkeypatch.setattr(losses.Popularity, "columns", remember)
    model = made(randomise, **OFFICIAL, **kind, num_layers=num_layers).train()
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
                expected -= np.log((w * sg(r[n] - r[others])).sum())
                expected += 1.3 * (w * r[others] ** 2).sum()
        assert len(drawn[-1]) == len(batch.events) + 5
        assert term.total.item() == pytest.approx(expected, rel=1e-5)
        assert term.count == 3
    assert n_carried > 10
