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
theirs. Their settings are ``train_mode=prefixes embedding_size=100 dropout_prob=0.5
attn_dropout_prob=0.5``.

Cost: as SASRec, O(L^2 D + L D^2) a row, and the item table is normalised at each step, little
beside the vocabulary projection; ave has no Transformer. A prediction is a pass over the history.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seqtune.model import Contract, Encoder, History
from seqtune.nn import ByteDropout, ItemEmbedding, Transformer, initialise_normal
from seqtune.params import Blocks, Dropout, ItemDropout, Sources, Temperature

EPS = 1e-6  # least norm that counts: a vector of zeros stays one, with a gradient that is bounded


class CORE(Encoder):
    """Weighted mean of item vectors; the score is a cosine over a temperature."""

    class Params(Blocks):
        """The hyperparameters of CORE."""

        dnn_type: Literal["trm", "ave"] = Field(
            "trm", description="A Transformer weighs the items (trm), or they weigh alike (ave)."
        )
        dropout_prob: Dropout = Field(0.2, validation_alias="hidden_dropout_prob")
        layer_norm_eps: float = Field(
            1e-12, ge=0, le=1, description="Layer normalisation adds this to the variance."
        )
        session_dropout: ItemDropout = 0.2
        item_dropout: Dropout = Field(
            0.2, description="Dropout sets this share of the table that scores are made with to 0."
        )
        temperature: Temperature = Field(
            0.07, description="The score is a cosine over this temperature, tau."
        )

        sources: ClassVar[Sources] = {
            "dnn_type layer_norm_eps session_dropout item_dropout temperature": "official",
            "dropout_prob": "ours: less than the official 0.5, within RecBole's range",
        }

    contract = Contract(
        favours_history=True,
        idle_weights=frozenset({"weight.bias"}),  # a softmax ignores it
        learns_with={
            ("dnn_type", "ave"): 0.25,  # a mean is blind to order
            ("loss_type", "gbce"): 0.25,  # saturated by cosines over .07; over .5 it learns
        },
    )
    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size = params.embedding_size
        self.item_embedding = ItemEmbedding(n_items, size)
        self.session_dropout = ByteDropout(params.session_dropout)
        self.item_dropout = ByteDropout(params.item_dropout)
        if params.dnn_type == "trm":
            self.body = Transformer.of(params, eps=params.layer_norm_eps)
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
            logits = self.weight(self.body(x, lengths)).squeeze(-1)
        # A masked softmax, since exp(logit - highest of the row) would carry the future's rounding.
        return logits.float()[:, None].masked_fill(~seen, -torch.inf).softmax(-1)

    def output(self) -> tuple[Tensor, Tensor | None]:
        table = self.item_dropout(self.item_embedding.weight).float()
        return F.normalize(table, dim=-1, eps=EPS) / self.params.temperature, None
