"""A recurrent network (GRU) whose states look back at earlier ones, one loss at every position.

Li et al., Neural Attentive Session-based Recommendation, CIKM 2017, DOI 10.1145/3132847.3132926.

With GRU states h_1..h_t of a history, s the sigmoid, and j <= t:

    q_tj = v . s(A1 h_j + A2 h_t);    a_t = softmax(q_t)
    state_t = B [sum_j a_tj h_j ; h_t]

What the history is about, and how it goes on. The paper has no softmax (``attn_norm=none``, as
RecBole), the authors' code has. Their settings: ``train_mode=prefixes max_seq_len=19
embedding_size=50 hidden_size=100 batch_size=512 epochs=30``. Not copied: their hard sigmoids, their
reset gate before the recurrent matrix, their cut of long sessions to the FIRST 19 items.

Cost: GRU4Rec's, and in training hidden_size sigmoids for each pair of positions, O(L^2 H) a row,
with memory for one query at a time. A prediction has one query: O(L D H + L H^2) a row.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from seqtune.model import Encoder, History
from seqtune.nn import ByteDropout, ItemEmbedding, at, initialise
from seqtune.params import Dropout, Hidden, ItemDropout, RecurrentDepth, Sources, Trained


class NARM(Encoder):
    """GRU over items, attention of each state over those before it, and a bilinear decoder."""

    class Params(Trained):
        """The hyperparameters of NARM."""

        hidden_size: Hidden = 128
        n_layers: RecurrentDepth = 1
        dropout_prob: ItemDropout = Field(0.25, validation_alias="hidden_dropout_prob")
        decoder_dropout_prob: Dropout = Field(
            0.5,
            description="Dropout sets this share of the decoder's input to 0.",
            validation_alias="attn_dropout_prob",
        )
        attn_norm: Literal["softmax", "none"] = Field(
            "softmax",
            description="Attention weighs by a softmax of the energies, or by these as such.",
        )

        sources: ClassVar[Sources] = {
            "n_layers dropout_prob decoder_dropout_prob attn_norm": "official",
            "hidden_size": "ours: twice the size of an item vector, as in the official code",
        }

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size, hidden = params.embedding_size, params.hidden_size
        self.item_embedding = ItemEmbedding(n_items, size)
        inputs = [size] + [hidden] * (params.n_layers - 1)
        self.layers = nn.ModuleList(
            nn.GRU(1 + n, hidden, bias=False, batch_first=True) for n in inputs
        )
        self.key, self.query = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))  # A1, A2
        self.energy = nn.Linear(hidden, 1, bias=False)  # v
        self.decoder = nn.Linear(2 * hidden, size, bias=False)  # B
        self.dropout = ByteDropout(params.dropout_prob)
        self.decoder_dropout = ByteDropout(params.decoder_dropout_prob)
        initialise(self, nn.init.xavier_normal_)
        initialise(self.layers, lambda w: [nn.init.orthogonal_(gate) for gate in w.chunk(3)])

    def hidden(self, history: History) -> Tensor:  # the recurrent states: (B, L) -> (B, L, H)
        x: Tensor = self.dropout(self.item_embedding(history.items))
        for layer in self.layers:  # a constant input is the one bias of a gate: torch has two
            x = layer(F.pad(x, (1, 0), value=1.0))[0]
        return x

    def encode(self, history: History) -> Tensor:
        h = self.hidden(history)
        with torch.autocast(h.device.type, enabled=False):
            inputs = (self.key(h.float()), self.query(h.float()), self.energy.weight.squeeze(0))
            energies: Tensor = _Energies.apply(*inputs)  # type: ignore[no-untyped-call]
        seen = torch.ones_like(energies[0], dtype=torch.bool).tril()  # (L, L)
        return self.decode(energies, seen, h, h)

    def encode_last(self, history: History) -> Tensor:
        h, last = self.hidden(history), (history.lengths - 1).clamp(min=0)
        final = at(h, last)[:, None]  # (B, 1, H)
        with torch.autocast(h.device.type, enabled=False):
            mixed = (self.key(h.float()) + self.query(final.float())).sigmoid()
            energies = self.energy(mixed).mT  # (B, 1, L)
        seen = torch.arange(h.shape[1], device=h.device) <= last[:, None]
        return self.decode(energies, seen[:, None], h, final).squeeze(1)

    def decode(self, energies: Tensor, seen: Tensor, h: Tensor, query: Tensor) -> Tensor:
        """Energies (B, Q, L), a mask of what counts, states (B, L, H), (B, Q, H) -> (B, Q, D)."""
        with torch.autocast(h.device.type, enabled=False):
            softmax = self.params.attn_norm == "softmax"
            a = energies.masked_fill(~seen, -torch.inf if softmax else 0.0)
            local = (a.softmax(-1) if softmax else a) @ h.float()
        result: Tensor = self.decoder(self.decoder_dropout(torch.cat([local, query.float()], -1)))
        return result


class _Energies(torch.autograd.Function):
    """v . s(key_j + query_t) for j <= t, else 0: (B, L, H), (B, L, H), (H,) -> (B, L, L)."""

    # One t at a time, and again in backward: (B, L, L, H) takes longer to move than to compute.

    @staticmethod
    def forward(ctx: Any, key: Tensor, query: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(key, query, v)
        energies = key.new_zeros(len(key), key.shape[1], key.shape[1])
        for t in range(key.shape[1]):
            energies[:, t, : t + 1] = (key[:, : t + 1] + query[:, t, None]).sigmoid_() @ v
        return energies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        key, query, v = ctx.saved_tensors
        d_key, d_query, d_v = (torch.zeros_like(x) for x in (key, query, v))
        for t in range(key.shape[1]):
            g = grad[:, t, None, : t + 1].contiguous()  # (B, 1, j)
            s = (key[:, : t + 1] + query[:, t, None]).sigmoid_()  # (B, j, H)
            d_v += g.flatten() @ s.flatten(0, 1)
            slope = s.addcmul_(s, s, value=-1)  # s (1 - s)
            d_query[:, t] = (g @ slope).squeeze(1)
            d_key[:, : t + 1].addcmul_(slope, g.mT)
        return d_key * v, d_query * v, d_v
