"""The operations that a training step needs, against a count by hand."""

import numpy as np
import pytest
import torch

from seqtune import batches, flops
from seqtune.data import Dataset, leave_one_out
from seqtune.model import model_class

D, INNER, LAYERS, ITEMS = 8, 16, 2, 64  # 64 items: no row is padded in the table


def walks(lengths: list[int]) -> Dataset:
    total = sum(lengths)
    return Dataset(
        "walks",
        items=np.random.default_rng(0).integers(1, ITEMS + 1, total).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=np.arange(total),
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(1, ITEMS + 1),
    )


@pytest.mark.parametrize("lengths", [[13] * 6, [5, 9, 9, 30]])
def test_needed_is_the_count_by_hand_without_padding(lengths: list[int]) -> None:
    split = leave_one_out(walks(lengths))
    kind = model_class("sasrec")
    sizes = {"n_layers": LAYERS, "n_heads": 2, "inner_size": INNER, "embedding_size": D}
    params = kind.Params(max_seq_len=20, **sizes)
    data = batches.sequences(split, torch.device("cpu"))
    windows = batches.windows(split, params)
    model = kind(params, data.n_items, data.n_users)
    found, inputs = flops.needed(model, windows, data, torch.Generator().manual_seed(0))

    counts = np.minimum(np.array(lengths) - 3, 20)  # inputs of a row: each has a target
    pairs = (counts * (counts + 1) // 2).sum() / counts.sum()  # a token's, itself among them
    linear = LAYERS * (2 * D * 3 * D + 2 * D * D + 2 * 2 * D * INNER)
    attention = LAYERS * 2 * 2 * D * pairs
    assert found == pytest.approx(3 * (linear + attention + 2 * ITEMS * D))
    assert inputs == 1


def test_every_item_scored_in_place_counts() -> None:
    left, right, out = torch.ones(5, 3), torch.ones(3, 7), torch.zeros(5, 7)
    assert flops.count(lambda: out.addmm_(left, right)) == 2 * 5 * 3 * 7
    assert flops.count(lambda: torch.mm(left, right, out=out)) == 2 * 5 * 3 * 7


SEEN = "2.13"  # the release of torch in which these operations were seen to have these names


def test_the_operations_that_are_counted_are_those_of_torch() -> None:
    """They are private: where this fails in another release, look for their names there."""
    for operation in flops._formulas():
        assert operation.overloads(), (
            f"{operation} was seen in torch {SEEN}, not {torch.__version__}"
        )


@pytest.mark.parametrize("causal", [True, False])
def test_attention_counts_the_pairs_it_may_look_at(causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, 10, 4, requires_grad=True) for _ in range(3))
    pairs = 2 * 3 * (10 * 11 // 2 if causal else 10 * 10)
    attend = torch.nn.functional.scaled_dot_product_attention

    def both() -> None:
        attend(q, k, v, is_causal=causal).sum().backward()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        assert flops.count(lambda: attend(q, k, v, is_causal=causal)) == 2 * 2 * 4 * pairs, SEEN
        assert flops.count(both) == 3 * 2 * 2 * 4 * pairs, SEEN


def test_the_peak_is_above_what_a_small_product_reaches() -> None:
    assert flops.matmul_peak(torch.device("cpu")) > 1e9
