"""Data sets that lie in files which are mapped into memory, not read into it.

A folder holds ``items.npy``, ``times.npy`` and ``offsets.npy`` as ``Dataset`` has them, the own ids
(``user_ids``, ``item_ids``) as ``.npy`` where they are numbers and as ``.arrow`` where they are
text, and ``prepared.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from seqtune.data.dataset import Dataset, Ids
from seqtune.data.reading import ROWS, Reading
from seqtune.data.strings import Strings
from seqtune.errors import DamagedError, UserError
from seqtune.schema import FORMAT, checked

ABOUT = "prepared.json"


class About(TypedDict):
    """What ``prepared.json`` holds."""

    format: int
    name: str
    columns: dict[str, str]
    notes: list[str]
    min_user: int
    min_item: int
    n_repeats: int
    fingerprint: str


@dataclass(frozen=True, eq=False, repr=False)
class Prepared(Dataset):
    """A dataset in a folder: another process gets the folder's name, and maps it as well."""

    folder: str = ""

    def __reduce__(self) -> tuple[Callable[..., Dataset], tuple[str, str]]:
        return open_prepared, (self.folder, self.fingerprint)


def is_prepared(path: Path) -> bool:
    """Says whether a folder holds a data set that was prepared."""
    return (path / ABOUT).is_file()


def open_prepared(folder: str, fingerprint: str = "") -> Prepared:
    """Maps a data set into memory; ``fingerprint`` is what it must have.

    Raises:
        UserError: the folder cannot be read here, holds something else, or another data set.
    """
    path, again = Path(folder), "prepare it again with seqtune data prepare"
    try:
        about = checked(str(path / ABOUT), About, (path / ABOUT).read_bytes())
        if about["format"] != FORMAT:
            raise UserError(f"{folder}: is of another version of seqtune; {again}")
        arrays = {name: np.load(path / f"{name}.npy", "r") for name in ("items", "offsets")}
        times, ids = np.load(path / "times.npy", "r"), _ids(path, "user_ids")
        dataset = Prepared(
            about["name"],
            **arrays,
            times=times,
            user_ids=ids,
            item_ids=_ids(path, "item_ids"),
            columns=about["columns"],
            notes=tuple(about["notes"]),
            folder=str(path.absolute()),
        )
    except (OSError, ValueError, DamagedError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder}: cannot be read as a prepared data set ({why})") from None
    if fingerprint and about["fingerprint"] != fingerprint:
        raise UserError(f"{folder}: holds another data set than when the study began")
    # Counted when it was prepared: it would take a copy of all events.
    counted = {name: about[name] for name in ("n_repeats", "fingerprint")}
    dataset.__dict__.update(counted)
    return dataset


def fits(dataset: Prepared, reading: Reading, place: str) -> None:
    """Raises UserError where fewer were dropped than is asked for now."""
    about = json.loads((Path(dataset.folder) / ABOUT).read_bytes())
    usual = Reading()
    for name, asked in vars(reading).items():
        option = f"--{name.replace('_', '-')}"
        if name in ROWS and asked != getattr(usual, name):
            raise UserError(
                f"{place}: was prepared, and {option} is for files; leave it out, or the rows that "
                "do not count before"
            )
        if name in about and asked > about[name]:
            raise UserError(
                f"{place}: was prepared with {option} {about[name]}; prepare it again with "
                f"{option} {asked}, or leave the option out"
            )


def write_ids(path: Path, name: str, ids: Any) -> None:
    """Writes own ids: numbers (n,), or texts as a column of Arrow."""
    if isinstance(ids, np.ndarray) and ids.dtype != object:
        np.save(path / f"{name}.npy", ids)
        return
    import pyarrow as pa

    column = pa.array(ids, pa.large_string())
    table = pa.table({"id": column})
    with (
        pa.OSFile(str(path / f"{name}.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as to,
    ):
        to.write_table(table)


def _ids(path: Path, name: str) -> Ids:
    numbers = path / f"{name}.npy"
    if numbers.exists():
        found: Ids = np.load(numbers, "r")
        return found
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(path / f"{name}.arrow"))).read_all()
    return Strings(table["id"].combine_chunks())
