"""Item similarity and a short Markov chain: one weighted sum of item vectors, no layers.

He & McAuley, Fusing Similarity Models with Markov Chains for Sparse Sequential Recommendation
(FOSSIL), ICDM 2016, arXiv 1609.09152. With P and Q the vectors of items as history and as
candidates, N the items of the history, K = ``order_len`` and (k) the k-th newest, item i scores

    b_i + Q_i . [ |N|^-alpha sum_{j in N} P_j + sum_{k=1..K} (eta_k + eta_uk) P_(k) ].

Lags before the first item and eta_u of new users are 0; without lags it is FISM. Repeats count.

history=past: N are the items before the target, in training as in prediction. history=all is the
paper's: in training N are all training items of the user, those after the target too, without any
occurrence of the candidate; ce cannot do that, and negatives must be unseen. past lets it stay.
``reg_weight`` also counts Q, eta and eta_u. RecBole's is ``tie_weights=true item_bias=false``.

Cost: O(K D) per target and sampled item in training, O(I D) with ce; a prediction O(L D + I D).
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from seqtune import losses
from seqtune.group import place
from seqtune.model import Batch, Contract, Encoder, History, Term
from seqtune.nn import ItemEmbedding, UserEmbedding, initialise_normal
from seqtune.params import (
    LearningRate,
    MaxSeqLen,
    NegSamples,
    NextItemLoss,
    Reject,
    Sources,
    TieWeights,
    Trained,
)


class FOSSIL(Encoder):
    """A sum of item vectors over the history, plus weighted ones of the last few."""

    class Params(Trained):
        """The hyperparameters of FOSSIL."""

        max_seq_len: MaxSeqLen = 200
        order_len: int = Field(3, ge=1, le=100, description="The last K items have weights, eta.")
        alpha: float = Field(0.5, ge=0, le=1, description="A sum of n is divided by n ** alpha.")
        history: Literal["past", "all"] = Field(
            "past", description="Training sums up the items before the target, or all of the user."
        )
        tie_weights: TieWeights = False
        item_bias: bool = Field(True, description="Each item has a bias of its own, b_i.")
        learning_rate: LearningRate = 5e-3
        loss_type: NextItemLoss = "bpr"
        neg_samples: NegSamples = 64
        reject: Reject = "seen"
        weight_decay: Literal[0] = Field(0, description="It has no matrices, which alone decay.")
        precision: Literal["fp32"] = Field("fp32", description="It has no matrix products inside.")

        sources: ClassVar[Sources] = {
            "tie_weights item_bias loss_type reject": "paper",
            "max_seq_len": "ours: long histories cost next to nothing here",
            "order_len": "ours: RecBole's, and the largest that the paper tries",
            "alpha": "ours: in the middle of what is usual for FISM, .4 to .6",
            "history": "ours: training then sums up what prediction does",
            "learning_rate": "ours: a sum without layers bears larger steps",
            "neg_samples": "ours: the single one of the paper makes noisy steps",
        }

        @model_validator(mode="after")
        def _candidates_leave_the_history(self) -> Self:
            if self.history == "all" and (self.loss_type == "ce" or self.reject != "seen"):
                raise ValueError("history all needs reject seen and a loss_type other than ce")
            return self

    contract = Contract(learns=0.5, favours_history=True)
    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        p, size = params, params.embedding_size
        self.item_embedding = ItemEmbedding(n_items, size)  # P, the next one is Q
        self.output_embedding = None if p.tie_weights else ItemEmbedding(n_items, size)
        self.bias = nn.Parameter(torch.zeros(n_items + 1)) if p.item_bias else None
        self.eta = nn.Parameter(torch.zeros(p.order_len))
        self.user_eta = UserEmbedding(n_users, p.order_len, "zero")
        initialise_normal(self)

    def output(self) -> tuple[Tensor, Tensor | None]:
        return (self.output_embedding or self.item_embedding).weight, self.bias

    def encode(self, history: History) -> Tensor:
        x = self.item_embedding(history.items)
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)
        return self.divided(x.cumsum(1), counts) + self.lags(x, history.users)

    def states_at_targets(self, batch: Batch) -> Tensor:
        if self.params.history == "past":
            return super().states_at_targets(batch)
        known = self.known(batch.users)
        long = self.divided(self.item_embedding(known).sum(1), (known > 0).sum(1))[:, None]
        states = long + self.lags(self.item_embedding(batch.items), batch.users)
        return states.flatten(0, 1).index_select(0, batch.where)

    def divided(self, total: Tensor, count: Tensor) -> Tensor:  # (..., D) by (...) to the alpha
        return total / count.clamp(min=1)[..., None] ** self.params.alpha

    def lags(self, x: Tensor, users: Tensor) -> Tensor:  # (B, L, D) -> (B, L, D)
        weights, total = self.eta + self.user_eta(users), torch.zeros_like(x)  # weights (B, K)
        for k in range(min(self.params.order_len, x.shape[1])):
            total = total + weights[:, k, None, None] * F.pad(x, (0, 0, k, -k))
        return total

    def known(self, users: Tensor) -> Tensor:  # (B,) -> their last training items (B, L)
        data, ends = self.sequences, self.sequences.ends[users]
        before = data.before(ends, self.params.max_seq_len - 1).items
        return torch.cat([before, data.items[ends, None]], 1)

    def candidate_scores(
        self, states: Tensor, batch: Batch, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        positive, negative = super().candidate_scores(states, batch, rng)
        if self.params.history == "all":
            gain = self.without(self.known(batch.users), batch.grid())
            positive = positive + gain.flatten()[batch.where]
        return positive, negative

    def sampled_loss(self, states: Tensor, batch: Batch, rng: torch.Generator) -> Tensor:
        return self.sampled(*self.candidate_scores(states, batch, rng))

    def without(self, known: Tensor, candidates: Tensor) -> Tensor:
        """Returns what leaving the history adds to candidates' scores: (B, L), (B, C) -> (B, C)."""
        p, q = self.item_embedding(known), F.embedding(candidates, self.output()[0])
        total, count = p.sum(1, keepdim=True), (known > 0).sum(1, keepdim=True)
        times = (known[:, None] == candidates[:, :, None]).sum(2)  # that a candidate occurs
        rest = total - times[..., None] * self.item_embedding(candidates)
        return ((self.divided(rest, count - times) - self.divided(total, count)) * q).sum(2)

    def score(self, history: History) -> Tensor:
        scores, items = super().score(history), history.items
        if self.params.history == "all":
            scores = scores.scatter(1, items, scores.gather(1, items) + self.without(items, items))
        return scores

    def penalty(self, batch: Batch) -> dict[str, Term]:
        if (weight := self.params.reg_weight) == 0:
            return {}
        total = losses.l2(self.item_embedding.weight, batch.items)
        total = total + losses.l2(self.output()[0], batch.targets)
        lags = self.eta.square().sum() / place()[1] + self.user_eta(batch.users).square().sum()
        return {"l2": Term(total + lags / 2, len(batch.items), weight)}
