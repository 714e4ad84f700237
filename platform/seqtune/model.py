"""The contract of a model.

Letters for shapes: B rows of a batch, L positions, D size of a state, I items, V rows of the item
table (I + 1, more where a model adds special items), N targets of a batch, U users.

Item ids are 1..I; 0 is padding. Rows are padded on the right.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqtune import losses
from seqtune.catalogue import check_model
from seqtune.group import gathered
from seqtune.negatives import Negatives, Sampler, seen_keys
from seqtune.nn import Transformer
from seqtune.params import Params as AnyParams
from seqtune.params import Trained


@dataclass(frozen=True)
class History:
    """Histories to score, newest item last."""

    users: Tensor  # (B,) index of the user, 0..U-1; U and beyond: a user not seen in training
    items: Tensor  # (B, L) item ids, right-padded with 0
    lengths: Tensor  # (B,) real items of each row
    times: Tensor | None = None  # (B, L) Unix milliseconds, for models with uses_times
    continues: Tensor | None = None  # (B,) row of the batch before that holds the event before, or
    # -1 where a session begins; in the first batch of an epoch all do. None: a history is whole


@dataclass(frozen=True, kw_only=True)
class Batch(History):
    """Histories with the targets that follow them.

    In rows mode most positions carry a target, the item that follows. In prefixes mode only the
    last position of each row does, so N = B and ``where`` is increasing in the row. In sessions
    mode a row is one event, L = 1 and N = B, and ``continues`` ties it to the batch before.
    """

    where: Tensor  # (N,) flat positions b * L + t with a target
    targets: Tensor  # (N,) the item that follows
    events: Tensor  # (N,) index of the target in Sequences.items
    prefixes: bool = False

    def grid(self) -> Tensor:
        """Returns the targets in their positions, 0 where there is none: (B, L)."""
        flat = torch.zeros_like(self.items).flatten()
        return flat.index_copy(0, self.where, self.targets).view_as(self.items)


class Term(NamedTuple):
    """One term of a loss on one worker: sum over its targets, their number, and a weight.

    The loop divides by the number of targets over ALL workers, so that a gradient does not depend
    on how a batch was split.
    """

    total: Tensor  # scalar
    count: int  # type: ignore[assignment]  # of targets; hides tuple.count
    weight: float = 1.0


@dataclass(frozen=True)
class Sequences:
    """The training events of all users, flat, on the device.

    ``items[first[e]:e]`` are the events before event ``e`` of the same user. Events of the test
    and validation targets are not among ``targets`` and must not be read as training data.
    """

    items: Tensor  # (E,) int32, item of each event, users one after another
    offsets: Tensor  # (U + 1,) user u has the events offsets[u]..offsets[u + 1] - 1
    train_end: Tensor  # (U,) and trains on those before train_end[u]
    n_items: int
    times: Tensor | None = None  # (E,) Unix milliseconds, for models with uses_times
    clock: bool = True  # whether times of different users can be compared

    @property
    def n_users(self) -> int:
        """The number of users, U."""
        return len(self.train_end)

    def users_at(self, events: Tensor) -> Tensor:
        """Returns the user of each event."""
        return torch.searchsorted(self.offsets, events, right=True) - 1

    def first_at(self, events: Tensor) -> Tensor:
        """Returns the first event of the user of each event."""
        return self.offsets[self.users_at(events)]

    @cached_property
    def users(self) -> Tensor:
        """The user of each event: (E,), 8 bytes each, made where a model asks for all of them."""
        return torch.arange(self.n_users, device=self.items.device).repeat_interleave(
            self.offsets.diff(), output_size=len(self.items)
        )

    @cached_property
    def first(self) -> Tensor:
        """The first event of the user of each event: (E,), 8 bytes each, as ``users``."""
        return self.offsets[self.users]

    @cached_property
    def targets(self) -> Tensor:
        """The events that are training targets: (T,), all training events but each user's first."""
        event = torch.arange(len(self.items), device=self.items.device)
        is_target = (event > self.first) & (event < self.train_end[self.users])
        return event[is_target]

    @property
    def trained(self) -> Tensor:
        """All training events, the targets first: (E',)."""
        first = self.offsets[:-1]
        return torch.cat([self.targets, first[self.train_end > first]])

    def counts(self) -> Tensor:
        """Returns the number of training events of each item: (I + 1,)."""
        return self.items[self.trained].bincount(minlength=self.n_items + 1)

    @cached_property
    def ends(self) -> Tensor:
        """The last training target of each user, -1 where there is none: (U,).

        Training ends there: later events are held out.
        """
        last = self.train_end - 1
        return last.where(last > self.offsets[:-1], -1)

    def before(self, events: Tensor, length: int) -> History:
        """Returns the prefixes that end just before ``events`` (B,), last ``length`` items."""
        users = self.users_at(events)
        start = torch.maximum(self.offsets[users], events - length)
        lengths = events - start
        steps = torch.arange(int(length), device=events.device)
        index = start[:, None] + steps  # (B, length)
        real = steps < lengths[:, None]
        index = index.clamp(max=len(self.items) - 1)
        items = self.items[index].masked_fill(~real, 0).long()
        times = None if self.times is None else self.times[index].masked_fill(~real, 0)
        return History(users, items, lengths, times)


@dataclass(frozen=True)
class Contract:
    """What ``tests/contract`` asks of a model that is not what it asks of all others."""

    # Further settings in which everything is tried, beside the defaults.
    settings: tuple[Mapping[str, object], ...] = ()
    # Values that make a model small, and values with which it learns the test's cycle fast.
    small: Mapping[str, object] = field(default_factory=dict)
    learning: Mapping[str, object] = field(default_factory=dict)
    # Values with which a loss has no chance in it, beside those of dropout.
    certain: Mapping[str, object] = field(default_factory=dict)
    # Share of the items after a cycle of items that the model must rank first when it is trained:
    # in each train mode, with any other choice, and with the choices named here.
    learns: float = 0.95
    learns_anyhow: float = 0.5
    learns_with: Mapping[tuple[str, object], float] = field(default_factory=dict)
    # The items of a history score high whatever follows: they are near to its mean, or were never
    # a negative. They are left out of that ranking.
    favours_history: bool = False
    # Weights that were published, but have no influence.
    idle_weights: frozenset[str] = frozenset()


class Model(nn.Module):
    """A sequential recommender.

    A subclass declares ``Params``, and computes ``loss`` and ``score``. Its constructor takes the
    hyperparameters, the number of items and of users, and draws its initial weights from torch's
    global generator, which the caller seeds. A model that is not trained has no loss, and its
    ``Params`` are no ``Trained``.
    """

    class Params(AnyParams):
        """The hyperparameters of the model."""

    uses_times: ClassVar[bool] = False  # History.times is filled
    contract: ClassVar[Contract] = Contract()  # for the tests
    params: AnyParams
    n_items: int
    n_users: int

    def __init__(self, params: AnyParams, n_items: int, n_users: int) -> None:
        super().__init__()
        self.params, self.n_items, self.n_users = params, n_items, n_users

    def prepare(self, sequences: Sequences) -> None:
        """Called once before training with the training events; builds indexes where needed."""

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        """Returns the loss terms of a batch by name; ``rng`` lives on the batch's device."""
        raise NotImplementedError

    def score(self, history: History) -> Tensor:
        """Returns scores of every item as the next one: (B, L) -> (B, I + 1); column 0 is -inf."""
        raise NotImplementedError

    def forward(self, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        """The loss: what DistributedDataParallel calls."""
        return self.loss(batch, rng)


class Encoder(Model):
    """A model whose score is the dot product of a state and an item vector (plus a bias).

    A subclass sets ``self.item_embedding`` (or overrides ``output``) and computes ``encode``;
    the state at position t may depend on items 1..t only, else it must allow prefixes alone.
    """

    class Params(Trained):
        """The hyperparameters of the model."""

    params: Trained
    item_embedding: nn.Embedding
    sequences: Sequences  # the training events
    in_batch: float = 0.0  # share of the negatives that are drawn from the items of the batch
    seen: Tensor | None = None  # keys of what users have seen, where negatives are rejected by it
    log_q: Tensor | None = None  # (V,) subtracted from scores in a loss that samples, where given

    def encode(self, history: History) -> Tensor:
        """Returns the state after each item: (B, L) -> (B, L, D).

        A model whose states see later items leaves this out and gives ``encode_last`` alone.
        """
        raise NotImplementedError

    def encode_last(self, history: History) -> Tensor:
        """Returns the state after the last item: (B, L) -> (B, D). Override where it is cheaper."""
        states = self.encode(history)
        last = (history.lengths - 1).clamp(min=0)
        return states[torch.arange(len(states), device=states.device), last]

    def compile_encoder(self) -> None:
        """Has the encoder compiled when it first runs, once for all shapes."""
        for name in ("encode", "encode_last"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=True))

    def encode_views(self, *views: History) -> tuple[Tensor, ...]:
        """Returns what ``encode_last`` does for several histories (B, L), in few calls.

        On a GPU it is one call at full width. On a CPU, where looking at lengths costs no wait,
        rows of similar length share a call, cut to the longest: half the work on sparse data.
        """
        width = max(view.items.shape[1] for view in views)
        items = [F.pad(view.items, (0, width - view.items.shape[1])) for view in views]
        users, lengths = (
            torch.cat([getattr(v, key) for v in views]) for key in ("users", "lengths")
        )
        stacked = History(users, torch.cat(items), lengths)
        if users.device.type != "cpu":
            states = self.encode_last(stacked)
        else:
            order = lengths.argsort(stable=True)
            parts = []
            for rows in order.split(128):
                longest = max(1, int(lengths[rows[-1]]))
                part = History(users[rows], stacked.items[rows, :longest], lengths[rows])
                parts.append(self.encode_last(part))
            states = torch.cat(parts)[order.argsort()]
        return torch.split(states, [len(view.users) for view in views])

    def output(self) -> tuple[Tensor, Tensor | None]:
        """Returns the table (V, D) that states are compared with, and a bias (V,) or None."""
        return self.item_embedding.weight, None

    def states_at_targets(self, batch: Batch) -> Tensor:
        """Returns the states that predict the targets: (N, D)."""
        if batch.prefixes:
            return self.encode_last(batch)
        return self.encode(batch).flatten(0, 1).index_select(0, batch.where)

    def prepare(self, sequences: Sequences) -> None:
        """Keeps the events, and notes what users have seen where negatives are rejected by it."""
        p, self.sequences = self.params, sequences
        if p.reject == "seen" and p.loss_type != "ce":
            users = sequences.users
            events = torch.arange(len(users), device=users.device)
            kept = events <= sequences.ends[users]
            self.seen = seen_keys(users[kept], sequences.items[kept], self.n_items)

    def loss(self, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        """Returns the loss of predicting each target from the state before it."""
        return self.next_item(self.states_at_targets(batch), batch, rng)

    def next_item(self, states: Tensor, batch: Batch, rng: torch.Generator) -> dict[str, Term]:
        """Returns the terms of predicting ``batch.targets`` from states (N, D)."""
        kind = self.params.loss_type
        if kind == "ce":
            table, bias = self.output()
            total = losses.ce(states, table, batch.targets, self.n_items, bias)
        else:
            total = self.sampled_loss(states, batch, rng)
        return {kind: Term(total, len(batch.targets))} | self.penalty(batch)

    def sampled_loss(self, states: Tensor, batch: Batch, rng: torch.Generator) -> Tensor:
        """Returns the sum over targets of the loss that compares them with drawn negatives."""
        sparse = self.item_embedding.sparse
        return losses.over_candidates(
            self.sampled, states, *self.candidates(batch, rng), sparse=sparse
        )

    def sampled(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Returns the loss that ``params.loss_type`` names, of scores (N,) and (N, k)."""
        p = self.params
        return losses.sampled(p.loss_type, positive, negative, self.n_items, p.gbce_t)

    def candidate_scores(
        self, states: Tensor, batch: Batch, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the scores of the targets (N,) and of negatives (N, k), -inf where rejected."""
        return losses.scores(states, *self.candidates(batch, rng))

    def candidates(
        self, batch: Batch, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None, Tensor, Negatives, Tensor, int]:
        """Draws negatives; returns all that ``losses.scores`` needs beside the states."""
        (table, bias), negatives = self.output(), self.negatives(batch, rng)
        if self.log_q is not None:
            bias = -self.log_q if bias is None else bias - self.log_q
        return table, bias, batch.targets, negatives, batch.where, batch.items.shape[1]

    def negatives(self, batch: Batch, rng: torch.Generator) -> Negatives:
        """Draws ``neg_samples`` negatives for the targets of a batch, ``mn_ratio`` from it."""
        p = self.params
        sharing = p.neg_sharing
        if sharing == "auto":
            sharing = "row" if p.neg_samples >= 32 else "position"
        if batch.prefixes and sharing == "row":
            sharing = "position"  # a row has one target
        n_pool = int(self.in_batch * p.neg_samples)
        sampler = Sampler(self.n_items, p.neg_samples, sharing, p.reject, self.seen, n_pool)
        rows = batch.where // batch.items.shape[1]
        pool = gathered(batch.items.flatten())[0] if n_pool else batch.items
        return sampler.draw(batch.targets, rows, batch.users, rng, pool)

    def penalty(self, batch: Batch) -> dict[str, Term]:
        """Returns the L2 term of the item vectors of a batch; none where its weight is 0."""
        weight = self.params.reg_weight
        if weight == 0:
            return {}
        ids = torch.cat([batch.items.flatten(), batch.targets])
        return {"l2": Term(losses.l2(self.item_embedding.weight, ids), len(batch.items), weight)}

    def score(self, history: History) -> Tensor:
        """Returns state . item (+ bias), in fp32 whatever the precision of the encoder."""
        states, (table, bias) = self.encode_last(history), self.output()
        with torch.autocast(states.device.type, enabled=False):
            rows = table[: self.n_items + 1].float()
            if self.n_items < 2**16:  # beyond, the copy would cost more than it gains
                rows = losses.padded(rows)
            scores = (states.float() @ rows.T)[:, : self.n_items + 1]
        if bias is not None:
            scores = scores + bias[: self.n_items + 1]
        scores[:, 0] = -torch.inf
        return scores


class TransformerEncoder(Encoder):
    """An encoder whose states a Transformer makes of item vectors.

    A subclass sets ``self.item_embedding`` and ``self.body``, and overrides ``vectors`` where the
    input is more than a row of the table.
    """

    body: Transformer

    def vectors(self, history: History) -> Tensor:
        """Returns the item vectors at the input: (B, L) -> (B, L, D)."""
        x: Tensor = self.item_embedding(history.items)
        return x

    def encode(self, history: History) -> Tensor:
        """Returns the state after each item: (B, L) -> (B, L, D)."""
        states: Tensor = self.body(self.vectors(history), history.lengths)
        return states

    def encode_last(self, history: History) -> Tensor:
        """Returns the state after the last item: (B, L) -> (B, D), one query in the last block."""
        return self.body.last(self.vectors(history), history.lengths)


def model_class(name: str) -> type[Model]:
    """Returns the class of a model by name; an unknown name is a UserError."""
    module = importlib.import_module(f"seqtune.models.{check_model(name)}")
    found: type[Model] = next(
        value for key, value in vars(module).items() if key.lower() == name.lower()
    )
    return found


__all__ = [
    "Batch",
    "Contract",
    "Encoder",
    "History",
    "Model",
    "Sequences",
    "Term",
    "TransformerEncoder",
    "model_class",
]
