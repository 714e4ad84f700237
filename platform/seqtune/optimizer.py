"""The optimizers, their step sizes, and gradients of the rows in use alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from seqtune.group import gathered
from seqtune.model import Model
from seqtune.nn import ItemEmbedding, UserEmbedding
from seqtune.params import Trained, training

LARGE_TABLE = 50_000  # rows from which an embedding table gets row-sparse gradients, on a CPU


class Adagrad(torch.optim.Optimizer):
    """Adagrad with momentum, as the authors of GRU4Rec compute it.

    s += g^2,  v = momentum v - lr g / sqrt(s + eps),  w += v;  s and v begin at 0

    for each weight w with gradient g. In a group with ``tables`` this moves the rows in use alone:
    where all g of a row are 0, its s, v and w stay. Weight decay is decoupled, w -= lr decay w.

    Duchi et al., JMLR 2011, algorithm 1; eps within the root and momentum are those of the official
    GRU4Rec (arXiv 1706.03847). torch's Adagrad adds eps to the root, and has no momentum.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.0, eps: float = 1e-6
    ) -> None:
        usual = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": 0.0, "tables": False}
        super().__init__(params, usual)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates all weights that have a gradient."""
        assert closure is None, "a step looks at the gradients that are there"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, lr, momentum = self.state[weight], group["lr"], group["momentum"]
        if not state:
            state["sum"] = torch.zeros_like(weight)
            if momentum:
                state["velocity"] = torch.zeros_like(weight)
        if group["weight_decay"]:
            weight.mul_(1 - lr * group["weight_decay"])
        total = state["sum"].addcmul_(gradient, gradient)
        root = (total + group["eps"]).sqrt_()
        if not momentum:
            weight.addcdiv_(gradient, root, value=-lr)
            return
        # As factors, in place: no wait for a GPU, and no copy of a table.
        used = gradient.any(1, keepdim=True) if group["tables"] else gradient.new_ones(1).bool()
        factor = weight.new_ones(used.shape).masked_fill_(used, momentum)
        velocity = state["velocity"].mul_(factor).addcdiv_(gradient, root, value=-lr)
        weight.addcmul_(velocity, used.to(weight.dtype))


def make_optimizer(model: nn.Module, p: Trained) -> torch.optim.Optimizer | None:
    """Returns the optimizer; None for a model without parameters.

    Weight decay is decoupled and spares biases, gains and embedding tables.
    """
    ids = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    tables = [w for w in model.parameters() if id(w) in ids]
    others = [w for w in model.parameters() if id(w) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in others if w.dim() > 1], "weight_decay": p.weight_decay},
        {"params": [w for w in others if w.dim() <= 1], "weight_decay": 0.0},
        {"params": tables, "weight_decay": 0.0, "tables": True},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return None
    if p.optimizer == "adagrad":
        return Adagrad(groups, p.learning_rate, p.momentum)
    return torch.optim.AdamW(groups, lr=p.learning_rate, betas=(0.9, p.adam_beta2), fused=True)


def sparse_tables(
    model: Model, device: torch.device, world_size: int = 1
) -> list[tuple[nn.Embedding, Tensor]]:
    """Has large tables take gradients of the rows in use alone; returns each with its gradient.

    A step uses some thousand rows. To make, scale and add up gradients of 200,000 takes longer than
    all else, most of it to get the memory from the system. So each table keeps one dense gradient,
    to which the rows are added in place; the optimizer updates all rows, as ever. On a GPU, dense
    ones cost less than to wait for the rows that are padding. Several workers exchange the rows
    that are in use, see ``exchange``; where a loss uses all items of the catalogue, all of them.
    """
    p = training(model.params)
    if device.type != "cpu" or p.compile or (world_size > 1 and p.loss_type == "ce"):
        return []
    tables: list[tuple[nn.Embedding, Tensor]] = [
        (part, torch.zeros_like(part.weight))
        for part in model.modules()
        if isinstance(part, ItemEmbedding | UserEmbedding) and part.num_embeddings >= LARGE_TABLE
    ]
    for table, _ in tables:
        table.sparse = True
    return tables


def apart(model: nn.Module, tables: list[tuple[nn.Embedding, Tensor]]) -> list[str]:
    """Returns the names of the weights that ``exchange`` sees to, and DDP does not."""
    own = {id(table.weight) for table, _ in tables}
    return [name for name, weight in model.named_parameters() if id(weight) in own]


def exchange(tables: list[tuple[nn.Embedding, Tensor]], world_size: int) -> None:
    """Makes gradients the mean over all workers, who send each other the rows in use alone.

    All workers must call it after each backward pass.
    """
    for _, gradient in tables if world_size > 1 else ():
        rows = gradient.any(1).nonzero().squeeze(1)
        (ids, _), (values, _) = gathered(rows), gathered(gradient[rows])
        gradient[rows] = 0
        gradient.index_add_(0, ids, values / world_size)


def clear_gradients(model: nn.Module, tables: list[tuple[nn.Embedding, Tensor]]) -> None:
    """Drops all gradients; those of ``sparse_tables`` are used again, as zeros."""
    model.zero_grad(set_to_none=True)
    for table, gradient in tables:
        table.weight.grad = gradient.zero_()


def release(tables: list[tuple[nn.Embedding, Tensor]]) -> None:
    """Takes back what ``sparse_tables`` did: the gradients alone are as large as the tables."""
    for table, _ in tables:
        table.sparse, table.weight.grad = False, None


def set_learning_rate(
    optimizer: torch.optim.Optimizer, p: Trained, step: int, total_steps: int
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
