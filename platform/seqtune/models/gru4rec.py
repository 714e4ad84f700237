"""A recurrent network (GRU) over the history, one loss at every position.

Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016, arXiv
1511.06939; Hidasi & Karatzoglou, Recurrent Neural Networks with Top-k Gains for Session-based
Recommendations, CIKM 2018, arXiv 1706.03847.

variant=sequence is the model that RecBole and others call GRU4Rec: whole histories, cross entropy
over all items. variant=official is the authors' own: sessions in parallel, gradients through one
step, scores of the targets of a step and of ``n_sample`` items. Their defaults are
``variant=official train_mode=sessions layers=100 dropout_prob=0 batch_size=64 optimizer=adagrad
learning_rate=0.05 epochs=10``; ``elu_param=0`` compares the scores themselves. What they call

- layers=[100, 50] is ``layers=100/50``, in place of ``num_layers`` and ``hidden_size``;
- constrained_embedding=True is ``item_input=shared``: the last size is that of item vectors;
- embedding=N is ``item_input=separate embedding_size=N``, neither is ``item_input=one_hot``;
- dropout_p_embed is ``dropout_prob``, which with one_hot drops states of the first layer.

Cost: O(L (D H + H^2)), L steps in turn, and ce O(I D) a target; official scores B + n_sample items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from seqtune import losses
from seqtune.model import Batch, Contract, Encoder, History, Sequences, Term
from seqtune.models._stepped import Stepped
from seqtune.negatives import Popularity
from seqtune.nn import ByteDropout, ItemEmbedding, at, initialise
from seqtune.params import (
    Dropout,
    Hidden,
    ItemDropout,
    LayerSizes,
    RecurrentDepth,
    Sources,
    Trained,
)


class GRU4Rec(Encoder):
    """GRU over items; in variant sequence, a linear layer back to the size of an item vector."""

    class Params(Trained):
        """The hyperparameters of GRU4Rec."""

        variant: Literal["sequence", "official"] = Field(
            "sequence",
            description="The network is RecBole's (sequence) or the authors' own (official).",
        )
        hidden_size: Hidden = 128
        n_layers: RecurrentDepth = Field(1, validation_alias="num_layers")
        layers: LayerSizes = ""
        item_input: Literal["shared", "separate", "one_hot"] = Field(
            "shared",
            description="Items enter official by the output's table (shared), by one of "
            "embedding_size (separate), or straight into the gates (one_hot).",
        )
        dropout_prob: ItemDropout = 0.3  # the authors' dropout_p_embed
        dropout_p_hidden: Dropout = Field(0.0, description="This share of states is dropped.")
        train_mode: Literal["rows", "prefixes", "sessions"] = Field(
            "rows", description="A sample is a row or a prefix; official steps through sessions."
        )  # type: ignore[assignment]  # one more than the usual
        loss_type: Literal["ce", "sampled_softmax", "bce", "bpr", "gbce", "bpr_max"] = Field(
            "ce", description="Official takes ce or bpr_max over the columns of a step."
        )  # type: ignore[assignment]  # one more than the usual
        n_sample: int = Field(2048, ge=0, le=1_000_000, description="A step samples so many items.")
        sample_alpha: float = Field(0.5, ge=0, le=1, description="Items are drawn by count^alpha.")
        logq: float = Field(0.0, ge=0, le=1, description="Official corrects ce for the sampling.")
        bpreg: float = Field(1.0, ge=0, le=100, description="A penalty in bpr_max has this weight.")
        elu_param: float = Field(0.5, ge=0, le=100, description="Scores in bpr_max pass this ELU.")

        sources: ClassVar[Sources] = {
            "variant hidden_size dropout_prob train_mode": "ours: RecBole's, whose network suits "
            "histories of users",
            "n_layers layers item_input loss_type": "official",
            "dropout_p_hidden n_sample sample_alpha": "official",
            "logq bpreg elu_param": "official",
        }

        @model_validator(mode="after")
        def _agrees_with_variant(self) -> Self:
            rules = {"train_mode": ["rows", "prefixes"], "layers": [""], "item_input": ["shared"]}
            rules["loss_type"] = ["ce", "sampled_softmax", "bce", "bpr", "gbce"]
            if self.variant == "official":
                rules = {"train_mode": ["sessions"], "loss_type": ["ce", "bpr_max"]}
            for name, allowed in rules.items():
                if (value := getattr(self, name)) not in allowed:
                    rule = f"{name} must be {' or '.join(allowed) or 'empty'}"
                    raise ValueError(f"{rule} with variant {self.variant}, not {value!r}")
            return self

    contract = Contract(settings=({"variant": "official", "train_mode": "sessions"},))
    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        p, size, self.official = params, params.embedding_size, params.variant == "official"
        if self.official:
            sizes = [int(n) for n in p.layers.split("/") if n] or [p.hidden_size] * p.n_layers
            rates = p.dropout_prob, p.dropout_p_hidden
            self.item_embedding = ItemEmbedding(n_items, sizes[-1])
            self.stepped = Stepped(n_items, sizes, p.item_input, size, rates)
            self.stepped.initialise(self.item_embedding)
            self.dense: Callable[[Tensor], Tensor] = nn.Identity()
            self.item_bias = ItemEmbedding(n_items, 1)
            nn.init.zeros_(self.item_bias.weight)
        else:
            self.item_embedding = ItemEmbedding(n_items, size)
            self.dropout = ByteDropout(p.dropout_prob)
            self.state_dropout: Callable[[Tensor], Tensor] = ByteDropout(p.dropout_p_hidden)
            self.gru = nn.GRU(size, p.hidden_size, p.n_layers, bias=False, batch_first=True)
            self.dense = nn.Linear(p.hidden_size, size)
            initialise(self.item_embedding, nn.init.xavier_normal_)
            initialise(self.gru, nn.init.xavier_uniform_)

    def prepare(self, sequences: Sequences) -> None:
        super().prepare(sequences)
        self.popularity = Popularity.of(sequences.counts(), self.params.sample_alpha)

    def hidden(self, history: History) -> Tensor:  # the recurrent states: (B, L) -> (B, L, H)
        if self.official:
            states: Tensor = self.stepped(history, self.item_embedding)
            return states
        return self.state_dropout(self.gru(self.dropout(self.item_embedding(history.items)))[0])

    def encode(self, history: History) -> Tensor:
        return self.dense(self.hidden(history))

    def encode_last(self, history: History) -> Tensor:
        return self.dense(at(self.hidden(history), (history.lengths - 1).clamp(min=0)))

    def output(self) -> tuple[Tensor, Tensor | None]:
        return self.item_embedding.weight, self.item_bias.weight[:, 0] if self.official else None

    def next_item(self, states: Tensor, batch: Batch, rng: Generator) -> dict[str, Term]:
        if not self.official:
            return super().next_item(states, batch, rng)
        p, popularity = self.params, self.popularity
        columns = popularity.columns(batch.targets, p.n_sample, rng)  # (C,) targets, then samples
        vectors, bias = self.item_embedding(columns), self.item_bias(columns)  # (C, D), (C, 1)
        scores = losses.column_scores(states, vectors, bias.mT)
        if p.loss_type == "bpr_max":
            total = losses.bpr_max(scores, p.bpreg, p.elu_param)
        else:
            total = losses.in_batch_ce(scores, p.logq * popularity.log_q(columns, len(scores)))
        return {p.loss_type: Term(total, p.batch_size)} | self.penalty(batch)  # also of fewer rows
