"""Nearest neighbours, untrained: items of similar recent sessions, near where they meet yours.

Garg et al., Sequence and Time Aware Neighborhood for Session-based Recommendations, SIGIR 2019.
s is the history to go on, a session n the end of one user's training history:

    sim(s, n) = sum over i in s and n of exp((p(i, s) - l(s)) / lambda_1), / sqrt(|s| |n|)
    w(n)      = sim(s, n) exp(-(t(s) - t(n)) / lambda_2), for the k sessions where it is largest
    score(i)  = sum over n with i of w(n) exp(-|p(i, n) - p(i*, n)| / lambda_3)

p is the position of an item's last occurrence, l(s) the last position, |n| the number of different
items, t the time of the last event, i* the item of n that is most recent in s (session-rec takes
the one that comes last in n). Both s and n are cut to their last ``max_seq_len`` items. A lambda of
inf switches its factor off; without all three it is SKNN. For ``lambda_1`` and ``lambda_3`` null is
half the average session length, too much where that is tens of items. Sessions in a shop last for
minutes and histories of users for months, hence the days of ``lambda_2``.

Neighbours come from the ``sample_size`` most recent sessions that share an item with s, exactly so;
never the user's own. Ties for the k-th place go to any. Scores are divided by the largest w(n),
which changes no order. Items that no neighbour has follow by popularity, with scores below 0.

A session that ends later than s is no neighbour. Trained models have no such rule: they learn from
what others did later. ``causal_neighbors=false`` compares with them on their terms, and counts time
both ways. Without times, as over HTTP, s ends after all sessions. In serving everyone is a
stranger: of a user who was trained on, the own session is a neighbour like any other.

Cost: no training, so there are no ``epochs``, ``embedding_size`` and the like. A prediction reads
up to max_seq_len * sample_size places of an index by item, a number of every session and the items
of k sessions: a few milliseconds.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from seqtune.model import History, Model, Sequences
from seqtune.models._sessions import Sessions, runs
from seqtune.params import Params as AnyParams
from seqtune.params import Sources

CELLS = 2**22  # of the largest table of a step: tens of MB
DAY = 86_400_000  # milliseconds


class STAN(Model):
    """Votes of the most similar sessions, without parameters."""

    class Params(AnyParams):
        """The hyperparameters of STAN."""

        k: int = Field(
            500, ge=1, le=100_000, description="The k most similar sessions are neighbours."
        )
        sample_size: int = Field(
            5000,
            ge=1,
            le=1_000_000,
            description="This many most recent sessions may be neighbours.",
        )
        lambda_1: float | None = Field(
            4.0, gt=0, description="Items count less by their positions from the end; inf: alike."
        )
        lambda_2: float = Field(
            365.0, gt=0, description="Sessions count less by their age in DAYS; inf: alike."
        )
        lambda_3: float | None = Field(
            2.0, gt=0, description="A neighbour's items count less by distance from the shared."
        )
        causal_neighbors: bool = Field(
            True,
            description="Neighbours must have ended before the history did, if there is a clock.",
        )

        sources: ClassVar[Sources] = {
            "k sample_size": "ours: session-rec's for Diginetica; the authors published no code",
            "lambda_1 lambda_3": "ours: histories of users are longer than sessions",
            "lambda_2": "ours: histories of users last for months, sessions for minutes",
            "causal_neighbors": "ours: what ends later knows the future",
        }

    params: Params
    uses_times = True

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.sessions = Sessions(n_items, n_users)

    def prepare(self, sequences: Sequences) -> None:
        self.sessions.build(sequences, self.params.max_seq_len)

    def score(self, history: History) -> Tensor:
        p, sessions, last = self.params, self.sessions, (history.lengths - 1).clamp(min=0)
        until = (sessions.times[-1:] + 1).repeat(len(last))
        if history.times is not None:
            until = history.times.gather(1, last[:, None])[:, 0]
        read = history.items.shape[1] * min(p.sample_size + 1, int(sessions.counts.max()))
        rows = CELLS // max(len(sessions), self.n_items, read, p.k * p.max_seq_len) or 1
        each = (x.split(rows) for x in (history.users, history.items, history.lengths, until))
        return torch.cat([self._score(*some) for some in zip(*each, strict=True)])

    def _score(self, users: Tensor, items: Tensor, lengths: Tensor, until: Tensor) -> Tensor:
        p, sessions, shape = self.params, self.sessions, (len(users), self.n_items + 1)
        half = len(sessions.items) / len(sessions) / 2

        # The different items of each row, at their last occurrence.
        ordered, place = items.sort(dim=1, stable=True)
        last = (ordered > 0) & (ordered != F.pad(ordered[:, 1:], (0, 1)))
        row, item, position = last.nonzero()[:, 0], ordered[last], place[last] + 1
        weight = ((position - lengths[row]) / (p.lambda_1 or half)).exp().clamp(min=1e-30)
        where = items.new_zeros(shape)
        where[row, item] = position

        # The sessions that share some, and the k most similar of them.
        before = torch.full_like(until, len(sessions))
        if p.causal_neighbors and sessions.clock:
            before = torch.searchsorted(sessions.times, until)
        found, sim = sessions.sharing(users, row, item, weight, before, p.sample_size)
        days = (until[:, None] - sessions.times[found]).abs().double() / DAY * sessions.clock
        log_w = sim.double().log() - sessions.first.diff()[found].log() / 2 - days / p.lambda_2
        best = log_w.topk(min(p.k, log_w.shape[1]))
        w = (best.values - best.values[:, :1]).exp().float()
        row, column = (w > 0).nonzero(as_tuple=True)  # false also for nan: a row without any
        session, w = found.gather(1, best.indices)[row, column], w[row, column]

        # Their votes, weighted by the distance from i*.
        of, place = runs(sessions.first[session], sessions.first[session + 1])
        item, position, row = sessions.items[place], sessions.positions[place], row[of]
        key = where[row, item] * p.max_seq_len + position
        star = key.new_zeros(len(w)).scatter_reduce(0, of, key, "amax") % p.max_seq_len
        vote = w[of] * (-(position - star[of]).abs() / (p.lambda_3 or half)).exp()
        scores = w.new_zeros(shape)
        scores.view(-1).index_add_(0, row * shape[1] + item, vote)
        unreached = sessions.counts / (sessions.counts.max() + 1) - 1
        scores = scores.where(scores > 0, unreached)
        scores[:, 0] = -torch.inf
        return scores
