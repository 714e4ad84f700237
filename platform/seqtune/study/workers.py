"""The training loop in Ray Train workers that share every batch, one trial after another.

To start such workers takes ten seconds: four processes one after the other, each of which loads
torch. So a group of them stays with the process that has started it, and waits for the next trial.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import Callable
from typing import Any

from seqtune.meter import TimeIsUp
from seqtune.params import Params
from seqtune.state import Row
from seqtune.storage import Folder
from seqtune.study import deaths
from seqtune.study.loop import fresh_start, threads, train_here
from seqtune.study.plan import Plan, trial_params

HEARTBEAT = 60.0  # seconds after which idle workers hear of each other: torch waits for 30 minutes
RESIZE = 60.0  # seconds between two looks whether there is room for more workers
LOOK = 1.0  # seconds between two looks at whether the workers are still there

# The number of a training, and what happened: so many workers began it, an evaluation, or its end.
# The last is the number by which an evaluation is answered.
Event = tuple[int, int | Row | None, int]


def backend(gpus: float) -> str:
    """Returns by what workers exchange gradients: NCCL on GPUs, where torch has it, else gloo."""
    from torch.distributed import is_nccl_available

    return "nccl" if gpus and is_nccl_available() else "gloo"


class Desk:
    """An actor between a process that has trials to train and the first of its workers.

    What happens in training n is passed on as (n, row), and as (n, None) when it is over. Other
    workers may come in the midst of a training, when some are lost or more have room: they get the
    training that is not over, whatever those before them still wait for here.
    """

    def __init__(self) -> None:
        self._jobs: dict[int, Any] = {}  # those that are not over
        self._given = asyncio.Event()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._answers: list[asyncio.Future[bool]] = []  # one for each event

    async def give(self, number: int, job: Any) -> None:
        """Puts training ``number`` before the workers, or None to let them end."""
        self._jobs[number] = job
        self._given.set()

    async def take(self) -> Any:
        """Waits for a training: its number and what it is; empty where there is none for long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._given.wait(), HEARTBEAT)
            return min(self._jobs.items())
        return []

    async def begin(self, number: int, workers: int) -> None:
        """Passes on how many workers begin a training, or go on with it."""
        await self._events.put((number, workers, -1))

    async def tell(self, number: int, row: Row | None) -> bool:
        """Passes a row on and waits whether the training goes on; after its last there is none."""
        if row is None:
            self._jobs.pop(number, None)
            if not self._jobs:
                self._given.clear()
        answer = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        await self._events.put((number, row, len(self._answers) - 1))
        return row is None or await answer

    async def event(self) -> Event:
        """Waits for what happens next; a row is answered by the number that comes with it."""
        return await self._events.get()

    async def answer(self, event: int, goes_on: bool) -> None:
        """Says whether the training goes on after an event."""
        self._answers[event].set_result(goes_on)


class Group:
    """Workers that train what they are given until ``close``, or until one of them dies.

    ``data`` is a reference to the dataset.
    """

    def __init__(self, plan: Plan, data: Any) -> None:
        import ray

        self._number, self._error = 0, RuntimeError("the workers have ended")
        self._size = plan.most if not plan.elastic else 0  # as many as the user knows of
        self._desk: Any = ray.remote(num_cpus=0)(Desk).remote()
        self._thread = threading.Thread(target=self._run, args=(plan, [data]), daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it can train."""
        return self._thread.is_alive()

    def train(
        self,
        params: Params,
        folder: Folder,
        report: Callable[[Row], None],
        say: Callable[[str], None],
    ) -> None:
        """Trains from the state of a folder; what ``report`` raises stops the training.

        ``say`` gets a line where the number of workers has changed.

        Raises:
            TrainingFailedError: of Ray Train, where a worker has died or has raised.
        """
        self._number += 1
        self._desk.give.remote(self._number, (params.model_dump(), folder))
        while True:
            number, row, event = self._next()
            if number != self._number:
                continue  # the end of one that was stopped
            if row is None:
                return
            if isinstance(row, int):
                if row != self._size:
                    say(f"it has {row} worker{'s' * (row > 1)} now")
                self._size = row
                continue
            try:
                report(row)
            except BaseException:  # Tune ends the thread of a trial by SystemExit
                self._desk.answer.remote(event, False)
                raise
            self._desk.answer.remote(event, True)

    def close(self) -> None:
        """Lets the workers end."""
        self._desk.give.remote(self._number + 1, None)
        self._thread.join()

    def _next(self) -> Event:
        import ray

        waiting = self._desk.event.remote()
        while True:
            try:
                found: Event = ray.get(waiting, timeout=LOOK)
            except ray.exceptions.GetTimeoutError:
                if not self.is_alive:
                    raise self._error from None
            else:
                return found

    def _run(self, plan: Plan, data: list[Any]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        resources = {"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {})
        try:
            TorchTrainer(
                work,
                train_loop_config={"plan": plan, "data": data, "desk": self._desk},
                torch_config=TorchConfig(backend=backend(plan.gpus)),
                scaling_config=ScalingConfig(  # that of Ray Train 2 knows more than mypy sees
                    num_workers=(plan.workers, plan.most) if plan.elastic else plan.workers,  # type: ignore[arg-type]
                    elastic_resize_monitor_interval_s=RESIZE,  # type: ignore[call-arg]
                    use_gpu=plan.gpus > 0,
                    resources_per_worker=resources,
                ),
                run_config=RunConfig(
                    name=uuid.uuid4().hex[:8],
                    storage_path=(plan.folder / "workers").uri,
                    failure_config=FailureConfig(max_failures=0),  # Tune tries again
                ),
            ).fit()
        except Exception as error:
            self._error = error  # type: ignore[assignment]


_own: list[Group] = []  # of this process: none or one


def close_group() -> None:
    """Lets the workers of this process end, where it has some."""
    for group in _own:
        group.close()
    _own.clear()


def train_in_group(
    plan: Plan,
    params: Params,
    folder: Folder,
    data: Any,
    report: Callable[[Row], None],
    say: Callable[[str], None],
) -> None:
    """Trains in the workers that this process has, or starts some that stay.

    Where a machine of theirs is lost, others go on from the last state: no fault of the trial's.
    """
    from ray.train import TrainingFailedError

    while True:
        if not (_own and _own[0].is_alive):
            _own[:] = [Group(plan, data)]
        try:
            return _own[0].train(params, folder, report, say)
        except TrainingFailedError as error:
            if deaths.NODE_LOST not in str(error):
                raise
            say("a machine was lost that a worker ran on; others go on from the last state")


def work(config: dict[str, Any]) -> None:
    """What each worker does: it trains what the first of them takes from the desk."""
    import ray
    import ray.train

    plan: Plan = config["plan"]
    desk, dataset = config["desk"], ray.get(config["data"])[0]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()

    def shared(ask: Callable[[], Any]) -> Any:
        """Has the first worker ask, and all know."""
        from torch.distributed import broadcast_object_list

        found = [ray.get(ask()) if rank == 0 else None]
        broadcast_object_list(found, 0)
        return found[0]

    while True:
        if not (taken := shared(desk.take.remote)):
            continue
        number, job = taken
        if job is None:
            return
        values, folder = job

        def report(row: Row, number: int = number) -> None:
            if not shared(lambda: desk.tell.remote(number, row)):
                raise TimeIsUp

        if rank == 0:
            ray.get(desk.begin.remote(number, size))
        fresh_start(threads(plan))
        params = trial_params(plan.model, values)
        with contextlib.suppress(TimeIsUp), deaths.noted(folder, rank):
            train_here(plan, params, folder, dataset, report, rank=rank, world_size=size)
        if rank == 0:
            ray.get(desk.tell.remote(number, None))
