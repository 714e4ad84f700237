"""Self-attention over the history, one loss at every position.

Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM 2018, arXiv 1808.09781.

The defaults are not the paper's. They are the body that RecBole calls SASRec (post-norm blocks,
GELU, all weights N(0, .02)) with cross entropy over all items at every position, which is stronger.
The paper's official code is
``norm=sasrec inner_size=<embedding_size> activation=relu pos=rev scale_emb=true loss_type=bce
reject=seen adam_beta2=0.98`` with ``attn_dropout_prob`` equal to ``dropout_prob``. There, pads are
zeroed before each block; here they stand after the items, where no item can see them.

Cost: a layer takes O(L^2 D + L D^2) for all L targets of a row at once, and ce takes O(I D) for
each target, which is most of it; the losses that sample need their negatives in place of all I
items. A prediction needs the last state alone, and O(I D) for the scores.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from seqtune.model import History, TransformerEncoder
from seqtune.nn import ItemEmbedding, Transformer, initialise, initialise_normal
from seqtune.params import Activation, Blocks, Norm, Position, Sources, TieWeights


class SASRec(TransformerEncoder):
    """Transformer over items; the score is the dot product of the last state and an item."""

    class Params(Blocks):
        """The hyperparameters of SASRec."""

        norm: Norm = "post"
        activation: Activation = "gelu"
        pos: Position = "abs"
        scale_emb: bool = Field(
            False, description="Item vectors are multiplied by sqrt(d) at the input."
        )
        tie_weights: TieWeights = True

        sources: ClassVar[Sources] = {
            "norm activation pos scale_emb": "ours: RecBole's body, better on Amazon Beauty",
            "tie_weights": "official",
        }

    params: Params

    def __init__(self, params: Params, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = ItemEmbedding(n_items, params.embedding_size)
        if not params.tie_weights:
            self.output_embedding = ItemEmbedding(n_items, params.embedding_size)
        self.body = Transformer.of(
            params, norm=params.norm, position=params.pos, activation=params.activation
        )
        if params.norm == "sasrec":
            initialise(self, nn.init.xavier_uniform_)
        else:
            initialise_normal(self)

    def vectors(self, history: History) -> Tensor:
        """Returns the item vectors at the input: (B, L) -> (B, L, D)."""
        x: Tensor = self.item_embedding(history.items)
        return x * self.params.embedding_size**0.5 if self.params.scale_emb else x

    def output(self) -> tuple[Tensor, Tensor | None]:
        table = self.item_embedding if self.params.tie_weights else self.output_embedding
        return table.weight, None
