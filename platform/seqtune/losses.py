"""Losses of next-item prediction: pure functions, each the SUM over its targets.

Letters: N targets, D size of a state, V rows of the item table (row 0 is padding, rows 1..I the
items, later rows special), k negatives, s+ the score of a target, s_j of its j-th negative,
sp(x) = log(1 + exp(x)). Everything here computes in fp32, inside autocast too.

The formulas come first; below them stands how the two that compare many items are computed.

A negative that must not count has the score -inf: exp(-inf) = sp(-inf) = 0 removes it from every
loss, and its gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seqtune.errors import UserError
from seqtune.group import gathered, place
from seqtune.negatives import Negatives, distinct


def ce(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    n_items: int,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Returns the cross entropy of the softmax over all items, summed over targets.

    sum_n [ log sum_{i=1..I} exp(z_ni) - z_n,target ], z = states @ table.T / temperature + bias

    Args:
        states: (N, D).
        table: (V, D); rows 0 and beyond ``n_items`` take no part and get no gradient.
        targets: (N,) item ids 1..I.
        n_items: I.
        bias: (V,) or None.
        temperature: divides the similarities, not the bias.

    The (N, I) logits never exist as a whole: both gradients are made in the forward pass, a chunk
    of targets at a time, in one buffer that stays in the processor's cache. Hence no second
    derivative.
    """
    return _CrossEntropy.total(states, table, bias, targets.long(), n_items, temperature)


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns sum_n [ logsumexp(s+, s_1..s_k) - s+ ]; with k = 1 this is BPR.

    ``positive`` (N,), ``negative`` (N, k): the scores. Every item as a negative makes it ``ce``.
    """
    scores = torch.cat([positive[:, None], negative], 1)
    return (scores.logsumexp(1) - positive).sum()


def bpr(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns sum_n mean_j sp(s_j - s+), the mean over the negatives that count.

    Rendle et al., BPR (arXiv 1205.2618).
    """
    counted = (negative != -torch.inf).sum(1).clamp(min=1)
    return (F.softplus(negative - positive[:, None]).sum(1) / counted).sum()


def bce(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns sum_n [ sp(-s+) + sum_j sp(s_j) ]: -log sg(s+) - sum_j log(1 - sg(s_j)).

    Kang & McAuley, SASRec (arXiv 1808.09781), there with k = 1.
    """
    return F.softplus(-positive).sum() + F.softplus(negative).sum()


def gbce(positive: Tensor, negative: Tensor, beta: float) -> Tensor:
    """Returns sum_n ( beta sp(-s+) + sum_j sp(s_j) ) / (k + 1).

    Petrov & Macdonald, gSASRec (arXiv 2308.07192). The authors transform s+ in float64 so that
    sg(s+') = sg(s+)^beta; -log of that is beta sp(-s+), so no float64 is needed. beta = 1 is
    ``bce`` divided by k + 1.
    """
    total = beta * F.softplus(-positive).sum() + F.softplus(negative).sum()
    return total / (negative.shape[1] + 1)


def window_bce(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns sum_n [ sp(-s+) + mean_j sp(s_j) ], the mean over the negatives that count.

    Tang & Wang, Caser (WSDM 2018), where the targets of a window share its negatives.
    """
    counted = (negative != -torch.inf).sum(1).clamp(min=1)
    return F.softplus(-positive).sum() + (F.softplus(negative).sum(1) / counted).sum()


def calibration(t: float, k: int, n_items: int) -> float:
    """Returns gBCE's beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha), alpha = k/(I-1).

    t = 0 is BCE, t = 1 removes all the overconfidence of sampling. Raises UserError for k > I-1,
    where beta would exceed 1.
    """
    if k > n_items - 1:
        raise UserError(
            f"loss_type gbce: neg_samples must be at most {n_items - 1}, one less than the "
            f"{n_items} items of the data, not {k}"
        )
    return 1 - t * (1 - k / (n_items - 1))


def sampled(
    kind: str, positive: Tensor, negative: Tensor, n_items: int, gbce_t: float = 0.75
) -> Tensor:
    """Returns the loss of that name from the scores of targets (N,) and negatives (N, k)."""
    if kind == "gbce":
        return gbce(positive, negative, calibration(gbce_t, negative.shape[1], n_items))
    named = {"sampled_softmax": sampled_softmax, "bpr": bpr, "bce": bce, "window_bce": window_bce}
    return named[kind](positive, negative)


def column_scores(states: Tensor, vectors: Tensor, bias: Tensor) -> Tensor:
    """Returns the scores of shared columns: (N, D), (C, D), (1, C) -> (N, C)."""
    with torch.autocast(states.device.type, enabled=False):
        return torch.addmm(bias.float(), states.float(), vectors.float().T)


def in_batch_ce(scores: Tensor, log_q: Tensor | float = 0.0) -> Tensor:
    """Returns the cross entropy over shared columns, the target of row n in column n.

    sum_n [ log sum_c exp(s_nc - q_c) - (s_nn - q_n) ]

    ``scores`` (N, N + k): the targets of the batch, then k samples; ``log_q`` (N + k,) or 0: what
    corrects for how often an item becomes a column. An item may stand in several columns.
    """
    own = torch.arange(len(scores), device=scores.device)
    with torch.autocast(scores.device.type, enabled=False):
        return F.cross_entropy(scores.float() - log_q, own, reduction="sum")


def bpr_max(scores: Tensor, bpreg: float = 1.0, elu_param: float = 0.5) -> Tensor:
    """Returns BPR-max over shared columns (N, N + k), the target of row n in column n.

    sum_n [ -log( sum_c w_nc sg(r_nn - r_nc) + 1e-24 ) + bpreg sum_c w_nc r_nc^2 ] over the columns
    c != n, with w_n = softmax of r_nc over these, r = elu(s), and r = s for ``elu_param`` 0.
    Without another column it is 0.

    Hidasi & Karatzoglou (arXiv 1706.03847).
    """
    with torch.autocast(scores.device.type, enabled=False):
        r = F.elu(scores.float(), elu_param) if elu_param else scores.float()
        if r.shape[1] == 1:
            return 0.0 * r.sum()
        own = torch.eye(*r.shape, dtype=torch.bool, device=r.device)
        w = r.masked_fill(own, -torch.inf).softmax(1)
        better = (w * torch.sigmoid(r.diagonal()[:, None] - r)).sum(1)
        return (bpreg * (w * r.square()).sum(1) - (better + 1e-24).log()).sum()


def info_nce(
    first: Tensor,
    second: Tensor,
    temperature: float = 1.0,
    similarity: Literal["dot", "cos"] = "dot",
    same: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Returns InfoNCE of two views (B, D), summed over their 2B rows.

    sum_r [ log sum_{c != r} exp(sim(z_r, z_c) / tau) - sim(z_r, z_partner) / tau ] over the 2B rows
    z of both views: all rows but itself and its partner are a row's negatives. With ``same`` (B,),
    say the target of each row, rows of an equal value are not negatives of each other. ``gather``
    takes the rows of all workers that share the batch as negatives of a worker's own.

    van den Oord et al. (arXiv 1807.03748); in this form Chen et al., SimCLR (arXiv 2002.05709).
    """
    with torch.autocast(first.device.type, enabled=False):
        rows = torch.cat([first.float(), second.float()])  # (2B, D)
        if similarity == "cos":
            rows = F.normalize(rows, dim=1)
        columns, start = gathered(rows) if gather else (rows, 0)  # (C, D), C >= 2B
        own = start + torch.arange(len(rows), device=rows.device)
        partner = own.roll(len(first))
        excluded = own[:, None] == torch.arange(len(columns), device=rows.device)
        if same is not None:
            both = same.repeat(2)
            others = gathered(both)[0] if gather else both
            excluded = (both[:, None] == others).scatter(1, partner[:, None], False)
        logits = (rows @ columns.T / temperature).masked_fill(excluded, -torch.inf)
        return F.cross_entropy(logits, partner, reduction="sum")


def l2(table: Tensor, items: Tensor) -> Tensor:
    """Returns half the squared norm of the distinct item vectors among ``items``, padding aside.

    Of several workers each adds its share of the distinct items of the whole batch.
    """
    (ids, fresh), (rank, n) = distinct(gathered(items.flatten())[0]), place()
    if n > 1:
        fresh = fresh & (ids % n == rank)
    return 0.5 * (F.embedding(ids, table).float().square().sum(1) * fresh).sum()


# How scores and losses over many items are computed.


def scores(
    states: Tensor,
    table: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    negatives: Negatives,
    where: Tensor,
    width: int,
) -> tuple[Tensor, Tensor]:
    """Returns the scores of the targets (N,) and of the negatives (N, k), -inf where rejected.

    ``where`` (N,) are the flat positions b * width + t of the targets. Shared negatives are a
    matmul, not a gather of (N, k, D).
    """
    with torch.autocast(states.device.type, enabled=False):
        states, table = states.float(), table.float()
        positive = (states * F.embedding(targets, table)).sum(1)
        vectors = F.embedding(negatives.items, table)  # (N, k, D), (B, k, D) or (k, D)
        if negatives.sharing == "position":
            negative = (vectors @ states[:, :, None]).squeeze(2)
        elif negatives.sharing == "row":
            grid = states.new_zeros(len(vectors) * width, states.shape[1])
            grid = grid.index_copy(0, where, states).unflatten(0, (-1, width))  # (B, L, D)
            negative = (grid @ vectors.mT).flatten(0, 1).index_select(0, where)
        else:
            negative = states @ vectors.T
        if bias is not None:
            positive = positive + bias[targets]
            offsets = bias[negatives.items]
            per_row = negatives.sharing == "row"
            negative = negative + (offsets[where // width] if per_row else offsets)
        if negatives.rejected is not None:
            negative = negative.masked_fill(negatives.rejected, -torch.inf)
        return positive, negative


def over_candidates(
    loss: Callable[[Tensor, Tensor], Tensor],
    states: Tensor,
    table: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    negatives: Negatives,
    where: Tensor,
    width: int,
    sparse: bool = False,
) -> Tensor:
    """Returns ``loss(*scores(states, ...))`` without ever holding all scores on a CPU.

    ``loss`` is one of those above: a sum over its targets, whose shares of some rows add up. Both
    are computed for a few rows at a time, in the processor's cache, and so are the gradients, in
    the forward pass: there is no second derivative. ``sparse`` gives a parameter as table a
    gradient of the rows in use alone.
    """
    sparse = sparse and table.is_leaf  # what made another table may not take such a gradient
    return _OverCandidates.total(
        states, table, bias, loss, targets, negatives, where, width, sparse
    )


class _Forward(torch.autograd.Function):
    """A loss that makes the gradients of states, table and bias in its forward pass.

    Whatever else it takes has none. They are saved in this order, None where one is not wanted.
    """

    @classmethod
    def total(cls, states: Tensor, table: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        """Computes the loss in fp32, without gradients where none are recorded."""
        with torch.autocast(states.device.type, enabled=False):
            inputs = [states.float(), table.float(), None if bias is None else bias.float()]
            if not torch.is_grad_enabled():
                inputs = [x if x is None else x.detach() for x in inputs]
            found: Tensor = cls.apply(*inputs, *rest)  # type: ignore[no-untyped-call]
            return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what the forward pass has made."""
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative: the loss makes its gradients in forward")
        rest = len(ctx.needs_input_grad) - len(ctx.saved_tensors)
        return *(d if d is None else d * grad for d in ctx.saved_tensors), *[None] * rest


class _CrossEntropy(_Forward):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        n_items: int,
        temperature: float,
    ) -> Tensor:
        want_states, want_table, want_bias, *_ = ctx.needs_input_grad
        items = padded(table[1 : n_items + 1])  # (R, D), R >= I
        base = items.new_full((len(items),), -torch.inf)  # -inf keeps the padded rows out
        base[:n_items] = 0.0 if bias is None else bias[1 : n_items + 1]
        queries = states / temperature
        d_states = torch.empty_like(queries) if want_states else None
        d_items = torch.zeros_like(items) if want_table else None
        d_base = torch.zeros_like(base) if want_bias else None

        total = states.new_zeros(())
        size = _chunk(len(items), states.device)
        buffer = items.new_empty(min(size, len(states)), len(items))
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            query, label = queries[chunk], targets[chunk, None] - 1
            z = buffer[: len(query)]  # (C, R) logits, then probabilities, then their gradient
            torch.addmm(base, query, items.T, out=z)
            highest, wanted = z.amax(1), z.gather(1, label).squeeze(1)
            torch.softmax(z, 1, out=z)
            # logsumexp from the largest probability, which cannot underflow as the target's can.
            total += (highest - z.amax(1).log() - wanted).sum()
            z.scatter_(1, label, z.gather(1, label) - 1)
            if d_states is not None:
                torch.mm(z, items, out=d_states[chunk])
            if d_items is not None:
                d_items.addmm_(z.T, query)
            if d_base is not None:
                d_base += z.sum(0)

        d_states = None if d_states is None else d_states.div_(temperature)
        d_table = None if d_items is None else _at_rows(d_items, table, n_items)
        d_bias = None if d_base is None or bias is None else _at_rows(d_base, bias, n_items)
        ctx.save_for_backward(d_states, d_table, d_bias)
        return total


def padded(rows: Tensor) -> Tensor:
    """Returns the rows followed by zero rows up to a multiple of 64.

    A matmul against 12,102 rows runs at half the speed of one against 12,160 (AVX2).
    """
    return F.pad(rows, (0, 0, 0, -len(rows) % 64))


def _chunk(n_rows: int, device: torch.device) -> int:
    """Targets per chunk: on a CPU the logits must fit the cache, on a GPU fill the cores."""
    if device.type == "cpu":
        return max(128, min(256, 2**22 // n_rows))  # 16 MiB; more above 32,768 items
    return max(256, min(16_384, 2**28 // n_rows))  # 1 GiB; more above a million items


def logits_bytes(n_items: int, device: torch.device) -> int:
    """Returns the bytes of the one buffer in which ``ce`` has the logits of a chunk of targets."""
    n_rows = n_items + -n_items % 64
    return 4 * n_rows * _chunk(n_rows, device)


def _at_rows(part: Tensor, whole: Tensor, n_items: int) -> Tensor:
    result = torch.zeros_like(whole)
    result[1 : n_items + 1] = part[:n_items]
    return result


class _OverCandidates(_Forward):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor | None,
        loss: Callable[[Tensor, Tensor], Tensor],
        targets: Tensor,
        negatives: Negatives,
        where: Tensor,
        width: int,
        sparse: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        dense = wanted[0], wanted[1] and not sparse, wanted[2]
        d_states, d_table, d_bias = (
            torch.zeros_like(x) if x is not None and need else None
            for x, need in zip((states, table, bias), dense, strict=True)
        )
        used: list[tuple[Tensor, Tensor]] = []  # ids, and the gradients of their rows
        total = states.new_zeros(())
        for part in _parts(negatives, targets, where, width, states):
            ids = torch.cat([targets[part.targets], part.negatives.items.flatten()])
            leaves = [states[part.targets], table[ids]]  # the table of these candidates alone
            leaves += [] if bias is None else [bias[ids]]
            n = part.targets.stop - part.targets.start
            places = torch.arange(len(ids), device=ids.device)
            own = part.negatives._replace(items=places[n:].view(part.negatives.items.shape))
            with torch.set_grad_enabled(any(wanted)):
                leaves = [leaf.detach().requires_grad_(any(wanted)) for leaf in leaves]
                offsets = leaves[2] if bias is not None else None
                query, vectors = leaves[:2]
                both = scores(query, vectors, offsets, places[:n], own, part.where, width)
                share = loss(*both)
            total += share.detach()
            if not any(wanted):
                continue
            d = torch.autograd.grad(share, leaves)
            if d_states is not None:
                d_states[part.targets] = d[0]
            if d_table is not None:
                d_table.index_add_(0, ids, d[1])
            elif wanted[1]:
                used.append((ids, d[1]))
            if d_bias is not None:
                d_bias.index_add_(0, ids, d[2])
        if used:
            rows, values = (torch.cat(parts) for parts in zip(*used, strict=True))
            d_table = torch.sparse_coo_tensor(
                rows[None], values, table.shape, check_invariants=False
            )
        ctx.save_for_backward(d_states, d_table, d_bias)
        return total


class _Part(NamedTuple):
    """Some rows of a batch."""

    targets: slice  # of the batch's
    negatives: Negatives
    where: Tensor  # counted from the first of these rows


def _parts(
    negatives: Negatives, targets: Tensor, where: Tensor, width: int, states: Tensor
) -> Iterator[_Part]:
    """Splits a batch between rows, on a CPU, so that a part's scores and vectors fit the cache."""
    items, sharing, rejected = negatives
    if states.device.type != "cpu" or not len(targets):
        yield _Part(slice(0, len(targets)), negatives, where)
        return
    rows = where // width
    each = items.shape[-1] * (states.shape[1] if sharing == "position" else 1)
    most = max(64, 2**20 // each)  # targets whose floats fill 4 MiB
    start = 0
    while start < len(targets):
        first = rows[start]
        end = min(start + most, len(targets))
        if end < len(targets):  # not in the midst of a row, unless it has it all
            whole = int(torch.searchsorted(rows, rows[end]))
            end = whole if whole > start else int(torch.searchsorted(rows, first, right=True))
        part = slice(start, end)
        own = {
            "position": part,
            "row": slice(int(first), int(rows[end - 1]) + 1),
            "batch": slice(None),
        }
        yield _Part(
            part,
            Negatives(items[own[sharing]], sharing, None if rejected is None else rejected[part]),
            where[part] - first * width,
        )
        start = end
