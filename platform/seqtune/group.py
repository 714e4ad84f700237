"""The workers that share a batch: what each of them needs to know of the others' parts.

Alone, a process is a group of one. What a loss sums over its own targets adds up over the workers
by itself; what looks at a batch as a whole has to ask here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def place() -> tuple[int, int]:
    """Returns the rank of this worker, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gathered(x: Tensor) -> tuple[Tensor, int]:
    """Returns the rows of all workers in their order, and where this one's begin.

    (n, ...) -> (n_0 + n_1 + ..., ...). A gradient of rows goes back to the worker that has them:
    all workers must call this in the same order, and take gradients if one does.
    """
    if place()[1] == 1:
        return x, 0
    if not x.requires_grad:
        return _gather(x)
    rows, start = _Gathered.apply(x)  # type: ignore[no-untyped-call]
    return rows, int(start)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, int]:
        rows, start = _gather(x)
        ctx.own = slice(start, start + len(x))
        return rows, start

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own]


def _gather(x: Tensor) -> tuple[Tensor, int]:
    """Does what ``gathered`` does, without gradients: all send as many rows as the largest has."""
    rank, n = place()
    own = torch.tensor([len(x)], device=x.device)
    found = [torch.empty_like(own) for _ in range(n)]
    dist.all_gather(found, own)
    sizes = torch.cat(found).tolist()
    sent = F.pad(x.detach(), (0, 0) * (x.dim() - 1) + (0, max(sizes) - len(x))).contiguous()
    parts = [torch.empty_like(sent) for _ in range(n)]
    dist.all_gather(parts, sent)
    rows = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return rows, sum(sizes[:rank])
