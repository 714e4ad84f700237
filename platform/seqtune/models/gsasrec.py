"""The official SASRec with 256 negatives and a loss that corrects for their sampling (gBCE).

Petrov & Macdonald, gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
Negative Sampling, RecSys 2023, arXiv 2308.07192. The body is that of SASRec's official code without
the sqrt(D) at the input, and states are compared with a table of their own. The loss of a position
with k negatives of I items is

    ( beta sp(-s+) + sum_j sp(s_j) ) / (k + 1)
    beta = 1 - gbce_t (1 - k / (I - 1)),  sp(x) = log(1 + exp(x))

which takes sg(s+)^beta for the probability of the target in place of sg(s+). beta = 1 (gbce_t 0)
is BCE, which predicts the higher probabilities the fewer negatives it sees. It needs k < I. The
gradient of a target is beta times as large, so training starts slowly: at the authors' step size of
1e-3 it takes thousands of steps to rise above popularity (hence 5e-3 here), and it needs patience.

The authors' code has a set of negatives for each position and keeps those that equal the target
(here they are left out): ``neg_sharing=position reject=none n_heads=1 inner_size=<embedding_size>
attn_dropout_prob=<dropout_prob> learning_rate=1e-3 patience=200``. It computes in float64 what is
here a closed form, and has a row for padding at the end of its tables.

Cost: as SASRec, O(L^2 D + L D^2) a row; the loss scores k + 1 items a position, not the whole
catalogue. The second table doubles the memory of the items.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from seqtune.model import TransformerEncoder
from seqtune.nn import ItemEmbedding, Transformer, initialise
from seqtune.params import NextItemLoss, Patience, TrainMode, TransformerParams, Width


class GSASRec(TransformerEncoder):
    """The official SASRec's Transformer; the score is the dot product of a state and an item."""

    class Params(TransformerParams):
        """The hyperparameters of gSASRec."""

        inner_size: Width = 64
        learning_rate: float = Field(5e-3, gt=0, le=10, description="Peak step size.")
        patience: Patience = 50
        pos: Literal["abs", "rev"] = Field(
            "rev", description="Position ids counted from the oldest item, or from the newest."
        )
        reuse_item_embeddings: bool = Field(
            False, description="One item table for input and output; false converges better."
        )
        train_mode: TrainMode = "rows"
        loss_type: NextItemLoss = "gbce"
        neg_samples: int = Field(
            256, ge=0, le=1_000_000, description="Negatives per target, fewer than there are items."
        )

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        if not params.reuse_item_embeddings:
            self.output_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(params, "sasrec", params.pos, "relu")
        initialise(self, nn.init.xavier_uniform_)

    def output(self) -> tuple[Tensor, Tensor | None]:
        reused = self.params.reuse_item_embeddings
        return (self.item_embedding if reused else self.output_embedding).weight, None
