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
here a closed form, adds 1e-5 to the variance in layer normalisation (here 1e-12, so that its scores
differ by as much as that changes), and has a row for padding at the end of its tables.

Cost: as SASRec, O(L^2 D + L D^2) a row; the loss scores k + 1 items a position, not the whole
catalogue. The second table doubles the memory of the items.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from seqtune.model import TransformerEncoder
from seqtune.nn import ItemEmbedding, Transformer, initialise
from seqtune.params import (
    Blocks,
    LearningRate,
    NegSamples,
    NextItemLoss,
    Patience,
    Position,
    Sources,
    TieWeights,
    Width,
)


class GSASRec(TransformerEncoder):
    """The official SASRec's Transformer; the score is the dot product of a state and an item."""

    class Params(Blocks):
        """The hyperparameters of gSASRec."""

        inner_size: Width = 64
        learning_rate: LearningRate = 5e-3
        patience: Patience = 50
        pos: Position = "rev"
        tie_weights: TieWeights = Field(False, validation_alias="reuse_item_embeddings")
        loss_type: NextItemLoss = "gbce"
        neg_samples: NegSamples = 256

        sources: ClassVar[Sources] = {
            "inner_size pos tie_weights neg_samples": "official",
            "loss_type": "paper",
            "learning_rate": "ours: the official 1e-3 takes thousands of steps to get anywhere",
            "patience": "ours: fewer epochs than the official 200, since ours are longer",
        }

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        if not params.tie_weights:
            self.output_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(params, norm="sasrec", position=params.pos, activation="relu")
        initialise(self, nn.init.xavier_uniform_)

    def output(self) -> tuple[Tensor, Tensor | None]:
        table = self.item_embedding if self.params.tie_weights else self.output_embedding
        return table.weight, None
