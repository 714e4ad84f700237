"""What a model costs on a data set and a machine: ``seqtune bench``.

The training loop and the evaluation are the real ones: the loop is stopped by the clock, from the
hook that it calls after each step.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from seqtune import batches, flops
from seqtune.catalogue import declaration
from seqtune.data import Dataset, Protocol, Split, read
from seqtune.errors import UserError
from seqtune.evaluate import evaluate
from seqtune.meter import Meter, TimeIsUp
from seqtune.model import Model, Sequences, model_class
from seqtune.nn import arithmetic
from seqtune.optimizer import make_optimizer
from seqtune.options import BenchOptions
from seqtune.params import training
from seqtune.space.asked import Asked, fit_training
from seqtune.state import Home
from seqtune.study.loop import device as this_device
from seqtune.study.plan import trial_params
from seqtune.train import train

WARM_UP = 3  # steps that are not counted: memory is allocated, kernels are chosen
FIRST_LOOK = 512  # users whose evaluation says for how many there is time
FOREVER = {"epochs": 100_000, "eval_every": 10_000}


@dataclass(frozen=True)
class Cost:
    """What was measured; training is None for a model that has nothing to train."""

    model: str
    data: str
    device: str
    threads: int
    targets_per_second: float | None  # targets: positions that carry loss
    tokens_per_second: float | None  # tokens: items at the input
    step_ms: float | None
    steps: int
    matmul_gflops: float  # of a large matrix product, per second
    share_of_peak: float | None  # of these, spent on products that the model needs
    eval_users_per_second: float  # of full ranking
    eval_users: int
    startup_seconds: float  # from the first line of Python to the end of the first step
    peak_rss_mb: float
    gpu_memory_mb: float | None


def run(asked: Asked[BenchOptions], started: float) -> Cost:
    """Trains for some seconds, evaluates for as long, and says what it took.

    ``started`` is when the process began, by ``time.perf_counter``.
    """
    options = asked.options
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    dataset = read(options)
    values = fit_training(asked, dataset.n_items).values
    return measure(options.model, values, dataset, options.seconds, started)


def measure(
    model_name: str, values: Mapping[str, Any], dataset: Dataset, seconds: float, started: float
) -> Cost:
    """Does what ``run`` does with hyperparameters and a data set that are at hand."""
    declared = declaration(model_name).params.model_fields
    forever = {name: value for name, value in FOREVER.items() if name in declared}
    params = trial_params(model_name, {**values, **forever})
    split, trains = Protocol.of(dataset).split(dataset), training(params)
    kind, device = model_class(model_name), this_device()
    data = batches.sequences(split, device, times=kind.uses_times)
    torch.manual_seed(params.seed)
    model = kind(params, data.n_items, data.n_users).to(device)
    model.prepare(data)
    meter = Meter(seconds=seconds, warm_up=WARM_UP, wait=_wait)
    if make_optimizer(model, trains) is not None:
        with contextlib.suppress(TimeIsUp):
            # The first epoch is evaluated always: one user costs next to nothing.
            lone = replace(split, valid=split.valid.sample(1, seed=0))
            train(model_name, params, lone, Home(device, stepped=meter))
    users, users_per_second = _evaluation(model, data, split, seconds)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    half = trains.precision == "bf16"
    trained = meter.targets / meter.elapsed if meter.targets else None
    per_target, tokens = 0.0, 0.0
    with arithmetic(trains.precision):
        peak = flops.matmul_peak(device, torch.bfloat16 if half else torch.float32)
        if trained:
            rng = torch.Generator(device).manual_seed(0)
            per_target, tokens = flops.needed(model, batches.windows(split, trains), data, rng)
    return Cost(
        model=model_name,
        data=dataset.name,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        targets_per_second=trained,
        tokens_per_second=trained and trained * tokens,
        step_ms=1000 * meter.elapsed / meter.steps if trained else None,
        steps=meter.steps,
        matmul_gflops=peak / 1e9,
        share_of_peak=trained and trained * per_target / peak,
        eval_users_per_second=users_per_second,
        eval_users=users,
        startup_seconds=meter.first - started,
        peak_rss_mb=memory,
        gpu_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    )


def run_apart(words: list[str], models: Iterable[str]) -> Iterator[Cost]:
    """Measures each model in a process of its own, for its memory and start-up to be its alone.

    ``words`` are the options of ``seqtune bench``, without the model.
    """
    missed = []
    for model in models:
        line = [sys.executable, "-m", "seqtune", "bench", *words, "--model", model, "--json"]
        done = subprocess.run(line, check=False, stdout=subprocess.PIPE)
        if done.returncode:
            missed.append(model)
        else:
            yield Cost(**json.loads(done.stdout))
    if missed:
        raise UserError(f"--model {', '.join(missed)}: not measured, for the reason above")


def show(costs: Iterable[Cost]) -> None:
    """Prints a table that grows by a row with each model."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "" else "right", no_wrap=True)
    with Live(table, console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for cost in costs:
            table.title = f"{cost.data}, {cost.device}, threads: {cost.threads}"
            table.add_row(*_cells(cost))
            live.refresh()
    console.print(
        "\ntargets are positions that carry loss, start-up ends with the first step; of peak is "
        f"the share of {cost.matmul_gflops:,.0f} GFLOP/s, the most that a matrix product reaches "
        "here, spent on the products that the model needs",
        style="dim",
    )


COLUMNS = ("", "targets/s", "step", "of peak", "evaluation", "start-up", "memory")


def _cells(cost: Cost) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    memory = f"{cost.peak_rss_mb:,.0f} MB"
    if cost.gpu_memory_mb is not None:
        memory += f" + {cost.gpu_memory_mb:,.0f} MB GPU"
    return [
        cost.model,
        cell(cost.targets_per_second, "{:,.0f}"),
        cell(cost.step_ms, "{:,.1f} ms"),
        cell(cost.share_of_peak, "{:.0%}"),
        f"{cost.eval_users_per_second:,.0f} users/s",
        f"{cost.startup_seconds:.1f} s",
        memory,
    ]


def _evaluation(model: Model, data: Sequences, split: Split, seconds: float) -> tuple[int, float]:
    """Ranks as many validation users as there is time for: their number, and users per second."""
    n, mask_seen = FIRST_LOOK, Protocol.of(split.dataset).mask_seen
    while True:
        held = split.valid.sample(n, seed=0)
        began = time.perf_counter()
        evaluate(model, data, split, held, mask_seen=mask_seen)
        rate = len(held.users) / (time.perf_counter() - began)  # ranks come back: nothing to await
        if n > FIRST_LOOK or len(held.users) < n:
            return len(held.users), rate
        n = max(FIRST_LOOK + 1, int(rate * seconds))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
