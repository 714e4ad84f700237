"""The training loop in this process, from the state of a trial's folder."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from seqtune.data import Dataset
from seqtune.machines import here
from seqtune.params import Params
from seqtune.state import Home, Row, Saver, all_told, keep_told, load_state, save_state, told
from seqtune.storage import Folder

if TYPE_CHECKING:
    from torch import nn

    from seqtune.train import Outcome
from seqtune.study.plan import Plan


def fresh_start(cpus: float) -> None:
    """Gives a reused process the manners of a new one."""
    import torch

    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # torch's own objects live for good: to look at them takes 0.1 s each time
    torch.set_num_threads(max(1, int(cpus)))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def hopeless(error: BaseException) -> str | None:
    """Returns why trying again would fail in the same way, or None where it may help."""
    import torch

    from seqtune.errors import UserError

    for one in _causes(error):
        if isinstance(one, UserError):
            return str(one)
        if isinstance(one, MemoryError | torch.cuda.OutOfMemoryError) or "allocate" in str(one):
            return "out of memory; a smaller batch_size, embedding_size or max_seq_len would fit"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, what it came from, and what Ray and Ray Train have wrapped in it."""
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    yield error
    inner = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    inner += [error.cause] if isinstance(error, RayTaskError) else []
    for one in (*inner, error.__cause__):
        if one is not None:
            yield from _causes(one)


def train_here(
    plan: Plan,
    params: Params,
    folder: Folder,
    dataset: Dataset,
    report: Callable[[Row], None],
    *,
    rank: int = 0,
    world_size: int = 1,
    stepped: Callable[[int], None] = lambda targets: None,
    begin: Callable[[nn.Module], None] = lambda model: None,
) -> Outcome:
    """Runs the loop in this process, from the folder's state where there is one.

    What was told before a crash is not told again, though the epochs may be trained again.
    ``stepped`` hears the targets of each step, and may raise to end the training. ``begin`` may
    give the model its first weights.
    """
    from seqtune.study.weigh import weigh
    from seqtune.train import train
    from seqtune.usage import Usage

    split, owner = plan.protocol.split(dataset), plan.owner(params)
    saved = load_state(folder, owner)
    rows, usage = all_told(told(folder, owner), saved), Usage()
    costs = dict(rows[-1].get("costs", {})) if rows else {}

    def tell(row: Row) -> None:
        if rows and row["epoch"] <= rows[-1]["epoch"]:
            return
        row = {**row, "costs": costs, "system": usage.look()}
        rows.append(row)
        if rank == 0:
            keep_told(folder, rows, owner)
        report(row)

    def weighed(model: nn.Module) -> None:
        begin(model)
        costs.update(weigh(model, dataset, split) if plan.weighs and not rows else {})

    with Saver(
        lambda state: save_state(folder, state, split, owner), tell, wait=world_size > 1
    ) as saver:

        def step(targets: int) -> None:
            saver.proceed()
            stepped(targets)

        home = Home(
            device=device(),
            rank=rank,
            world_size=world_size,
            load=lambda: saved,
            save=saver.save,
            report=saver.report,
            stepped=step,
            begin=weighed,
        )
        seen, also = plan.protocol.mask_seen, plan.measures
        return train(plan.model, params, split, home, metric=plan.metric, also=also, mask_seen=seen)


def device() -> Any:
    """Returns the device that Ray gave this process; one that Ray did not start takes a GPU."""
    import torch

    ray = sys.modules.get("ray")
    given = torch.cuda.is_available()
    if given and ray is not None and ray.is_initialized():
        given = bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])
    return torch.device("cuda" if given else "cpu")


def threads(plan: Plan) -> float:
    """Returns the CPUs of a process of a trial: with a GPU, all that come with it here."""
    if not plan.gpus:
        return plan.cpus
    own = here()
    return max(plan.cpus, own.cpus * plan.gpus / own.gpus) if own.gpus else plan.cpus
