"""Interactions: reading, filtering, splitting and making them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seqtune.data.dataset import Dataset, k_core
from seqtune.data.files import find
from seqtune.data.generate import PRESETS, make_preset
from seqtune.data.prepared import fits, is_prepared, open_prepared
from seqtune.data.protocol import Protocol
from seqtune.data.split import Held, Split, leave_one_out
from seqtune.errors import UserError, nearest
from seqtune.options import JudgedOptions, ModelOptions
from seqtune.storage import refusing

FEWEST = 4  # events of a user: one to learn from, its target, and the two that are held out


def load(
    source: str,
    *,
    user_col: str | None = None,
    item_col: str | None = None,
    time_col: str | None = None,
    min_user: int = 3,
    min_item: int = 1,
    expected: Mapping[str, str] | None = None,
) -> Dataset:
    """Reads a file of interactions, or makes a generated set where ``source`` is a preset's name.

    Users with fewer than ``min_user`` and items with fewer than ``min_item`` interactions are
    dropped until every one left has enough. ``expected`` has the names of the columns in other
    files of the same kind (``Dataset.columns``), which win over usual names. Raises UserError
    where the data cannot be used.
    """
    path = locate(source)
    if path is not None and is_prepared(path):
        prepared = open_prepared(str(path))
        fits(prepared, min_user, min_item, f"--data {source}")
        return prepared
    if path is None:
        dataset = make_preset(source)
    else:
        from seqtune.data import readers  # pyarrow takes a moment that --help should not wait for

        columns = {"user": user_col, "item": item_col, "time": time_col}
        dataset = readers.read(path, columns, expected)
    return k_core(dataset, min_user, min_item, source)


def read(options: ModelOptions) -> Dataset:
    """Reads the interactions that the options name.

    Raises:
        UserError: they cannot be used, or nothing could be learnt from them.
    """
    dataset = load(
        options.data,
        user_col=options.user_col,
        item_col=options.item_col,
        time_col=options.time_col,
        min_user=options.min_user,
        min_item=options.min_item,
    )
    if dataset.n_items < 2:
        raise UserError(f"--data {options.data}: has one item alone, and nothing can be ranked")
    if np.diff(dataset.offsets).max() < FEWEST:
        raise UserError(
            f"--data {options.data}: no user has more than {FEWEST - 1} events, of which the last "
            f"two are held out; at least one user needs {FEWEST}"
        )
    return dataset


def protocol_of(options: JudgedOptions, dataset: Dataset, seed: int) -> Protocol:
    """Makes the protocol that the options ask for on these data."""
    return Protocol.of(dataset, options.mask_seen, options.valid_users, seed)


def locate(source: str) -> Path | None:
    """Returns the file that ``source`` names, None for a generated set, or raises a UserError.

    In place of a file it may be a folder that was prepared.
    """
    if source in PRESETS:
        return None
    with refusing(f"--data {source}"):
        if not Path(source).suffix and "/" not in source and not Path(source).exists():
            near = nearest(source, PRESETS)
            raise UserError(f"--data {source}: no such file or generated set{near}")
        if is_prepared(folder := Path(source).expanduser()):
            return folder
        return find(source)


__all__ = [
    "Dataset",
    "Held",
    "Protocol",
    "Split",
    "leave_one_out",
    "load",
    "locate",
    "protocol_of",
    "read",
]
