"""A recurrent network (GRU) over the history, one loss at every position.

Hidasi et al., ICLR 2016, arXiv 1511.06939; CIKM 2018, arXiv 1706.03847. variant=official is theirs:
sessions in parallel, gradients through one step, scores of its targets and ``n_sample`` items, item
vectors of ``hidden_size``. Their defaults: ``variant=official train_mode=sessions dropout_prob=0
hidden_size=100 batch_size=64 optimizer=adagrad epochs=10 learning_rate=0.05``. sequence: RecBole's.

Cost: O(L (D H + H^2)), L steps in turn, and ce O(I D) a target; official scores B + n_sample items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from seqtune import losses
from seqtune.model import Batch, Contract, Encoder, History, Sequences, Term
from seqtune.nn import ByteDropout, ItemEmbedding, at, initialise
from seqtune.params import Dropout, Hidden, ItemDropout, RecurrentDepth, Sources, Trained


class GRU4Rec(Encoder):
    """GRU over items; in variant sequence, a linear layer back to the size of an item vector."""

    class Params(Trained):
        """The hyperparameters of GRU4Rec."""

        variant: Literal["sequence", "official"] = Field(
            "sequence", description="The network is RecBole's (sequence) or the authors' own."
        )
        hidden_size: Hidden = 128
        n_layers: RecurrentDepth = Field(1, validation_alias="num_layers")
        dropout_prob: ItemDropout = 0.3  # the authors' dropout_p_embed
        train_mode: Literal["rows", "prefixes", "sessions"] = Field(
            "rows", description="A sample is a row or a prefix; official steps through sessions."
        )  # type: ignore[assignment]  # one more than the usual
        loss_type: Literal["ce", "sampled_softmax", "bce", "bpr", "gbce", "bpr_max"] = Field(
            "ce", description="Official takes ce (over targets and samples of a step) or bpr_max."
        )  # type: ignore[assignment]  # one more than the usual
        dropout_p_hidden: Dropout = Field(0.0, description="This share of the states is dropped.")
        n_sample: int = Field(2048, ge=0, le=1_000_000, description="A step draws this many items.")
        sample_alpha: float = Field(0.5, ge=0, le=1, description="Items are drawn ~ count^alpha.")
        logq: float = Field(0.0, ge=0, le=1, description="Official corrects ce for the sampling.")
        bpreg: float = Field(1.0, ge=0, le=100, description="A penalty in bpr_max has this weight.")
        elu_param: float = Field(0.5, ge=0, le=100, description="Scores in bpr_max pass this ELU.")

        sources: ClassVar[Sources] = {
            "variant hidden_size dropout_prob train_mode": "ours: RecBole's, whose network suits "
            "histories of users",
            "n_layers loss_type dropout_p_hidden n_sample sample_alpha": "official",
            "logq bpreg elu_param": "official",
        }

        @model_validator(mode="after")
        def _agrees_with_variant(self) -> Self:
            modes, kinds = ["rows", "prefixes"], ["ce", "sampled_softmax", "bce", "bpr", "gbce"]
            if self.variant == "official":
                modes, kinds = ["sessions"], ["ce", "bpr_max"]
            for name, allowed in (("train_mode", modes), ("loss_type", kinds)):
                if (value := getattr(self, name)) not in allowed:
                    rule = f"{name} must be {' or '.join(allowed)} with variant {self.variant}"
                    raise ValueError(f"{rule}, not {value!r}")
            return self

    contract = Contract(settings=({"variant": "official", "train_mode": "sessions"},))
    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size, hidden, layers = params.embedding_size, params.hidden_size, params.n_layers
        self.official = params.variant == "official"
        self.item_embedding = ItemEmbedding(n_items, hidden if self.official else size)
        self.dropout = ByteDropout(params.dropout_prob)
        self.state_dropout = ByteDropout(0 if self.official else params.dropout_p_hidden)
        if self.official:
            self.item_bias = nn.Parameter(torch.zeros(n_items + 1))
            self.gru: nn.Module = _Stepped(hidden, layers, params.dropout_p_hidden)
            self.dense: Callable[[Tensor], Tensor] = nn.Identity()
            initialise(self.item_embedding, nn.init.xavier_uniform_)
            initialise(self.gru, lambda w: [nn.init.xavier_uniform_(gate) for gate in w.chunk(3)])
        else:
            self.gru = nn.GRU(size, hidden, layers, bias=False, batch_first=True)
            self.dense = nn.Linear(hidden, size)
            initialise(self.item_embedding, nn.init.xavier_normal_)
            initialise(self.gru, nn.init.xavier_uniform_)

    def prepare(self, sequences: Sequences) -> None:
        super().prepare(sequences)
        self.popularity = losses.Popularity.of(sequences.counts(), self.params.sample_alpha)

    def hidden(self, history: History) -> Tensor:  # the recurrent states: (B, L) -> (B, L, H)
        x = self.dropout(self.item_embedding(history.items))
        states: Tensor = self.state_dropout(self.gru(x, history.continues)[0])
        return states

    def encode(self, history: History) -> Tensor:
        return self.dense(self.hidden(history))

    def encode_last(self, history: History) -> Tensor:
        return self.dense(at(self.hidden(history), (history.lengths - 1).clamp(min=0)))

    def output(self) -> tuple[Tensor, Tensor | None]:
        return self.item_embedding.weight, self.item_bias if self.official else None

    def next_item(self, states: Tensor, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        if not self.official:
            return super().next_item(states, batch, rng)
        p, popularity = self.params, self.popularity
        columns = popularity.columns(batch.targets, p.n_sample, rng)
        scores = losses.column_scores(states, self.item_embedding.weight, self.item_bias, columns)
        if p.loss_type == "bpr_max":
            total = losses.bpr_max(scores, p.bpreg, p.elu_param)
        else:
            total = losses.in_batch_ce(scores, p.logq * popularity.log_q(columns, len(scores)))
        return {p.loss_type: Term(total, p.batch_size)} | self.penalty(batch)  # also of fewer rows


class _Stepped(nn.Module):
    """The authors' layers: a dropped output is what the next layer and the next step get."""

    def __init__(self, size: int, n_layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.GRU(size, size, batch_first=True) for _ in range(n_layers))
        self.dropout = ByteDropout(dropout)
        self.carried: Tensor = nn.Buffer(torch.zeros(n_layers, 1, size), persistent=False)

    def forward(self, x: Tensor, continues: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, D) -> the states (B, L, D), the last ones; ``continues`` as in ``Batch``."""
        rows = torch.full_like(x[:, 0, 0], -1).long() if continues is None else continues
        start, last = self.carried[:, None, rows] * (rows >= 0)[:, None], []
        for layer, state in zip(self.layers, start, strict=True):
            x = self.dropout(layer(x, state)[0])
            last.append(x[:, -1].detach())
        self.carried = self.carried if continues is None else torch.stack(last)
        return x, self.carried
