"""A session is a weighted mean of its items, and compared with items by cosine.

Hou et al., CORE: Simple and Effective Session-based Recommendation within Consistent Representation
Space, SIGIR 2022, arXiv 2204.11067.

    x_j     = dropout(E[i_j])                         (session_dropout)
    a_tj    = softmax_{j <= t}(w . Transformer(x)_j + b)
    s_t     = sum_j a_tj x_j
    score_i = cos(s_t, dropout(E)_i) / temperature    (item_dropout)

``dnn_type=ave`` has a_tj = 1/t instead. The Transformer, SASRec's, gives nothing but weights:
sessions stay in the space of items, so a session's own items score high. That suits data in which
items repeat; where they do not, rank the others alone. Scores lie within 1 / temperature.

The authors train on prefixes; here the loss is at every position, with a softmax over each prefix
that no padding takes part in. A step draws one dropout mask of the table, and weights are drawn as
theirs. Their settings are ``train_mode=prefixes embedding_size=100 hidden_dropout_prob=0.5
attn_dropout_prob=0.5``.

Cost: as SASRec, O(L^2 D + L D^2) a row, and the item table is normalised at each step, little
beside the vocabulary projection; ave has no Transformer. A prediction is a pass over the history.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seqtune.model import Encoder, History
from seqtune.nn import ByteDropout, ItemEmbedding, Transformer, initialise_normal
from seqtune.params import AttentionDropout, BlockParams, Temperature, TrainMode

EPS = 1e-6  # least norm that counts: a vector of zeros stays one, with a gradient that is bounded


class CORE(Encoder):
    """Weighted mean of item vectors; the score is a cosine over a temperature."""

    class Params(BlockParams):
        """The hyperparameters of CORE."""

        dnn_type: Literal["trm", "ave"] = Field(
            "trm", description="Weights of items: trm (from a Transformer) or ave (all the same)."
        )
        hidden_dropout_prob: float = Field(
            0.2, ge=0, lt=1, description="Dropout rate inside the Transformer."
        )
        attn_dropout_prob: AttentionDropout = 0.0
        layer_norm_eps: float = Field(
            1e-12, ge=0, le=1, description="Added to the variance in layer normalisation."
        )
        session_dropout: float = Field(
            0.2, ge=0, lt=1, description="Dropout rate on the item vectors of a session."
        )
        item_dropout: float = Field(
            0.2, ge=0, lt=1, description="Dropout rate on the items a session is compared with."
        )
        temperature: Temperature = 0.07
        train_mode: TrainMode = "rows"

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size = params.embedding_size
        self.item_embedding = ItemEmbedding(n_items, size)
        self.session_dropout = ByteDropout(params.session_dropout)
        self.item_dropout = ByteDropout(params.item_dropout)
        if params.dnn_type == "trm":
            self.body = Transformer(
                size,
                params.max_seq_len,
                n_layers=params.n_layers,
                n_heads=params.n_heads,
                inner_size=params.inner_size,
                dropout=params.hidden_dropout_prob,
                attn_dropout=params.attn_dropout_prob,
            )
            for part in self.body.modules():
                if isinstance(part, nn.LayerNorm):
                    part.eps = params.layer_norm_eps
            self.weight = nn.Linear(size, 1)
        initialise_normal(self)
        nn.init.uniform_(self.item_embedding.weight[1:].detach(), -(size**-0.5), size**-0.5)

    def encode(self, history: History) -> Tensor:
        width = history.items.shape[1]
        return self.mean(history, history.lengths.new_ones(width, width, dtype=torch.bool).tril())

    def encode_last(self, history: History) -> Tensor:
        steps = torch.arange(history.items.shape[1], device=history.items.device)
        seen = steps < history.lengths[:, None].clamp(min=1)  # (B, L)
        return self.mean(history, seen[:, None]).squeeze(1)

    def mean(self, history: History, seen: Tensor) -> Tensor:
        """Returns the sessions as unit vectors (B, Q, D), over the items where ``seen`` is true."""
        x = self.session_dropout(self.item_embedding(history.items))
        weights = self.weights(x, history.lengths, seen)
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(weights @ x.float(), dim=-1, eps=EPS)

    def weights(self, x: Tensor, lengths: Tensor, seen: Tensor) -> Tensor:
        """(B, L, D), a mask (B or 1, Q, L) -> weights (B, Q, L) that sum to 1 over each session."""
        logits = x.new_zeros(x.shape[:2])
        if self.params.dnn_type == "trm":
            logits = self.weight(self.body.forward(x, lengths)).squeeze(-1)
        # A masked softmax, since exp(logit - highest of the row) would carry the future's rounding.
        return logits.float()[:, None].masked_fill(~seen, -torch.inf).softmax(-1)

    def output(self) -> tuple[Tensor, Tensor | None]:
        table = self.item_dropout(self.item_embedding.weight).float()
        return F.normalize(table, dim=-1, eps=EPS) / self.params.temperature, None
