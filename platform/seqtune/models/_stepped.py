"""The layers of GRU4Rec as its authors train them: one step at a time, with states carried on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from seqtune.model import Batch, History
from seqtune.nn import ByteDropout, ItemEmbedding, initialise


class Stepped(nn.Module):
    """GRU layers of any sizes; a dropped output is what the next layer and the next step get.

    Items enter the first layer by the table of the output (shared), by one of their own with
    vectors of ``input_size`` (separate), or as one-hot vectors (one_hot), where the first of the
    two ``dropout`` rates acts on the first layer's output and not on its input.

    Hidasi & Karatzoglou, arXiv 1706.03847; their code carries what is dropped, too.
    """

    def __init__(
        self,
        n_items: int,
        sizes: list[int],
        item_input: Literal["shared", "separate", "one_hot"],
        input_size: int,
        dropout: tuple[float, float],
    ) -> None:
        super().__init__()
        one_hot, (of_inputs, of_states) = item_input == "one_hot", dropout
        width = {"shared": sizes[-1], "separate": input_size, "one_hot": 3 * sizes[0]}[item_input]
        self.sizes = sizes
        self.table = None if item_input == "shared" else ItemEmbedding(n_items, width)
        self.layers = nn.ModuleList(
            OneHotGRU(size) if one_hot and i == 0 else nn.GRU(before, size, batch_first=True)
            for i, (before, size) in enumerate(zip([width, *sizes], sizes, strict=False))
        )
        rates = [of_inputs if one_hot else of_states, *[of_states] * (len(sizes) - 1)]
        self.input_dropout = ByteDropout(0 if one_hot else of_inputs)
        self.dropout = nn.ModuleList(map(ByteDropout, rates))
        self.carried: Tensor = nn.Buffer(torch.zeros(1, sum(sizes)), persistent=False)

    def initialise(self, shared: nn.Embedding) -> None:
        """Draws each matrix and each gate from U(-b, b), b^2 = 6 / (rows + columns); biases: 0."""
        initialise(shared, nn.init.xavier_uniform_)
        initialise(self.layers, lambda w: [nn.init.xavier_uniform_(gate) for gate in w.chunk(3)])
        if self.table is not None:
            n = 3 if isinstance(self.layers[0], OneHotGRU) else 1
            initialise(self.table, lambda w: [nn.init.xavier_uniform_(g) for g in w.chunk(n, 1)])

    def forward(self, history: History, shared: nn.Embedding) -> Tensor:
        """Returns the states of the last layer: (B, L) -> (B, L, H).

        A batch that ``continues`` another begins with its states. All else begins with zeros, and
        what is carried stays.
        """
        continues = history.continues if isinstance(history, Batch) else None
        table = shared if self.table is None else self.table
        x: Tensor = self.input_dropout(table(history.items))  # (B, L, D)
        rows = torch.full_like(history.items[:, 0], -1) if continues is None else continues
        start = self.carried[rows] * (rows >= 0)[:, None]  # (B, sum of sizes)
        last = []
        states = start.split(self.sizes, 1)
        for layer, dropout, state in zip(self.layers, self.dropout, states, strict=True):
            x = dropout(layer(x, state[None].contiguous())[0])  # (B, L, D) -> (B, L, H)
            last.append(x[:, -1].detach())
        if continues is not None:
            self.carried = torch.cat(last, 1)
        return x


class OneHotGRU(nn.Module):
    """A GRU over one-hot vectors: W x is a row of a table, parts for candidate, reset, update.

    c = tanh(W_c x + b_c + r (U_c h)),  r = sg(W_r x + b_r + U_r h),  z = sg(W_z x + b_z + U_z h)
    h' = (1 - z) h + z c

    arXiv 1511.06939, equations 1 to 4, but for U_c (r h), which is r (U_c h) in the authors' code.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.recurrent = nn.Linear(size, 3 * size, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * size))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, 3H), (1, B, H) -> the states (B, L, H), the last ones (1, B, H)."""
        h, states = state[0], []
        for inputs in (x + self.bias).unbind(1):
            x_c, x_r, x_z = inputs.chunk(3, 1)
            h_c, h_r, h_z = self.recurrent(h).chunk(3, 1)
            update = torch.sigmoid(x_z + h_z)
            h = (1 - update) * h + update * torch.tanh(x_c + torch.sigmoid(x_r + h_r) * h_c)
            states.append(h)
        return torch.stack(states, 1), h[None]
