"""What a training tells and keeps: the rows of its history, and the state it can go on from.

A training's folder holds ``state.pt``, from which it continues exactly from the best evaluation,
``ranks.parquet``, the validation rank of every user there, and ``history.json``, all that it has
told. Each file says whose it is, its ``owner``: which study, and which hyperparameters. What is
read is checked before it is believed.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NotRequired, Self

import numpy as np
from typing_extensions import TypedDict  # that of typing has no schema before Python 3.12

from seqtune.data import Dataset, Held, Split
from seqtune.errors import DamagedError
from seqtune.metrics import COSTS, Lists, Ranks, as_held, of_held
from seqtune.outside import is_own
from seqtune.schema import FORMAT, checked
from seqtune.storage import Folder

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class Row(TypedDict):
    """What is told after an evaluation: plain values, one row of ``history.json``."""

    epoch: int
    step: int
    losses: dict[str, float]  # each term of the loss, its mean since the evaluation before
    metrics: dict[str, float]  # on validation: "ndcg@10" -> value
    best: float  # the study's metric at the best evaluation so far
    best_epoch: int
    time: float  # seconds since 1970
    train_seconds: float  # since the evaluation before
    train_targets: int  # that many were learnt from in them, by all workers
    eval_seconds: float
    eval_every: int  # epochs between evaluations
    finished: bool  # whether training has ended by itself
    costs: NotRequired[dict[str, float]]  # of the model, where they are asked for
    system: NotRequired[dict[str, float]]  # what the process took since the evaluation before


class Best(TypedDict):
    """The best evaluation so far."""

    epoch: int
    metrics: dict[str, float]  # on validation
    weights: dict[str, torch.Tensor]
    ranks: NDArray[np.float32]  # (M,) validation rank of each user that validates


class State(TypedDict):
    """What an exact continuation needs."""

    epoch: int
    step: int
    eval_every: int  # 0 until it is chosen
    history: list[Row]
    best: Best | None  # None before the first evaluation
    optimizer: NotRequired[dict[str, Any] | None]  # missing where training has finished


def _cpu() -> torch.device:
    import torch

    return torch.device("cpu")


@dataclass
class Home:
    """Where the loop runs and whom it tells: every rank loads and reports, rank 0 alone saves."""

    device: torch.device = field(default_factory=_cpu)
    rank: int = 0
    world_size: int = 1
    load: Callable[[], State | None] = lambda: None
    save: Callable[[State], None] = lambda state: None
    report: Callable[[Row], None] = lambda row: None
    stepped: Callable[[int], None] = lambda targets: None  # the targets of a step on this rank
    begin: Callable[[torch.nn.Module], None] = lambda model: None  # may give it first weights


def best_of(state: State) -> Best:
    """Returns the best evaluation of a training that has had one."""
    assert state["best"] is not None, "nothing has been evaluated yet"
    return state["best"]


def flat(row: Row) -> dict[str, Any]:
    """Returns a row as Ray Tune takes it: metrics and losses (``train_ce``) beside the rest."""
    apart = ("losses", "metrics", "costs", "system")
    rest = {name: value for name, value in row.items() if name not in apart}
    losses = {f"train_{name}": value for name, value in row["losses"].items()}
    beside = row.get("costs", {}) | row.get("system", {})
    return {**row["metrics"], **losses, **beside, **rest}


def curves(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what MLflow draws of what is told after an evaluation."""
    return {
        k: v
        for k, v in result.items()
        if "@" in k or is_own(k) or k in COSTS or k.startswith(("train_", "eval_", "system/"))
    }


class _Plain(TypedDict):
    """The part of ``state.pt`` that has no tensors."""

    format: int
    owner: str
    epoch: int
    step: int
    eval_every: int
    history: list[Row]


class _History(TypedDict):
    """What ``history.json`` holds."""

    format: int
    owner: str
    rows: list[Row]


def load_state(folder: Folder, owner: str = "") -> State | None:
    """Reads a trial's state; None before its first evaluation.

    Raises:
        DamagedError: the file is torn, or another's; without ``owner`` it may be anybody's.
    """
    import torch

    content = folder.read("state.pt")
    if content is None:
        return None
    place = f"{folder / 'state.pt'}"
    try:
        kept: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noise makes torch raise whatever its bytes happen to ask for
        raise DamagedError(f"{place} is torn or no state ({type(error).__name__})") from None
    plain = _checked(place, _Plain, kept, owner, best=dict, optimizer=dict | None)
    best = kept["best"]
    tensors = [*best["weights"].values(), best.get("ranks")] if "weights" in best else [None]
    if not all(isinstance(one, torch.Tensor) for one in tensors):
        raise DamagedError(f"{place} is damaged: best has no weights or no ranks")
    if not isinstance(best.get("epoch"), int) or not isinstance(best.get("metrics"), dict):
        raise DamagedError(f"{place} is damaged: best has no epoch or no metrics")
    best["ranks"] = best["ranks"].numpy()
    state = State(
        epoch=plain["epoch"],
        step=plain["step"],
        eval_every=plain["eval_every"],
        history=plain["history"],
        best=best,
    )
    return state | State(optimizer=kept["optimizer"]) if "optimizer" in kept else state  # type: ignore[typeddict-item]


def _checked(place: str, kind: Any, content: Any, owner: str, **more: Any) -> Any:
    """Returns what a file holds, checked against its schema and its owner."""
    found = checked(place, kind, content)
    for name, wanted in more.items():
        if not isinstance(content.get(name), wanted):
            raise DamagedError(f"{place} is damaged: {name} is missing or of another type")
    if owner and found["owner"] != owner:
        raise DamagedError(f"{place} belongs to another study, or to other hyperparameters")
    rows = found["rows"] if "rows" in found else found["history"]
    epochs = [row["epoch"] for row in rows]
    if epochs != sorted(set(epochs)):
        raise DamagedError(f"{place} is damaged: its epochs are not in order")
    return found


def save_state(folder: Folder, state: State, split: Split, owner: str = "") -> None:
    """Writes a trial's state, and before it the validation ranks of its best evaluation."""
    ranks = held_file(split.dataset, split.valid, best_of(state)["ranks"], owner)
    folder.write("ranks.parquet", ranks)
    _write_state(folder, state, owner)


def _write_state(folder: Folder, state: State, owner: str) -> None:
    import torch

    best, out = best_of(state), io.BytesIO()
    tensors = {"best": {**best, "ranks": torch.from_numpy(best["ranks"])}}
    torch.save({"format": FORMAT, "owner": owner, **state, **tensors}, out)
    folder.write("state.pt", out.getvalue())


def hand_over(parent: Folder, heir: Folder, owner: str) -> bool:
    """Lets a training begin where another was best, whose state it gets; False where it has none.

    It goes on from there as the other would have, with an empty history.

    Raises:
        DamagedError: the state is torn.
    """
    state, ranks = load_state(parent), parent.read("ranks.parquet")
    if state is None or ranks is None:
        return False
    best = best_of(state)
    at_best = (row for row in state["history"] if row["epoch"] == best["epoch"])
    there = next(at_best, state)  # it has none where nothing was better than what it was given
    start = state.copy()
    start["epoch"], start["step"], start["history"] = there["epoch"], there["step"], []
    heir.write("ranks.parquet", _owned(ranks, owner))
    _write_state(heir, start, owner)
    return True


def told(folder: Folder, owner: str = "") -> list[Row]:
    """Returns what a training has told: the content of ``history.json``, its curve's one home.

    Raises:
        DamagedError: the file is torn, or another's; without ``owner`` it may be anybody's.
    """
    content = folder.read("history.json")
    if content is None:
        return []
    rows: list[Row] = _checked(f"{folder / 'history.json'}", _History, content, owner)["rows"]
    return rows


def keep_told(folder: Folder, rows: list[Row], owner: str = "") -> None:
    """Writes what a training has told."""
    content = _History(format=FORMAT, owner=owner, rows=rows)
    folder.write("history.json", json.dumps(content).encode())


def all_told(rows: list[Row], state: State | None) -> list[Row]:
    """Returns what a training has told, and what it would have told if it had not crashed.

    The state is behind where evaluations since brought no improvement, and may be ahead by a row.
    """
    known = rows[-1]["epoch"] if rows else -1
    return rows + [row for row in (state["history"] if state else []) if row["epoch"] > known]


def held_file(
    dataset: Dataset, held: Held, ranks: NDArray[np.floating] | Lists, owner: str = ""
) -> bytes:
    """Returns a parquet file of users and the ranks of their held-out items.

    Where a user has several, it also has the items, and the length of the history before each.
    """
    flat = ranks.ranks if isinstance(ranks, Lists) else ranks
    beside: dict[str, Any] = {}
    if isinstance(of_held(flat, held), Lists):
        beside["history"] = held.ends - dataset.offsets[held.users]
        beside["target"] = dataset.item_ids[dataset.items[held.events] - 1]
    return ranks_file(dataset.user_ids[held.users], flat, owner, **beside)


def ranks_file(users: Any, ranks: NDArray[np.floating], owner: str = "", **beside: Any) -> bytes:
    """Returns a parquet file of users and ranks, with further columns between."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"user": users} | beside | {"rank": ranks.astype(np.float32)}
    table = pa.table({name: pa.array(column) for name, column in columns.items()})
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"owner": owner}), out)
    return out.getvalue()


def _owned(content: bytes, owner: str) -> bytes:
    """Returns a file of ranks with another owner."""
    import pyarrow.parquet as pq

    out = io.BytesIO()
    table = pq.read_table(io.BytesIO(content))
    pq.write_table(table.replace_schema_metadata({"owner": owner}), out)
    return out.getvalue()


def ranks_in(content: bytes, *, by_user: bool = False) -> Ranks:
    """Reads what ``ranks_file`` wrote: the ranks in its order, or in that of the users."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    keys = [name for name in ("user", "history", "target") if name in table.column_names]
    if by_user:
        table = table.sort_by([(name, "ascending") for name in keys])
    ranks: NDArray[np.float32] = table["rank"].to_numpy()
    if len(keys) == 1:
        return ranks
    users = table["user"].combine_chunks().dictionary_encode().indices.to_numpy()
    history = table["history"].to_numpy()
    new = (np.diff(users, prepend=-1) != 0) | (np.diff(history, prepend=-1) != 0)
    return as_held(ranks, users, np.flatnonzero(new))


class Saver:
    """Writes states in a thread, and tells each row when the state before it is written.

    The scheduler may end a trial at any row it is told of, and the study then wants the weights of
    that row. So both keep their order: a row that waits holds up the next state, and not the
    training. ``wait`` holds up the training too, for ranks that must tell together.
    """

    def __init__(
        self, write: Callable[[State], None], tell: Callable[[Row], None], *, wait: bool = False
    ) -> None:
        self._write, self._tell, self._wait = write, tell, wait
        self._rows: deque[Row] = deque()
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "state")

    def save(self, state: State) -> None:
        """Writes a state that nobody changes any more."""
        self.proceed(wait=True)
        self._writing = self._thread.submit(self._write, state)

    def report(self, row: Row) -> None:
        """Tells a row, now or when ``proceed`` finds that the state before it is written."""
        self._rows.append(row)
        self.proceed(wait=self._wait or row["finished"])

    def proceed(self, *, wait: bool = False) -> None:
        """Tells what can be told; raises what went wrong in writing. Made to be called often."""
        if self._writing is not None:
            if not (wait or self._writing.done()):
                return
            writing, self._writing = self._writing, None
            writing.result()
        while self._rows:
            self._tell(self._rows.popleft())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits until a state that is being written is on disk, also where training has failed."""
        self._thread.shutdown()
