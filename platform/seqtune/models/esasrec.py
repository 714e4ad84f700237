"""SASRec with gated blocks, trained against 256 sampled items instead of the whole catalogue.

Tikhonovich et al., eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion,
RecSys 2025, arXiv 2508.06450. Blocks of LiGR (2502.03417), and sampled softmax (2309.07602):

    x <- x + sg(W_1 x + b_1) * dropout(a(LN(x)))    a: attention
    x <- x + sg(W_2 x + b_2) * dropout(f(LN(x)))    sg: sigmoid
    f(u) = W_c dropout(silu(W_a u) * W_b u)
    loss = logsumexp(s+, s_1, .., s_k) - s+         k uniform draws

A gate reads x as it is; nothing normalises the last block's output. ``mn_ratio`` r takes int(r k)
negatives from the distinct items of a worker's batch. ``logq`` subtracts log training counts from
all scores in the loss, also for uniform negatives, as the authors do; 0 is taken for 1. Their code
is ``neg_sharing=position reject=none attn_dropout_prob=<dropout_prob>``, and draws W_q, W_k, W_v as
one matrix; ``use_ligr=false`` is its SASRec, less an output projection.

Cost: as SASRec, O(L^2 D + L D^2) a row, and half as much again for gates and a third feed-forward
matrix; the loss scores k + 1 items a position, not the whole catalogue.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from seqtune.model import Sequences, TransformerEncoder
from seqtune.nn import Attention, Block, ByteDropout, ItemEmbedding, Transformer, at, initialise
from seqtune.params import Depth, Dropout, NextItemLoss, TrainMode, TransformerParams


class ESASRec(TransformerEncoder):
    """Transformer of gated blocks over items; the score is the dot product of state and item."""

    class Params(TransformerParams):
        """The hyperparameters of eSASRec."""

        n_layers: Depth = 2
        dropout_prob: Dropout = 0.2
        use_ligr: bool = Field(True, description="Gated LiGR blocks; false: those of SASRec.")
        use_relative_pos: bool = Field(
            False, description="Attention bias by head and distance; costs the flash kernel."
        )
        pos: Literal["abs", "rev"] = Field(
            "rev", description="Position ids counted from the oldest item, or from the newest."
        )
        train_mode: TrainMode = "rows"
        use_sampled_softmax: bool = Field(
            True, description="False: loss_type ce in place of sampled_softmax."
        )
        loss_type: NextItemLoss = "sampled_softmax"
        neg_samples: int = Field(256, ge=0, le=1_000_000, description="Negatives; 1 means BPR.")
        mn_ratio: float = Field(0.0, ge=0, le=1, description="Share of negatives from the batch.")
        logq: bool = Field(False, description="Subtract log counts from scores in the loss.")
        adam_beta2: float = Field(0.98, ge=0, lt=1, description="Second-moment decay of AdamW.")

        @model_validator(mode="after")
        def _switches_agree(self) -> Self:
            if self.loss_type == "sampled_softmax" and not self.use_sampled_softmax:
                object.__setattr__(self, "loss_type", "ce")  # also of what is recorded
            if self.logq and self.loss_type != "sampled_softmax":
                raise ValueError(f"logq needs loss_type sampled_softmax, not {self.loss_type}")
            if self.use_relative_pos and not self.use_ligr:
                raise ValueError("use_relative_pos needs use_ligr true")
            return self

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(params, "sasrec", params.pos, "relu")
        if params.use_ligr:
            self.body.blocks = nn.ModuleList(_Gated(params) for _ in range(params.n_layers))
            self.body.register_module("layer_norm", nn.Identity())
        initialise(self, nn.init.xavier_normal_)

    def prepare(self, sequences: Sequences) -> None:
        super().prepare(sequences)
        if self.params.logq:
            self.log_q = sequences.counts().clamp(min=1).log()


class _Gated(Block):
    def __init__(self, p: ESASRec.Params) -> None:
        size, rate = p.embedding_size, p.dropout_prob
        attention = Attention(size, p.n_heads, p.attn_dropout_prob)
        super().__init__(size, attention, _SwiGLU(size, p.inner_size, rate), rate, "pre")
        self.norm_1.eps = self.norm_2.eps = 1e-5
        self.gate_1, self.gate_2 = nn.Linear(size, size), nn.Linear(size, size)
        self.bias = nn.Embedding(p.max_seq_len, p.n_heads) if p.use_relative_pos else None

    def forward(self, x: Tensor, mask: Tensor | None = None, only: Tensor | None = None) -> Tensor:
        memory = query = self.norm_1(x)
        if self.bias is not None:
            mask = self.biases(self.bias, x.shape[1], only)
        if only is not None:
            x, query = at(x, only), at(memory, only)
        x = x + self.gate_1(x).sigmoid() * self.dropout(self.attention(query, memory, mask))
        y: Tensor = self.gate_2(x).sigmoid() * self.dropout(self.feed_forward(self.norm_2(x)))
        return x + y

    @staticmethod
    def biases(table: nn.Embedding, width: int, only: Tensor | None) -> Tensor:
        """Returns what is added to scores: (1, H, L, L), or (B, H, Q, L) of queries at ``only``."""
        keys = torch.arange(width, device=table.weight.device)
        distance = (keys[None] if only is None else only)[..., None] - keys  # (., Q, L)
        bias: Tensor = table(distance.clamp(0, table.num_embeddings - 1)).movedim(-1, 1)
        return bias.masked_fill((distance < 0)[:, None], -torch.inf)


class _SwiGLU(nn.Module):
    def __init__(self, size: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.widen = (nn.Linear(size, inner, bias=False) for _ in range(2))
        self.narrow, self.dropout = nn.Linear(inner, size, bias=False), ByteDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.dropout(F.silu(self.gate(x)) * self.widen(x)))
        return y
