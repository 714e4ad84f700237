"""Self-attention to a few interests that sum up the history, instead of to each of its items.

Fan et al., Lighter and Better: Low-Rank Decomposed Self-Attention Networks for Next-Item
Recommendation (LightSANs), SIGIR 2021. k interests stand in for the keys and, with a theta of their
own, for the values; attention by position is apart, and the same for all histories of a length:

    K~ = S^T K,  S = softmax over positions of K theta
    a  = softmax(Q K~^T) V~ + softmax(P_q P_k^T) V
    y  = LN(x + W a),  out = LN(y + feed_forward(y))

with P position vectors and dropout before each sum. A state sees the whole history, so training
samples are prefixes. With ``softmax_axis`` interest, the paper's, the weights of a query sum to 1;
with query, those that all queries give to one interest or position. The authors' code has
``softmax_axis=query pad_mask=false attn_dropout_prob=<dropout_prob> batch_size=1024
learning_rate=0.003``, where pads up to max_seq_len take part, and a random vector at pads.

Cost: per target, since each is a sample, O(L^2 D + L D^2) in every block, the last one far cheaper
(one query), and O(I D) for ce. A prediction is one such pass.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from seqtune.model import Contract, Encoder, History
from seqtune.nn import EPS, ByteDropout, FeedForward, ItemEmbedding, Stacked, at, initialise_normal
from seqtune.params import BatchSize, Blocks, OnPrefixes, Sources


class LightSANs(Encoder):
    """Blocks of attention to interests and to positions; the state at the last item."""

    class Params(OnPrefixes, Blocks):
        """The hyperparameters of LightSANs."""

        batch_size: BatchSize = 256
        k_interests: int = Field(
            5, ge=1, le=10_000, description="A history is summed up in k interests."
        )
        softmax_axis: Literal["interest", "query"] = Field(
            "interest", description="Attention weights sum to 1 over interests, or over queries."
        )
        pad_mask: bool = Field(
            True, description="Padding takes no part, as it does in the official code."
        )

        sources: ClassVar[Sources] = {
            "k_interests": "official",
            "softmax_axis": "paper",
            "batch_size": "ours: the official 1024 leaves small data few steps",
            "pad_mask": "ours: the authors themselves report that it is better",
        }

        @model_validator(mode="after")
        def _history_has_the_interests(self) -> Self:
            if (k := self.k_interests) > (most := self.max_seq_len):
                rule = f"k_interests must be at most max_seq_len {most}, not {k}"
                raise ValueError(f"{rule}; a tenth of max_seq_len is usual")
            return self

    contract = Contract(small={"k_interests": 3})
    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.position_embedding = nn.Embedding(params.max_seq_len, params.embedding_size)
        self.layer_norm = nn.LayerNorm(params.embedding_size, EPS)
        self.dropout = ByteDropout(params.dropout_prob)
        self.blocks = nn.ModuleList(_Block(params) for _ in range(params.n_layers))
        initialise_normal(self)  # but for the thetas, N(0, 1)

    def encode_last(self, history: History) -> Tensor:
        items, seen = history.items, history.lengths.clamp(min=1)
        last = seen - 1
        if not self.params.pad_mask:
            items = F.pad(items, (0, self.params.max_seq_len - items.shape[1]))
            seen = torch.full_like(seen, items.shape[1])
        x = self.dropout(self.layer_norm(self.item_embedding(items)))
        positions = self.position_embedding.weight[: items.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x, positions, seen)
        state: Tensor = self.blocks[-1](x, positions, seen, last).squeeze(1)
        return state


class _Block(nn.Module):
    def __init__(self, p: LightSANs.Params) -> None:
        super().__init__()
        size, self.heads = p.embedding_size, (p.n_heads, -1)  # (.., D) -> (.., H, D / H)
        self.over_queries = p.softmax_axis == "query"
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in "QKVW")
        self.theta = nn.Parameter(torch.randn(2, size, p.k_interests))  # of keys, of values
        self.positions = nn.Sequential(nn.LayerNorm(size, EPS), Stacked(size, 2))
        self.norm_1, self.norm_2 = nn.LayerNorm(size, EPS), nn.LayerNorm(size, EPS)
        self.feed_forward = FeedForward(size, p.inner_size, "gelu")
        self.dropout, self.thin = ByteDropout(p.dropout_prob), ByteDropout(p.attn_dropout_prob)

    def forward(self, x: Tensor, p: Tensor, seen: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, L, D), positions (L, D), (B,) -> (B, L, D), or (B, 1, D) at ``last`` (B,) alone."""

        def wanted(y: Tensor) -> Tensor:  # (B, L, ..) -> (B, Q, ..)
            return y if last is None else at(y, last)[:, None]

        axis, rows = (-2 if self.over_queries else -1), wanted(x)
        pads = (torch.arange(len(p), device=x.device) >= seen[:, None])[:, None]  # (B, 1, L)
        # S^T (x W + b) = (S^T x) W + b, since the columns of S sum to 1: pool first, and project k
        # vectors instead of L. The bias shifts K theta alike at all positions: S ignores it.
        theta = torch.cat([self.theta[0].T @ self.key.weight, self.theta[1].T @ self.value.weight])
        shares = F.linear(x, theta).mT.float().masked_fill(pads, -torch.inf).softmax(-1)  # S^T
        keys, values = (shares @ x).chunk(2, dim=1)  # (B, k, D)
        q, k, v = self.query(x if self.over_queries else rows), self.key(keys), self.value(values)
        q, k, v = (y.unflatten(-1, self.heads).transpose(1, 2) for y in (q, k, v))
        scores = (q @ k.mT).float() * q.shape[-1] ** -0.5  # (B, H, Q, k)
        if self.over_queries:  # then the weights of one query need all of them
            scores = scores.masked_fill(pads.mT[:, None], -torch.inf)
        a = (self.thin(scores.softmax(axis)) @ v).transpose(1, 2)
        a = wanted(a) if self.over_queries else a  # (B, Q, H, D / H)
        q, k = (y.unflatten(-1, self.heads) for y in self.positions(p).chunk(2, dim=-1))
        scores = torch.einsum("qhd,khd->hqk", q, k).float() / (2**0.5 * q.shape[-1])
        # A history counts by its length alone, so exp(scores) is made once. Its sums over the first
        # 1, .., L are the denominators. The bound: the largest may lie beyond the end of a history.
        e = (scores - scores.amax(axis, keepdim=True)).clamp(min=-40).exp()
        sums = e.cumsum(axis).permute(axis, -3 - axis, 0)[seen - 1].unsqueeze(-1)  # (B, L, H, 1)
        v = self.value(x).masked_fill(pads.mT, 0).unflatten(-1, self.heads)  # (B, L, H, D / H)
        v = v / sums if self.over_queries else v
        pairs, e = (
            ("hqk,bkhd->bqhd", e) if last is None else ("hbqk,bkhd->bqhd", e[:, last[:, None]])
        )
        by_position = torch.einsum(pairs, e, v)
        a = a + (by_position if self.over_queries else by_position / wanted(sums))
        y = self.norm_1(rows + self.dropout(self.out(a.flatten(2))))
        result: Tensor = self.norm_2(y + self.dropout(self.feed_forward(y)))
        return result
