"""What neighbours are found in: the sessions of training, in order of time, indexed by item."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqtune.model import Sequences

BY_DATA = ("times", "first", "items", "positions", "by_item")  # buffers as long as data make them


class Sessions(nn.Module):
    """The end of each user's training history: S sessions, E different items in them.

    All of it is in buffers, so that a state_dict carries it, and loading one needs no data.
    """

    def __init__(self, n_items: int, n_users: int) -> None:
        super().__init__()
        none = torch.zeros(0, dtype=torch.long)
        self.times: Tensor = nn.Buffer(none)  # (S,) of the last event, increasing
        self.first: Tensor = nn.Buffer(none.new_zeros(1))  # (S + 1,) where a session's items begin
        self.items: Tensor = nn.Buffer(none.int())  # (E,) the different items of each session
        self.positions: Tensor = nn.Buffer(none.int())  # (E,) of their last occurrence
        self.by_item: Tensor = nn.Buffer(none)  # (E,) item * S + session, increasing
        self.counts: Tensor = nn.Buffer(none.new_zeros(n_items + 1))  # training events of each item
        self.clock: Tensor = nn.Buffer(torch.tensor(True))  # whether times can be compared
        nobody = torch.full((n_users + 1,), -1)
        self.of_user: Tensor = nn.Buffer(nobody)  # session of a user; -1: none, as of strangers
        self.register_load_state_dict_pre_hook(_make_room)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.times)

    def build(self, data: Sequences, length: int) -> None:
        """Indexes the training events, the last ``length`` of each user."""
        assert data.times is not None
        self.clock.fill_(data.clock)
        n, device = data.n_items + 1, data.items.device
        kept = data.trained.sort().values
        users, sizes = data.users[kept].unique_consecutive(return_counts=True)
        ends = sizes.cumsum(0)
        self.times, order = data.times[kept][ends - 1].sort(stable=True)
        session = torch.arange(len(order), device=device)
        self.of_user.fill_(-1)[users[order]] = session
        back = ends.repeat_interleave(sizes) - torch.arange(len(kept), device=device)
        kept, place = kept[back <= length], (length - back)[back <= length]  # 0 .. length - 1
        keys = self.of_user[data.users[kept]] * n + data.items[kept]
        keys, at = keys.unique(return_inverse=True)
        self.positions = torch.zeros_like(keys).scatter_reduce(0, at, place, "amax").int()
        self.items = (keys % n).int()
        self.first = torch.searchsorted(keys, torch.arange(len(order) + 1, device=device) * n)
        self.by_item = (keys % n * len(order) + keys // n).sort().values
        self.counts = data.counts()

    def sharing(
        self, users: Tensor, row: Tensor, item: Tensor, weight: Tensor, before: Tensor, newest: int
    ) -> tuple[Tensor, Tensor]:
        """Finds the ``newest`` sessions that share an item with a row, the user's own left out.

        Rows have users (B,), and items with weights: row, item, weight (N,). Session numbers are
        below ``before`` (B,). Returns sessions (B, C), the newest first, and the weight of the
        items shared (B, C): 0 where a row has fewer than C.
        """
        n_rows, n = len(users), len(self)
        # Each is among the newest of an item too; one to spare, for the own.
        begin = torch.searchsorted(self.by_item, item * n)
        end = torch.searchsorted(self.by_item, item * n + before[row])
        of, place = runs(torch.maximum(begin, end - newest - 1), end)
        total = weight.new_zeros(n_rows, n + 1)
        total.view(-1).index_add_(0, row[of] * (n + 1) + self.by_item[place] % n, weight[of])
        own = self.of_user[users.clamp(max=len(self.of_user) - 1)]
        total.scatter_(1, own.where(own >= 0, n)[:, None], 0.0)  # n: a column of nobody

        row, session = total.nonzero(as_tuple=True)
        counts = row.bincount(minlength=n_rows)
        rank = counts.cumsum(0)[row] - torch.arange(1, len(row) + 1, device=row.device)
        row, session, rank = (x[rank < newest] for x in (row, session, rank))
        found = row.new_zeros(n_rows, min(int(counts.max()), newest))
        found[row, rank] = session
        shared = torch.zeros_like(found, dtype=total.dtype)
        shared[row, rank] = total[row, session]
        return found, shared


def _make_room(sessions: Sessions, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Gives buffers the lengths of those that are about to be loaded."""
    for name in BY_DATA:
        if (given := state.get(prefix + name)) is not None:
            setattr(sessions, name, torch.empty_like(given, device=sessions.counts.device))


def runs(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Lists the numbers begin .. end - 1 of each run: which run (M,), and the numbers (M,)."""
    sizes = end - begin
    of = torch.repeat_interleave(sizes)
    shift = begin - sizes.cumsum(0) + sizes
    return of, shift[of] + torch.arange(len(of), device=of.device)
