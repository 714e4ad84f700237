"""How much arithmetic of matrix products a training step needs, and how much a machine can do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from seqtune.batches import Windows, gather
from seqtune.model import Model, Sequences

Shape = Sequence[int]


def count(run: Callable[[], None]) -> int:
    """Returns the floating-point operations of all matrix products in ``run``, two for each pair.

    Causal attention counts the pairs that it may look at, whatever the kernel computes; backward
    passes count two products for each forward one, without recomputation.
    """
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        run()
    return int(counter.get_total_flops())


def needed(
    model: Model, windows: Windows, data: Sequences, rng: torch.Generator, sample: int = 32
) -> tuple[float, float]:
    """Returns the operations that one target of training needs, and the inputs for each target.

    Counted on ``sample`` windows of all lengths, those of one length at a time: padding, which a
    model does not need, does not count. A loss that compares the rows of a batch has fewer rows
    to compare then, and counts as less.
    """
    lengths = windows.end - windows.start
    order = np.argsort(lengths, kind="stable")
    taken = order[np.linspace(0, len(order) - 1, min(sample, len(order))).round().astype(int)]
    flops, targets, inputs = 0, 0, 0

    def step() -> None:
        nonlocal targets
        terms = model(batch, rng)
        loss = torch.stack([term.weight * term.total for term in terms.values()]).sum()
        loss.backward()
        targets += next(iter(terms.values())).count

    model.train()
    for _, group in groupby(taken.tolist(), key=lambda i: lengths[i]):
        index = np.array(list(group))
        batch = gather(windows, index, data)
        flops += count(step)
        inputs += int(lengths[index].sum())
    model.zero_grad()
    return flops / targets, inputs / targets


def matmul_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Returns the operations per second of a large square matrix product, the best of many runs."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out, best, end = torch.empty_like(a), float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _product(left: Shape, right: Shape) -> int:
    return 2 * math.prod(left) * right[-1]


def _attention(q: Shape, k: Shape, v: Shape, causal: bool, passes: int) -> int:
    pairs = math.prod(q[:-1]) * k[-2]
    if causal:
        pairs = pairs * (k[-2] + 1) // (2 * k[-2])
    return 2 * passes * pairs * (q[-1] + v[-1])


def _formulas() -> dict[Any, Callable[..., int]]:
    """Returns what torch's own table lacks, or counts otherwise: by operation, from shapes.

    The operations have no public names; tests/unit/test_flops.py says where they were seen.
    """
    aten = torch.ops.aten
    return {
        aten.addmm_: lambda out, left, right, **_: _product(left, right),
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, p=0.0, causal=False, **_: _attention(q, k, v, causal, 1)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda d, q, k, v, out, lse, p, causal, **_: _attention(q, k, v, causal, 2)
        ),
        aten._scaled_dot_product_flash_attention: (
            lambda q, k, v, p=0.0, causal=False, *_, **__: _attention(q, k, v, causal, 1)
        ),
        aten._scaled_dot_product_flash_attention_backward: (
            lambda d, q, k, v, out, lse, cq, ck, mq, mk, p, causal, *_, **__: _attention(
                q, k, v, causal, 2
            )
        ),
    }
