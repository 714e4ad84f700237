"""SASRec with gated blocks, trained against 256 sampled items instead of the whole catalogue.

Tikhonovich et al., eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion,
RecSys 2025, arXiv 2508.06450. Blocks of LiGR (2502.03417), and sampled softmax (2309.07602):

    x <- x + sg(W_1 x + b_1) * dropout(a(LN(x)))    a: attention
    x <- x + sg(W_2 x + b_2) * dropout(f(LN(x)))    sg: sigmoid
    f(u) = W_c dropout(silu(W_a u) * W_b u)
    loss = logsumexp(s+, s_1, .., s_k) - s+         k uniform draws

A gate reads x as it is; nothing normalises the last block's output. ``mn_ratio`` r takes int(r k)
negatives from the distinct items of the batch. ``logq`` subtracts log training counts from
all scores in the loss, also for uniform negatives, as the authors do; 0 is taken for 1. Their code
is ``neg_sharing=position reject=none attn_dropout_prob=<dropout_prob>``, and draws W_q, W_k, W_v as
one matrix. ``use_ligr=false`` is its SASRec less an output projection, where that masks the keys of
padding (its ``use_key_padding_mask``); by default it does not, and short histories differ.

Cost: as SASRec, O(L^2 D + L D^2) a row, and half as much again for gates and a third feed-forward
matrix; the loss scores k + 1 items a position, not the whole catalogue.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from seqtune.model import Sequences, TransformerEncoder
from seqtune.nn import Attention, Block, ByteDropout, ItemEmbedding, Transformer, at, initialise
from seqtune.params import AdamBeta2, Blocks, Dropout, NegSamples, NextItemLoss, Position, Sources


class ESASRec(TransformerEncoder):
    """Transformer of gated blocks over items; the score is the dot product of state and item."""

    class Params(Blocks):
        """The hyperparameters of eSASRec."""

        dropout_prob: Dropout = 0.2
        use_ligr: bool = Field(
            True, description="The blocks are gated (LiGR), or else those of SASRec."
        )
        use_relative_pos: bool = Field(
            False, description="Attention has a bias by head and distance, and no flash kernel."
        )
        pos: Position = "rev"
        use_sampled_softmax: bool = Field(
            True, description="Without it, loss_type ce stands for sampled_softmax."
        )
        loss_type: NextItemLoss = "sampled_softmax"
        neg_samples: NegSamples = 256
        mn_ratio: float = Field(
            0.0, ge=0, le=1, description="This share of negatives comes from the batch."
        )
        logq: bool = Field(
            False, description="The loss subtracts log counts of items from their scores."
        )
        adam_beta2: AdamBeta2 = 0.98

        sources: ClassVar[Sources] = {
            "use_ligr use_sampled_softmax loss_type": "paper",
            "dropout_prob use_relative_pos pos neg_samples mn_ratio adam_beta2": "official",
            "logq": "ours: it makes up for negatives from the batch, and there are none",
        }

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
        self.in_batch = params.mn_ratio
        if params.use_ligr:
            gated = partial(_Gated, params)
            self.body = Transformer.of(params, norm=None, position=params.pos, block=gated)
        else:
            self.body = Transformer.of(
                params, norm="sasrec", position=params.pos, activation="relu"
            )
        initialise(self, nn.init.xavier_normal_)

    def prepare(self, sequences: Sequences) -> None:
        super().prepare(sequences)
        if self.params.logq:
            self.log_q = sequences.counts().clamp(min=1).log()


class _Gated(Block):
    def __init__(self, p: ESASRec.Params) -> None:
        size, rate = p.embedding_size, p.dropout_prob
        attention = Attention(size, p.n_heads, p.attn_dropout_prob)
        super().__init__(size, attention, _SwiGLU(size, p.inner_size, rate), rate, "pre", eps=1e-5)
        self.gate_1, self.gate_2 = nn.Linear(size, size), nn.Linear(size, size)
        self.bias = nn.Embedding(p.max_seq_len, p.n_heads) if p.use_relative_pos else None

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        only: Tensor | None = None,
    ) -> Tensor:
        memory, query = self.norm_1(x), None
        if self.bias is not None:
            mask, causal = self.biases(self.bias, x.shape[1], only), False
        if only is not None:
            x, query = at(x, only), at(memory, only)
        a = self.attention(memory, query, mask=mask, causal=causal)
        x = x + self.gate_1(x).sigmoid() * self.dropout(a)
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
