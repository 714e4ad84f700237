"""FOSSIL's two terms: what they sum, and what they leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqtune.errors import UserError
from seqtune.model import Batch, History, Sequences
from seqtune.models.fossil import FOSSIL
from seqtune.params import build

# Two users: 1 2 3 4 5 | 6 1 2. The last event of the first is held out, no event of the second.
DATA = Sequences(
    items=torch.tensor([1, 2, 3, 4, 5, 6, 1, 2]),
    offsets=torch.tensor([0, 5, 8]),
    train_end=torch.tensor([4, 8]),
    n_items=6,
)


def model(**values: Any) -> FOSSIL:
    torch.manual_seed(0)
    made = FOSSIL(FOSSIL.Params.model_validate({"embedding_size": 4} | values), 6, 2)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_()
        for table in (made.item_embedding, made.output_embedding):
            if table is not None:
                table.weight[0] = 0
    made.prepare(DATA)
    return made.eval()


def without_lags(made: FOSSIL) -> FOSSIL:
    with torch.no_grad():
        made.eta.zero_()
        made.user_eta.weight.zero_()
    return made


def state(made: FOSSIL, items: list[int], user: int = 0) -> Tensor:
    """(D,)"""
    rows = torch.tensor([items])
    return made.encode_last(History(torch.tensor([user]), rows, torch.tensor([len(items)])))[0]


def vectors(made: FOSSIL, *items: int) -> Tensor:
    return made.item_embedding.weight[list(items)]


def batch() -> Batch:
    """Both histories as rows: targets 2 3 4 and 1 2."""
    return Batch(
        users=torch.tensor([0, 1]),
        items=torch.tensor([[1, 2, 3], [6, 1, 0]]),
        lengths=torch.tensor([3, 2]),
        where=torch.tensor([0, 1, 2, 3, 4]),
        targets=torch.tensor([2, 3, 4, 1, 2]),
        events=torch.tensor([1, 2, 3, 6, 7]),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_without_lags_it_is_fism(alpha: float) -> None:
    made = without_lags(model(alpha=alpha))
    wanted = vectors(made, 3, 1, 5).sum(0) / 3**alpha
    torch.testing.assert_close(state(made, [3, 1, 5]), wanted)


def test_with_alpha_1_it_is_the_mean() -> None:
    made = without_lags(model(alpha=1.0))
    torch.testing.assert_close(state(made, [3, 1, 5, 5]), vectors(made, 3, 1, 5, 5).mean(0))


def test_the_order_of_items_before_the_lags_does_not_matter() -> None:
    made = model(order_len=2)
    first = state(made, [1, 2, 3, 4, 5])
    torch.testing.assert_close(first, state(made, [3, 1, 2, 4, 5]))
    assert not torch.allclose(first, state(made, [1, 2, 3, 5, 4]))


def test_the_first_weight_is_that_of_the_newest_item() -> None:
    made = model(alpha=1.0, order_len=2)
    weights = made.eta + made.user_eta.weight[1]
    lags = weights[0] * vectors(made, 5)[0] + weights[1] * vectors(made, 4)[0]
    wanted = vectors(made, 2, 4, 5).mean(0) + lags
    torch.testing.assert_close(state(made, [2, 4, 5], user=1), wanted)


def test_lags_beyond_the_history_count_0() -> None:
    made = model(order_len=3)
    weights = made.eta + made.user_eta.weight[0]
    torch.testing.assert_close(state(made, [2]), (1 + weights[0]) * vectors(made, 2)[0])


def test_pads_bring_nothing() -> None:
    made = model(order_len=3)
    rows = torch.tensor([[2, 5, 0, 0, 0, 0, 0]])
    padded = made.encode_last(History(torch.tensor([0]), rows, torch.tensor([2])))[0]
    assert padded.equal(state(made, [2, 5]))
    empty = made.encode_last(History(torch.tensor([0]), 0 * rows, torch.tensor([0])))
    assert not empty.any()


def test_a_new_user_has_the_weights_of_all_alone() -> None:
    made = model(order_len=1)
    for stranger in (2, 50):
        wanted = (1 + made.eta[0]) * vectors(made, 2)[0]
        torch.testing.assert_close(state(made, [2], user=stranger), wanted)
    assert not torch.allclose(state(made, [2], user=1), state(made, [2], user=2))


def test_two_tables_and_a_bias() -> None:
    made = model()
    assert made.output_embedding is not None
    assert made.bias is not None
    history = History(torch.tensor([0]), torch.tensor([[3, 1]]), torch.tensor([2]))
    wanted = made.output_embedding.weight @ state(made, [3, 1]) + made.bias
    torch.testing.assert_close(made.score(history)[0, 1:], wanted[1:])


def test_all_sums_later_items_too_but_neither_the_target_nor_what_is_held_out() -> None:
    made = without_lags(model(history="all", alpha=1.0, neg_samples=1, item_bias=False))
    assert made.output_embedding is not None
    states = made.states_at_targets(batch())
    positive, _ = made.candidate_scores(states, batch(), torch.Generator().manual_seed(0))
    q = made.output_embedding.weight
    for n, (items, target) in enumerate(
        [([1, 3, 4], 2), ([1, 2, 4], 3), ([1, 2, 3], 4), ([6, 2], 1), ([6, 1], 2)]
    ):
        wanted = vectors(made, *items).mean(0) @ q[target]
        torch.testing.assert_close(positive[n], wanted)
    # Unseen negatives leave nothing out.
    torch.testing.assert_close(states[0], vectors(made, 1, 2, 3, 4).mean(0))
    torch.testing.assert_close(states[4], vectors(made, 6, 1, 2).mean(0))


def test_all_predicts_repeats_without_their_own_occurrences() -> None:
    made = without_lags(model(history="all", alpha=1.0, item_bias=False))
    assert made.output_embedding is not None
    history = History(torch.tensor([0]), torch.tensor([[3, 1, 3, 0]]), torch.tensor([3]))
    scores, q = made.score(history)[0], made.output_embedding.weight
    torch.testing.assert_close(scores[3], vectors(made, 1)[0] @ q[3])
    torch.testing.assert_close(scores[1], vectors(made, 3)[0] @ q[1])
    torch.testing.assert_close(scores[2], vectors(made, 3, 1, 3).mean(0) @ q[2])


def test_past_lets_a_repeated_candidate_stay() -> None:
    made = without_lags(model(alpha=1.0, item_bias=False))
    history = History(torch.tensor([0]), torch.tensor([[3, 1, 3]]), torch.tensor([3]))
    table, _ = made.output()
    wanted = vectors(made, 3, 1, 3).mean(0) @ table[3]
    torch.testing.assert_close(made.score(history)[0, 3], wanted)


@pytest.mark.parametrize("values", [{"loss_type": "ce"}, {"reject": "target"}])
def test_all_refuses_candidates_that_were_seen(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--set: history all needs reject seen and a loss_type"):
        build(FOSSIL.Params, {"history": "all"} | values, "--set")


@pytest.mark.parametrize("tie_weights", [False, True])
def test_the_penalty_counts_both_tables_and_the_weights_of_lags(tie_weights: bool) -> None:
    made = model(reg_weight=0.5, tie_weights=tie_weights)
    term = made(batch(), torch.Generator().manual_seed(0))["l2"]
    table, _ = made.output()
    parts = [vectors(made, 1, 2, 3, 6), table[1:5], made.eta, made.user_eta.weight]
    wanted = sum(part.square().sum().item() for part in parts) / 2
    assert term.total.item() == pytest.approx(wanted, rel=1e-5)
    assert (term.count, term.weight) == (2, 0.5)
