"""SASRec with linear attention: no softmax, and a cost that grows with the length, not its square.

Liu et al., LinRec: Linear Attention Mechanism for Long-term Sequential Recommender Systems, SIGIR
2023, arXiv 2411.01537. The body is RecBole's SASRec (post-norm blocks, GELU, weights N(0, .02));
each head of size d mixes its values by

    Q' = elu(Q) / |elu(Q)|,  K' = elu(K) / |elu(K)|,  Q' (K'^T V) / sqrt(d)

with the norms of each position. ``k_norm=sequence`` takes those of K over all positions of a row,
one for each of its d columns, as the paper has it. A state sees all of its history, hence a sample
for each prefix; with ``causal=true`` it sees the items up to its own, and training on rows is
exact. The authors let padding take part, in a window of ``max_seq_len``: ``pad_mask=false``. Their
settings are ``pad_mask=false embedding_size=128 n_heads=8 dropout_prob=0.2 batch_size=2048``. They
ignore the dropout of attention; here it is on Q', and 0. A norm has 1e-6 under its root, since
elu(0) = 0.

Cost: O(L D^2) a row, the linear layers included, where SASRec adds O(L^2 D); each prefix is a row
of its own unless causal, so that a user with L items costs L rows.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from seqtune.model import History, TransformerEncoder
from seqtune.nn import (
    Attention,
    Block,
    ByteDropout,
    FeedForward,
    ItemEmbedding,
    Transformer,
    initialise_normal,
)
from seqtune.params import AttentionDropout, BatchSize, Blocks, Sources, TrainMode

CHUNK = 64  # positions of a causal row whose products are taken at once


class LinRec(TransformerEncoder):
    """Transformer with linear attention; the score is the dot product of a state and an item."""

    class Params(Blocks):
        """The hyperparameters of LinRec."""

        batch_size: BatchSize = 256
        train_mode: TrainMode = "prefixes"
        attn_dropout_prob: AttentionDropout = Field(
            0.0, description="Dropout sets this share of normalised queries to 0."
        )
        k_norm: Literal["position", "sequence"] = Field(
            "position",
            description="Keys have norm 1 at each position, or each column over all of them.",
        )
        pad_mask: bool = Field(
            True, description="Padding takes no part, or else all max_seq_len places do."
        )
        causal: bool = Field(
            False, description="A state sees no later items, which allows train_mode rows."
        )

        sources: ClassVar[Sources] = {
            "train_mode attn_dropout_prob k_norm causal": "official",
            "batch_size": "ours: the official 2048 leaves small data few steps",
            "pad_mask": "ours: a score should not depend on how much padding there is",
        }

        @model_validator(mode="after")
        def _causal_sees_no_future(self) -> Self:
            if self.train_mode == "rows" and not self.causal:
                raise ValueError(
                    "train_mode rows would leak, since a state of this model sees the items that "
                    "follow, its own target among them; use prefixes, or causal: true"
                )
            if self.causal and self.k_norm == "sequence":
                raise ValueError(
                    "k_norm sequence would leak, since it takes norms over later items too; with "
                    "causal true use k_norm position"
                )
            if self.causal and not self.pad_mask:
                raise ValueError("pad_mask false needs causal false: padding comes after the items")
            return self

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(params, causal=params.causal, block=lambda: _block(params))
        initialise_normal(self)

    def vectors(self, history: History) -> Tensor:
        """Returns the item vectors: (B, L) -> (B, L, D), in a full window where pads count."""
        p, items = self.params, history.items
        if not p.pad_mask:
            items = F.pad(items, (0, p.max_seq_len - items.shape[1]))
        x: Tensor = self.item_embedding(items)
        return x


def _block(p: LinRec.Params) -> Block:
    feed_forward = FeedForward(p.embedding_size, p.inner_size, "gelu")
    return Block(p.embedding_size, _LinearAttention(p), feed_forward, p.dropout_prob, "post")


class _LinearAttention(Attention):
    def __init__(self, p: LinRec.Params) -> None:
        super().__init__(p.embedding_size, p.n_heads)
        self.pad_mask, self.over = p.pad_mask, -1 if p.k_norm == "position" else -2
        self.query_dropout = ByteDropout(p.attn_dropout_prob)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        q, k = F.elu(q.float()), F.elu(k.float())
        if mask is not None and self.pad_mask:
            k = k * mask.mT  # (B, 1, L, 1)
        q = self.query_dropout(q * (q.square().sum(-1, keepdim=True) + 1e-6).rsqrt())
        k = k * (k.square().sum(self.over, keepdim=True) + 1e-6).rsqrt() / k.shape[-1] ** 0.5
        if causal:
            return _causal(q, k, v)
        return (q @ k.mT) @ v if q.shape[-2] == 1 else q @ (k.mT @ v)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # tril(Q' K'^T) V, a chunk at a time
    mixed, before = [], q.new_zeros(*q.shape[:2], q.shape[-1], q.shape[-1])  # K'^T V up to here
    for at in range(0, q.shape[2], CHUNK):
        q_, k_, v_ = (x[:, :, at : at + CHUNK] for x in (q, k, v))
        mixed.append((q_ @ k_.mT).tril() @ v_ + q_ @ before)
        before = before + k_.mT @ v_
    return torch.cat(mixed, 2)
