"""THE training loop: one function for a local run, a Tune trial and a Ray Train worker.

It knows neither Ray nor MLflow. Where it runs is a ``Home``: a device, a rank, and what to do with
a report and with a resume state.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from seqtune import batches, lists, metrics
from seqtune.data import Protocol, Split
from seqtune.errors import UserError
from seqtune.evaluate import Ranking, evaluate
from seqtune.model import Encoder, Model, Term, model_class
from seqtune.nn import arithmetic
from seqtune.optimizer import (
    apart,
    clear_gradients,
    exchange,
    make_optimizer,
    release,
    set_learning_rate,
    sparse_tables,
)
from seqtune.params import Params, Trained, training
from seqtune.state import Best, Home, Row, State, best_of

NO_STEP = 2**62
# Epochs between evaluations, where they are left to us: a share of the time, and a bound.
EVALUATION_SHARE, MOST_EPOCHS = 0.1, 10


class DivergedError(UserError):
    """The loss stopped being a finite number, which other hyperparameters mend."""


@dataclass(frozen=True)
class Outcome:
    """What training leaves: the model at its best, and how it got there."""

    model: Model
    best: Best
    history: list[Row]  # one row per evaluation


def train(
    model_name: str,
    params: Params,
    split: Split,
    home: Home | None = None,
    *,
    metric: str = "ndcg@10",
    also: Sequence[str] = (),
    mask_seen: bool | None = None,
) -> Outcome:
    """Trains until the validation ``metric`` has not improved for ``patience`` epochs.

    ``also`` names metrics of ranks or of lists that are measured beside it.

    The first epoch, the last and each multiple of ``eval_every`` are evaluated. After each
    evaluation a row of numbers goes to ``home.report``; before it, where the metric is the best so
    far or the run ends, the resume state to ``home.save``, which may keep it: nothing in it changes
    any more. All randomness comes from (seed, epoch, rank), so that a run resumed from its state
    equals an uninterrupted one. Raises DivergedError where the loss is not finite.
    """
    home = home or Home()
    metrics.parse_metric(metric)
    if mask_seen is None:
        mask_seen = Protocol.of(split.dataset).mask_seen
    cuda = [home.device] if home.device.type == "cuda" else []
    precision = training(params).precision
    # The caller's generators and settings stay as they were.
    with torch.random.fork_rng(devices=cuda), arithmetic(precision):
        return _train(model_name, params, split, home, (metric, *also), mask_seen)


def _train(
    model_name: str,
    params: Params,
    split: Split,
    home: Home,
    measures: Sequence[str],
    mask_seen: bool,
) -> Outcome:
    kind, p, metric = model_class(model_name), training(params), measures[0]
    data = batches.kept_sequences(split, home.device, times=kind.uses_times)
    windows = batches.windows(split, p)
    batch_size = windows.batch_size(p)
    _check_sizes(p, windows, batch_size, home.world_size, split.dataset.name)
    _check_precision(p, home.device)
    shard, most = (home.rank, home.world_size), lists.longest(measures)

    torch.manual_seed(p.seed)
    model = kind(params, data.n_items, data.n_users).to(home.device)
    model.prepare(data)
    home.begin(model)
    if p.compile and isinstance(model, Encoder):
        model.compile_encoder()
    optimizer = make_optimizer(model, p)
    tables = sparse_tables(model, home.device, home.world_size)
    parallel = shared_by_all(model, tables) if home.world_size > 1 and optimizer else model
    state = State(epoch=0, step=0, eval_every=p.eval_every, history=[], best=None)
    if saved := home.load():
        restore(saved, state, model, optimizer)
    total_steps = p.epochs * windows.n_batches(batch_size)
    started = time.perf_counter()
    means: dict[str, list[Tensor]] = {}
    targets = 0

    while not finished(state, p):
        if state["epoch"] < p.epochs:
            rng = seed_everything(p.seed, state["epoch"], home)
            first_bad = torch.tensor(NO_STEP, device=home.device)
            model.train()
            for batch in batches.epoch(
                windows,
                data,
                batch_size=batch_size,
                seed=(p.seed, state["epoch"]),
                shard=shard,
            ):
                if optimizer is None:
                    break  # nothing to train: STAN
                with torch.autocast(home.device.type, torch.bfloat16, p.precision == "bf16"):
                    terms: dict[str, Term] = parallel(batch, rng)
                loss = combine(terms, home, means)
                set_learning_rate(optimizer, p, state["step"], total_steps)
                clear_gradients(model, tables)
                (loss * home.world_size).backward()  # DDP takes the mean over ranks
                exchange(tables, home.world_size)  # those that DDP leaves out
                if p.grad_clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), p.grad_clip_norm)
                optimizer.step()
                bad = torch.where(torch.isfinite(loss.detach()), NO_STEP, state["step"])
                first_bad = torch.minimum(first_bad, bad)
                state["step"] += 1
                targets += (count := next(iter(terms.values())).count)
                home.stepped(count)
                if state["step"] % 50 == 0:  # seldom: looking at a number waits for the device
                    stop_if_diverged(first_bad)
            stop_if_diverged(first_bad)
            state["epoch"] += 1
            if not due(state, p):
                continue

        trained = time.perf_counter()
        ranking = evaluate(
            model, data, split, split.valid, mask_seen=mask_seen, top_k=most, shard=shard
        )
        valid = measured(ranking, split, measures)
        improved = state["best"] is None or valid[metric] > state["best"]["metrics"][metric]
        if improved:
            weights = copy.deepcopy(model.state_dict())
            state["best"] = Best(
                epoch=state["epoch"], metrics=valid, weights=weights, ranks=ranking.ranks
            )
        evaluated, best = time.perf_counter(), best_of(state)
        state["eval_every"] = state["eval_every"] or cadence(
            trained - started, evaluated - trained + saving_seconds(state, optimizer), p, home
        )
        row = Row(
            epoch=state["epoch"],
            step=state["step"],
            losses={name: mean_over_steps(shares, home) for name, shares in means.items()},
            metrics=valid,
            best=best["metrics"][metric],
            best_epoch=best["epoch"],
            time=time.time(),
            train_seconds=trained - started,
            train_targets=total(targets, home),
            eval_seconds=evaluated - trained,
            eval_every=state["eval_every"],
            finished=False,
        )
        state["history"].append(row)
        row["finished"] = finished(state, p)
        means, targets, started = {}, 0, time.perf_counter()
        if home.rank == 0 and (improved or row["finished"]):
            home.save(snapshot(state, optimizer))
        home.report(row)

    best = best_of(state)
    model.load_state_dict(best["weights"])
    model.eval()
    release(tables)
    return Outcome(model, best, state["history"])


def measured(ranking: Ranking, split: Split, measures: Sequence[str]) -> dict[str, float]:
    """Returns the usual metrics on validation, and the others that are asked for."""
    held = split.valid
    ranks = metrics.of_held(ranking.ranks, held)
    found = metrics.compute(ranks, also=measures)
    if ranking.top is not None:
        known = lists.Known(split, held.take(held.lists))
        found |= lists.of_lists(ranking.top, known, lists.of_these(measures))
    return found


def finished(state: State, p: Trained) -> bool:
    """Says, after an evaluation, whether it was at the last epoch or the best one is long ago."""
    if not state["history"] or state["history"][-1]["epoch"] != state["epoch"]:
        return False
    since = state["epoch"] - best_of(state)["epoch"]
    return state["epoch"] >= p.epochs or since >= p.patience


def due(state: State, p: Trained) -> bool:
    """Says whether an epoch that has just ended is evaluated."""
    return state["epoch"] in (1, p.epochs) or not state["epoch"] % (state["eval_every"] or 1)


def cadence(train_seconds: float, cost: float, p: Trained, home: Home) -> int:
    """Returns after how many epochs to evaluate, so that it costs a tenth of training at most.

    ``cost`` are the seconds of one evaluation and of saving what it found, ``train_seconds`` those
    of an epoch. There are two evaluations within ``patience`` in any case. Rank 0's clock decides.
    """
    every = math.ceil(cost / (EVALUATION_SHARE * max(train_seconds, 1e-9)))
    every = max(1, min(every, MOST_EPOCHS, p.patience // 2)) if p.epochs else 1
    if home.world_size > 1:
        decided = torch.tensor(every, device=home.device)
        dist.broadcast(decided, 0)
        every = int(decided)
    return every


def saving_seconds(state: State, optimizer: torch.optim.Optimizer | None) -> float:
    """Returns what saving a state takes from training: to copy it and to turn it into bytes."""
    began = time.perf_counter()
    torch.save(snapshot(state, optimizer), io.BytesIO())
    return time.perf_counter() - began


def combine(terms: dict[str, Term], home: Home, means: dict[str, list[Tensor]]) -> Tensor:
    """Returns this rank's share of the loss: each term over its targets on ALL ranks, weighted.

    The shares of all ranks add up to the loss, whatever the split. ``means`` collects the terms.
    """
    counts: Sequence[float | Tensor] = [max(float(term.count), 1.0) for term in terms.values()]
    if home.world_size > 1:
        summed = torch.tensor([float(term.count) for term in terms.values()], device=home.device)
        dist.all_reduce(summed)
        counts = summed.clamp(min=1).unbind()
    parts = []
    for (name, term), count in zip(terms.items(), counts, strict=True):
        mean = term.total / count
        means.setdefault(name, []).append(mean.detach())
        parts.append(term.weight * mean)
    return torch.stack(parts).sum()


def shared_by_all(
    model: Model, tables: list[tuple[nn.Embedding, Tensor]]
) -> DistributedDataParallel:
    """Returns a model whose gradients DDP shares, but for those of ``tables``."""
    left_out = apart(model, tables)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, left_out)
    return DistributedDataParallel(model)


def mean_over_steps(shares: list[Tensor], home: Home) -> float:
    """Returns the mean over steps of a loss whose shares, one a rank, add up."""
    mean = torch.stack(shares).mean()
    if home.world_size > 1:
        dist.all_reduce(mean)
    return float(mean)


def total(count: int, home: Home) -> int:
    """Returns the sum of a count over all ranks."""
    summed = torch.tensor(count, device=home.device)
    if home.world_size > 1:
        dist.all_reduce(summed)
    return int(summed)


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


def snapshot(state: State, optimizer: torch.optim.Optimizer | None) -> State:
    """Returns what an exact continuation from the best evaluation needs, which is the last one.

    In a finished run it may be an earlier one, and nothing but its weights is wanted.
    """
    kept = state.copy()
    kept["history"] = list(state["history"])
    if not (state["history"] and state["history"][-1]["finished"]):
        kept["optimizer"] = copy.deepcopy(optimizer.state_dict()) if optimizer else None
    return kept


def restore(
    saved: State, state: State, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    """Continues from a snapshot; that of a finished run has no optimizer."""
    model.load_state_dict(best_of(saved)["weights"])
    if optimizer is not None and (kept := saved.get("optimizer")):
        optimizer.load_state_dict(kept)
    for key in ("epoch", "step", "eval_every", "history", "best"):
        state[key] = saved[key]


def _check_sizes(
    p: Trained, windows: batches.Windows, batch_size: int, ranks: int, data_name: str
) -> None:
    if windows.continues is not None and ranks > 1:
        raise UserError(
            f"train_mode sessions trains one step after another: workers must be 1, not {ranks}"
        )
    if p.epochs and len(windows) < ranks:
        raise UserError(
            f"{data_name}: {len(windows)} training windows cannot be split over {ranks} workers"
        )
    if batch_size < 2 * ranks:
        made = f"tokens_per_batch {p.tokens_per_batch} makes a batch of {batch_size} windows, which"
        place = made if p.tokens_per_batch else f"batch_size {batch_size}"
        raise UserError(f"{place} must be at least {2 * ranks}: 2 per worker")


def _check_precision(p: Trained, device: torch.device) -> None:
    if p.precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        raise UserError(
            "precision bf16: this CPU has no such arithmetic and would take twenty times as long; "
            "use fp32"
        )


def cpu_has_bf16() -> bool:
    """Says whether this CPU multiplies in bf16: what oneDNN asks has no public name in torch."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
