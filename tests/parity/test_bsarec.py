"""BSARec against loops written from its equations, with a Fourier transform for the filter."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from reference import Array, gelu, linear, normalised, softmax, weights_of
from seqtune.model import Batch, History, Model, Sequences
from seqtune.models.bsarec import BSARec
from seqtune.params import Trained, build

N_ITEMS, N_USERS, LENGTH = 17, 9, 6
SMALL: dict[str, object] = {
    "embedding_size": 8,
    "inner_size": 12,
    "max_seq_len": LENGTH,
    "dropout_prob": 0.0,
}
VARIANTS: list[dict[str, object]] = [
    {},
    {"official_pads": True},
    {"n_heads": 4, "c": 2, "alpha": 0.3},
    {"n_heads": 2, "c": 1, "official_pads": True, "n_layers": 3},
    {"n_layers": 1, "c": 6},
    {"max_seq_len": 9, "c": 3},
    {"alpha": 1.0, "c": 0},
    {"alpha": 0.0, "official_pads": True},
]


def low_pass(x: Array, c: int) -> Array:
    """Keeps the c // 2 + 1 lowest frequencies of each column."""
    spectrum = np.fft.rfft(x, axis=0, norm="ortho")
    spectrum[c // 2 + 1 :] = 0
    return np.fft.irfft(spectrum, n=len(x), axis=0, norm="ortho")


def state(items: list[int], model: BSARec) -> Array:
    """The state of the last slot, from the whole window in every block."""
    w, p = weights_of(model), model.params
    length, n_heads, official = p.max_seq_len, p.n_heads, p.official_pads
    window = [0] * (length - len(items)) + items

    table, positions = w["item_embedding.weight"], w["position_embedding.weight"]
    x = np.array(
        [normalised(w, "layer_norm", table[i] + positions[t]) for t, i in enumerate(window)]
    )
    for layer in range(p.n_layers):
        name = f"blocks.{layer}"
        low = low_pass(x, p.c)
        filtered = low + w[f"{name}.scale"][0, 0] ** 2 * (x - low)
        joint = linear(w, f"{name}.attention.project_in", x)
        size = p.embedding_size // n_heads
        out = np.empty_like(x)
        for t in range(length):
            mixed = []
            for head in range(n_heads):
                at = head * size
                q, k, v = (joint[:, start + at : start + at + size] for start in (0, 8, 16))
                scores = np.array([q[t] @ k[s] / math.sqrt(size) for s in range(length)])
                hidden = np.array([s > t or window[s] == 0 for s in range(length)])
                mixed.append(softmax(scores - 1e4 * hidden) @ v)
            attended = linear(w, f"{name}.attention.project_out", np.concatenate(mixed))
            if window[t] == 0 and not official:
                attended = 0 * attended
            y = p.alpha * normalised(w, f"{name}.norm_filter", x[t] + filtered[t])
            y = y + (1 - p.alpha) * normalised(w, f"{name}.norm_attention", x[t] + attended)
            wide = gelu(linear(w, f"{name}.feed_forward.widen", y))
            narrow = linear(w, f"{name}.feed_forward.narrow", wide)
            out[t] = normalised(w, f"{name}.norm", y + narrow)
        x = out
    last: Array = x[-1]
    return last


def expected_scores(history: History, model: BSARec) -> Array:
    table = model.item_embedding.weight.detach().double().numpy()
    rows = zip(history.items.tolist(), history.lengths.tolist(), strict=True)
    return np.stack([table[1:] @ state(row[:length], model) for row, length in rows])


def made(values: dict[str, object], randomise: Callable[[Model], None]) -> BSARec:
    model = BSARec(build(BSARec.Params, SMALL | values, "test"), N_ITEMS, N_USERS)
    randomise(model)
    return model


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_scores(
    values: dict[str, object], data: Sequences, randomise: Callable[[Model], None]
) -> None:
    model = made(values, randomise).eval()
    history = data.before(data.targets, model.params.max_seq_len)
    assert {1, LENGTH} <= set(history.lengths.tolist())
    scores = model.score(history)[:, 1:].detach()
    expected = torch.tensor(expected_scores(history, model)).float()
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_scores_of_an_empty_history(randomise: Callable[[Model], None]) -> None:
    nothing = History(torch.tensor([0]), torch.tensor([[0, 0]]), torch.tensor([0]))
    for official in (False, True):
        model = made({"official_pads": official}, randomise).eval()
        expected = torch.tensor(expected_scores(nothing, model)).float()
        scores = model.score(nothing)[:, 1:].detach()
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", VARIANTS[:3], ids=str)
def test_loss(
    values: dict[str, object],
    make_batch: Callable[[Trained], Batch],
    randomise: Callable[[Model], None],
) -> None:
    model = made(values, randomise).train()
    batch = make_batch(model.params)
    z = expected_scores(batch, model)
    chosen = z[np.arange(len(z)), batch.targets.numpy() - 1]
    expected = float((np.log(np.exp(z).sum(1)) - chosen).sum())
    term = model(batch, torch.Generator())["ce"]
    assert term.count == len(z)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
