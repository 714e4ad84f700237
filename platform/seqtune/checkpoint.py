"""A trained model as a folder of plain files, and what one does with it: recommend.

``model.safetensors`` holds the weights, ``items.parquet`` the catalogue in the user's own ids, and
``model.json`` the rest. Nothing is pickled, so that loading a checkpoint runs no foreign code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from seqtune.catalogue import check_model
from seqtune.data.strings import Strings
from seqtune.errors import DamagedError, UserError
from seqtune.model import History, Model, model_class
from seqtune.params import Params, build
from seqtune.schema import checked
from seqtune.storage import Folder, refusing

FORMAT = 1
SCORES = 2**24  # scores computed at once: 64 MB
SHOWN = 3  # unknown ids named in a note
LONGEST_ID = 40  # characters of them
WHOLE = r"(-?[0-9]{1,20})(?:\.0+)?"  # an integer as texts may write it

Ids = NDArray[Any]


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of a model, beside its weights."""

    model: str
    params: Params
    n_users: int
    item_ids: Ids | Strings  # (I,) the user's own id of items 1..I
    popularity: NDArray[np.integer]  # (I,) training events of each
    mask_seen: bool  # whether evaluation left out seen items
    meta: Mapping[str, Any] = field(default_factory=dict)  # what JSON can hold: data, metric, ...


def save(folder: Folder, state: Mapping[str, Tensor], card: Card) -> None:
    """Writes a checkpoint.

    ``model.json`` comes last: a folder that has it is complete.
    """
    from safetensors.torch import save as tensors_to_bytes

    popularity = pa.array(card.popularity, pa.int64())
    buffer = BytesIO()
    pq.write_table(pa.table({"item": pa.array(card.item_ids), "popularity": popularity}), buffer)
    # Tied weights share memory, which the format refuses: each name gets a copy of its own.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    about = {
        "format": FORMAT,
        "model": card.model,
        "params": card.params.model_dump(),
        "n_items": len(card.item_ids),
        "n_users": int(card.n_users),
        "mask_seen": bool(card.mask_seen),
        "meta": dict(card.meta),
    }
    folder.write("items.parquet", buffer.getvalue())
    folder.write("model.safetensors", tensors_to_bytes(tensors))
    folder.write("model.json", json.dumps(about, indent=2, default=_plain).encode())


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"meta cannot hold {value!r}: write a number, a text, a list or a dict")


def load(folder: Folder, device: torch.device | str = "cpu") -> Recommender:
    """Reads a checkpoint, whose files are believed when they are whole and fit each other.

    Raises:
        UserError: they do not; the sentence names the file and what is wrong with it.
    """
    names = ("model.json", "model.safetensors", "items.parquet")
    with refusing(folder.uri):
        contents = {name: folder.read(name) for name in names}
    missing = [name for name, content in contents.items() if content is None]
    if missing:
        raise UserError(
            f"{folder.uri}: not a checkpoint, {' and '.join(missing)} missing; name the folder "
            "that holds model.json"
        )
    about_bytes, weights, items = (content or b"" for content in contents.values())
    place = f"{folder / 'model.json'}"
    about = _about(about_bytes, place)
    ids, popularity = _catalogue(items, f"{folder / 'items.parquet'}", about["n_items"])
    tensors = _tensors(weights, f"{folder / 'model.safetensors'}")
    found = model_class(check_model(about["model"], place))
    params = build(found.Params, about["params"], place)
    model = _model(found, params, about, tensors, f"{folder / 'model.safetensors'}")
    own = torch.device(device)
    return Recommender(
        model.to(own).eval(), ids, popularity, about["mask_seen"], about["meta"], own
    )


class _About(TypedDict):
    """What ``model.json`` holds."""

    format: int
    model: str
    params: dict[str, Any]
    n_items: Annotated[int, Field(ge=1)]
    n_users: Annotated[int, Field(ge=1)]
    mask_seen: bool
    meta: dict[str, Any]


def _about(content: bytes, place: str) -> _About:
    about: _About = checked(place, _About, content, FORMAT)
    return about


def _catalogue(content: bytes, place: str, n_items: int) -> tuple[Ids, NDArray[np.int64]]:
    """Returns the items' own ids and how often each was trained on."""
    with refusing(place):
        file = pq.ParquetFile(BytesIO(content))
        if (n := file.metadata.num_rows) != n_items:
            raise DamagedError(
                f"{place}: has {n} items, and model.json says {n_items}; copy all three files from "
                "one checkpoint"
            )
        table = file.read()
    for name in ("item", "popularity"):
        if name not in table.column_names:
            raise DamagedError(f"{place} is damaged: there is no column {name}")
        if table[name].null_count or pa.types.is_nested(table[name].type):
            raise DamagedError(f"{place} is damaged: column {name} has cells without a value")
    if not pa.types.is_integer(table["popularity"].type):
        raise DamagedError(f"{place} is damaged: popularity must be whole numbers")
    if len(table["item"].unique()) != n_items:
        raise DamagedError(f"{place} is damaged: an item stands twice")
    return table["item"].to_numpy(), table["popularity"].to_numpy().astype(np.int64)


def _tensors(content: bytes, place: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as bytes_to_tensors

    try:
        tensors = bytes_to_tensors(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{place} is damaged: {' '.join(str(error).split())}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DamagedError(f"{place} is damaged: {name} has values that are no numbers")
    return tensors


def _model(
    kind: type[Model], params: Params, about: _About, tensors: dict[str, Tensor], place: str
) -> Model:
    """Builds the model and loads its weights; nothing larger than the file is ever allocated."""
    misfit = f"{place}: does not fit {about['model']} as model.json describes it: "
    layers = getattr(params, "n_layers", 1)
    if isinstance(layers, int) and layers > len(tensors):
        raise DamagedError(f"{misfit}n_layers is {layers}")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            wanted = kind(params, about["n_items"], about["n_users"]).named_parameters()
        for name, weight in wanted:
            if name in tensors and weight.shape != tensors[name].shape:
                shapes = f"{tuple(tensors[name].shape)}, not {tuple(weight.shape)}"
                raise DamagedError(f"{misfit}{name} has shape {shapes}")
            if name not in tensors:
                raise DamagedError(f"{misfit}{name} is missing")
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and thrown away
            model = kind(params, about["n_items"], about["n_users"])
        model.load_state_dict(tensors)
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise DamagedError(misfit + " ".join(str(error).split())) from None
    return model


class Recommendation(NamedTuple):
    """What to show next, best first, in the user's own ids; the note says what was unusual."""

    items: list[Any]
    scores: list[float]
    note: str = ""


@dataclass(frozen=True, repr=False)
class Recommender:
    """A loaded checkpoint."""

    model: Model
    item_ids: Ids  # (I,) the user's own id of items 1..I
    popularity: NDArray[np.int64]  # (I,) training events of each
    mask_seen: bool  # whether the model was evaluated with seen items left out
    meta: dict[str, Any]
    device: torch.device

    def __repr__(self) -> str:
        name, where = type(self.model).__name__, self.meta.get("data")
        data = f" of {where}" if where else ""
        seen = "left out" if self.mask_seen else "ranked"
        return f"Recommender({name}, {len(self.item_ids):,} items{data}, seen items {seen})"

    @cached_property
    def _index(self) -> dict[Any, int]:
        return {own: number for number, own in enumerate(self.item_ids.tolist(), start=1)}

    def recommend(
        self,
        histories: Sequence[Sequence[Any]],
        k: int = 10,
        exclude_seen: bool | None = None,
    ) -> list[Recommendation]:
        """Returns up to ``k`` items to show next for each history (own ids, newest item last).

        Ids that training never saw are ignored, and a history without a known item gets the most
        popular ones; the note says so. ``exclude_seen`` leaves out items of the history; None
        does what evaluation did.
        """
        known, notes = [], []
        for row, history in enumerate(histories):
            items, note = self._known(history, row)
            known.append(items)
            notes.append(note)
        found = self.rank(known, k, exclude_seen)
        return [
            Recommendation(
                self.item_ids[items - 1].tolist(),
                scores.tolist(),
                "; ".join(filter(None, [note, "" if len(past) else "most popular items"])),
            )
            for (items, scores), note, past in zip(found, notes, known, strict=True)
        ]

    def number(self, own: object) -> int | None:
        """Returns the number 1..I of an item by its own id, or None where training never saw it."""
        spellings = _spellings(own, self.item_ids.dtype.kind)
        found = (self._index[one] for one in spellings if one in self._index)
        return next(found, None)

    def _known(self, history: Any, row: int) -> tuple[NDArray[np.int64], str]:
        if isinstance(history, str | bytes | Mapping) or not hasattr(history, "__len__"):
            raise UserError(
                f"history {row}: must be a list of item ids with the newest last, "
                f"not {_kind(history)}"
            )
        if not len(history):
            return np.empty(0, np.int64), "the history is empty"
        for own in history:
            if isinstance(own, bool) or not isinstance(own, int | float | str | UUID | np.generic):
                raise UserError(
                    f"history {row}: an item id is a number or a text, not {_kind(own)}"
                )
            if isinstance(own, int) and abs(own) >= 2**64:
                raise UserError(f"history {row}: an item id has at most 20 digits")
        found = [self.number(own) for own in history]
        items = np.array([item for item in found if item is not None], dtype=np.int64)
        unknown = list(
            dict.fromkeys(
                repr(own)[:LONGEST_ID]
                for own, item in zip(history, found, strict=True)
                if item is None
            )
        )
        if not unknown:
            return items, ""
        shown = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        return items, f"{len(found) - len(items)} of {len(found)} items are unknown: {shown}"

    @torch.no_grad()
    def rank(
        self,
        histories: Sequence[NDArray[np.int64]],
        k: int = 10,
        exclude_seen: bool | None = None,
        times: Sequence[NDArray[np.int64]] | None = None,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Returns the best items and their scores, like ``recommend`` but with item numbers 1..I.

        ``times`` are those of the items in Unix milliseconds, for a model that uses them. Fewer
        than ``k`` come back where no more are left. Without a history the score of an item is the
        number of its training events.
        """
        k, n_items = _at_least_one(k), len(self.item_ids)
        hide = self.mask_seen if exclude_seen is None else exclude_seen
        popular = np.argsort(-self.popularity, kind="stable")[:k]
        result = [(popular + 1, self.popularity[popular].astype(np.float64))] * len(histories)
        for rows in self._batches([len(history) for history in histories]):
            scores = self._scores(rows, histories, times)
            if hide:
                self._hide(scores, [histories[row] for row in rows])
            best = scores.topk(min(k, n_items), dim=1)
            values, items = best.values.cpu().numpy(), best.indices.cpu().numpy()
            for row, value, item in zip(rows, values, items, strict=True):
                left = np.isfinite(value)
                result[row] = (item[left], value[left].astype(np.float64))
        return result

    @torch.no_grad()
    def places(
        self,
        histories: Sequence[NDArray[np.int64]],
        targets: NDArray[np.int64],
        times: Sequence[NDArray[np.int64]] | None = None,
    ) -> NDArray[np.float32]:
        """Returns the place of a target in the list of each history, as evaluation counts it: (N,).

        1 is the best place, and tied items count half. Seen items are left out where they were in
        evaluation, the target never. Items are numbers 1..I; the target 0 is none of them, and
        comes after all. Without a history the list is that of the most popular.
        """
        from seqtune.evaluate import places

        ranked, own_popularity = np.sort(self.popularity), np.append(0, self.popularity)[targets]
        below, upto = (np.searchsorted(ranked, own_popularity, side) for side in ("left", "right"))
        more, same = len(ranked) - upto, upto - below
        found = np.where(targets > 0, more + (same + 1) / 2, len(ranked) + 1).astype(np.float32)
        known = zip(histories, targets, strict=True)
        for rows in self._batches([len(past) if target else 0 for past, target in known]):
            scores = self._scores(rows, histories, times)
            at, target = self._tensor(np.arange(len(rows))), self._tensor(targets[rows])
            own = scores[at, target]
            if self.mask_seen:
                self._hide(scores, [histories[row] for row in rows])
                scores[at, target] = own
            found[rows] = places(scores, own).cpu().numpy()
        return found

    def _scores(
        self,
        rows: list[int],
        histories: Sequence[NDArray[np.int64]],
        times: Sequence[NDArray[np.int64]] | None,
    ) -> Tensor:
        """Scores the catalogue after some of the histories: (B, I + 1)."""
        history = self._history([histories[row] for row in rows])
        if times is not None and self.model.uses_times:
            history = replace(history, times=self._newest([times[row] for row in rows]))
        scores = self.model.score(history)[:, : len(self.item_ids) + 1].float()
        scores[:, 0] = -torch.inf
        return scores

    def _hide(self, scores: Tensor, histories: Sequence[NDArray[np.int64]]) -> None:
        """Leaves the items of each history out of its row."""
        at = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        scores[self._tensor(at), self._tensor(np.concatenate(histories))] = -torch.inf

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Groups the rows that have a history by length, so that few of their cells are padding."""
        rows = sorted((row for row, n in enumerate(lengths) if n), key=lambda row: lengths[row])
        size = max(1, min(256, SCORES // (len(self.item_ids) + 1)))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _history(self, histories: list[NDArray[np.int64]]) -> History:
        longest = self.model.params.max_seq_len
        lengths = np.array([min(len(history), longest) for history in histories])
        unseen = np.full(len(lengths), self.model.n_users)  # a user that training did not see
        return History(self._tensor(unseen), self._newest(histories), self._tensor(lengths))

    def _newest(self, rows: list[NDArray[np.int64]]) -> Tensor:
        """Returns the last values of each row, as many as the model sees, padded with 0: (B, L)."""
        recent = [row[-self.model.params.max_seq_len :] for row in rows]
        values = np.zeros((len(recent), max(map(len, recent))), dtype=np.int64)
        for row, own in enumerate(recent):
            values[row, : len(own)] = own
        return self._tensor(values)

    def _tensor(self, values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _at_least_one(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise UserError(f"k: must be a whole number of at least 1, not {_kind(k)}")
    return int(k)


def _kind(value: object) -> str:
    """Says what a value is: a short one itself, of others their type."""
    if value is None or isinstance(value, str | float):
        return repr(value)[:LONGEST_ID]
    if isinstance(value, int) and abs(value) < 2**64:
        return repr(value)
    return f"a value of type {type(value).__name__}"


def _spellings(own: object, kind: str) -> list[int | str]:
    """Returns an id in the ways in which a catalogue of numbers, or of texts (O), may write it.

    JSON may say "12" or 12.0 for 12, and 12 for "12".
    """
    if isinstance(own, np.generic):
        own = own.item()
    if isinstance(own, UUID):
        own = str(own)
    if isinstance(own, bool) or not isinstance(own, int | float | str):
        return []
    whole = isinstance(own, float) and own.is_integer()
    texts = [str(own), *([f"{own:.0f}"] if whole else [])]
    if kind == "O":
        return [*texts]
    numbers = (re.fullmatch(WHOLE, text.strip()) for text in texts)
    return [int(number[1]) for number in numbers if number]
