"""Convolutions over the last few items, beside a vector of the user.

Tang & Wang, Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding
(Caser), WSDM 2018, DOI 10.1145/3159652.3159656. A window is the last L = ``max_seq_len`` items. On
its item vectors (L, D), filters (q, D) of each height q = 1..L slide, and their highest activation
counts; filters (L, 1) are weighted sums. With o their outputs and p_u the vector of the user,

    z = act_fc(W dropout(o) + b),    score of item i = w_i . [z ; p_u] + b_i.

A loss is the mean over the targets of a window, the next T = ``target_len`` items, all with the
same negatives. loss_type window_bce is the authors'.

Rows mode filters a stretch of history once and slides the maximum, which is exact, and trains each
window once. The defaults are the authors', but for: pads are zero,
theirs are learned; windows that reach beyond either end of a history are trained, theirs only where
it is short; ``weight_decay`` is decoupled and spares tables, theirs is 1e-6 in all gradients. New
users have the mean user vector. ``tie_weights=true`` drops the bias and projects [z ; p_u] to D;
with ``target_len=1`` it is RecBole's, but for its last ReLU, and for windows of fewer than L items,
which RecBole pads on the right (scores differ by up to .15), and which are padded on the left here.

Cost: a training step takes O(L^2 D n_h) a target for the filters, and ce O(I D) more. A prediction
filters one window.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seqtune import losses
from seqtune.model import Batch, Contract, Encoder, History, Term
from seqtune.nn import ByteDropout, ItemEmbedding, UserEmbedding, initialise, left_padded
from seqtune.params import Dropout, NegSamples, Reject, Sources, TieWeights, Trained

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}  # monotone: may follow the maximum


class Caser(Encoder):
    """Convolutions over a window of items; the score takes the user in as well."""

    class Params(Trained):
        """The hyperparameters of Caser."""

        max_seq_len: int = Field(5, ge=1, le=100, description="A window has this many items, L.")
        target_len: int = Field(
            3, ge=1, le=20, description="The T items after a window are its targets."
        )
        n_h: int = Field(
            16, ge=1, le=1024, description="Each height has this many horizontal filters."
        )
        n_v: int = Field(
            4, ge=1, le=1024, description="This many vertical filters weigh the items."
        )
        act_conv: Literal["relu", "tanh"] = Field(
            "relu", description="Horizontal filters apply this function, phi_c."
        )
        act_fc: Literal["relu", "tanh"] = Field(
            "relu", description="The layer after the filters applies it, phi_a."
        )
        dropout_prob: Dropout = 0.5
        user_embedding: bool = Field(True, description="The score has a vector for each user, p_u.")
        tie_weights: TieWeights = False
        loss_type: Literal["window_bce", "ce", "sampled_softmax", "bce", "bpr", "gbce"] = Field(
            "window_bce",
            description="The loss is the authors' window_bce, or one of the usual ones.",
        )  # type: ignore[assignment]  # one more than the usual
        neg_samples: NegSamples = 3
        reject: Reject = "seen"
        window_stride: Literal[0] = Field(
            0, description="Each target is trained once, however long a history."
        )

        sources: ClassVar[Sources] = {
            "max_seq_len target_len n_h n_v act_conv act_fc dropout_prob": "official",
            "user_embedding tie_weights loss_type neg_samples reject": "official",
        }

        @property
        def row_shape(self) -> tuple[int, int]:  # stretches of 128 targets
            return 128 + self.max_seq_len, 128

    contract = Contract(learns=0.5, favours_history=True, small={"n_h": 4, "target_len": 1})
    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        p, size, length = params, params.embedding_size, params.max_seq_len
        wide = 2 * size if p.user_embedding else size
        self.item_embedding = ItemEmbedding(n_items, size)
        self.user_embedding = UserEmbedding(n_users, size, "mean") if p.user_embedding else None
        self.vertical = nn.Linear(length, p.n_v)
        self.horizontal = nn.ModuleList(nn.Conv1d(size, p.n_h, q + 1) for q in range(length))
        self.dropout = ByteDropout(p.dropout_prob)
        self.dense = nn.Linear(p.n_v * size + p.n_h * length, size)
        self.project = nn.Linear(wide, size) if p.tie_weights else None
        self.output_embedding = None if p.tie_weights else ItemEmbedding(n_items, wide)
        self.item_bias = None if p.tie_weights else nn.Parameter(torch.zeros(n_items + 1))
        for part in self.children():
            if isinstance(part, nn.Embedding):
                initialise(part, lambda weight: nn.init.normal_(weight, std=1 / weight.shape[1]))

    def states(self, x: Tensor, users: Tensor) -> Tensor:
        """Turns each window of L item vectors into a state: (B, S, D) -> (B, S - L + 1, 2D)."""
        p, length = self.params, self.params.max_seq_len
        sums = self.vertical(x.unfold(1, length, 1)).mT.flatten(2)
        found = [F.max_pool1d(f(x.mT), length - q, 1) for q, f in enumerate(self.horizontal)]
        o = torch.cat([sums, ACTIVATIONS[p.act_conv](torch.cat(found, 1)).mT], 2)
        z = ACTIVATIONS[p.act_fc](self.dense(self.dropout(o)))
        if self.user_embedding is not None:
            z = torch.cat([z, self.user_embedding(users)[:, None].expand_as(z)], 2)
        return z if self.project is None else self.project(z)

    def encode(self, history: History) -> Tensor:
        x = self.item_embedding(history.items)
        return self.states(F.pad(x, (0, 0, self.params.max_seq_len - 1, 0)), history.users)

    def encode_last(self, history: History) -> Tensor:
        window = left_padded(history.items, history.lengths, self.params.max_seq_len)
        return self.states(self.item_embedding(window), history.users).squeeze(1)

    def output(self) -> tuple[Tensor, Tensor | None]:
        return (self.output_embedding or self.item_embedding).weight, self.item_bias

    def next_item(self, states: Tensor, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        p, data, (table, bias) = self.params, self.sequences, self.output()
        events = batch.events[:, None] + torch.arange(p.target_len, device=states.device)
        real = events <= data.ends[data.users_at(batch.events)][:, None]
        targets = data.items[events.clamp(max=len(data.items) - 1)].long() * real  # (N, T), or 0
        weights = real / real.sum(1, keepdim=True)
        with torch.autocast(states.device.type, enabled=False):
            positive = (F.embedding(targets, table) @ states.float()[:, :, None]).squeeze(2)
            positive = positive if bias is None else positive + bias[targets]  # (N, T)
        if p.loss_type == "ce":  # of the first target, then the difference of the mean from it
            total = losses.ce(states, table, batch.targets, self.n_items, bias)
            total = total + positive[:, 0].sum() - (weights * positive).sum()
        else:
            negative = self.candidate_scores(states, batch, rng)[1]  # (N, k)
            one = torch.vmap(torch.vmap(self.sampled, (0, None)))
            each = one(positive[..., None], negative[:, None])
            total = (weights * each).sum()
        return {p.loss_type: Term(total, len(states))} | self.penalty(batch)
