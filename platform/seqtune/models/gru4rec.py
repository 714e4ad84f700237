"""A recurrent network (GRU) over the history, one loss at every position.

Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016,
arXiv 1511.06939.

This is the model that RecBole and WarpRec call GRU4Rec: it reads whole histories, propagates the
gradient through all of their steps, and has no session-parallel batches, sampled in-batch
negatives or top-k losses (arXiv 1706.03847). Results of the authors' own code do not apply to it.
The GRU has no biases, and no dropout between its layers.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from seqtune.model import Encoder, History
from seqtune.nn import ByteDropout, ItemEmbedding, at, initialise
from seqtune.params import Calibration, Dropout, Hidden, NextItemLoss, TrainMode, TrainParams


class GRU4Rec(Encoder):
    """GRU over items, then a linear layer back to the size of an item vector."""

    class Params(TrainParams):
        """The hyperparameters of GRU4Rec."""

        hidden_size: Hidden = 128
        num_layers: int = Field(1, ge=1, le=8, description="Recurrent layers.")
        dropout_prob: Dropout = 0.3
        train_mode: TrainMode = "rows"
        loss_type: NextItemLoss = "ce"
        gbce_t: Calibration = 0.75

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        size, hidden = params.embedding_size, params.hidden_size
        self.item_embedding = ItemEmbedding(n_items, size)
        self.dropout = ByteDropout(params.dropout_prob)
        self.gru = nn.GRU(size, hidden, params.num_layers, bias=False, batch_first=True)
        self.dense = nn.Linear(hidden, size)
        initialise(self.item_embedding, nn.init.xavier_normal_)
        initialise(self.gru, nn.init.xavier_uniform_)

    def hidden(self, history: History) -> Tensor:
        """Returns the recurrent states: (B, L) -> (B, L, H)."""
        x = self.dropout(self.item_embedding(history.items))
        states: Tensor = self.gru(x)[0]
        return states

    def encode(self, history: History) -> Tensor:
        states: Tensor = self.dense(self.hidden(history))
        return states

    def encode_last(self, history: History) -> Tensor:
        states: Tensor = self.dense(at(self.hidden(history), (history.lengths - 1).clamp(min=0)))
        return states
