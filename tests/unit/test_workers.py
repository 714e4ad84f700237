"""What a process and its workers say to each other, without either Ray or workers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError
from ray.train import WorkerGroupError

from seqtune.data import Protocol
from seqtune.storage import Folder
from seqtune.study import workers
from seqtune.study.plan import Plan, trial_params
from seqtune.study.workers import Desk, Group

PARAMS = trial_params("sasrec", {})
FOLDER = Folder.at("/nowhere")


class Calls:
    """An actor's method: what it is called with is kept, and what it returns is given."""

    def __init__(self, *returns: Any) -> None:
        self.got, self.returns = list[Any](), list(returns)

    def remote(self, *words: Any) -> Any:
        self.got.append(words)
        return self.returns.pop(0) if self.returns else None


def group_of(monkeypatch: pytest.MonkeyPatch, *events: Any, alive: bool = True) -> Any:
    """A group whose workers tell of these events; an exception is raised where it is waited for."""

    def get(found: Any, timeout: float) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ray, "get", get)
    group: Any = Group.__new__(Group)
    group._size = 2
    group._number, group._error = 0, OSError("a worker died")
    group._thread = SimpleNamespace(is_alive=lambda: alive, join=lambda: None)
    group._desk = SimpleNamespace(give=Calls(), event=Calls(*events), answer=Calls())
    return group


def test_each_row_is_reported_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    group, told = group_of(monkeypatch, (1, "one", 0), (1, "two", 1), (1, None, 2)), list[Any]()
    group.train(PARAMS, FOLDER, told.append, print)
    assert told == ["one", "two"]
    assert group._desk.give.got == [(1, (PARAMS.model_dump(), FOLDER))]
    assert group._desk.answer.got == [(0, True), (1, True)]


def test_what_report_raises_stops_the_training_and_the_next_one_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = group_of(monkeypatch, (1, "one", 0), (1, None, 1), (2, "other", 2), (2, None, 3))

    def stop(row: Any) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        group.train(PARAMS, FOLDER, stop, print)
    assert group._desk.answer.got == [(0, False)]
    told = list[Any]()
    group.train(PARAMS, FOLDER, told.append, print)
    assert told == ["other"]  # and not that the first was over
    assert group._desk.answer.got[1:] == [(2, True)]


def test_how_many_workers_there_are_is_said_where_it_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = [(1, n, -1) for n in (2, 2, 1, 4)]
    group, said = group_of(monkeypatch, *events, (1, None, 0)), list[str]()
    group.train(PARAMS, FOLDER, print, said.append)
    assert said == ["it has 1 worker now", "it has 4 workers now"]


def test_a_death_of_the_workers_is_what_they_died_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="a worker died"):
        group_of(monkeypatch, GetTimeoutError(), alive=False).train(PARAMS, FOLDER, print, print)


class Short:
    """A group that trains nothing; ``fault`` is what the first one dies of."""

    made: list[Short]
    fault = ""

    def __init__(self, plan: Plan, data: Any) -> None:
        self.trained, self.is_alive = 0, True
        self.made.append(self)

    def train(self, *words: Any) -> None:
        self.trained += 1
        if self.fault and len(self.made) == 1:
            self.is_alive = False
            raise WorkerGroupError(self.fault, {})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> type[Short]:
    monkeypatch.setattr(workers, "Group", Short)
    monkeypatch.setattr(workers, "_own", [])
    monkeypatch.setattr(Short, "made", [], raising=False)
    monkeypatch.setattr(Short, "fault", "")
    return Short


def train_in_group() -> list[str]:
    """Trains; returns what was said."""
    said = list[str]()
    plan = Plan("sasrec", "ndcg@10", Protocol(mask_seen=True), FOLDER, workers=2)
    workers.train_in_group(plan, PARAMS, FOLDER, "DATA", print, said.append)
    return said


def test_workers_stay_for_the_next_trial_and_are_replaced_when_they_are_gone(
    short: type[Short],
) -> None:
    for _ in range(2):
        train_in_group()
    short.made[0].is_alive = False
    train_in_group()
    assert [one.trained for one in short.made] == [2, 1]


def test_workers_on_a_machine_that_is_lost_are_replaced(short: type[Short]) -> None:
    short.fault = "The actor died because its node has died"
    said = train_in_group()
    assert len(short.made) == 2
    assert said == ["a machine was lost that a worker ran on; others go on from the last state"]


def test_workers_that_die_of_something_else_are_the_trials_affair(short: type[Short]) -> None:
    short.fault = "The actor died a worker was killed"
    with pytest.raises(WorkerGroupError):
        train_in_group()


def test_the_desk_passes_on_what_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HEARTBEAT", 0.01)

    async def day() -> None:
        desk = Desk()
        assert await desk.take() == []  # nothing to do for a while
        await desk.give(3, "job")
        assert await desk.take() == (3, "job")
        for event, goes_on in enumerate((True, False)):
            waiting: Any = asyncio.create_task(desk.tell(3, "row"))  # type: ignore[arg-type]
            assert await desk.event() == (3, "row", event)
            assert not waiting.done()
            await desk.answer(event, goes_on)
            assert await waiting == goes_on
        assert await desk.tell(3, None)  # nobody answers that it is over
        assert await desk.event() == (3, None, 2)
        assert await desk.take() == []
        await desk.give(4, None)
        assert await desk.take() == (4, None)

    asyncio.run(day())


def test_workers_that_come_in_the_midst_of_a_training_get_it_too() -> None:
    async def day() -> None:
        desk = Desk()
        await desk.give(1, "job")
        assert await desk.take() == (1, "job")
        lost: Any = asyncio.create_task(desk.tell(1, "row"))  # type: ignore[arg-type]
        assert await desk.event() == (1, "row", 0)
        assert await desk.take() == (1, "job")  # others, since those before are gone
        new: Any = asyncio.create_task(desk.tell(1, "next row"))  # type: ignore[arg-type]
        assert await desk.event() == (1, "next row", 1)
        await desk.answer(0, True)  # meant for those before
        await asyncio.sleep(0)
        assert lost.done()
        assert not new.done()
        await desk.answer(1, False)
        assert await new is False

    asyncio.run(day())


def test_gpus_need_a_torch_that_has_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, by in ((True, "nccl"), (False, "gloo")):
        monkeypatch.setattr("torch.distributed.is_nccl_available", lambda there=there: there)
        assert workers.backend(1) == by
        assert workers.backend(0) == "gloo"


def test_the_study_is_where_workers_leave_their_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: dict[str, Any] = {}

    class Trainer:
        def __init__(self, loop: Any, **options: Any) -> None:
            made.update(options)

        def fit(self) -> None:
            raise OSError("no room")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    plan = Plan(
        *("sasrec", "ndcg@10", Protocol(mask_seen=True), Folder.at(tmp_path)), workers=3, cpus=2
    )
    group: Any = Group.__new__(Group)
    group._desk = "DESK"
    group._run(plan, ["DATA"])
    assert str(group._error) == "no room"
    assert made["train_loop_config"] == {"plan": plan, "data": ["DATA"], "desk": "DESK"}
    scaling, run = made["scaling_config"], made["run_config"]
    assert (scaling.num_workers, scaling.use_gpu) == (3, False)
    group._run(replace(plan, most=8), ["DATA"])
    assert made["scaling_config"].num_workers == (3, 8)
    assert scaling.resources_per_worker == {"CPU": 2}
    assert run.storage_path == f"{tmp_path}/workers"
    assert run.failure_config.max_failures == 0
