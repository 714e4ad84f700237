"""Layers that two or more models share.

Rows are padded on the right, so a causal layer needs no mask: no real position sees a pad, and
what stands at the pads is never used. Letters as in ``model.py``, and Q queries, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqtune.params import Activation, Blocks, Norm, Position, Precision

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
EPS = 1e-12  # of layer normalisation: RecBole's; it runs in fp32


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Has a GPU multiply what is in fp32 as it is with ``precision`` fp32, else in TF32.

    By itself torch takes fp32 for products of matrices, but TF32 in recurrent and convolutional
    layers. Nor is cuDNN's attention taken, which plans for 0.1 s whenever a shape is new to it, as
    that of most batches is: with it a step in bf16 took 14 times as long as in fp32 (H200).
    """
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cuda.cudnn_sdp_enabled()
    cuda.matmul.allow_tf32 = cudnn.allow_tf32 = precision != "fp32"
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
        cuda.enable_cudnn_sdp(before[2])


class ItemEmbedding(nn.Embedding):
    """The item table: row 0 is padding and stays zero, rows 1..I are items, then special ones."""

    def __init__(self, n_items: int, size: int, n_special: int = 0) -> None:
        super().__init__(1 + n_items + n_special, size, padding_idx=0)


class UserEmbedding(nn.Embedding):
    """The user table. Users not seen in training have the mean of all, or zeros."""

    def __init__(self, n_users: int, size: int, stranger: Literal["mean", "zero"]) -> None:
        super().__init__(n_users, size)
        self.stranger = stranger

    def forward(self, users: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        vectors = super().forward(users.clamp(max=self.num_embeddings - 1))
        if self.training:  # all are known
            return vectors
        other = self.weight.mean(0) if self.stranger == "mean" else torch.zeros_like(vectors)
        return torch.where((users < self.num_embeddings)[:, None], vectors, other)


class Stacked(nn.Linear):
    """Several square matrices of one input, in one matmul: (..., D) -> (..., n * D)."""

    def __init__(self, size: int, n: int) -> None:
        super().__init__(size, n * size)


@torch.no_grad()
def initialise(module: nn.Module, draw: Callable[[Tensor], Any]) -> None:
    """Draws every matrix of a module anew; biases become 0, and padding rows stay 0.

    ``draw`` is one of ``nn.init``. The matrices of a ``Stacked`` are drawn one by one, since the
    range of a Xavier draw depends on the shape.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding | nn.RNNBase):
            for weight in part.parameters(recurse=False):
                if weight.dim() == 1:
                    weight.zero_()
                else:
                    rows = weight.shape[1] if isinstance(part, Stacked) else len(weight)
                    for matrix in weight.split(rows):
                        draw(matrix)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight[part.padding_idx] = 0


def initialise_normal(module: nn.Module) -> None:
    """Draws every matrix from N(0, .02), as BERT and RecBole do."""
    initialise(module, lambda weight: nn.init.normal_(weight, std=0.02))


class ByteDropout(nn.Module):
    """Dropout that costs a tenth of torch's on a CPU, where it draws one byte per element.

    The rate is rounded to a multiple of 1/256 and the scale is exact for the rounded one, so the
    expectation is. Elsewhere it is torch's. The randomness is that of torch's global generator.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.dropped = min(max(round(256 * p), int(p > 0)), 255)  # of the 256 values of a byte

    def forward(self, x: Tensor) -> Tensor:
        """Returns x with elements set to 0 and the others scaled, in training; same shape."""
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        result: Tensor = _DropBytes.apply(x, self.dropped)  # type: ignore[no-untyped-call]
        return result


class _DropBytes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        ctx.save_for_backward(keep)
        ctx.scale = 256 / (256 - dropped)
        scaled: Tensor = x * ctx.scale
        return scaled.mul_(keep)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        scaled: Tensor = grad * ctx.scale
        return scaled.mul_(keep), None


class Attention(nn.Module):
    """Multi-head attention.

    ``project`` adds the output projection, which the official SASRec lacks. Dropout on the
    weights costs the flash kernel on a CPU.
    """

    def __init__(self, size: int, n_heads: int, dropout: float = 0.0, project: bool = True) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.project_in = Stacked(size, 3)  # queries, keys, values
        self.project_out = nn.Linear(size, size) if project else nn.Identity()

    def forward(
        self,
        memory: Tensor,
        query: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Returns what queries (B, Q, D) find in a memory (B, L, D): (B, Q, D).

        Without ``query`` the memory asks itself, in one matmul. ``mask`` (B, 1, 1 or Q, L) is True
        where one may look; ``causal`` needs none, so that flash kernels apply.
        """
        size = memory.shape[-1]
        if query is None:
            q, k, v = self.project_in(memory).chunk(3, dim=-1)
        else:
            weight, bias = self.project_in.weight, self.project_in.bias
            q = F.linear(query, weight[:size], bias[:size])
            k, v = F.linear(memory, weight[size:], bias[size:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = self.mix(q, k, v, mask, causal)  # (B, H, Q, D / H)
        result: Tensor = self.project_out(mixed.transpose(1, 2).flatten(2))
        return result

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """(B, H, Q, D / H), twice (B, H, L, D / H) -> (B, H, Q, D / H)."""
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )


class FeedForward(nn.Module):
    """Two linear layers with an activation between, and dropout after the first where asked."""

    def __init__(
        self, size: int, inner_size: int, activation: Activation, inner_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(size, inner_size), nn.Linear(inner_size, size)
        self.activation, self.dropout = ACTIVATIONS[activation], ByteDropout(inner_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        result: Tensor = self.narrow(self.dropout(self.activation(self.widen(x))))
        return result


class Block(nn.Module):
    """A Transformer block, normalised in one of three ways (LN: layer normalisation, a: attention).

    post:   y = LN(x + a(x));          LN(y + f(y))         BERT, RecBole's SASRec
    pre:    y = x + a(LN(x));          y + f(LN(y))         needs an LN after the last block
    sasrec: q = LN(x), y = q + a(q, x); u = LN(y), u + f(u)  the official SASRec: queries alone are
            normalised, and the residual is the normalised value; needs an LN after the last block
    """

    def __init__(
        self,
        size: int,
        attention: nn.Module,
        feed_forward: nn.Module,
        dropout: float,
        norm: Norm,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.norm, self.attention, self.feed_forward = norm, attention, feed_forward
        self.norm_1, self.norm_2 = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        self.dropout = ByteDropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        only: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, Q, D) at positions ``only`` (B, Q), at less cost.

        ``mask`` and ``causal`` are those of ``Attention``.
        """
        asked = x if only is None else at(x, only)
        if self.norm == "post":
            query = None if only is None else asked
            x = self.norm_1(
                asked + self.dropout(self.attention(x, query, mask=mask, causal=causal))
            )
            x = self.norm_2(x + self.dropout(self.feed_forward(x)))
        elif self.norm == "pre":
            memory = self.norm_1(x)
            query = None if only is None else at(memory, only)
            x = asked + self.dropout(self.attention(memory, query, mask=mask, causal=causal))
            x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        else:
            query = self.norm_1(asked)
            x = self.norm_2(query + self.attention(x, query, mask=mask, causal=causal))
            x = x + self.dropout(self.feed_forward(x))
        return x


class Transformer(nn.Module):
    """Turns item vectors into states: positions, dropout, blocks, normalisation.

    ``block`` makes one block. ``layer_norm`` stands first (on the sum of item and position vectors,
    for blocks that normalise their output), last (after the last block) or nowhere.
    """

    def __init__(
        self,
        size: int,
        max_seq_len: int,
        n_layers: int,
        block: Callable[[], nn.Module],
        *,
        dropout: float,
        layer_norm: Literal["first", "last", "none"] = "first",
        position: Position = "abs",
        causal: bool = True,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        self.position, self.causal, self.normalised = position, causal, layer_norm
        self.position_embedding = nn.Embedding(max_seq_len, size)
        self.layer_norm = nn.Identity() if layer_norm == "none" else nn.LayerNorm(size, eps)
        self.dropout = ByteDropout(dropout)
        self.blocks = nn.ModuleList(block() for _ in range(n_layers))

    @classmethod
    def of(
        cls,
        params: Blocks,
        *,
        norm: Norm | None = "post",
        position: Position = "abs",
        activation: Activation = "gelu",
        causal: bool = True,
        eps: float = EPS,
        block: Callable[[], nn.Module] | None = None,
    ) -> Self:
        """Builds the one that the hyperparameters describe; the default is RecBole's SASRec body.

        ``block`` makes another kind of block. ``norm`` says how blocks normalise, and with it what
        is left to do before the first one or after the last one: nothing where it is None.
        """
        size, rate, official = params.embedding_size, params.dropout_prob, norm == "sasrec"

        def usual() -> nn.Module:
            attention = Attention(size, params.n_heads, params.attn_dropout_prob, not official)
            inner_dropout = rate if official else 0.0
            feed_forward = FeedForward(size, params.inner_size, activation, inner_dropout)
            return Block(size, attention, feed_forward, rate, norm or "post", eps)

        return cls(
            size,
            params.max_seq_len,
            params.n_layers,
            block or usual,
            dropout=rate,
            layer_norm="none" if norm is None else "first" if norm == "post" else "last",
            position=position,
            causal=causal,
            eps=eps,
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Item vectors (B, L, D), lengths (B,) -> states (B, L, D)."""
        mask = None if self.causal else real(lengths, x.shape[1])
        x = self.embed(x, lengths)
        for block in self.blocks:
            x = block(x, mask=mask, causal=self.causal)
        return self.finish(x)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Item vectors (B, L, D), lengths (B,) -> the states after the last items (B, D).

        The last block computes one query per row.
        """
        return self.some(x, lengths, (lengths - 1).clamp(min=0)[:, None]).squeeze(1)

    def some(self, x: Tensor, lengths: Tensor, positions: Tensor) -> Tensor:
        """(B, L, D), (B,), (B, Q) -> the states at these positions (B, Q, D).

        The last block computes these queries alone, which see all of their row: where the body is
        causal they must be the last ones.
        """
        mask = real(lengths, x.shape[1])
        x = self.embed(x, lengths)
        for block in self.blocks[:-1]:
            x = block(x, mask=None if self.causal else mask, causal=self.causal)
        return self.finish(self.blocks[-1](x, mask=mask, only=positions))

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Adds the position vectors to the item vectors, with dropout: (B, L, D) -> (B, L, D)."""
        x = x + self.position_embedding(self.positions(x.shape[1], lengths))
        if self.normalised == "first":
            x = self.layer_norm(x)
        dropped: Tensor = self.dropout(x)
        return dropped

    def finish(self, x: Tensor) -> Tensor:
        """Normalises what the last block left: (..., D) -> (..., D)."""
        if self.normalised == "last":
            x = self.layer_norm(x)
        return x

    def positions(self, width: int, lengths: Tensor) -> Tensor:
        """Returns the position ids, (L,) or (B, L); those of pads mean nothing.

        abs: the oldest item has id 0. rev: the newest has id max_seq_len - 1.
        """
        ids = torch.arange(width, device=lengths.device)
        n_ids = self.position_embedding.num_embeddings
        if self.position == "rev":
            ids = ids + n_ids - lengths[:, None]
        return ids.clamp(max=n_ids - 1)


def left_padded(items: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Returns the last ``width`` items of each row at its right end: (B, L), (B,) -> (B, width).

    For models whose window has a fixed width, the newest item in the last place.
    """
    index = torch.arange(width, device=items.device) + (lengths[:, None] - width)  # (B, width)
    moved = items.gather(1, index.clamp(0, items.shape[1] - 1))
    return moved.masked_fill(index < 0, 0)


def at(x: Tensor, positions: Tensor) -> Tensor:
    """Returns one position of each row, or some: (B, L, D), (B,) or (B, Q) -> (B, D) or (B, Q, D).

    What has no vectors, (B, L), works alike.
    """
    rows = torch.arange(len(x), device=x.device)
    return x[rows if positions.dim() == 1 else rows[:, None], positions]


def real(lengths: Tensor, width: int) -> Tensor:
    """Returns an attention mask (B, 1, 1, L), True where a row has an item, or at position 0."""
    steps = torch.arange(width, device=lengths.device)
    return (steps < lengths[:, None].clamp(min=1))[:, None, None]


def draw_positions(counts: Tensor, lengths: Tensor, width: int, rng: torch.Generator) -> Tensor:
    """Draws ``counts`` of each row's real positions: (B,), (B,) -> (B, width), True at those."""
    keys = torch.rand(len(lengths), width, generator=rng, device=lengths.device)
    pads = torch.arange(width, device=lengths.device) >= lengths[:, None]
    ranks = keys.masked_fill(pads, torch.inf).argsort(1).argsort(1)  # pads come last
    return ranks < counts[:, None]
