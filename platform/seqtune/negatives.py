"""Negatives: which items a target is compared with, and which of them must not count.

Letters as in ``losses``: N targets in B rows, I items with ids 1..I, k negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqtune.errors import UserError

Sharing = Literal["position", "row", "batch"]

REDRAWS = 3  # of rejected negatives; those still rejected are masked


class Negatives(NamedTuple):
    """Negatives of N targets in B rows."""

    items: Tensor  # (N, k), (B, k) or (k,): drawn for each position, row, or the batch
    sharing: Sharing
    rejected: Tensor | None = None  # (N, k) True where a negative must not count


@dataclass(frozen=True)
class Sampler:
    """How negatives are drawn: uniformly from 1..I, or some of them from a pool."""

    n_items: int
    k: int  # negatives of a target
    sharing: Sharing  # whether each position, row or the batch has negatives of its own
    # What is drawn again ``REDRAWS`` times, then masked: nothing, the target, or all that the user
    # has seen. What several targets share is masked at once, but for what a row's user has seen.
    reject: Literal["none", "target", "seen"]
    seen: Tensor | None = None  # the keys of what was seen (``seen_keys``), for reject seen
    n_pool: int = 0  # so many of the k are drawn from the distinct items of the pool

    def draw(
        self, targets: Tensor, rows: Tensor, users: Tensor, rng: torch.Generator, pool: Tensor
    ) -> Negatives:
        """Draws the negatives of targets (N,) that stand in rows (N,), 0..B-1, of users (B,).

        ``pool`` holds item ids of any shape, say the items of the batch; 0 is none. ``rng`` is on
        the device of the targets.
        """
        if self.k < 1:
            raise UserError("neg_samples must be at least 1 for a loss that samples, not 0")
        if self.reject == "seen" and self.seen is None:
            raise ValueError("reject='seen' needs the keys of what was seen")
        shape = {"position": (len(targets), self.k), "row": (len(users), self.k)}
        draw = self._uniform(shape.get(self.sharing, (self.k,)), rng, pool)
        items = draw()
        if self.reject == "none":
            return Negatives(items, self.sharing)
        again = self.sharing == "position" or (self.sharing, self.reject) == ("row", "seen")
        for _ in range(REDRAWS if again else 0):
            items = torch.where(self._rejected(items, targets, rows, users), draw(), items)
        rejected = self._rejected(items, targets, rows, users)
        if self.reject == "seen" and self.sharing != "position":
            rejected = rejected[rows]  # (B, k) -> (N, k)
        return Negatives(items, self.sharing, rejected)

    def _uniform(
        self, shape: tuple[int, ...], rng: torch.Generator, pool: Tensor
    ) -> Callable[[], Tensor]:
        """Returns what draws items of that shape, the first ``n_pool`` of each k from the pool."""
        if self.n_pool:
            ids, fresh = distinct(pool)
            nth = fresh.cumsum(0)

        def draw() -> Tensor:
            items = torch.randint(1, self.n_items + 1, shape, generator=rng, device=rng.device)
            if self.n_pool:
                place = (*shape[:-1], self.n_pool)
                u = torch.rand(place, generator=rng, device=rng.device, dtype=torch.double)
                items[..., : self.n_pool] = ids[torch.searchsorted(nth, 1 + (u * nth[-1]).long())]
            return items

        return draw

    def _rejected(self, items: Tensor, targets: Tensor, rows: Tensor, users: Tensor) -> Tensor:
        """Says which must not count: (N, k), but (B, k) of what users have seen, where shared."""
        if self.reject == "target":
            # Compared as int32: half the bytes.
            own = items.int().index_select(0, rows) if self.sharing == "row" else items
            return own == targets[:, None]
        assert self.seen is not None
        owners = (users[rows] if self.sharing == "position" else users)[:, None]
        return contains(self.seen, owners * (self.n_items + 1) + items)


def seen_keys(users: Tensor, items: Tensor, n_items: int) -> Tensor:
    """Returns the sorted keys ``user * (I + 1) + item`` of events: (E,), (E,) -> (E',)."""
    keys: Tensor = (users.long() * (n_items + 1) + items).unique()
    return keys


def contains(keys: Tensor, wanted: Tensor) -> Tensor:
    """Returns for each value whether it is among the sorted keys; same shape as ``wanted``."""
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    found: Tensor = keys[at] == wanted
    return found


def distinct(items: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the ids sorted (M,), and which are the first of their kind (M,), padding aside.

    Unlike ``unique`` it does not make a GPU wait.
    """
    ids = items.flatten().sort().values
    return ids, (ids > 0) & (ids != F.pad(ids, (1, 0))[:-1])


class Popularity(NamedTuple):
    """How often items become columns that all targets of a step share: targets, then samples."""

    log_count: Tensor  # (I + 1,) of training events, -inf where there are none
    edges: Tensor  # (I + 1,) cumulative probabilities, in float64 for long catalogues
    alpha: float

    @classmethod
    def of(cls, counts: Tensor, alpha: float) -> Popularity:
        """From the counts (I + 1,): what occurs is sampled ~ count ** alpha, all else never."""
        weights = counts.double().pow(alpha) * (counts > 0)
        edges = weights.cumsum(0)
        return cls(counts.float().log(), edges / edges[-1], alpha)

    def columns(self, targets: Tensor, n_sample: int, rng: torch.Generator) -> Tensor:
        """Returns the targets (N,) and a sample with repetitions: (N + n_sample,)."""
        points = torch.rand(n_sample, generator=rng, device=targets.device, dtype=torch.float64)
        return torch.cat([targets, torch.searchsorted(self.edges, points, right=True)])

    def log_q(self, columns: Tensor, n_targets: int) -> Tensor:
        """Returns log count of the targets, log count ** alpha of the samples: (N + n_sample,)."""
        log_count = self.log_count[columns]
        return torch.cat([log_count[:n_targets], self.alpha * log_count[n_targets:]])
