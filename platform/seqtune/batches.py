"""Training batches from flat arrays.

A window is a run of events of one user: its items are the input, and from ``loss_from`` on each
carries a target, the item that follows. Rows are windows with a target at every position, prefixes
are windows with one at the last. Sessions are windows of one event, each tied to the one before.
Nothing here loops over samples.
"""

from __future__ import annotations

import hashlib
import heapq
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from seqtune.data.split import Split
from seqtune.errors import UserError
from seqtune.model import Batch, Sequences
from seqtune.params import Trained

Ints = NDArray[np.int64]
CHUNK = 50  # batches within which windows are sorted by length: full batches, yet random ones


@dataclass(frozen=True)
class Windows:
    """Runs of events: inputs are events start..end-1, targets follow events loss_from..end-1."""

    start: Ints  # (W,)
    end: Ints  # (W,)
    loss_from: Ints  # (W,)
    prefixes: bool
    # Sessions mode alone, where batches and their order are fixed:
    steps: Ints | None = None  # (S + 1,) windows steps[i]..steps[i + 1] - 1 are batch i
    continues: Ints | None = None  # (W,) see Batch

    def __len__(self) -> int:
        return len(self.start)

    def batch_size(self, params: Trained) -> int:
        """Returns the windows of an optimizer step that ``tokens_per_batch`` comes to, if any."""
        if not params.tokens_per_batch:
            return params.batch_size
        inputs = int((self.end - self.start).sum())
        return max(1, round(params.tokens_per_batch * len(self) / max(inputs, 1)))

    def n_batches(self, batch_size: int) -> int:
        """Returns the number of batches of an epoch."""
        if self.steps is not None:
            return len(self.steps) - 1
        return sum(-(-len(chunk) // batch_size) for chunk in self.chunks(batch_size))

    def chunks(self, batch_size: int) -> list[Ints]:
        """Splits the windows into equal parts of at most ``CHUNK`` batches."""
        return np.array_split(np.arange(len(self)), -(-len(self) // (CHUNK * batch_size)))


def rows(split: Split, max_seq_len: int, stride: int = 0) -> Windows:
    """Windows with a loss at every position; every user with two training events has one.

    Histories longer than ``max_seq_len`` keep their last window (stride 0, as the papers do), or
    are covered by windows ``stride`` apart in which each target is trained exactly once, with at
    least ``max_seq_len - stride`` items before it.
    """
    if stride > max_seq_len:
        raise UserError(
            f"window_stride {stride} must be at most max_seq_len {max_seq_len}, "
            "else some targets would be left out"
        )
    first, last = split.dataset.offsets[:-1], split.train_end - 1  # inputs: first..last-1
    first, last = first[last > first], last[last > first]
    extra = -(-np.maximum(last - first - max_seq_len, 0) // stride) if stride else 0 * first
    index = np.repeat(np.arange(len(first)), extra + 1)
    back = np.arange(len(index)) - np.repeat(np.cumsum(extra + 1) - extra - 1, extra + 1)
    end = last[index] - back * stride
    start = np.maximum(first[index], end - max_seq_len)
    oldest = back == extra[index]
    loss_from = np.where(oldest, start, end - stride)
    return Windows(start, end, loss_from, prefixes=False)


def prefixes(split: Split, max_seq_len: int) -> Windows:
    """Windows with one target each: every training event but a user's first is a target."""
    targets = target_events(split)
    first = np.repeat(split.dataset.offsets[:-1], np.diff(split.dataset.offsets))[targets]
    return Windows(np.maximum(first, targets - max_seq_len), targets, targets - 1, prefixes=True)


def sessions(split: Split, n_slots: int) -> Windows:
    """Session-parallel batches: each of ``n_slots`` sessions advances by one event per batch.

    A session is a whole training history; they start in order of time, each in the slot that is
    free first. Every target is trained exactly once: when no session is left to start, the last
    batches are smaller.
    """
    data = split.dataset
    first, last = data.offsets[:-1], split.train_end - 1  # inputs: first..last-1
    first, last = first[last > first], last[last > first]
    order = np.argsort(data.times[first], kind="stable")
    first, lengths = first[order], (last - first)[order]

    slots = [(0, slot) for slot in range(n_slots)]  # a heap: (step at which it is free, slot)
    taken = []
    for length in lengths.tolist():
        taken.append(slots[0])
        heapq.heapreplace(slots, (slots[0][0] + length, slots[0][1]))
    begin, slot = np.array(taken, dtype=np.int64).reshape(-1, 2).repeat(lengths, axis=0).T

    nth = np.arange(len(begin)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # of its session
    event, step = np.repeat(first, lengths) + nth, begin + nth
    order = np.lexsort((slot, step))
    steps = np.concatenate([[0], np.cumsum(np.bincount(step))])
    row = np.empty_like(order)
    row[order] = np.arange(len(order))
    row -= steps[step]  # within its batch
    continues = np.where(nth > 0, np.roll(row, 1), -1)  # the event before it stands before it
    event, continues = event[order], continues[order]
    return Windows(event, event + 1, event, False, steps, continues)


def target_events(split: Split) -> Ints:
    """Returns the events that are training targets: all training events but each user's first."""
    offsets = split.dataset.offsets
    event = np.arange(offsets[-1])
    counts = np.diff(offsets)
    first, end = np.repeat(offsets[:-1], counts), np.repeat(split.train_end, counts)
    return np.flatnonzero((event > first) & (event < end))


def windows(split: Split, params: Trained) -> Windows:
    """Returns the windows that the model's ``train_mode`` asks for."""
    mode: str = params.train_mode  # a model may have more than the usual two
    if mode == "sessions":
        if params.tokens_per_batch:
            raise UserError(
                "tokens_per_batch: a batch of train_mode sessions has one item of each of its "
                "batch_size sessions; set batch_size alone"
            )
        return sessions(split, params.batch_size)
    if mode == "prefixes":
        return prefixes(split, params.max_seq_len)
    return rows(split, *params.row_shape)


def sequences(split: Split, device: torch.device, times: bool = False) -> Sequences:
    """Puts the events on the device, as models index them; on the CPU they stay where they lie."""
    data = split.dataset

    def tensor(array: NDArray[np.integer]) -> torch.Tensor:
        with warnings.catch_warnings():  # torch would rather have what can be written to
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(array).to(device)

    return Sequences(
        items=tensor(data.items),
        offsets=tensor(data.offsets),
        train_end=tensor(split.train_end),
        n_items=data.n_items,
        times=tensor(data.times) if times else None,
        clock=data.clock != "order",
    )


_kept: dict[tuple[str, str, str, bool], Sequences] = {}  # the last of kept_sequences, alone


def kept_sequences(split: Split, device: torch.device, times: bool = False) -> Sequences:
    """Returns what ``sequences`` does, from before where data, split and device are those of then.

    A process that runs one trial after another puts its events on the device once. Whoever gets
    them leaves them as they are.
    """
    trained = hashlib.blake2b(np.ascontiguousarray(split.train_end).data, digest_size=16)
    key = (split.dataset.fingerprint, trained.hexdigest(), str(device), times)
    if key not in _kept:
        _kept.clear()  # first: two might not fit
        _kept[key] = sequences(split, device, times)
    return _kept[key]


def epoch(
    windows: Windows,
    data: Sequences,
    *,
    batch_size: int,
    seed: tuple[int, int],
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields the batches of one epoch, in an order that depends on ``seed`` alone.

    Windows of similar length share a batch, trimmed to its longest row, and batches have about
    equal numbers of targets. With ``shard`` = (rank, ranks), every rank takes its part of the same
    batches. In sessions mode the batches are those of the windows, the same in every epoch, and for
    one rank alone.
    """
    if windows.steps is not None:
        for first, end in pairwise(windows.steps.tolist()):
            yield gather(windows, np.arange(first, end), data)
        return
    rank, ranks = shard
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(windows))
    lengths = windows.end - windows.start
    parts: list[Ints] = []
    for places in windows.chunks(batch_size):
        chunk = order[places]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        parts += _split(chunk, (windows.end - windows.loss_from)[chunk], batch_size, ranks)
    for i in rng.permutation(len(parts)):
        yield gather(windows, parts[i][rank::ranks], data)


def _split(chunk: Ints, targets: Ints, batch_size: int, ranks: int) -> list[Ints]:
    """Splits windows sorted by length into batches with about equal numbers of ``targets``.

    Batches of equal rows would give a target in a short history the weight of many in long ones,
    since each step is a mean over its targets: models then learn as if from far fewer steps. A
    batch has ``batch_size`` windows on average, and at least one for each rank.
    """
    n = -(-len(chunk) // batch_size)
    nth, done = np.arange(1, n), np.cumsum(targets)
    edges = np.searchsorted(done, done[-1] * nth / n)
    edges = np.maximum.accumulate(np.maximum(edges - ranks * nth, 0)) + ranks * nth
    return np.split(chunk, np.minimum(edges, len(chunk) - ranks * (n - nth)))


def gather(windows: Windows, index: Ints, data: Sequences) -> Batch:
    """Puts windows together in a batch on the device of ``data``, from one small copy to it.

    The shapes are known beforehand, so no GPU waits.
    """
    parts = np.stack([windows.start[index], windows.end[index], windows.loss_from[index]])
    lengths, n_targets = parts[1] - parts[0], parts[1] - parts[2]
    width, total = int(lengths.max()), int(n_targets.sum())
    device = data.items.device
    start, end, loss_from = torch.from_numpy(parts).to(device, non_blocking=True)

    event = start[:, None] + torch.arange(width, device=device)  # (B, L)
    real = event < end[:, None]
    event = event.clamp(max=len(data.items) - 1)
    counts = end - loss_from
    row = torch.repeat_interleave(counts, output_size=total)  # of each target
    before = loss_from - (counts.cumsum(0) - counts)
    last = before[row] + torch.arange(total, device=device)  # the event before each target
    continues = windows.continues
    return Batch(
        users=data.users_at(start),
        items=data.items[event].long() * real,
        lengths=end - start,
        times=None if data.times is None else data.times[event] * real,
        where=row * width + (last - start[row]),
        targets=data.items[last + 1].long(),
        events=last + 1,
        prefixes=windows.prefixes,
        continues=None if continues is None else torch.from_numpy(continues[index]).to(device),
    )
