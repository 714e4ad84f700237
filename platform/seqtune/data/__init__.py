"""Interactions: reading, filtering, splitting and making them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seqtune.data.dataset import Dataset, k_core
from seqtune.data.files import find_all
from seqtune.data.generate import PRESETS, make_preset
from seqtune.data.kinds import GIVEN, LEAVE_ONE_OUT
from seqtune.data.prepared import fits, is_prepared, open_prepared
from seqtune.data.protocol import Protocol
from seqtune.data.public import PUBLIC, get, known
from seqtune.data.reading import Reading
from seqtune.data.remote import fetch, is_remote
from seqtune.data.split import Held, Split, leave_one_out
from seqtune.errors import UserError, nearest
from seqtune.options import JudgedOptions, ModelOptions
from seqtune.storage import refusing


def load(source: str, *, expected: Mapping[str, str] | None = None, **how: Any) -> Dataset:
    """Reads a file of interactions, or makes a generated set where ``source`` is a preset's name.

    ``how`` are the fields of ``Reading``. Users with fewer than ``min_user`` and items with fewer
    than ``min_item`` interactions are dropped until every one left has enough. ``expected`` has the
    names of the columns in other files of the same kind (``Dataset.columns``), which win over usual
    names. Raises UserError where the data cannot be used.
    """
    paths = locate(source)
    public = None if Path(source).exists() else known(source)
    named = {name: value for name, value in how.items() if value is not None}
    reading = Reading(**(dict(public.columns if public else {}) | named))
    min_user, min_item = reading.min_user, reading.min_item
    from seqtune.data.filters import candidates, filtered  # pyarrow takes a moment

    if paths and is_prepared(paths[0]):
        prepared = open_prepared(str(paths[0]))
        fits(prepared, reading, f"--data {source}")
        return candidates(prepared, reading.candidates)
    if not paths:
        dataset = filtered(make_preset(source), reading, {})
    else:
        from seqtune.data import readers  # pyarrow takes a moment that --help should not wait for

        sources = [(path, "train" if reading.test else "") for path in paths]
        for part, name in (("valid", reading.valid), ("test", reading.test)):
            sources += [(path, part) for path in (find_all(name, f"--{part}") if name else ())]
        dataset = readers.read(sources, reading, expected)
        if public is not None:
            dataset = replace(dataset, name=source, notes=(public.note, *dataset.notes))
    return candidates(k_core(dataset, min_user, min_item, source), reading.candidates)


def from_table(table: Any, name: str = "table", **how: Any) -> Dataset:
    """Takes the interactions of a pandas data frame or a pyarrow table, as ``load`` those of files.

    Raises:
        UserError: they cannot be used.
    """
    import pyarrow as pa

    from seqtune.data.filters import candidates
    from seqtune.data.readers import read_table

    if not isinstance(table, pa.Table):
        with warnings.catch_warnings():  # pyarrow's way with times of a zone will end with pandas 4
            warnings.simplefilter("ignore")
            table = pa.Table.from_pandas(table, preserve_index=False)
    reading = Reading(**how)
    dataset = read_table(table, name, reading)
    return candidates(k_core(dataset, reading.min_user, reading.min_item, name), reading.candidates)


def read(options: ModelOptions) -> Dataset:
    """Reads the interactions that the options name.

    Raises:
        UserError: they cannot be used, or nothing could be learnt from them.
    """
    dataset = load(options.data, **asdict(Reading.of(options)))
    if dataset.n_items < 2:
        raise UserError(f"--data {options.data}: has one item alone, and nothing can be ranked")
    return dataset


def protocol_of(options: JudgedOptions, dataset: Dataset, seed: int) -> Protocol:
    """Makes the protocol that the options ask for on these data.

    Raises:
        UserError: by it nothing could be learnt, or nobody would validate or be tested.
    """
    given = dataset.parts is not None
    protocol = Protocol.of(
        dataset,
        options.mask_seen,
        options.valid_users,
        seed,
        split_by=options.split or (GIVEN if given else LEAVE_ONE_OUT),
        targets=options.targets or "",
        validation=options.validation,
        cold_users=options.cold_users,
        cold_items=options.cold_items,
        sampled=options.sampled_metrics,
    )
    protocol.check(dataset, f"--data {options.data}")
    return protocol


def locate(source: str) -> list[Path]:
    """Returns the files that ``source`` names, none for a generated set, or raises a UserError.

    In place of files it may be a folder that was prepared; a public data set and a file elsewhere
    are downloaded on first use.
    """
    if source in PRESETS:
        return []
    with refusing(f"--data {source}"):
        if is_remote(source):
            return [fetch(source)]
        if not Path(source).exists() and (public := known(source)) is not None:
            return [get(public)]
        if not Path(source).suffix and "/" not in source and not Path(source).exists():
            near = nearest(source, [*PRESETS, *PUBLIC])
            raise UserError(f"--data {source}: no such file or generated set{near}")
        if is_prepared(folder := Path(source).expanduser()):
            return [folder]
        return find_all(source)


__all__ = [
    "Dataset",
    "Held",
    "Protocol",
    "Reading",
    "Split",
    "from_table",
    "leave_one_out",
    "load",
    "locate",
    "protocol_of",
    "read",
]
