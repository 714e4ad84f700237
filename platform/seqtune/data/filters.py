"""Which rows of a file count: by rating, by kind of event, by date, and each but once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqtune.data.dataset import Dataset, keep
from seqtune.data.kinds import moment
from seqtune.data.reading import Reading
from seqtune.errors import UserError, nearest
from seqtune.words import counted

PARTS = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
SHOWN = 8  # values in a message
MOST_GROUPS, NO_GROUP = 20, "(none)"  # of users

Mask = NDArray[np.bool_]


def filtered(dataset: Dataset, reading: Reading, beside: Mapping[str, pa.Array]) -> Dataset:
    """Leaves out the rows that do not count, and says so in notes.

    ``beside`` are further columns of the file in the order of the events, by role: ratings, kinds
    of events, parts.

    Raises:
        UserError: a value is none, or nothing is left.
    """
    for role, option, needed in (
        ("rating", "--min-rating", reading.min_rating is not None),
        ("event", "--events", bool(reading.events)),
        ("split", "--split-col", reading.split_col is not None),
    ):
        if needed and role not in beside:
            raise UserError(f"{option}: {dataset.name} has no such column")
    if "split" in beside:
        dataset = replace(dataset, parts=parts_of(beside["split"]))
    if "user-group" in beside:
        dataset = in_groups(dataset, beside["user-group"])
    n, every = dataset.n_interactions, np.ones(dataset.n_interactions, bool)
    for what, inside in _asked(dataset, reading, beside):
        every &= inside
        if not every.any():
            raise UserError(f"{dataset.name}: no row is {what}")
        if not inside.all():
            left_out = n - int(inside.sum())
            note = f"{left_out:,} of {n:,} rows are left out, which are not {what}"
            dataset = replace(dataset, notes=(*dataset.notes, note))
    dataset = dataset if every.all() else keep(dataset, every)
    dataset = without_repeats(without_copies(dataset), reading.drop_repeats)
    return dataset if dataset.parts is None else in_order_of_parts(dataset)


def _asked(
    dataset: Dataset, reading: Reading, beside: Mapping[str, pa.Array]
) -> Iterator[tuple[str, Mask]]:
    """Yields what rows must be, and which are."""
    if reading.min_rating is not None:
        yield f"rated {reading.min_rating:g} or more", rated(beside["rating"], reading.min_rating)
    if reading.events:
        yield f"of kind {' or '.join(reading.events)}", of_kind(beside["event"], reading.events)
    if reading.since:
        yield f"of {reading.since} or later", dataset.times >= moment(reading.since, "--since")
    if reading.before:
        yield f"before {reading.before}", dataset.times < moment(reading.before, "--before")


def rated(column: pa.Array, least: float) -> Mask:
    """Says which rows have a rating that is not lower; those without one have not."""
    try:
        values = pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        texts = pc.cast(column, pa.string())
        odd = next(one for one in texts.to_pylist() if one is not None and not _number(one))
        raise UserError(
            f"--min-rating {least:g}: {odd!r} is no number; is --rating-col the right column?"
        ) from None
    mask: Mask = pc.fill_null(pc.greater_equal(values, least), False).to_numpy(zero_copy_only=False)
    return mask


def of_kind(column: pa.Array, kinds: Sequence[str]) -> Mask:
    """Says which rows are events of these kinds."""
    texts = pc.cast(column, pa.string())
    known = [one for one in pc.unique(texts).to_pylist() if one is not None]
    for kind in kinds:
        if kind not in known:
            there = ", ".join(sorted(known)[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
            near = nearest(kind, known) or f"; there are {there}"
            raise UserError(f"--events {kind}: no row has that kind{near}")
    mask: Mask = pc.is_in(texts, pa.array(kinds)).to_numpy(zero_copy_only=False)
    return mask


def parts_of(column: pa.Array) -> NDArray[np.int8]:
    """Returns 0 for rows that train, 1 for those that validate and 2 for those that test."""
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(column, pa.string())))
    codes = texts.dictionary_encode()
    known = codes.dictionary.to_pylist()
    odd = [one for one in known if one not in PARTS]
    if odd or codes.null_count:
        raise UserError(
            f"--split-col: a row has {odd[0]!r}; write train, valid or test"
            if odd
            else f"--split-col: {counted(codes.null_count, 'row')} without a value"
        )
    of = np.array([PARTS[one] for one in known], np.int8)
    found: NDArray[np.int8] = of[codes.indices.to_numpy()]
    return found


def in_groups(dataset: Dataset, column: pa.Array) -> Dataset:
    """Puts each user into the group that its last row names, or into none.

    Raises:
        UserError: there are too many groups to tell something of each.
    """
    texts = pc.fill_null(pc.utf8_trim_whitespace(pc.cast(column, pa.string())), "")
    codes = pc.if_else(pc.equal(texts, ""), NO_GROUP, texts).dictionary_encode()
    names, each = codes.dictionary.to_pylist(), codes.indices.to_numpy()
    if len(names) > MOST_GROUPS:
        there = ", ".join(names[:3])
        raise UserError(
            f"--user-group-col: has {len(names):,} values, such as {there}; at most {MOST_GROUPS} "
            "groups can be told apart"
        )
    last = each[dataset.offsets[1:] - 1]
    mixed = len(np.unique(dataset.users[each != last[dataset.users]]))
    notes = dataset.notes
    if mixed:
        notes += (f"{counted(mixed, 'user')} in several groups: that of the last row counts",)
    return replace(dataset, groups=last.astype(np.int16), group_names=tuple(names), notes=notes)


def candidates(dataset: Dataset, file: str | None) -> Dataset:
    """Restricts rankings to the items that a file names: a line each, or a column of its own.

    Raises:
        UserError: the file cannot be read, or names none of the items.
    """
    if file is None:
        return dataset
    wanted = {text.removesuffix(".0") for text in _named_in(Path(file).expanduser(), file)}
    own = [str(one) for one in dataset.item_ids.tolist()]
    inside = np.array([one in wanted for one in own])
    if not inside.any():
        raise UserError(
            f"--candidates {file}: names none of the {dataset.n_items:,} items, such as {own[0]!r}"
        )
    note = f"{int(inside.sum()):,} of {dataset.n_items:,} items are ranked, those of {file}"
    return replace(dataset, candidates=inside, notes=(*dataset.notes, note))


def _named_in(path: Path, file: str) -> list[str]:
    """Returns the items that a file names, as text."""
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() not in (".parquet", ".pq"):
            lines = path.read_text(encoding="utf-8").splitlines()
            return [line.strip().strip('"') for line in lines if line.strip()]
        table = pq.read_table(path)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--candidates {file}: cannot be read ({why})") from None
    if table.num_columns != 1:
        raise UserError(
            f"--candidates {file}: has {table.num_columns} columns, and needs one, of items"
        )
    return [str(one) for one in table.column(0).to_pylist() if one is not None]


def without_copies(dataset: Dataset) -> Dataset:
    """Leaves out rows whose user, item and time are those of another, but for the first."""
    users = dataset.users
    again = copies(users, dataset.items, dataset.times)
    if not again.any():
        return dataset
    return keep(replace(dataset, notes=(*dataset.notes, copies_note(int(again.sum())))), ~again)


def copies(users: NDArray[Any], items: NDArray[Any], times: NDArray[Any]) -> Mask:
    """Says which rows, in the order of users and times, are copies of one before: (E,)."""
    again = np.zeros(len(users), bool)
    alike = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    if alike.any():  # no other row can be one, or have one
        near = np.flatnonzero(np.concatenate([[False], alike]) | np.concatenate([alike, [False]]))
        order = near[np.lexsort((near, items[near], times[near], users[near]))]
        one, other = order[1:], order[:-1]
        same = (users[one] == users[other]) & (times[one] == times[other])
        again[one[same & (items[one] == items[other])]] = True
    return again


def copies_note(n: int) -> str:
    """Says how many rows were left out."""
    return f"{counted(n, 'row')} left out, {'a copy' if n == 1 else 'copies'} of another"


def without_repeats(dataset: Dataset, which: str) -> Dataset:
    """Leaves out an item that a user has had just before (``consecutive``), or ever (``all``)."""
    if which == "none":
        return dataset
    users = dataset.users
    again = np.zeros(dataset.n_interactions, bool)
    if which == "consecutive":
        again[1:] = (users[1:] == users[:-1]) & (dataset.items[1:] == dataset.items[:-1])
    else:
        pairs = users * (dataset.n_items + 1) + dataset.items
        again[:] = True
        again[np.unique(pairs, return_index=True)[1]] = False
    if not again.any():
        return dataset
    n = int(again.sum())
    when = "just before" if which == "consecutive" else "before"
    note = f"{counted(n, 'row')} left out, of an item that the user had {when}"
    return keep(replace(dataset, notes=(*dataset.notes, note)), ~again)


def in_order_of_parts(dataset: Dataset) -> Dataset:
    """Puts what trains before what validates and that before what tests, in each history."""
    assert dataset.parts is not None
    users = dataset.users
    order = np.lexsort((dataset.times, dataset.parts, users))
    if (order[1:] > order[:-1]).all():
        return dataset
    n = len(np.unique(users[order != np.arange(len(order))]))
    note = f"{counted(n, 'user')} with test or validation events earlier than others: as if later"
    return replace(
        dataset,
        items=dataset.items[order],
        times=dataset.times[order],
        parts=dataset.parts[order],
        notes=(*dataset.notes, note),
    )


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
