"""A Transformer that looks both ways, trained to fill in masked items of the history.

Sun et al., BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
Transformer, CIKM 2019, arXiv 1904.06690. Unlike SASRec, a state sees the items on both sides, and
training is a cloze test: of a window of n items, its last target included, max(1, round(mask_prob
n)) become MASK, drawn anew in each epoch, and are predicted by cross entropy over all items from

    z = E LN(gelu(W g + b)) + c

with g the state at a MASK, E the item table and c a bias per item. In a share ``last_mask_prob`` of
the windows only the last item is masked, which is what a prediction looks like: MASK is appended to
the newest max_seq_len - 1 items, so that it stands at a position that was trained.

The authors train at ``attn_dropout_prob=0.2 learning_rate=1e-4 lr_scheduler=linear batch_size=256``
with ``window_stride`` at max_seq_len / 2 (Beauty: a tenth) and ``mask_prob`` .2 for MovieLens, .4
for Steam, .6 for Beauty; ten masks per window are drawn in advance, and one of the last item (hence
about .1 here). Many bad numbers of it come from too few steps (arXiv 2207.07483). Their token type
vector, the same at all positions, is part of the position vectors here.

Cost: a step is one pass over the window, O(L^2 D + L D^2) a row, as SASRec's, but only masked
positions are compared with the catalogue: a fifth of them by default. So an epoch is cheaper and
teaches less, and more epochs are needed. A prediction computes one position in the last block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seqtune.model import Batch, Contract, Encoder, History, Term
from seqtune.nn import EPS, ItemEmbedding, Transformer, at, draw_positions, initialise
from seqtune.params import (
    Blocks,
    Dropout,
    GradClipNorm,
    Patience,
    Sources,
    WarmupSteps,
    WeightDecay,
)


class BERT4Rec(Encoder):
    """Bidirectional Transformer; the state at a MASK after the last item predicts the next."""

    class Params(Blocks):
        """The hyperparameters of BERT4Rec."""

        train_mode: Literal["rows"] = Field(
            "rows", description="The targets are the masked items of a window, wherever they stand."
        )
        mask_prob: float = Field(
            0.2,
            gt=0,
            le=1,
            description="This share rho of items is masked; sparse data like .4 to .6.",
        )
        last_mask_prob: float = Field(
            0.1, ge=0, le=1, description="This share of windows masks its last item alone."
        )
        output_head: bool = Field(
            True,
            description="A dense layer and a bias per item come before the scores; without them a "
            "score is a plain dot product.",
        )
        dropout_prob: Dropout = 0.2
        weight_decay: WeightDecay = 0.01
        warmup_steps: WarmupSteps = 100
        grad_clip_norm: GradClipNorm = 5.0
        patience: Patience = 50

        sources: ClassVar[Sources] = {
            "mask_prob output_head dropout_prob": "official",
            "weight_decay warmup_steps grad_clip_norm": "official",
            "last_mask_prob": "ours: about the share of such windows in the official data",
            "patience": "ours: it improves slowly, and for long",
        }

    contract = Contract(
        learns=0.7,  # few positions carry a loss
        learns_anyhow=0.25,
        learning={"mask_prob": 0.3, "last_mask_prob": 0.5},
        certain={"mask_prob": 1.0, "last_mask_prob": 0.0},
    )
    params: Params
    item_bias: Tensor | None

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size, self.mask = params.embedding_size, n_items + 1
        self.item_embedding = ItemEmbedding(n_items, size, n_special=1)
        self.body = Transformer.of(params, causal=False)
        self.head, self.item_bias = nn.Sequential(), None
        if params.output_head:
            self.head.extend([nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size, EPS)])
            self.item_bias = nn.Parameter(torch.zeros(n_items + 1))
        initialise(self, lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04))

    def encode_last(self, history: History) -> Tensor:
        query = self.followed(history, torch.full_like(history.lengths, self.mask))
        state: Tensor = self.head(self.body.last(self.item_embedding(query.items), query.lengths))
        return state

    def output(self) -> tuple[Tensor, Tensor | None]:
        return self.item_embedding.weight, self.item_bias

    def followed(self, history: History, newest: Tensor) -> History:
        """Returns the last max_seq_len - 1 items of each row (B, L), and ``newest`` (B,)."""
        width = history.items.shape[1]
        lengths = history.lengths.clamp(max=self.params.max_seq_len - 1)
        steps = torch.arange(min(width + 1, self.params.max_seq_len), device=lengths.device)
        index = steps + (history.lengths - lengths)[:, None]  # from the oldest item that is kept
        items = F.pad(history.items, (0, 1)).gather(1, index.clamp(max=width))
        items = torch.where(steps == lengths[:, None], newest[:, None], items)
        return History(history.users, items, lengths + 1)

    def windows(self, batch: Batch) -> History:
        """Returns the rows with their last targets."""
        return self.followed(batch, at(batch.grid(), batch.lengths - 1))

    def masked(self, lengths: Tensor, width: int, rng: torch.Generator) -> Tensor:
        """Draws the positions to mask in rows of these lengths: (B,) -> (B, width), True there."""
        counts = (self.params.mask_prob * lengths.double()).round().clamp(min=1)
        cloze = draw_positions(counts, lengths, width, rng)
        last = torch.arange(width, device=lengths.device) == lengths[:, None] - 1
        u = torch.rand(len(lengths), 1, generator=rng, device=lengths.device)
        return torch.where(u < self.params.last_mask_prob, last, cloze)

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        window = self.windows(batch)
        items, lengths = window.items, window.lengths
        masked = self.masked(lengths, items.shape[1], rng)
        chosen = (~masked).long().argsort(dim=1, stable=True)  # positions, masked first
        chosen = chosen[:, : int(masked.sum(1).max())]  # (B, Q)
        kept = at(masked, chosen).flatten().nonzero().squeeze(1)  # (N,)
        x = self.item_embedding(items.masked_fill(masked, self.mask))
        states = self.body.some(x, lengths, chosen).flatten(0, 1).index_select(0, kept)
        first = torch.arange(len(items), device=items.device)[:, None] * items.shape[1]
        where = (first + chosen).flatten().index_select(0, kept)
        targets = items.flatten().index_select(0, where)
        cloze = replace(batch, items=items, lengths=lengths, where=where, targets=targets)
        return self.next_item(self.head(states), cloze, rng)
