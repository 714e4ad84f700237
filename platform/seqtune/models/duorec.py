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
rows of the batch on the same worker. ``train_mode`` prefixes is the authors' way. With rows, cross
entropy covers every position at once, and InfoNCE takes one target of each row at random: an
unbiased sample of the prefixes, in batches of other company, at a fraction of the cost.

Cost: per row as SASRec, and the last states of one view more (un, su) or two; with prefixes each
target is a row, so that an epoch takes 20 to 50 times as long. A prediction is that of SASRec.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from seqtune import losses
from seqtune.model import Batch, History, Sequences, Term, TransformerEncoder
from seqtune.nn import ItemEmbedding, Transformer, initialise_normal
from seqtune.params import LossWeight, Similarity, Temperature, TrainMode, TransformerParams


class DuoRec(TransformerEncoder):
    """Post-norm Transformer over items, trained by next items and by contrast."""

    class Params(TransformerParams):
        """The hyperparameters of DuoRec."""

        batch_size: int = Field(256, ge=1, le=1_000_000, description="Rows per optimizer step.")
        train_mode: TrainMode = "prefixes"
        ssl_type: Literal["un", "su", "us", "us_x"] = Field(
            "us_x",
            description="Contrast: un (dropout views), su (same-target views), us (both terms), "
            "us_x (dropout view against same-target view).",
        )
        ssl_lambda: LossWeight = 0.1
        ssl_lambda_sem: LossWeight = 0.1
        tau: Temperature = 1.0
        sim_type: Similarity = "dot"
        mask_same_target: bool = Field(
            False, description="Rows with the same target are not negatives of each other."
        )

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(params)
        initialise_normal(self)

    def prepare(self, sequences: Sequences) -> None:
        super().prepare(sequences)
        # The training targets grouped by item: those of item i are by_item[starts[i]:starts[i+1]].
        items = sequences.items[sequences.targets].long()
        order = items.argsort(stable=True)
        self.by_item = sequences.targets[order]
        self.starts = torch.searchsorted(
            items[order], torch.arange(self.n_items + 2, device=items.device)
        )
        self.place = torch.zeros_like(sequences.items, dtype=torch.long)  # inverse of by_item
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
        p = self.params
        states = self.states_at_targets(batch)  # (N, D)
        terms = self.next_item(states, batch, rng)
        events, targets, prefix = batch.events, batch.targets, cast(History, batch)
        if not batch.prefixes:
            one = one_per_row(batch, rng)
            states, events, targets = states[one], events[one], targets[one]
            prefix = self.sequences.before(events, p.max_seq_len)
        other = self.sequences.before(self.same_target(events, rng), p.max_seq_len)

        views = {"un": [prefix], "su": [other]}.get(p.ssl_type, [prefix, other])
        encoded = self.encode_views(*views)
        pairs = {
            "un": [("un", states, p.ssl_lambda)],
            "su": [("su", states, p.ssl_lambda_sem)],
            "us": [("un", states, p.ssl_lambda), ("su", states, p.ssl_lambda_sem)],
            "us_x": [("us_x", encoded[0], p.ssl_lambda_sem)],
        }[p.ssl_type]
        same = targets if p.mask_same_target else None
        for (name, first, weight), second in zip(pairs, encoded[-len(pairs) :], strict=True):
            total = losses.info_nce(first, second, p.tau, p.sim_type, same)
            terms[name] = Term(total, 2 * len(first), weight)
        return terms


def one_per_row(batch: Batch, rng: torch.Generator) -> Tensor:
    """Draws one target of each row: indices (B,) into the targets of a batch (N,)."""
    rows = batch.where // batch.items.shape[1]
    shuffle = torch.rand(len(rows), generator=rng, device=rows.device, dtype=torch.double)
    order = (rows + shuffle).argsort()
    every = torch.arange(len(batch.items), device=rows.device)
    return order[torch.searchsorted(rows[order], every)]
