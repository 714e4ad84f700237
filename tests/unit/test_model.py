"""What an encoder adds to its states: the loss that is named, negatives, regularisation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from seqtune.model import Batch, Encoder, History, Sequences
from seqtune.negatives import Negatives, Sampler
from seqtune.params import Trained

N_ITEMS = 40
# User 0: 1 2 3 | 4 5; user 1: 6 7 | 8 9. Behind the bar lie the validation and the test item.
DATA = Sequences(
    items=torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9]),
    offsets=torch.tensor([0, 5, 9]),
    train_end=torch.tensor([3, 7]),
    n_items=N_ITEMS,
)
BATCH = Batch(
    users=torch.tensor([0, 1]),
    items=torch.tensor([[1, 2], [6, 0]]),
    lengths=torch.tensor([2, 1]),
    where=torch.tensor([0, 1, 2]),
    targets=torch.tensor([2, 3, 7]),
    events=torch.tensor([1, 2, 6]),
)


class Bag(Encoder):
    """The state is the item's own vector."""

    def __init__(self, params: Trained) -> None:
        super().__init__(params, N_ITEMS, 2)
        torch.manual_seed(0)
        self.item_embedding = nn.Embedding(N_ITEMS + 1, 4)
        self.widths: list[int] = []  # of the calls
        self.bias = nn.Parameter(torch.randn(N_ITEMS + 1))

    def encode(self, history: History) -> torch.Tensor:
        self.widths.append(history.items.shape[1])
        states: torch.Tensor = self.item_embedding(history.items)
        return states

    def output(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.item_embedding.weight, self.bias


def bag(**values: object) -> Bag:
    made = Bag(Trained.model_validate(values))
    made.prepare(DATA)
    return made


def test_seen_is_what_the_user_met_in_training() -> None:
    seen = bag(loss_type="bpr", reject="seen").seen
    assert seen is not None
    events = {(key // (N_ITEMS + 1), key % (N_ITEMS + 1)) for key in seen.tolist()}
    assert events == {(0, 1), (0, 2), (0, 3), (1, 6), (1, 7)}
    assert bag(loss_type="bpr").seen is None
    assert bag(reject="seen").seen is None  # cross entropy draws no negatives


def test_the_loss_is_the_one_that_is_named() -> None:
    made = bag()
    states = made.item_embedding.weight[[1, 2, 6]]
    logits = states @ made.item_embedding.weight[1:].T + made.bias[1:]
    expected = nn.functional.cross_entropy(logits, BATCH.targets - 1, reduction="sum")
    terms = made.loss(BATCH, torch.Generator())
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"].total, expected)
    assert terms["ce"][1:] == (3, 1.0)
    for kind in ("bpr", "bce", "sampled_softmax", "gbce"):
        assert list(bag(loss_type=kind).loss(BATCH, torch.Generator())) == [kind]


def test_gbce_takes_its_calibration_from_the_parameters() -> None:
    def loss(t: float) -> float:
        made = bag(loss_type="gbce", gbce_t=t, neg_samples=4)
        return made.loss(BATCH, torch.Generator().manual_seed(0))["gbce"].total.item()

    assert loss(0.0) > loss(0.5) > loss(1.0)


@pytest.mark.parametrize(
    ("k", "sharing", "prefixes", "expected"),
    [
        (31, "auto", False, "position"),
        (32, "auto", False, "row"),
        (32, "auto", True, "position"),  # a row has one target
        (1, "row", False, "row"),
        (500, "position", False, "position"),
        (1, "batch", True, "batch"),
    ],
)
def test_who_shares_negatives(
    k: int, sharing: str, prefixes: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Negatives] = []
    draw = Sampler.draw

    def spy(*args: object, **options: object) -> Negatives:
        drawn.append(draw(*args, **options))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(Sampler, "draw", spy)
    batch = BATCH
    if prefixes:
        last = torch.tensor([1, 2])
        batch = replace(
            BATCH,
            where=BATCH.where[last],
            targets=BATCH.targets[last],
            events=BATCH.events[last],
            prefixes=True,
        )
    bag(loss_type="bpr", neg_samples=k, neg_sharing=sharing).loss(batch, torch.Generator())
    assert [negatives.sharing for negatives in drawn] == [expected]


def test_regularisation_counts_the_items_and_targets_of_the_batch_once() -> None:
    made = bag(reg_weight=0.1)
    term = made.loss(BATCH, torch.Generator())["l2"]
    vectors = made.item_embedding.weight[[1, 2, 3, 6, 7]]
    torch.testing.assert_close(term.total, 0.5 * vectors.square().sum())
    assert term[1:] == (2, 0.1)  # per row of the batch


def test_views_are_encoded_together_whatever_their_width() -> None:
    made, lengths = bag(), torch.arange(300) % 5  # some empty, more than one call holds
    items = torch.randint(1, N_ITEMS, (300, 5)) * (torch.arange(5) < lengths[:, None])
    many, one = History(torch.arange(300), items, lengths), replace(BATCH, users=BATCH.users + 5)
    first, second = made.encode_views(many, one)
    assert made.widths == [2, 4, 4]  # 60 rows of each length 0..4, and one of 1 and 2 each
    torch.testing.assert_close(first, made.encode_last(many))
    torch.testing.assert_close(second, made.encode_last(one))


def test_scores_are_dot_products_plus_bias() -> None:
    made = bag()
    scores = made.score(BATCH)
    expected = made.item_embedding.weight[[2, 6]] @ made.item_embedding.weight.T + made.bias
    torch.testing.assert_close(scores[:, 1:], expected[:, 1:])
    assert scores[:, 0].tolist() == [-torch.inf, -torch.inf]
