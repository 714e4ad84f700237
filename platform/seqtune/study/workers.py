"""The training loop in Ray Train workers that share every batch."""

from __future__ import annotations

from typing import Any

from seqtune.data import Dataset
from seqtune.params import Params
from seqtune.state import Row, flat
from seqtune.storage import Folder
from seqtune.study import deaths
from seqtune.study.loop import fresh_start, threads, train_here
from seqtune.study.plan import Plan, trial_params


def backend(gpus: float) -> str:
    """Returns by what workers exchange gradients: NCCL on GPUs, where torch has it, else gloo."""
    from torch.distributed import is_nccl_available

    return "nccl" if gpus and is_nccl_available() else "gloo"


def train_in_workers(
    plan: Plan,
    params: Params,
    folder: Folder,
    dataset: Dataset,
    callbacks: list[Any],
    rows: Any = None,
) -> None:
    """Runs the loop in Ray Train workers that share every batch.

    What they report goes to the callbacks, and to the queue ``rows`` where there is one.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources = {"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {})
    TorchTrainer(
        _worker,
        train_loop_config={
            "plan": plan,
            "params": params.model_dump(),
            "folder": folder,
            "dataset": ray.put(dataset),
            "rows": rows,
        },
        torch_config=TorchConfig(backend=backend(plan.gpus)),
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="workers",
            storage_path=folder.uri,
            callbacks=callbacks,
            failure_config=FailureConfig(max_failures=0),  # Tune tries again, from the state
        ),
    ).fit()


def _worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train

    plan: Plan = config["plan"]
    dataset: Dataset = ray.get([config["dataset"]])[0]
    fresh_start(threads(plan))
    context = ray.train.get_context()

    def report(row: Row) -> None:
        ray.train.report(flat(row))
        if config["rows"] is not None and context.get_world_rank() == 0:
            config["rows"].put(row)

    folder, rank = config["folder"], context.get_world_rank()
    with deaths.noted(folder, rank):
        train_here(
            plan,
            trial_params(plan.model, config["params"]),
            folder,
            dataset,
            report,
            rank=rank,
            world_size=context.get_world_size(),
        )
