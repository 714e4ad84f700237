"""Where the time of a training step goes: shares of what torch's operations spend themselves.

python tests/benchmarks/where.py --model sasrec --data beauty.parquet [--set NAME=VALUE]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))
from seqtune import batches
from seqtune.data import leave_one_out, load
from seqtune.model import model_class
from seqtune.params import build, parse_assignment
from seqtune.train import Home, combine, make_optimizer

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
    kind = model_class(asked.model)
    params = build(kind.Params, dict(map(parse_assignment, asked.set)), "--set")
    split = leave_one_out(load(asked.data))
    data = batches.sequences(split, torch.device("cpu"), times=kind.uses_times)
    windows = batches.windows(split, params)
    torch.manual_seed(0)
    model = kind(params, data.n_items, data.n_users)
    model.prepare(data)
    optimizer = make_optimizer(model, params)
    assert optimizer is not None, f"{asked.model} has nothing to train"
    rng, home = torch.Generator().manual_seed(0), Home()

    def steps(n: int, epoch: int) -> None:
        size = windows.batch_size(params)
        for batch in islice(batches.epoch(windows, data, batch_size=size, seed=(0, epoch)), n):
            loss = combine(model(batch, rng), home, {})
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    steps(WARM_UP, 0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps(STEPS, 1)
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(spent.values())
    print(f"{asked.model} on {Path(asked.data).stem}, {asked.threads} thread(s)")
    for name, microseconds in spent.most_common():
        print(f"  {name:20} {microseconds / whole:6.1%}")


if __name__ == "__main__":
    main()
