"""Full-ranking evaluation: the rank of each held-out item among the whole catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqtune.data.split import Held, Split
from seqtune.model import Model, Sequences
from seqtune.nn import arithmetic

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]
# Histories scored at once: matmuls stay efficient, and scores below the 32 MiB (2^23 floats) beyond
# which memory comes from the system anew each time, page by page.
ROWS, SCORES = 256, 2**23


@dataclass(frozen=True)
class Ranking:
    """Ranks of the held-out items, and the recommended lists where asked for."""

    ranks: NDArray[np.float32]  # (M,) 1 is best; tied items count half, so .5 steps occur
    top: NDArray[np.int64] | None = None  # (Q, k) item ids, best first


@torch.no_grad()
@arithmetic("fp32")
def evaluate(
    model: Model,
    data: Sequences,
    split: Split,
    held: Held,
    *,
    mask_seen: bool,
    top_k: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Ranking:
    """Ranks each held-out item against every item of the catalogue.

    ``mask_seen`` leaves out the items of the history, but never the held-out item itself.
    With ``shard`` = (rank, ranks) each rank scores its part of the users and all get all ranks.
    A score that is not finite ranks last, so that a diverged model cannot win.
    """
    was_training = model.training
    model.eval()
    rank, ranks = shard
    first, ends = split.dataset.offsets[held.users], held.ends
    lengths = np.minimum(ends - first, model.params.max_seq_len)
    mine = np.argsort(lengths, kind="stable")[rank::ranks]  # similar lengths share a batch
    found: NDArray[np.float32] = np.zeros(len(lengths), dtype=np.float32)
    top = np.zeros((len(lengths), min(top_k, data.n_items)), dtype=np.int64)
    rows = max(1, min(ROWS, SCORES // (data.n_items + 1)))
    out = _no_candidates(split, data.items.device)
    for index in np.array_split(mine, max(1, -(-len(mine) // rows))):
        events, until = (
            torch.from_numpy(some[index]).to(data.items.device) for some in (held.events, ends)
        )
        of = None
        if held.until is not None:  # targets of a list stand together, and it is scored once
            until, of = until.unique_consecutive(return_inverse=True)
        history = data.before(until, int(lengths[index].max()))
        scores = model.score(history).float()  # (B, I + 1)
        if of is not None:
            scores, until = scores[of], until[of]
        if out is not None:
            scores[:, out] = -torch.inf
        n_seen = int((ends[index] - first[index]).sum()) if mask_seen else 0
        own = _leave_out(scores, data, events, until, n_seen)
        if top_k:
            top[index] = scores.topk(top.shape[1], dim=1).indices.cpu().numpy()
        found[index] = places(scores, own).cpu().numpy()
    model.train(was_training)
    if ranks > 1:
        found, top = _gather((found, top), ranks)
    return Ranking(found, top[held.lists] if top_k else None)


def _no_candidates(split: Split, device: torch.device) -> Tensor | None:
    """Returns the numbers of the items that are not ranked, if any are not."""
    ranked = split.dataset.candidates
    return None if ranked is None else torch.from_numpy(np.flatnonzero(~ranked) + 1).to(device)


def _leave_out(
    scores: Tensor, data: Sequences, events: Tensor, until: Tensor, n_seen: int
) -> Tensor:
    """Sets the items of histories to -inf; returns the score of the own item of each: (B,).

    That of the padding is -inf already, as ``Model.score`` promises.
    """
    rows = torch.arange(len(events), device=events.device)
    target = data.items[events].long()
    own = scores[rows, target]
    if n_seen:
        first = data.first_at(events)
        counts = until - first
        row = torch.repeat_interleave(rows, counts, output_size=n_seen)
        step = torch.arange(n_seen, device=events.device) - (counts.cumsum(0) - counts)[row]
        scores[row, data.items[first[row] + step]] = -torch.inf
        scores[rows, target] = own
    return own


def places(scores: Tensor, own: Tensor) -> Tensor:
    """Ranks the own item of each row, by its score (B,): 1 is best, and tied items count half.

    It overwrites the scores (B, I + 1), in floats for speed.

    The signs of the differences add up to those above less those below; the own item, its ties
    and what is not a number are neither.
    """
    n_items = scores.shape[1] - 1
    lead = scores.sub_(own[:, None]).sign_().sum(1)
    return torch.where(torch.isfinite(own), (n_items + 2 + lead) / 2, float(n_items))


def _gather(mine: Arrays, ranks: int) -> Arrays:
    """Adds up what each rank filled in; the rest is zero."""
    parts: list[Arrays] = [mine] * ranks
    torch.distributed.all_gather_object(parts, mine)
    found, top = zip(*parts, strict=True)
    return np.sum(found, axis=0), np.sum(top, axis=0)
