"""SASRec with contrastive views: the history cropped, masked or reordered at random.

Xie et al., Contrastive Learning for Sequential Recommendation (CL4SRec), ICDE 2022, arXiv
2010.14395. To the next-item loss of SASRec it adds ssl_lambda InfoNCE(h_1, h_2) between the last
states of two views of each history s of n items, made by two operators:

    crop     a contiguous piece of floor(crop_eta n) items, at least one
    mask     floor(mask_gamma n) items become MASK
    reorder  a contiguous piece of floor(reorder_beta n) items is shuffled

A history of one item is its own view. Negatives are the other rows of the batch,
so batch_size is part of the objective. Body and main loss are those of SASRec's defaults.

The paper samples negatives (``loss_type=sampled_softmax``) and takes dot products (``sim_type``),
up to D for states of norm sqrt(D): over rows they drown the main loss for hundreds of steps (on
MovieLens 100K the model stays at popularity's level), hence cos. The version in the code of
DuoRec's authors takes dot products, cross entropy and ``train_mode=prefixes``, and writes its views
into the training data; here they are copies.

Cost: a step is SASRec's and a pass over two views of each row: up to twice the time, less with a
large catalogue. A prediction costs what SASRec's does.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from seqtune import losses
from seqtune.model import Batch, History, Term, TransformerEncoder
from seqtune.nn import ItemEmbedding, Transformer, draw_positions, initialise_normal
from seqtune.params import Blocks, GatherNegatives, LossWeight, Similarity, Sources, Temperature


class CL4SRec(TransformerEncoder):
    """Post-norm Transformer over items, trained by next items and by contrast of altered rows."""

    class Params(Blocks):
        """The hyperparameters of CL4SRec."""

        ssl_lambda: LossWeight = 0.1
        tau: Temperature = 1.0
        sim_type: Similarity = "cos"
        gather_negatives: GatherNegatives = True
        crop_eta: float = Field(
            0.6, gt=0, le=1, description="Crop keeps the share eta of a history."
        )
        mask_gamma: float = Field(
            0.3, ge=0, le=1, description="Mask hides the share gamma of the items."
        )
        reorder_beta: float = Field(
            0.6, ge=0, le=1, description="Reorder shuffles the share beta of a history."
        )
        distinct_ops: bool = Field(
            True, description="The two views of a row are made by different operators."
        )

        sources: ClassVar[Sources] = {
            "tau": "paper",
            "gather_negatives": "ours: so that several workers train as one does",
            "sim_type": "ours: over rows, dot products drown the main loss",
            "ssl_lambda": "ours: the weight that DuoRec gives its contrast",
            "crop_eta mask_gamma reorder_beta distinct_ops": "ours: as in the code of DuoRec's "
            "authors, since the paper's own was never released",
        }

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.mask = n_items + 1
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size, n_special=1)
        self.body = Transformer.of(params)
        initialise_normal(self)

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        p = self.params
        terms = super().loss(batch, rng)
        if p.ssl_lambda:
            first, second = self.encode_views(*self.views(batch, rng))
            total = losses.info_nce(first, second, p.tau, p.sim_type, gather=p.gather_negatives)
            terms["ssl"] = Term(total, 2 * len(first), p.ssl_lambda)
        return terms

    def views(self, history: History, rng: torch.Generator) -> tuple[History, ...]:
        """Returns two altered copies of histories (B, L)."""
        p, n_rows, device = self.params, len(history.users), history.users.device
        first = torch.randint(3, (n_rows,), generator=rng, device=device)  # crop, mask, reorder
        step = torch.randint(int(p.distinct_ops), 3, (n_rows,), generator=rng, device=device)
        operator = torch.cat([first, (first + step) % 3])[:, None]  # (2B, 1)

        items, lengths = history.items.repeat(2, 1), history.lengths.repeat(2)
        hidden = draw_positions(part(lengths, p.mask_gamma), lengths, items.shape[1], rng)
        masked = items.masked_fill(hidden, self.mask)
        reordered = reorder(items, lengths, part(lengths, p.reorder_beta), rng)
        kept = part(lengths, p.crop_eta).clamp(min=1)
        cropped = crop(items, lengths, kept, rng)
        items = torch.where(operator == 1, masked, reordered).where(operator > 0, cropped)
        lengths = torch.where(operator[:, 0] > 0, lengths, kept)
        pairs = zip(items.chunk(2), lengths.chunk(2), strict=True)
        return tuple(History(history.users, *pair) for pair in pairs)


def part(lengths: Tensor, rate: float) -> Tensor:
    """Returns floor(rate n), or 0 for a single item: (B,) -> (B,)."""
    return (rate * lengths.double()).floor().long() * (lengths > 1)


def crop(items: Tensor, lengths: Tensor, kept: Tensor, rng: torch.Generator) -> Tensor:
    """Keeps a random piece of ``kept`` (B,) items: (B, L), (B,) -> (B, L)."""
    steps = torch.arange(items.shape[1], device=items.device)
    index = (begin(lengths, kept, rng) + steps).clamp(max=len(steps) - 1)
    return items.gather(1, index).masked_fill(steps >= kept[:, None], 0)


def reorder(items: Tensor, lengths: Tensor, counts: Tensor, rng: torch.Generator) -> Tensor:
    """Shuffles a random piece of ``counts`` (B,) items: (B, L), (B,) -> (B, L)."""
    start, counts = begin(lengths, counts, rng), counts[:, None]
    steps = torch.arange(items.shape[1], device=items.device)
    u = torch.rand(items.shape, generator=rng, device=items.device, dtype=torch.double)
    inside = (steps >= start) & (steps < start + counts)
    keys = torch.where(inside, start + u * counts, steps)  # those inside stay among themselves
    return items.gather(1, keys.argsort(dim=1, stable=True))


def begin(lengths: Tensor, counts: Tensor, rng: torch.Generator) -> Tensor:
    """Draws where a piece of ``counts`` items begins: (B,), (B,) -> (B, 1)."""
    u = torch.rand(len(lengths), generator=rng, device=lengths.device, dtype=torch.double)
    return (u * (lengths - counts + 1)).long()[:, None]
