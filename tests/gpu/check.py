"""What ``check.sh`` runs: a GPU's results beside a CPU's, and what a GPU can do.

Each part prints a table in Markdown; a number out of bounds is named, and ends the check with 1.
With ``--cpu`` the same is done on a CPU: as a test of this file, on smaller data.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
import test_models as contract

from seqtune import bench
from seqtune.data import Dataset, Protocol
from seqtune.data.generate import PRESETS, make, make_preset
from seqtune.meter import Meter, TimeIsUp
from seqtune.model import Model, Sequences
from seqtune.nn import arithmetic
from seqtune.state import Home, Row, State
from seqtune.study.loop import fresh_start
from seqtune.study.plan import trial_params
from seqtune.train import train

ON_CPU = "--cpu" in sys.argv
DEVICE = torch.device("cpu" if ON_CPU else "cuda")
SECONDS = 0.3 if ON_CPU else 1.0  # of each measurement
WARM_UP = 20  # steps
CPU = torch.device("cpu")
SASREC = {"train_mode": "rows", "max_seq_len": 200, "batch_size": 256, "n_heads": 2}

# Most that a GPU may differ from a CPU, as a share of the norm.
FP32, BF16 = 1e-4, 0.1

failures: list[str] = []


def expect(holds: bool, sentence: str) -> None:
    if not holds:
        failures.append(sentence)
        print(f"WRONG: {sentence}", flush=True)


def table(title: str, head: list[str], rows: Iterator[list[object]]) -> None:
    print(f"\n## {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


class SameDraws(TorchFunctionMode):
    """Draws on the CPU whatever takes a generator, so that all devices draw the same numbers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs | {"generator": self.rng, "device": CPU}).to(device)


def moved(sequences: Any, device: torch.device) -> Any:
    """Returns a dataclass or model's input with its tensors on a device."""
    values = {field.name: getattr(sequences, field.name) for field in fields(sequences)}
    tensors = {name: value.to(device) for name, value in values.items() if torch.is_tensor(value)}
    return replace(sequences, **tensors)


def plain(name: str) -> dict[str, object]:
    """Values without chance: dropout differs between devices whatever is done."""
    return {field: 0.0 for field in contract.fields(name) if "dropout" in field}


# Agreement: one step of every model with every choice.


def agreement() -> None:
    data = contract.data.__wrapped__()  # type: ignore[attr-defined]
    head = ["model", "cases", "loss", "gradients", "scores", "loss, bf16", "gradients, bf16"]

    def rows() -> Iterator[list[object]]:
        for name in contract.NAMES:
            worst: dict[str, float] = defaultdict(float)
            cases = [choice for model, choice in contract.CASES if model == name]
            cases += [choice for model, choice in contract.SAMPLING if model == name]
            for choice in cases:
                for what, share in differences(name, choice, data).items():
                    bound = BF16 if what.endswith("bf16") else FP32
                    expect(share <= bound, f"{contract.label(name, choice)}: {what} {share:.2g}")
                    worst[what] = max(worst[what], share)
            told = [f"{worst[what]:.1g}" if what in worst else "-" for what in head[2:]]
            yield [name, len(cases), *told]

    table("How far a GPU is from a CPU (share of the norm, worst case)", head, rows())


def differences(name: str, choice: dict[str, object], data: Sequences) -> dict[str, float]:
    """Returns by how much loss, gradients and scores differ between devices: shares of the norm."""
    model = contract.make(name, data, **plain(name) | choice)
    there = copy.deepcopy(model).to(DEVICE)
    there.prepare(moved(data, DEVICE))
    found: dict[str, float] = {}
    events = contract.held_out(data)
    with torch.no_grad(), arithmetic("fp32"):
        ours = model.eval().score(contract.histories(model, data, events))
        theirs = there.eval().score(moved(contract.histories(model, data, events), DEVICE))
    found["scores"] = far(theirs[:, 1:], ours[:, 1:])
    if not list(model.parameters()):
        return found
    batch = contract.batch_of(model, data)
    wanted = step(model, batch)
    for half in (False, True):
        loss, gradient = step(there, moved(batch, DEVICE), half)
        words = ", bf16" if half else ""
        found[f"loss{words}"] = far(loss, wanted[0])
        found[f"gradients{words}"] = far(gradient, wanted[1])
    return found


def step(model: Model, batch: Any, half: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the loss and the gradient of all weights."""
    device = batch.items.device
    model.train()
    model.zero_grad()
    with SameDraws(seed=1), arithmetic("fp32"):
        with torch.autocast(device.type, torch.bfloat16, half):
            loss = contract.total(model(batch, torch.Generator(device)))
        loss.backward()
    gradients = [w.grad.to_dense().flatten() for w in model.parameters() if w.grad is not None]
    return loss.detach(), torch.cat(gradients)


def far(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.cpu().double(), wanted.cpu().double()
    share = float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))
    return share if np.isfinite(share) else float("inf")


# Training: the whole loop, resumed, and after an allocation that failed.


def training_loop() -> None:
    data = made("tiny")
    split = Protocol.of(data).split(data)

    def rows() -> Iterator[list[object]]:
        for name in contract.NAMES:
            if name == "stan":
                continue
            values = plain(name) | {"epochs": 4, "eval_every": 1, "patience": 4}
            values |= {"neg_samples": 16} if "neg_samples" in contract.fields(name) else {}
            params = trial_params(name, values)  # tiny has 60 items: fewer than some draw
            ran, states = [], []
            for device in (CPU, DEVICE):
                told: list[Row] = []
                home = Home(device, report=told.append, save=states.append)
                with SameDraws(seed=1):
                    train(name, params, split, home)
                ran.append([row["losses"] for row in told])
            mine, theirs = ([next(iter(one.values())) for one in losses] for losses in ran)
            first, last = (abs(theirs[i] / mine[i] - 1) for i in (0, -1))
            expect(first < 1e-3, f"{name}: the loss of the first epoch differs by {first:.1g}")
            again = resumed(name, params, split, states[-1])
            expect(again, f"{name}: does not go on from its state")
            yield [name, f"{theirs[-1]:.4f}", f"{first:.1g}", f"{last:.1g}", "yes" if again else ""]

    head = ["model", "loss after 4 epochs", "epoch 1: off by", "epoch 4: off by", "resumes"]
    table("Training on a GPU beside a CPU, with the same negatives and no dropout", head, rows())
    out_of_memory(split)


def resumed(name: str, params: Any, split: Any, state: State) -> bool:
    """Says whether the loop goes on from a state that was kept on the other device."""
    kept = copy.deepcopy(state)
    kept["history"][-1]["finished"] = False
    longer = params.model_copy(update={"epochs": params.epochs + 1})
    told: list[Row] = []
    train(name, longer, split, Home(DEVICE, load=lambda: kept, report=told.append))
    return [row["epoch"] for row in told][-1:] == [longer.epochs]


def out_of_memory(split: Any) -> None:
    """A trial that does not fit ends with torch's error, and the next in the process trains."""
    if ON_CPU:
        return
    torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.mem_get_info()[1])
    large = trial_params("sasrec", {"embedding_size": 4096, "inner_size": 8192, "epochs": 1})
    error: Exception | None = None
    try:
        train("sasrec", large, split, Home(DEVICE))
    except torch.cuda.OutOfMemoryError as raised:
        error = raised.with_traceback(None)
    expect(error is not None, "a model of 4,096 dimensions fits into a GiB")
    fresh_start(1)
    left = torch.cuda.memory_allocated() / 2**20
    train("sasrec", trial_params("sasrec", {"epochs": 1}), split, Home(DEVICE))
    print(f"\nAfter an allocation that failed {left:,.0f} MB stayed taken, and the next trial ran.")
    torch.cuda.set_per_process_memory_fraction(1.0)


# Speed.


@cache
def made(preset: str) -> Dataset:
    if preset == "xl":  # the catalogue in full, with fewer users
        recipe = replace(PRESETS["xl"], users=2_000 if ON_CPU else 100_000)
        return make(recipe, "xl")
    return make_preset(preset, scale=0.05 if ON_CPU and preset == "ml1m" else 1.0)


def cost(model: str, values: dict[str, object], data: str) -> bench.Cost:
    if not ON_CPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return bench.measure(model, values, made(data), SECONDS, time.perf_counter())


SPEED = ["targets/s", "step, ms", "of peak", "GPU busy", "evaluation, users/s", "GPU memory, MB"]


def cells(found: bench.Cost, busy: float | None) -> list[object]:
    if found.targets_per_second is None:
        return ["-", "-", "-", "-", f"{found.eval_users_per_second:,.0f}", "-"]
    return [
        f"{found.targets_per_second:,.0f}",
        f"{found.step_ms:.2f}",
        f"{found.share_of_peak:.1%}",
        "-" if busy is None else f"{busy:.0%}",
        f"{found.eval_users_per_second:,.0f}",
        "-" if found.gpu_memory_mb is None else f"{found.gpu_memory_mb:,.0f}",
    ]


def speed() -> None:
    shapes = itertools.product(("ml1m", "xl"), (64, 128, 256), ("fp32", "tf32", "bf16"))

    def rows() -> Iterator[list[object]]:
        for data, size, precision in shapes:
            values = SASREC | {"embedding_size": size, "inner_size": 4 * size}
            values |= {"precision": precision}
            if ON_CPU and (precision != "fp32" or size > 64):
                continue
            found, busy = cost("sasrec", values, data), share_busy("sasrec", values, data)
            yield [data, size, precision, *cells(found, busy)]

    table("SASRec, L 200, 256 rows a batch", ["data", "d", "precision", *SPEED], rows())


def compiled() -> None:
    def rows() -> Iterator[list[object]]:
        for precision in ("fp32",) if ON_CPU else ("fp32", "bf16"):
            for pays in (False, True):
                values = SASREC | {"compile": pays, "precision": precision}
                found = cost("sasrec", values, "ml1m")
                how = f"compiled, {found.startup_seconds:.0f} s to the first step" if pays else ""
                yield [precision, how, *cells(found, None)]

    table("SASRec, d 64, ml1m, compiled and not", ["precision", "", *SPEED], rows())


def models() -> None:
    def rows() -> Iterator[list[object]]:
        for name in contract.NAMES:
            yield [name, *cells(cost(name, {}, "ml1m"), None)]

    table("Every model with its defaults, ml1m", ["model", *SPEED], rows())


def share_busy(model: str, values: dict[str, object], data: str) -> float | None:
    """Returns the share of the time in which the GPU computes, over some steps of training."""
    if ON_CPU:
        return None
    params = trial_params(model, {**values, "epochs": 1000, "eval_every": 1000})
    split = Protocol.of(made(data)).split(made(data))
    lone = replace(split, valid=split.valid.sample(1, seed=0))
    steps, first, last = 0, 10, 30
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    profiler = torch.profiler.profile(activities=kinds, acc_events=True)
    began = taken = 0.0

    def stepped(targets: int) -> None:
        nonlocal steps, began, taken
        steps += 1
        if steps == first:
            torch.cuda.synchronize()
            profiler.start()
            began = time.perf_counter()
        if steps == last:
            torch.cuda.synchronize()
            taken = time.perf_counter() - began
            profiler.stop()
            raise TimeIsUp

    with contextlib.suppress(TimeIsUp):
        train(model, params, lone, Home(DEVICE, stepped=stepped))
    events = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    if "--kernels" in sys.argv:
        launches = sum(event.count for event in events) / (last - first)
        print(f"{model} {values}: {launches:.0f} kernels a step, {1000 * taken / 20:.2f} ms")
        for event in events[:12]:
            share = event.self_device_time_total / total
            print(f"    {share:6.1%} {event.count / 20:5.1f} {event.key[:110]}")
    return total / 1e6 / taken


# Several trials on one card.


def together() -> None:
    counts = (1, 2) if ON_CPU else (1, 2, 4, 8)

    def rows() -> Iterator[list[object]]:
        for served in (False, True):
            with mps() if served else contextlib.nullcontext(True) as runs:
                if not runs:
                    yield ["with MPS", "", "this driver has none", "", ""]
                    return
                found = side_by_side(counts)
                alone = sum(found[1])
                for n, rates in found.items():
                    slowest = f"{min(rates):,.0f}" if rates else ""
                    times = f"{sum(rates) / alone:.2f}" if alone else ""
                    how = "with MPS" if served else "time slices"
                    yield [how, n, f"{sum(rates):,.0f}", times, slowest]
            if ON_CPU:
                return

    head = ["the card is shared by", "trials", "targets/s of all", "times one", "of the slowest"]
    table("SASRec, d 64, ml1m: several trials on one card", head, rows())


def side_by_side(counts: tuple[int, ...]) -> dict[int, list[float]]:
    """Returns the targets per second of 1, 2, .. processes that train at the same time.

    All are started once; those that are too many wait while the others train.
    """
    context, data = multiprocessing.get_context("spawn"), made("ml1m")
    split, rates, most = Protocol.of(data).split(data), context.Queue(), max(counts)
    barriers = {n: context.Barrier(n) for n in counts}
    processes = [
        context.Process(target=one_of_several, args=(place, split, barriers, rates))
        for place in range(most)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    found: dict[int, list[float]] = {n: [] for n in counts}
    while not rates.empty():
        n, rate = rates.get()
        found[n].append(rate)
    for n, ended in found.items():
        expect(len(ended) == n, f"{n - len(ended)} of {n} trials on one card did not train")
    return found


def one_of_several(place: int, split: Any, barriers: dict[int, Any], rates: Any) -> None:
    torch.set_num_threads(1)
    lone = replace(split, valid=split.valid.sample(1, seed=0))
    params = trial_params("sasrec", SASREC | bench.FOREVER)
    for n, barrier in barriers.items():
        if place < n:
            meter, steps = Meter(seconds=2 * SECONDS, warm_up=1, wait=bench._wait), 0

            def stepped(targets: int, meter: Meter = meter, barrier: Any = barrier) -> None:
                nonlocal steps
                steps += 1
                if steps == WARM_UP:
                    barrier.wait(100)
                if steps >= WARM_UP:
                    meter(targets)

            with contextlib.suppress(TimeIsUp):
                train("sasrec", params, lone, Home(DEVICE, stepped=stepped))
            rates.put((n, meter.targets / meter.elapsed))
        barriers[max(barriers)].wait(100)  # until the others are done


@contextlib.contextmanager
def mps() -> Iterator[bool]:
    """Runs NVIDIA's Multi-Process Service, where the driver has it, for the processes started."""
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None or ON_CPU:
        yield False
        return
    folder = tempfile.mkdtemp()
    os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    subprocess.run([control, "-d"], check=True, timeout=20)
    try:
        yield True
    finally:
        subprocess.run([control], input="quit\n", text=True, check=False, timeout=20)
        del os.environ["CUDA_MPS_PIPE_DIRECTORY"], os.environ["CUDA_MPS_LOG_DIRECTORY"]


PARTS: dict[str, Callable[[], None]] = {
    "agreement": agreement,
    "training": training_loop,
    "speed": speed,
    "compiled": compiled,
    "models": models,
    "together": together,
}


def main() -> None:
    asked = [word for word in sys.argv[1:] if not word.startswith("--")] or list(PARTS)
    card = torch.cuda.get_device_name() if not ON_CPU else "CPU"
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"{card}, {os.cpu_count()} CPUs, torch {torch.__version__}, Python {python}")
    began = time.perf_counter()
    for part in asked:
        PARTS[part]()
        print(f"\n({part}: {time.perf_counter() - began:.0f} s so far)", flush=True)
    print(f"\n{len(failures)} wrong")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
