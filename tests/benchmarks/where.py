"""Where the time of a training step goes: shares of what torch's operations spend themselves.

python tests/benchmarks/where.py --model sasrec --data beauty.parquet [--set NAME=VALUE]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))
from seqtune.data import leave_one_out, load
from seqtune.meter import TimeIsUp
from seqtune.model import model_class
from seqtune.params import build, parse_assignment
from seqtune.state import Home
from seqtune.train import train

WARM_UP, STEPS = 3, 20
KINDS = {  # the first that is part of an operation's name
    "attention": ("scaled_dot_product",),
    "optimizer": ("adam", "Optimizer"),
    "matrix products": ("mm", "baddbmm", "linear", "conv"),
    "softmax, logsumexp": ("softmax", "amax", "logsumexp", "aten::exp", "aten::log"),
    "normalisation": ("norm",),
    "activation": ("gelu", "relu", "silu", "sigmoid", "tanh", "threshold", "softplus"),
    "dropout": ("random_", "aten::ge", "_DropBytes", "bernoulli", "dropout"),
    "look-ups": ("embedding", "index", "gather", "scatter", "searchsorted"),
    "copies": ("copy_", "aten::cat", "clone", "fill_", "zero_", "contiguous"),
}


def kind_of(name: str) -> str:
    return next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="sasrec")
    parser.add_argument("--data", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sets = {"epochs": 1000} | dict(map(parse_assignment, asked.set))
    params = build(model_class(asked.model).Params, sets, "--set")
    split = leave_one_out(load(asked.data))
    profiler = profile(activities=[ProfilerActivity.CPU])
    done = count(1)

    def stepped(_: int) -> None:
        step = next(done)
        if step == WARM_UP:
            profiler.start()
        elif step == WARM_UP + STEPS:
            profiler.stop()
            raise TimeIsUp

    with suppress(TimeIsUp):
        # The first epoch is evaluated always: of one user.
        lone = replace(split, valid=split.valid.sample(1, seed=0))
        train(asked.model, params, lone, Home(stepped=stepped))
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(spent.values())
    print(f"{asked.model} on {Path(asked.data).stem}, {asked.threads} thread(s)")
    for name, microseconds in spent.most_common():
        print(f"  {name:20} {microseconds / whole:6.1%}")


if __name__ == "__main__":
    main()
