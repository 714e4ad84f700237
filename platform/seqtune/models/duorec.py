"""SASRec with contrastive views: another dropout mask, and another history with the same target.

Qiu et al., Contrastive Learning for Representation Degeneration Problem in Sequential
Recommendation (DuoRec), WSDM 2022, arXiv 2110.05730. Body and loss follow the authors' code:
RecBole's SASRec with cross entropy over all items, plus InfoNCE between states

    h    of the prefix of a target,
    h'   of the same prefix under another dropout mask,
    h_s  of a prefix drawn uniformly from the other training prefixes with the same target
         (the prefix itself where it is the only one),

    un    ssl_lambda InfoNCE(h, h')
    su    ssl_lambda_sem InfoNCE(h, h_s)
    us    both
    us_x  ssl_lambda_sem InfoNCE(h', h_s): one term, the DuoRec of the paper.

The dropout is the augmentation: rates far below .5 make h and h' alike. Negatives are the other
rows of the batch. ``train_mode`` prefixes is the authors' way. With rows, cross
entropy covers every position at once, and InfoNCE takes one target of each row at random: an
unbiased sample of the prefixes, in batches of other company, at a fraction of the cost.

Cost: per row as SASRec, and the last states of one view more (un, su) or two; with prefixes each
target is a row, so that an epoch takes 20 to 50 times as long. A prediction is that of SASRec.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from seqtune import losses
from seqtune.model import Batch, History, Sequences, Term, TransformerEncoder
from seqtune.nn import ItemEmbedding, Transformer, initialise_normal
from seqtune.params import (
    BatchSize,
    Blocks,
    GatherNegatives,
    LossWeight,
    Similarity,
    Sources,
    Temperature,
    TrainMode,
)


class DuoRec(TransformerEncoder):
    """Post-norm Transformer over items, trained by next items and by contrast."""

    class Params(Blocks):
        """The hyperparameters of DuoRec."""

        batch_size: BatchSize = 256
        train_mode: TrainMode = "prefixes"
        ssl_type: Literal["un", "su", "us", "us_x"] = Field(
            "us_x",
            description="The contrast takes dropout views (un), same-target views (su), both in "
            "two terms (us), or one against the other (us_x).",
        )
        ssl_lambda: LossWeight = Field(
            0.1, description="The term of dropout views has this weight, lambda."
        )
        ssl_lambda_sem: LossWeight = Field(
            0.1, description="The term of same-target views has this weight."
        )
        tau: Temperature = 1.0
        sim_type: Similarity = "dot"
        gather_negatives: GatherNegatives = True
        mask_same_target: bool = Field(
            False, description="Rows with the same target are not negatives of each other."
        )

        sources: ClassVar[Sources] = {
            "batch_size train_mode ssl_type ssl_lambda ssl_lambda_sem": "official",
            "tau sim_type mask_same_target": "official",
            "gather_negatives": "ours: so that several workers train as one does",
        }

    params: Params
    by_item: Tensor  # (T,) the training targets, those of an item together
    starts: Tensor  # (I + 2,) where those of each item begin
    place: Tensor  # (E,) where an event stands in by_item

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(params)
        initialise_normal(self)

    def prepare(self, sequences: Sequences) -> None:
        super().prepare(sequences)
        items = sequences.items[sequences.targets].long()
        order = items.argsort(stable=True)
        self.by_item = sequences.targets[order]
        self.starts = torch.searchsorted(
            items[order], torch.arange(self.n_items + 2, device=items.device)
        )
        self.place = torch.zeros_like(sequences.items, dtype=torch.long)
        self.place[self.by_item] = torch.arange(len(order), device=items.device)

    def same_target(self, events: Tensor, rng: torch.Generator) -> Tensor:
        """Draws for each event another training event of the same item: (B,) -> (B,)."""
        items = self.sequences.items[events].long()
        start, count = self.starts[items], self.starts[items + 1] - self.starts[items]
        own = self.place[events] - start
        u = torch.rand(len(events), generator=rng, device=events.device, dtype=torch.double)
        other = (u * (count - 1)).long()
        other += other >= own  # any but the own place
        return self.by_item[start + torch.where(count > 1, other, own)]

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        p, states = self.params, self.states_at_targets(batch)  # (N, D)
        terms = self.next_item(states, batch, rng)
        prefix: History = batch
        events, targets = batch.events, batch.targets
        if not batch.prefixes:
            one = one_per_row(batch, rng)
            states, events, targets = states[one], events[one], targets[one]
            prefix = self.sequences.before(events, p.max_seq_len)

        def term(first: Tensor, second: Tensor, weight: float) -> Term:
            same = targets if p.mask_same_target else None
            total = losses.info_nce(first, second, p.tau, p.sim_type, same, p.gather_negatives)
            return Term(total, 2 * len(first), weight)

        if p.ssl_type == "un":
            (dropped,) = self.encode_views(prefix)
            return terms | {"un": term(states, dropped, p.ssl_lambda)}
        other = self.sequences.before(self.same_target(events, rng), p.max_seq_len)
        if p.ssl_type == "su":
            (same,) = self.encode_views(other)
            return terms | {"su": term(states, same, p.ssl_lambda_sem)}
        dropped, same = self.encode_views(prefix, other)
        if p.ssl_type == "us":
            terms["un"] = term(states, dropped, p.ssl_lambda)
            return terms | {"su": term(states, same, p.ssl_lambda_sem)}
        return terms | {"us_x": term(dropped, same, p.ssl_lambda_sem)}


def one_per_row(batch: Batch, rng: torch.Generator) -> Tensor:
    """Draws one target of each row: indices (B,) into the targets of a batch (N,)."""
    rows = batch.where // batch.items.shape[1]
    shuffle = torch.rand(len(rows), generator=rng, device=rows.device, dtype=torch.double)
    order = (rows + shuffle).argsort()
    every = torch.arange(len(batch.items), device=rows.device)
    return order[torch.searchsorted(rows[order], every)]
