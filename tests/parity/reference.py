"""What the slow references of several models share, in float64 and from the equations alone.

Nothing of the product is imported here: what a test compares with it must not be made of it.
Weights are arrays by the names of a state_dict; vectors are (D,), or several of them (L, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = dict[str, Array]


def weights_of(model: Any) -> Weights:
    """The weights and buffers of a torch module."""
    return {key: value.double().numpy() for key, value in model.state_dict().items()}


def normalised(w: Weights, name: str, x: Array, eps: float = 1e-12) -> Array:
    """Layer normalisation: (x - mean) / sqrt(variance + eps), times a gain, plus a bias."""
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    scaled: Array = centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]
    return scaled


def linear(w: Weights, name: str, x: Array) -> Array:
    """W x + b, without b where the layer has none."""
    result: Array = x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", np.zeros(1))
    return result


def gelu(x: Array) -> Array:
    """x Phi(x), with the distribution function of the normal distribution."""
    return np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    result: Array = e / e.sum(axis, keepdims=True)
    return result


def attention(
    w: Weights,
    name: str,
    n_heads: int,
    query: Array,
    memory: list[Array],
    bias: Array | None = None,
) -> Array:
    """What a query takes from the vectors it may look at, before the output projection.

    In each head sum_j softmax_j( q . k_j / sqrt(size) + bias_j ) v_j; ``bias`` is (J, heads).
    """
    (wq, wk, wv), (bq, bk, bv) = (
        np.split(w[f"{name}.project_in.{part}"], 3) for part in ("weight", "bias")
    )
    size = len(query) // n_heads
    mixed = []
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        q = (wq @ query + bq)[part]
        scores = np.array([q @ (wk @ m + bk)[part] / math.sqrt(size) for m in memory])
        shares = softmax(scores if bias is None else scores + bias[:, head])
        mixed.append(sum(a * (wv @ m + bv)[part] for a, m in zip(shares, memory, strict=True)))
    return np.concatenate(mixed)


def post_norm_block(
    w: Weights, name: str, n_heads: int, xs: list[Array], causal: bool = True, eps: float = 1e-12
) -> list[Array]:
    """A Transformer block with GELU that normalises after each of its two sums."""
    out = []
    for t, x in enumerate(xs):
        mixed = attention(w, f"{name}.attention", n_heads, x, xs[: t + 1] if causal else xs)
        projected = linear(w, f"{name}.attention.project_out", mixed)
        y = normalised(w, f"{name}.norm_1", x + projected, eps)
        inner = gelu(linear(w, f"{name}.feed_forward.widen", y))
        f = linear(w, f"{name}.feed_forward.narrow", inner)
        out.append(normalised(w, f"{name}.norm_2", y + f, eps))
    return out


def post_norm_states(
    w: Weights,
    items: list[int],
    n_layers: int,
    n_heads: int,
    causal: bool = True,
    eps: float = 1e-12,
) -> list[Array]:
    """The state at each item of a Transformer of such blocks; positions count from the oldest."""
    table, positions = w["item_embedding.weight"], w["body.position_embedding.weight"]
    xs = [
        normalised(w, "body.layer_norm", table[item] + positions[t], eps)
        for t, item in enumerate(items)
    ]
    for layer in range(n_layers):
        xs = post_norm_block(w, f"body.blocks.{layer}", n_heads, xs, causal, eps)
    return xs


def official_block(
    w: Weights,
    name: str,
    n_heads: int,
    xs: list[Array],
    activation: Callable[[Array], Array] = relu,
) -> list[Array]:
    """A block of SASRec's official code.

    The query alone is normalised, not keys and values, and is what is added to; there is no
    projection after the heads.
    """
    out = []
    for t, x in enumerate(xs):
        query = normalised(w, f"{name}.norm_1", x)
        mixed = attention(w, f"{name}.attention", n_heads, query, xs[: t + 1])
        u = normalised(w, f"{name}.norm_2", query + mixed)
        inner = activation(linear(w, f"{name}.feed_forward.widen", u))
        out.append(u + linear(w, f"{name}.feed_forward.narrow", inner))
    return out
