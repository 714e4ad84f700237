"""Ways to compute the cross entropy over a whole catalogue, with its gradients, side by side.

    python tests/benchmarks/cross_entropy.py [--threads 2] [--rounds 7]

Each round runs every way once on the same random states, so that a busy moment of the machine hits
all; medians count. Runs on a GPU where there is one. The last column is the largest difference of a
gradient from that of the plain way, relative to the largest gradient.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "platform"))
from seqtune import losses

Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # states (N, D), table (I + 1, D), targets (N,)
SIZES = {"beauty": (2_000, 12_101), "ml-1m": (8_000, 3_416), "large": (1_000, 200_000)}
SIZE = 64  # of a state


def plain(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """The whole matrix of logits."""
    return F.cross_entropy(states @ table[1:].T, targets - 1, reduction="sum")


def torch_s_own(options: torch.nn.LinearCrossEntropyOptions | None) -> Way:
    """torch's function, in chunks where options are given."""

    def way(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        return F.linear_cross_entropy(
            states, table[1:], targets - 1, reduction="sum", options=options
        )

    return way


def ours(states: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Chunks with their gradients, in one buffer."""
    return losses.ce(states, table, targets, len(table) - 1)


def ways(compiled: bool) -> dict[str, Way]:
    """Returns all ways by name."""
    options = torch.nn.LinearCrossEntropyOptions
    found: dict[str, Way] = {
        "F.cross_entropy of all logits": plain,
        "F.linear_cross_entropy": torch_s_own(None),
        '  options "auto"': torch_s_own(options()),
        "  chunks of 256": torch_s_own(options(batch_chunk_size=256)),
        "  chunks of 1024": torch_s_own(options(batch_chunk_size=1024)),
        "seqtune.losses.ce": ours,
    }
    if compiled:
        found["torch.compile of the first"] = torch.compile(plain)
    return found


def measure(name: str, n: int, n_items: int, rounds: int, compiled: bool) -> None:
    """Prints a table for one size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    states = (0.3 * torch.randn(n, SIZE, device=device)).requires_grad_()
    table = (0.3 * torch.randn(n_items + 1, SIZE, device=device)).requires_grad_()
    targets = torch.randint(1, n_items + 1, (n,), device=device)
    times: dict[str, list[float]] = {}
    gradients: dict[str, tuple[Tensor, ...]] = {}
    for nth in range(rounds + 1):
        for label, way in ways(compiled).items():
            began = time.perf_counter()
            found = torch.autograd.grad(way(states, table, targets), (states, table))
            if device.type == "cuda":
                torch.cuda.synchronize()
            if nth:  # the first warms up
                times.setdefault(label, []).append(time.perf_counter() - began)
            else:
                gradients[label] = found
    print(f"\n{name}: {n:,} targets, {n_items:,} items, {device.type}")
    exact = gradients["F.cross_entropy of all logits"]
    for label, spent in times.items():
        worst = max(
            float((a - b).abs().max() / b.abs().max())
            for a, b in zip(gradients[label], exact, strict=True)
        )
        print(f"  {label:32} {n / statistics.median(spent):10,.0f} targets/s   {worst:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also torch.compile: a minute more")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"torch {torch.__version__}, {asked.threads} threads, medians of {asked.rounds}")
    for name in asked.sizes:
        measure(name, *SIZES[name], asked.rounds, asked.compile)


if __name__ == "__main__":
    main()
