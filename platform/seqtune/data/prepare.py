"""Makes a data set that is larger than memory into files that can be mapped: in three passes.

The first pass reads all rows once to learn which ids there are and what the times are. The second
deals the rows out to parts by their user, so that each part has all of its users and is small. The
third sorts one part after the other by user and time, and writes it behind the one before. What
comes out equals what reading the file at once gives, to the last id.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from seqtune.data.dataset import Dataset, kept_note, nothing_left
from seqtune.data.files import JSON, find_all, kind
from seqtune.data.filters import copies, copies_note
from seqtune.data.prepared import ABOUT, About, Prepared, open_prepared, write_ids
from seqtune.data.readers.ids import ids
from seqtune.data.readers.stream import Columns, Stream
from seqtune.data.readers.times import in_milliseconds, numbers, unit_of
from seqtune.data.strings import Strings
from seqtune.errors import UserError
from seqtune.schema import FORMAT

ROWS = 1_000_000  # that are read at a time
PART = 4_000_000  # rows of a part, about: 32 bytes each while it is sorted, and what text ids take
SAMPLED = 2_000  # rows of those that are read at a time
USERS, ITEMS, TIMES = "user", "item", "time"


def prepare(
    source: str,
    out: Path,
    wanted: Mapping[str, str | None],
    *,
    min_user: int = 3,
    min_item: int = 1,
    say: Callable[[str], None] = lambda line: None,
    rows: int = ROWS,
    part: int = PART,
) -> Prepared:
    """Prepares a file, or a folder of files with the same columns, in the folder ``out``.

    ``wanted`` may name the columns of ``user``, ``item`` and ``time``. ``rows`` are read at a time,
    and ``part`` of them are sorted at a time.

    Raises:
        UserError: the data cannot be used, or the folder holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: holds something; give another folder, or remove it")
    stream = Stream.open(_files(source), wanted, rows)
    work = out.with_name(f"{out.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    work.mkdir(parents=True)
    try:
        survey = Survey.of(stream)
        say(f"read {survey.rows:,} rows: {len(survey.items):,} items")
        edges = survey.edges(math.ceil(survey.rows / part))
        _deal_out(stream, survey, edges, work)
        say(f"dealt out to {len(edges) + 1} parts by their users")
        files = _sort(survey, len(edges) + 1, work)
        say(f"sorted: {len(files.user_ids):,} users")
        files = files.core(min_user, min_item, source)
        name = Path(Path(source).name.removesuffix(".gz")).stem
        notes = [*stream.notes, *survey.notes, *files.notes]
        about = files.about(name, stream.names, notes, min_user, min_item)
        (work / ABOUT).write_text(json.dumps(about, indent=2))
        if out.exists():
            out.rmdir()
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return open_prepared(str(out))


def _files(source: str) -> list[Path]:
    found = find_all(source)
    if kind(found[0]) in JSON:
        raise UserError(f"--data {source}: JSON is not read in parts; write it as parquet")
    return found


# The first pass.


@dataclass
class Survey:
    """What all rows together are like."""

    name: str  # of the column of times
    typed: bool
    rows: int = 0
    items: Any = None  # own ids, increasing
    unit: str = ""
    told: bool = False  # whether the times tell their unit
    user_kind: str = ""  # i, u or O, as numpy's
    notes: list[str] = field(default_factory=list)
    _kinds: dict[str, set[str]] = field(default_factory=dict)  # role -> kinds of ids, or of times
    _waiting: list[Any] = field(default_factory=list)  # items that are not among ``items`` yet
    _users: list[Any] = field(default_factory=list)  # of some rows
    _some: list[NDArray[Any]] = field(default_factory=list)  # times of some rows

    @classmethod
    def of(cls, stream: Stream) -> Survey:
        """Reads all rows once."""
        survey = cls(stream.names[TIMES], stream.typed)
        rng = np.random.default_rng(0)
        for place, columns in stream.parts():
            try:
                survey._look(columns, rng)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
        if not survey.rows:
            raise UserError(f"{stream.paths[0]}: has no interactions; it needs one row for each")
        try:
            survey._decide()
        except UserError as error:
            raise UserError(f"{stream.paths[0]}: {error}") from None
        survey.notes = list(dict.fromkeys(survey.notes))
        return survey

    def edges(self, parts: int) -> Any:
        """Returns the users at which parts begin, about equal in rows: at most ``parts`` - 1."""
        some = _joined(self._users, self.user_kind)
        some = np.sort(some) if self.user_kind != "O" else np.array(sorted(some), dtype=object)
        at = (np.arange(1, parts) * len(some)) // parts
        return np.unique(some[at]) if len(at) else some[:0]

    @property
    def time_type(self) -> pa.DataType:
        """The type of the times as numbers."""
        kinds = {one[0] for one in self._kinds[TIMES]}
        return pa.float64() if "f" in kinds else pa.int64()

    def _look(self, columns: Columns, rng: np.random.Generator) -> None:
        self.rows += (n := len(columns[USERS]))
        if not n:
            return
        users = ids(columns[USERS], USERS, self.typed)
        items = ids(columns[ITEMS], ITEMS, self.typed)
        when, unit, notes = numbers(columns[TIMES])
        for role, kind_, said in (
            (USERS, users.own.dtype.kind, users.notes),
            (ITEMS, items.own.dtype.kind, items.notes),
            (TIMES, f"{when.dtype.kind} {unit}", notes),
        ):
            self._kinds.setdefault(role, set()).add(kind_)
            self.notes += said
        some = rng.integers(0, n, min(n, SAMPLED))
        self._users.append(users.own[users.codes[some]])
        ends = [0, n // 2, when.argmin(), when.argmax()]
        self._some.append(when[np.concatenate([some, ends])])
        self._waiting.append(items.own)
        known = 0 if self.items is None else len(self.items)
        if sum(map(len, self._waiting)) > max(4 * ROWS, known):
            self._merge()

    def _merge(self) -> None:
        known = [] if self.items is None else [self.items]
        self.items = _unique(_joined([*known, *self._waiting], self._kind(ITEMS)))
        self._waiting = []

    def _decide(self) -> None:
        self._merge()
        self.user_kind = self._kind(USERS)
        kinds, units = ({one.split(" ")[n] for one in self._kinds[TIMES]} for n in (0, 1))
        if len(units) > 1 or (len(kinds) > 1 and units != {"None"}):
            raise UserError(
                "times are written in several ways; write them in the same way everywhere"
            )
        self.unit = units.pop()
        self.told = self.unit != "None"
        if not self.told:
            self.unit, notes = unit_of(np.concatenate(self._some), self.name)
            self.notes += notes

    def _kind(self, role: str) -> str:
        """Returns the kind of all ids of a role; some of a text table may look like integers."""
        kinds = self._kinds[role]
        if len(kinds) == 1:
            return next(iter(kinds))
        if self.typed or any(
            note.startswith(f"{role} ids are written as floats") for note in self.notes
        ):
            raise UserError(
                f"some {role} ids are whole numbers and others are not; write them all as text"
            )
        return "O"


def _joined(arrays: list[Any], kind_: str) -> Any:
    """Joins ids; integers among texts become the texts that they were."""
    if kind_ != "O":
        return np.concatenate(arrays)
    return np.concatenate(
        [one.astype(str).astype(object) if one.dtype.kind != "O" else one for one in arrays]
    )


def _unique(own: Any) -> Any:
    if own.dtype != object:
        return np.unique(own)
    column = pa.array(own, pa.large_string()).unique()
    return column.take(pc.sort_indices(column)).to_numpy(zero_copy_only=False)


# The second pass.


def _deal_out(stream: Stream, survey: Survey, edges: Any, work: Path) -> None:
    """Writes the rows of each part into a file: user, number of the item, and time."""
    user_type = pa.large_string() if survey.user_kind == "O" else pa.from_numpy_dtype(edges.dtype)
    schema = pa.schema([(USERS, user_type), (ITEMS, pa.int32()), (TIMES, survey.time_type)])
    with ExitStack() as stack:
        files = []
        for k in range(len(edges) + 1):
            sink = stack.enter_context(pa.OSFile(str(_part(work, k)), "wb"))
            files.append(stack.enter_context(pa.ipc.new_stream(sink, schema)))
        for place, columns in stream.parts():
            try:
                table, part = _numbered(columns, survey, edges, schema)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            bounds = np.searchsorted(part, np.arange(len(files) + 1))
            for file, (start, end) in zip(files, pairwise(bounds.tolist()), strict=True):
                if start < end:
                    file.write_table(table.slice(start, end - start).combine_chunks())


def _numbered(
    columns: Columns, survey: Survey, edges: Any, schema: pa.Schema
) -> tuple[pa.Table, NDArray[np.int16]]:
    """Returns some rows in the order of their parts, with items by number, and these parts."""
    users = ids(columns[USERS], USERS, survey.typed)
    items = ids(columns[ITEMS], ITEMS, survey.typed)
    when = numbers(columns[TIMES])[0]
    in_milliseconds(when, survey.unit, survey.told, columns[TIMES])  # looks for absurd ones
    own = _joined([users.own], survey.user_kind)
    if own.dtype == users.own.dtype:  # they are in order: only where the parts begin is looked for
        part = np.searchsorted(np.searchsorted(own, edges), np.arange(len(own)), "right")
    else:
        part = np.searchsorted(edges, own, "right")
    theirs = _joined([items.own], survey.items.dtype.kind)
    if survey.items.dtype == object:
        all_items = pa.array(survey.items, pa.large_string())
        number = pc.index_in(pa.array(theirs, pa.large_string()), all_items).to_numpy()
    else:
        number = np.searchsorted(survey.items, theirs)
    of_row = part.astype(np.int16)[users.codes]
    order = np.argsort(of_row, kind="stable")
    found = [
        pa.array(own, schema.field(USERS).type).take(users.codes[order]),
        pa.array((number.astype(np.int32) + 1)[items.codes[order]]),
        pa.array(when[order], survey.time_type),
    ]
    return pa.table(found, schema), of_row[order]


def _part(work: Path, k: int) -> Path:
    return work / f"part-{k:04d}.arrow"


# The third pass.


def _sort(survey: Survey, parts: int, work: Path) -> Files:
    """Sorts the parts by user, time and their order in the file, and writes them as one."""
    lengths, owners, n_copies = [], [], 0
    with (
        Writer(work / "items.npy", np.int32) as items,
        Writer(work / "times.npy", np.int64) as times,
    ):
        for k in range(parts):
            with pa.memory_map(str(_part(work, k))) as file:
                table = pa.ipc.open_stream(file).read_all()
            _part(work, k).unlink()
            if not len(table):
                continue
            users = ids(table[USERS], USERS, True)
            when = table[TIMES].combine_chunks().to_numpy()
            order = np.lexsort((when, users.codes))  # stable: ties keep the order of the file
            of = users.codes[order]
            theirs = table[ITEMS].combine_chunks().to_numpy()[order]
            when = in_milliseconds(when, survey.unit, survey.told, table[TIMES])[order]
            once = ~copies(of, theirs, when)
            n_copies += int(np.count_nonzero(~once))
            items.write(theirs[once])
            times.write(when[once])
            lengths.append(np.bincount(of[once]))
            owners.append(
                users.own if users.own.dtype != object else pa.array(users.own, pa.large_string())
            )
    own = pa.concat_arrays(owners) if survey.user_kind == "O" else np.concatenate(owners)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    own = Strings(own) if survey.user_kind == "O" else own
    catalogue = Strings(survey.items) if survey.items.dtype == object else survey.items
    notes = (copies_note(n_copies),) if n_copies else ()
    return Files(work, offsets, own, catalogue, notes)


class Writer:
    """Writes an array piece by piece, as ``np.save`` would at once."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._path, self._dtype, self._length = path, np.dtype(dtype), 0

    def __enter__(self) -> Writer:
        self._file: BinaryIO = self._path.open("wb")
        self._head()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._head()  # it has room for any length
        self._file.close()

    def _head(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, piece: NDArray[Any]) -> None:
        """Adds a piece."""
        np.ascontiguousarray(piece, self._dtype).tofile(self._file)
        self._length += len(piece)


@dataclass(frozen=True)
class Files:
    """The sorted events in their files, looked through in blocks of whole users."""

    folder: Path
    offsets: NDArray[np.int64]
    user_ids: Any
    item_ids: Any
    notes: tuple[str, ...] = ()

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yields users and their events, about ``PART`` events at a time."""
        first, n_users = 0, len(self.offsets) - 1
        while first < n_users:
            end = int(np.searchsorted(self.offsets, self.offsets[first] + PART, "right")) - 1
            end = min(max(end, first + 1), n_users)
            yield slice(first, end), slice(int(self.offsets[first]), int(self.offsets[end]))
            first = end

    def read(self, name: str, events: slice) -> NDArray[Any]:
        """Returns a copy of some events: what is mapped counts as memory while it is."""
        return np.array(np.load(self.folder / f"{name}.npy", "r")[events])

    def core(self, min_user: int, min_item: int, place: str) -> Files:
        """Drops users and items with too few interactions, as ``k_core`` does."""
        n_users, n_items, n = len(self.offsets) - 1, len(self.item_ids), int(self.offsets[-1])
        users, items = np.ones(n_users, bool), np.ones(n_items + 1, bool)
        while True:
            by_user, by_item = np.zeros(n_users, np.int64), np.zeros(n_items + 1, np.int64)
            for some, events, kept in self._kept(users, items):
                by_item += np.bincount(self.read("items", events)[kept], minlength=n_items + 1)
                by_user[some] = np.add.reduceat(kept, self.offsets[some] - events.start)
            enough = users & (by_user >= min_user), items & (by_item >= min_item)
            if not enough[0].any() or not enough[1][1:].any():
                raise UserError(nothing_left(int(by_user.max()), min_user, min_item, place))
            if (enough[0] == users).all() and (enough[1][1:] == items[1:]).all():
                break
            users, items = enough
        if users.all() and items[1:].all():
            return self
        return self._without(users, items, by_user, (n_users, n_items, n), (min_user, min_item))

    def _kept(
        self, users: NDArray[np.bool_], items: NDArray[np.bool_]
    ) -> Iterator[tuple[slice, slice, NDArray[np.bool_]]]:
        lengths = np.diff(self.offsets)
        for some, events in self.blocks():
            kept = np.repeat(users[some], lengths[some]) & items[self.read("items", events)]
            yield some, events, kept

    def _without(
        self,
        users: NDArray[np.bool_],
        items: NDArray[np.bool_],
        by_user: NDArray[np.int64],
        before: tuple[int, int, int],
        least: tuple[int, int],
    ) -> Files:
        lengths, n = by_user[users], int(by_user[users].sum())
        number = np.cumsum(items) - items[0]
        new = {name: self.folder / f"{name}.new" for name in ("items", "times")}
        with (
            Writer(new["items"], np.int32) as theirs,
            Writer(new["times"], np.int64) as times,
        ):
            for _, events, kept in self._kept(users, items):
                theirs.write(number[self.read("items", events)[kept]])
                times.write(self.read("times", events)[kept])
        for name, path in new.items():
            path.replace(self.folder / f"{name}.npy")
        left = (len(lengths), int(items[1:].sum()), n)
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            user_ids=self.user_ids[users],
            item_ids=self.item_ids[items[1:]],
            notes=(*self.notes, kept_note(left, before, *least)),
        )

    def about(
        self, name: str, columns: dict[str, str], notes: list[str], min_user: int, min_item: int
    ) -> About:
        """Writes the rest of the files, and counts what is asked of a dataset again and again."""
        np.save(self.folder / "offsets.npy", self.offsets)
        write_ids(self.folder, "user_ids", self.user_ids)
        write_ids(self.folder, "item_ids", self.item_ids)
        repeats = 0
        for some, events in self.blocks():
            block = Dataset(
                "",
                self.read("items", events),
                self.offsets[some.start : some.stop + 1] - events.start,
                self.read("times", events),
                self.user_ids[some],
                self.item_ids,
            )
            repeats += block.n_repeats
        return About(
            format=FORMAT,
            name=name,
            columns=columns,
            notes=notes,
            min_user=min_user,
            min_item=min_item,
            n_repeats=repeats,
            fingerprint=self._fingerprint(),
        )

    def _fingerprint(self) -> str:
        items, times = (np.load(self.folder / f"{name}.npy", "r") for name in ("items", "times"))
        return Dataset("", items, self.offsets, times, self.user_ids, self.item_ids).fingerprint
