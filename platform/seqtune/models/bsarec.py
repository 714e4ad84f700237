"""Self-attention mixed with a low-pass filter over the history, which tells slow from fast changes.

Shin et al., An Attentive Inductive Bias for Sequential Recommendation beyond the Self-Attention,
AAAI 2024, arXiv 2312.10325. A block learns for each dimension how much of the fast changes to keep:

    f   = low + s^2 (x - low),  low = P x
    y   = alpha LN(x + f) + (1 - alpha) LN(x + causal attention(x))
    out = LN(y + feed_forward(y))

with dropout before each sum. P keeps the c // 2 + 1 lowest frequencies: a Fourier transform, a cut
and the inverse, which is a fixed projection. A state sees the items that follow, so training
samples are prefixes. The window is ``max_seq_len`` wide, the newest item in its last slot; empty
slots before the first item hold position vectors, and are filtered too.

Here empty slots attend to nothing. In the authors' code they attend to everything, since all their
keys get the same penalty: that is ``official_pads=true attn_dropout_prob=0.5``. Left out: training
on empty histories, and the random item vector that their empty slots have.

Cost: per target, since each is a sample, O(L^2 D + L D^2) in every block, the last one far cheaper
(one slot), and O(I D) for ce. L is max_seq_len: short histories save attention alone.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seqtune.model import Encoder, History
from seqtune.nn import (
    EPS,
    Attention,
    ByteDropout,
    FeedForward,
    ItemEmbedding,
    initialise_normal,
    left_padded,
)
from seqtune.params import BatchSize, Blocks, Heads, OnPrefixes, Sources


class BSARec(Encoder):
    """Blocks of attention and filter over a window of fixed width; the state of its last slot."""

    class Params(OnPrefixes, Blocks):
        """The hyperparameters of BSARec."""

        n_heads: Heads = 1
        batch_size: BatchSize = 256
        alpha: float = Field(
            0.7, ge=0, le=1, description="A block takes the share alpha from its filter."
        )
        c: int = Field(
            5, ge=0, le=10_000, description="The filter keeps the c // 2 + 1 lowest frequencies."
        )
        official_pads: bool = Field(
            False, description="Empty slots attend to everything, as in the official code."
        )

        sources: ClassVar[Sources] = {
            "n_heads batch_size alpha c": "official",
            "official_pads": "ours: an empty slot that attends to all carries the future along",
        }

        @model_validator(mode="after")
        def _window_has_the_frequencies(self) -> Self:
            if self.c > (most := self.max_seq_len):
                raise ValueError(f"c must be at most max_seq_len {most}, not {self.c}; lower it")
            return self

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size, length = params.embedding_size, params.max_seq_len
        self.item_embedding = ItemEmbedding(n_items, size)
        self.position_embedding = nn.Embedding(length, size)
        self.layer_norm = nn.LayerNorm(size, EPS)
        self.dropout = ByteDropout(params.dropout_prob)
        self.blocks = nn.ModuleList(_Block(params) for _ in range(params.n_layers))
        self.waves = nn.Buffer(waves(length, params.c // 2).float(), persistent=False)  # (L, R)
        initialise_normal(self)  # not the scales of the filters, N(0, 1)

    def encode_last(self, history: History) -> Tensor:
        lengths, length = history.lengths, self.params.max_seq_len
        x = self.item_embedding(left_padded(history.items, lengths, length))
        x = self.dropout(self.layer_norm(x + self.position_embedding.weight))  # (B, L, D)
        # Attention needs no slot before the longest history of the batch: W slots are left.
        official = self.params.official_pads
        width = length if official else min(length, history.items.shape[1])
        slots = torch.arange(width, device=x.device)
        real = slots >= width - lengths[:, None]  # (B, W)
        # An empty slot sees itself alone, so that no softmax is empty, and is set to zero after.
        pads = ~real[:, :, None] if official else slots == slots[:, None]
        see = (real[:, None] & (slots <= slots[:, None])) | pads  # (B, W, W): query, key
        keep = (real | official)[:, :, None]
        for block in self.blocks[:-1]:
            x = block(x, self.waves, self.waves, see[:, None], keep)
        last = self.blocks[-1](x, self.waves, self.waves[-1:], see[:, None, -1:], keep[:, -1:])
        state: Tensor = last.squeeze(1)
        return state


class _Block(nn.Module):
    def __init__(self, p: BSARec.Params) -> None:
        super().__init__()
        size = p.embedding_size
        self.alpha, self.scale = p.alpha, nn.Parameter(torch.randn(1, 1, size))
        self.attention = Attention(size, p.n_heads, p.attn_dropout_prob)
        self.feed_forward = FeedForward(size, p.inner_size, "gelu")
        self.norm_filter, self.norm_attention, self.norm = (nn.LayerNorm(size, EPS) for _ in "fay")
        self.dropout = ByteDropout(p.dropout_prob)

    def forward(self, x: Tensor, waves: Tensor, rows: Tensor, see: Tensor, keep: Tensor) -> Tensor:
        """(B, L, D) -> (B, Q, D), the last Q slots, which are ``rows`` (Q, R) of the waves."""
        wanted, memory, fast = x[:, -len(rows) :], x[:, -see.shape[-1] :], self.scale**2
        f = fast * wanted + rows @ ((1 - fast) * (waves.T @ x))  # P = waves waves^T
        a = self.attention(memory, None if len(rows) > 1 else wanted, mask=see)
        a = self.dropout(a) * keep
        a = nn.functional.pad(a, (0, 0, len(rows) - a.shape[1], 0))  # (B, Q, D)
        f, a = self.norm_filter(wanted + self.dropout(f)), self.norm_attention(wanted + a)
        y = self.alpha * f + (1 - self.alpha) * a
        result: Tensor = self.norm(y + self.dropout(self.feed_forward(y)))
        return result


def waves(length: int, highest: int) -> Tensor:
    """Returns the orthonormal real Fourier basis of a window, 0 to ``highest`` cycles: (L, R)."""
    cpu = torch.device("cpu")  # also where a model is built without memory
    cycles = torch.arange(min(highest, length // 2) + 1, device=cpu)
    angles = torch.outer(torch.arange(length, device=cpu), cycles).double() * (2 * math.pi / length)
    basis = torch.cat([angles.cos(), angles.sin()], 1)
    norms = basis.norm(dim=0)  # 0 where all sines are
    found: Tensor = (basis / norms)[:, norms > 0.5]
    return found
