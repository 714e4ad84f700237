"""THE training loop: one function for a local run, a Tune trial and a Ray Train worker.

It knows neither Ray nor MLflow. Where it runs is a ``Home``: a device, a rank, and what to do with
a report and with a resume state.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqtune import batches, metrics
from seqtune.data.split import Split
from seqtune.evaluate import evaluate
from seqtune.model import Model, Term, model_class
from seqtune.params import TrainParams, UserError

State = dict[str, Any]
Row = dict[str, Any]
NO_STEP = 2**62


class DivergedError(Exception):
    """The loss stopped being a finite number."""


@dataclass
class Home:
    """Where the loop runs and whom it tells: every rank loads and reports, rank 0 alone saves."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world_size: int = 1
    load: Callable[[], State | None] = lambda: None
    save: Callable[[State], None] = lambda state: None
    report: Callable[[Row], None] = lambda row: None
    stepped: Callable[[int], None] = lambda targets: None  # the targets of a step on this rank


@dataclass(frozen=True)
class Trained:
    """What training leaves: the model at its best, and how it got there."""

    model: Model
    best: dict[str, float]  # validation metrics of the best evaluation, and its "epoch"
    ranks: NDArray[np.float32]  # validation rank per user at that evaluation
    history: list[Row]  # one row per evaluation


def train(
    model_name: str,
    params: TrainParams,
    split: Split,
    home: Home | None = None,
    *,
    metric: str = "ndcg@10",
    mask_seen: bool | None = None,
) -> Trained:
    """Trains until the validation ``metric`` has not improved for ``patience`` evaluations.

    After each evaluation the resume state goes to ``home.save`` and a row of numbers to
    ``home.report``. All randomness comes from (seed, epoch, rank), so that a run resumed from its
    state equals an uninterrupted one. Raises DivergedError where the loss is not finite.
    """
    home = home or Home()
    metrics.parse_metric(metric)
    mask_seen = not split.dataset.has_repeats if mask_seen is None else mask_seen
    cuda = [home.device] if home.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):  # the caller's generators stay as they were
        return _train(model_name, params, split, home, metric, mask_seen)


def _train(
    model_name: str, p: TrainParams, split: Split, home: Home, metric: str, mask_seen: bool
) -> Trained:
    kind = model_class(model_name)
    data = batches.sequences(split, home.device, times=kind.uses_times)
    windows = batches.windows(split, p)
    _check_sizes(p, windows, home.world_size, split.dataset.name)
    shard = (home.rank, home.world_size)

    torch.manual_seed(p.seed)
    model = kind(p, data.n_items, data.n_users).to(home.device)
    model.prepare(data)
    optimizer = make_optimizer(model, p)
    parallel = DistributedDataParallel(model) if home.world_size > 1 and optimizer else model
    state: State = {"epoch": 0, "step": 0, "history": [], "best": None, "stale": 0}
    if saved := home.load():
        restore(saved, state, model, optimizer)
    total_steps = p.epochs * windows.n_batches(p.batch_size)
    started = time.perf_counter()
    means: dict[str, list[Tensor]] = {}

    while not finished(state, p):
        if state["epoch"] < p.epochs:
            rng = seed_everything(p.seed, state["epoch"], home)
            first_bad = torch.tensor(NO_STEP, device=home.device)
            model.train()
            for batch in batches.epoch(
                windows,
                data,
                batch_size=p.batch_size,
                seed=(p.seed, state["epoch"]),
                shard=shard,
            ):
                if optimizer is None:
                    break  # nothing to train: STAN
                with torch.autocast(home.device.type, torch.bfloat16, p.precision == "bf16"):
                    terms: dict[str, Term] = parallel(batch, rng)
                loss = combine(terms, home, means)
                set_learning_rate(optimizer, p, state["step"], total_steps)
                optimizer.zero_grad(set_to_none=True)
                (loss * home.world_size).backward()  # DDP takes the mean over ranks
                if p.grad_clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), p.grad_clip_norm)
                optimizer.step()
                bad = torch.where(torch.isfinite(loss.detach()), NO_STEP, state["step"])
                first_bad = torch.minimum(first_bad, bad)
                state["step"] += 1
                home.stepped(len(batch.targets))
                if state["step"] % 50 == 0:  # seldom: looking at a number waits for the device
                    stop_if_diverged(first_bad)
            stop_if_diverged(first_bad)
            state["epoch"] += 1
            if state["epoch"] % p.eval_every and state["epoch"] < p.epochs:
                continue

        trained = time.perf_counter()
        ranking = evaluate(model, data, split, split.valid, mask_seen=mask_seen, shard=shard)
        valid = metrics.compute(ranking.ranks, also=metric)
        if state["best"] is None or valid[metric] > state["best"][metric]:
            state["best"] = valid | {"epoch": state["epoch"]}
            state["best_model"] = copy.deepcopy(model.state_dict())
            state["ranks"] = ranking.ranks
            state["stale"] = 0
        else:
            state["stale"] += 1
        row: Row = {f"train_{name}": mean_over_ranks(m, home) for name, m in means.items()}
        row |= valid | {"epoch": state["epoch"], "step": state["step"]}
        row |= {"best": state["best"][metric], "best_epoch": state["best"]["epoch"]}
        row |= {
            "time": time.time(),
            "train_seconds": trained - started,
            "eval_seconds": time.perf_counter() - trained,
        }
        state["history"].append(row)
        row["finished"] = finished(state, p)
        means, started = {}, time.perf_counter()
        if home.rank == 0:
            home.save(snapshot(state, model, optimizer))
        home.report(row)

    model.load_state_dict(state["best_model"])
    model.eval()
    return Trained(model, state["best"], state["ranks"], state["history"])


def finished(state: State, p: TrainParams) -> bool:
    """Says whether a run has been evaluated at its last epoch, or has not improved for long."""
    return bool(state["history"]) and (state["epoch"] >= p.epochs or state["stale"] >= p.patience)


def combine(terms: dict[str, Term], home: Home, means: dict[str, list[Tensor]]) -> Tensor:
    """Returns this rank's share of the loss: each term over its targets on ALL ranks, weighted.

    The shares of all ranks add up to the loss, whatever the split. ``means`` collects the terms.
    """
    counts = torch.tensor([float(term.count) for term in terms.values()])
    if home.world_size > 1:
        counts = counts.to(home.device)
        dist.all_reduce(counts)
    parts = []
    for (name, term), count in zip(terms.items(), counts.clamp(min=1).unbind(), strict=True):
        mean = term.total / count.to(term.total.device)
        means.setdefault(name, []).append(mean.detach())
        parts.append(term.weight * mean)
    return torch.stack(parts).sum()


def mean_over_ranks(shares: list[Tensor], home: Home) -> float:
    """Returns the mean over steps of a loss whose shares lie on the ranks."""
    mean = torch.stack(shares).mean()
    if home.world_size > 1:
        dist.all_reduce(mean)
    return float(mean)


def make_optimizer(model: nn.Module, p: TrainParams) -> torch.optim.Optimizer | None:
    """Returns the optimizer; None for a model without parameters.

    Weight decay is decoupled and spares biases, gains and embedding tables.
    """
    tables = {
        id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
    }
    decayed = [w for w in model.parameters() if w.dim() > 1 and id(w) not in tables]
    ids = {id(w) for w in decayed}
    spared = [w for w in model.parameters() if id(w) not in ids]
    groups = [{"params": decayed, "weight_decay": p.weight_decay}]
    groups += [{"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return None
    if p.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, lr=p.learning_rate, eps=1e-6)
    return torch.optim.AdamW(groups, lr=p.learning_rate, betas=(0.9, p.adam_beta2), fused=True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, p: TrainParams, step: int, total_steps: int
) -> None:
    """Sets the step size: linear warm-up, then constant, or down to zero over all epochs."""
    scale = min(1.0, (step + 1) / p.warmup_steps) if p.warmup_steps else 1.0
    left = max(total_steps - step, 0) / max(total_steps - p.warmup_steps, 1)
    if step >= p.warmup_steps and p.lr_scheduler == "linear":
        scale = left
    if step >= p.warmup_steps and p.lr_scheduler == "cosine":
        scale = (1 - math.cos(math.pi * left)) / 2
    for group in optimizer.param_groups:
        group["lr"] = p.learning_rate * scale


def seed_everything(seed: int, epoch: int, home: Home) -> torch.Generator:
    """Seeds dropout and returns the generator for negatives and augmentations of one epoch."""
    sequence = np.random.SeedSequence([seed, epoch, home.rank])
    dropout, rest = (int(word) for word in sequence.generate_state(2, np.uint32))
    torch.manual_seed(dropout)
    return torch.Generator(home.device).manual_seed(rest)


def stop_if_diverged(first_bad: Tensor) -> None:
    """Raises DivergedError where a step had a loss that is not finite."""
    if (step := int(first_bad)) < NO_STEP:
        raise DivergedError(f"the loss is not finite at step {step}; try a smaller learning_rate")


def snapshot(state: State, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> State:
    """Returns everything that an exact continuation needs."""
    now = {"model": model.state_dict(), "optimizer": optimizer and optimizer.state_dict()}
    return state | now


def restore(
    saved: State, state: State, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    """Continues from a snapshot; one of a finished run may be without weights to continue from."""
    weights, optimizer_state = saved.pop("model", None), saved.pop("optimizer", None)
    if weights is not None:
        model.load_state_dict(weights)
    if optimizer is not None and optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    state.update(saved)


def _check_sizes(p: TrainParams, windows: batches.Windows, ranks: int, data_name: str) -> None:
    if windows.continues is not None and ranks > 1:
        raise UserError(
            f"train_mode sessions trains one step after another: workers must be 1, not {ranks}"
        )
    if p.epochs and len(windows) < ranks:
        raise UserError(
            f"{data_name}: {len(windows)} training windows cannot be split over {ranks} workers"
        )
    if p.batch_size < 2 * ranks:
        raise UserError(f"batch_size {p.batch_size} must be at least {2 * ranks}: 2 per worker")
