"""Losses against numbers worked out by hand, torch's own, and each other."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seqtune import losses
from seqtune.errors import UserError
from seqtune.negatives import Negatives, Sampler, Sharing


def reference(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    n_items: int,
    bias: Tensor | None,
    temperature: float,
) -> Tensor:
    logits = states @ table[1 : n_items + 1].T / temperature
    if bias is not None:
        logits = logits + bias[1 : n_items + 1]
    return F.cross_entropy(logits, targets - 1, reduction="sum")


@pytest.mark.parametrize(
    ("n", "n_items", "n_rows", "size", "with_bias", "temperature"),
    [
        (700, 101, 104, 16, True, 0.5),  # special rows behind the items, several chunks
        (256, 64, 65, 8, False, 1.0),  # one full chunk, no padded rows
        (257, 63, 64, 8, True, 1.0),  # one target left for the last chunk
        (255, 129, 130, 32, False, 0.07),
        (3, 1, 2, 4, False, 1.0),  # one item: nothing to learn
        (0, 30, 31, 8, True, 2.0),  # no targets
    ],
)
def test_ce_is_torchs_cross_entropy_over_the_items(
    n: int, n_items: int, n_rows: int, size: int, with_bias: bool, temperature: float
) -> None:
    torch.manual_seed(n)
    inputs = [0.3 * torch.randn(n, size), 0.3 * torch.randn(n_rows, size)]
    inputs += [torch.randn(n_rows)] if with_bias else []
    inputs = [x.requires_grad_() for x in inputs]
    bias = inputs[2] if with_bias else None
    targets = torch.randint(1, n_items + 1, (n,))
    mean = max(n, 1)

    ours = losses.ce(inputs[0], inputs[1], targets, n_items, bias, temperature)
    gradients = torch.autograd.grad(3 * ours / mean, inputs)
    theirs = reference(inputs[0], inputs[1], targets, n_items, bias, temperature)
    expected = torch.autograd.grad(3 * theirs / mean, inputs)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
    for gradient in gradients[1:]:  # padding and special rows
        assert not gradient[0].any()
        assert not gradient[n_items + 1 :].any()


def test_ce_does_not_underflow_where_the_target_is_hopeless() -> None:
    states = torch.tensor([[1.0]], requires_grad=True)
    table = torch.tensor([[0.0], [0.0], [500.0]])
    loss = losses.ce(states, table, torch.tensor([1]), 2)
    assert loss.item() == 500.0
    assert torch.autograd.grad(loss, states)[0].item() == 500.0


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_ce_gives_the_gradients_that_are_asked_for(wanted: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(5, 4), torch.randn(8, 4), torch.randn(8)]
    inputs[wanted].requires_grad_()
    targets = torch.tensor([1, 2, 3, 7, 7])
    ours = losses.ce(inputs[0], inputs[1], targets, 7, inputs[2])
    theirs = reference(inputs[0], inputs[1], targets, 7, inputs[2], 1.0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs[wanted])[0], torch.autograd.grad(theirs, inputs[wanted])[0]
    )


def test_ce_without_gradients_and_in_autocast() -> None:
    torch.manual_seed(0)
    states, table = torch.randn(9, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    targets = torch.randint(1, 8, (9,))
    with torch.no_grad():
        plain = losses.ce(states, table, targets, 7)
    assert not plain.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        cast = losses.ce(states, table, targets, 7)
    assert cast.dtype == torch.float32
    assert cast.item() == plain.item()  # bf16 logits would differ in the third digit
    half = losses.ce(states.bfloat16(), table, targets, 7)
    assert half.item() == pytest.approx(plain.item(), rel=1e-2)


def test_ce_refuses_a_second_derivative() -> None:
    states, table = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    loss = losses.ce(states, table, torch.tensor([1, 2, 4]), 4)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, states, create_graph=True)


def test_chunks_shrink_as_the_catalogue_grows() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert losses._chunk(12_160, cpu) == 256
    assert losses._chunk(20_000, cpu) == 209
    assert losses._chunk(1_000_000, cpu) == 128
    assert losses._chunk(12_160, gpu) == 16_384
    assert losses._chunk(1_000_000, gpu) == 268


def test_sampled_losses_by_hand() -> None:
    positive, negative = torch.tensor([math.log(3.0)]), torch.tensor([[0.0, math.log(2.0)]])
    assert losses.sampled_softmax(positive, negative).item() == pytest.approx(math.log(2))  # 6/3
    # sp(0 - log 3) = log 4/3; sp(log 2 - log 3) = log 5/3
    expected = (math.log(4 / 3) + math.log(5 / 3)) / 2
    assert losses.bpr(positive, negative).item() == pytest.approx(expected)
    # sp(-log 3) = log 4/3; sp(0) = log 2; sp(log 2) = log 3
    expected = math.log(4 / 3) + math.log(2) + math.log(3)
    assert losses.bce(positive, negative).item() == pytest.approx(expected)
    expected = (0.25 * math.log(4 / 3) + math.log(6)) / 3
    assert losses.gbce(positive, negative, 0.25).item() == pytest.approx(expected)


def test_sampled_softmax_with_one_negative_is_bpr() -> None:
    torch.manual_seed(0)
    positive, negative = 3 * torch.randn(50), 3 * torch.randn(50, 1)
    torch.testing.assert_close(
        losses.sampled_softmax(positive, negative), losses.bpr(positive, negative)
    )


def test_sampled_softmax_with_all_other_items_is_ce() -> None:
    torch.manual_seed(0)
    states, table, targets = torch.randn(20, 4), torch.randn(10, 4), torch.randint(1, 10, (20,))
    logits = states @ table[1:].T
    others = torch.tensor([[i for i in range(9) if i != t - 1] for t in targets.tolist()])
    positive = logits.gather(1, targets[:, None] - 1).squeeze(1)
    torch.testing.assert_close(
        losses.sampled_softmax(positive, logits.gather(1, others)),
        losses.ce(states, table, targets, 9),
    )


def test_gbce_without_calibration_is_bce() -> None:
    torch.manual_seed(0)
    positive, negative = torch.randn(50), torch.randn(50, 7)
    beta = losses.calibration(0.0, 7, 100)
    assert beta == 1
    torch.testing.assert_close(
        losses.gbce(positive, negative, beta), losses.bce(positive, negative) / 8
    )


def test_gbce_is_the_authors_transform_in_float64() -> None:
    positive = torch.linspace(-19, 19, 77)
    beta = losses.calibration(0.75, 256, 3416)
    p = torch.sigmoid(positive.double()) ** -beta  # sg(s')^-1
    transformed = -torch.log(torch.clamp(p - 1, min=1e-300))
    expected = F.softplus(-transformed).sum().item()
    no_negatives = torch.full((77, 1), -torch.inf)
    assert 2 * losses.gbce(positive, no_negatives, beta).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("t", "k", "n_items", "beta"),
    [
        (0.75, 256, 3416, 0.3062),
        (0.75, 256, 12_101, 0.2659),
        (0.75, 256, 1_000_000, 0.2502),
        (0.5, 1, 1_000_001, 0.5),
        (1.0, 5, 11, 0.5),
        (0.3, 10, 11, 1.0),
    ],
)
def test_calibration(t: float, k: int, n_items: int, beta: float) -> None:
    assert losses.calibration(t, k, n_items) == pytest.approx(beta, abs=5e-5)


def test_gbce_refuses_more_negatives_than_there_are() -> None:
    with pytest.raises(UserError, match="neg_samples must be at most 9"):
        losses.sampled("gbce", torch.zeros(2), torch.zeros(2, 10), n_items=10)


@pytest.mark.parametrize("kind", ["sampled_softmax", "bpr", "bce", "gbce"])
def test_a_rejected_negative_counts_for_nothing(kind: str) -> None:
    torch.manual_seed(0)
    positive, kept = torch.randn(6, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    negative = torch.cat([kept, torch.full((6, 1), -torch.inf)], 1)
    masked = losses.sampled(kind, positive, negative, n_items=100, gbce_t=0.0)
    plain = losses.sampled(kind, positive, kept, n_items=100, gbce_t=0.0)
    if kind == "gbce":
        plain = plain * 4 / 5  # its mean is over k + 1, whatever was rejected
    torch.testing.assert_close(masked, plain)
    for ours, theirs in zip(
        torch.autograd.grad(masked, [positive, kept]),
        torch.autograd.grad(plain, [positive, kept]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_info_nce_by_hand() -> None:
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    # rows a, b, A, B; a.A = 1, b.B = 2, a.b = 0, a.B = 0, A.b = 2, A.B = 1
    e = math.exp
    expected = (
        math.log(e(0) + e(1) + e(0)) - 1  # a: b, A, B
        + math.log(e(0) + e(2) + e(2)) - 2  # b: a, A, B
        + math.log(e(1) + e(2) + e(1)) - 1  # A: a, b, B
        + math.log(e(0) + e(2) + e(1)) - 2  # B: a, b, A
    )  # fmt: skip
    assert losses.info_nce(first, second).item() == pytest.approx(expected)
    assert losses.info_nce(2 * first, second, 2.0).item() != pytest.approx(expected)
    halved = losses.info_nce(first / 2**0.5, second / 2**0.5, 0.5).item()
    assert halved == pytest.approx(expected)


def test_info_nce_cosine_ignores_lengths() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 8), torch.randn(5, 8)
    plain = losses.info_nce(first, second, 0.2, "cos").item()
    assert losses.info_nce(3 * first, 0.1 * second, 0.2, "cos").item() == pytest.approx(plain)
    unit = losses.info_nce(F.normalize(first), F.normalize(second), 0.2, "dot").item()
    assert unit == pytest.approx(plain)


def test_info_nce_leaves_out_rows_with_the_same_target() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(3, 4), torch.randn(3, 4)
    plain = losses.info_nce(first, second).item()
    distinct = losses.info_nce(first, second, same=torch.tensor([5, 6, 7])).item()
    assert distinct == pytest.approx(plain)
    # All alike: only the partner is left, and nothing to tell it from.
    assert losses.info_nce(first, second, same=torch.tensor([5, 5, 5])).item() == 0
    # Rows 0 and 1 alike: row 2 still has them all, they have row 2 and their partners.
    z = torch.cat([first, second])
    sims = z @ z.T
    expected = 0.0
    for row in range(6):
        negatives = [0, 1, 3, 4] if row in (2, 5) else [2, 5]
        partner = (row + 3) % 6
        expected += (sims[row, [partner, *negatives]].logsumexp(0) - sims[row, partner]).item()
    masked = losses.info_nce(first, second, same=torch.tensor([5, 5, 7])).item()
    assert masked == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_one_row_is_zero() -> None:
    first = torch.randn(1, 4, requires_grad=True)
    loss = losses.info_nce(first, torch.randn(1, 4))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, first)[0].any()


def test_l2_counts_each_item_once_and_padding_never() -> None:
    table = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    items = torch.tensor([[2, 1, 0], [2, 2, 0]])
    assert losses.l2(table, items).item() == 0.5 * (1 + 4)
    assert losses.l2(table, torch.tensor([3])).item() == 25
    assert losses.l2(table, torch.tensor([[0, 0]])).item() == 0


# Scores of negatives: three users of two targets each, in rows of width 4; ten items.

TARGETS, USERS = torch.tensor([1, 2, 3, 4, 5, 6]), torch.arange(3)
ROWS, WHERE = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 4, 5, 8, 9])
SHARINGS: list[Sharing] = ["position", "row", "batch"]


def draw(k: int, sharing: Sharing, reject: Literal["none", "target"]) -> Negatives:
    sampler, rng = Sampler(10, k, sharing, reject), torch.Generator().manual_seed(0)
    return sampler.draw(TARGETS, ROWS, USERS, rng, pool=TARGETS)


def spread(negatives: Negatives) -> Tensor:
    """The items (6, k) that each target is compared with."""
    if negatives.sharing == "row":
        return negatives.items[ROWS]
    return negatives.items.expand(6, -1)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_scores_are_dot_products(sharing: Sharing, with_bias: bool) -> None:
    torch.manual_seed(0)
    states, table = torch.randn(6, 5), torch.randn(12, 5)
    bias = torch.randn(12) if with_bias else None
    negatives = draw(30, sharing, "target")
    positive, negative = losses.scores(states, table, bias, TARGETS, negatives, WHERE, 4)

    everything = states @ table.T + (0 if bias is None else bias)
    expected = everything.gather(1, spread(negatives))
    expected[spread(negatives) == TARGETS[:, None]] = -torch.inf
    torch.testing.assert_close(positive, everything[torch.arange(6), TARGETS])
    torch.testing.assert_close(negative, expected)


def test_sharing_does_not_change_the_expected_loss() -> None:
    torch.manual_seed(0)
    states, table = torch.randn(6, 5), torch.randn(11, 5)
    means = []
    for sharing in SHARINGS:
        negatives = draw(20_000, sharing, "none")
        scores = losses.scores(states, table, None, TARGETS, negatives, WHERE, 4)
        means.append(losses.bpr(*scores).item())
    assert means[1] == pytest.approx(means[0], rel=0.01)
    assert means[2] == pytest.approx(means[0], rel=0.01)


KINDS = ["sampled_softmax", "bce", "bpr", "gbce", "window_bce"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("lengths", [[40] * 8, [3, 0, 100, 1, 30, 64, 65, 0], [0, 0]])
def test_a_loss_made_in_parts_is_the_loss(kind: str, sharing: Sharing, lengths: list[int]) -> None:
    """Rows are whole in a part, whatever their number of targets; the last may be long."""
    torch.manual_seed(0)
    k, width, n = 20_000 // (4 if sharing == "position" else 1), 100, sum(lengths)
    inputs = [0.3 * torch.randn(n, 4), 0.3 * torch.randn(3001, 4), torch.randn(3001)]
    inputs = [x.requires_grad_() for x in inputs]
    where = torch.cat([row * width + torch.arange(length) for row, length in enumerate(lengths)])
    targets, rows = torch.randint(1, 3001, (n,)), where // width
    rng = torch.Generator().manual_seed(0)
    sampler = Sampler(3000, k, sharing, "target")
    negatives = sampler.draw(targets, rows, torch.arange(len(lengths)), rng, pool=targets)

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        return losses.sampled(kind, positive, negative, 10**6)

    rest = (targets, negatives, where, width)
    ours = losses.over_candidates(loss, *inputs, *rest)
    theirs = loss(*losses.scores(*inputs, *rest))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    mean = max(n, 1) * k  # else sums of k roundings
    gradients = torch.autograd.grad(2 * ours / mean, inputs)
    expected = torch.autograd.grad(2 * theirs / mean, inputs)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(losses.over_candidates(loss, *inputs, *rest), ours)


def test_a_loss_made_in_parts_holds_few_scores() -> None:
    """Between its parts nothing of their size is alive: at most 4 MiB of scores at a time."""
    targets = torch.ones(1000, dtype=torch.long)
    negatives = Negatives(torch.ones(50_000, dtype=torch.long), "batch")
    seen = []

    def loss(positive: Tensor, negative: Tensor) -> Tensor:
        seen.append(negative.numel())
        return losses.bce(positive, negative)

    states, table = torch.zeros(1000, 4), torch.zeros(3, 4)
    losses.over_candidates(loss, states, table, None, targets, negatives, torch.arange(1000), 1)
    assert sum(seen) == 1000 * 50_000
    assert max(seen) <= 64 * 50_000


@pytest.mark.parametrize("sharing", ["position", "row", "batch"])
def test_row_sparse_gradients_are_those_of_all_rows(sharing: Sharing) -> None:
    states, table = torch.randn(6, 5), torch.randn(11, 5, requires_grad=True)
    rest = (None, TARGETS, draw(3, sharing, "none"), WHERE, 4)

    def gradient(table: Tensor, sparse: bool) -> Tensor:
        total = losses.over_candidates(losses.bce, states, table, *rest, sparse=sparse)
        return torch.autograd.grad(total / 6, table)[0]

    rows, dense = gradient(table, True), gradient(table, False)
    assert rows.is_sparse
    torch.testing.assert_close(rows.to_dense(), dense, rtol=1e-6, atol=1e-6)
    made = 2 * table  # no parameter: what made it could not go on with such a gradient
    assert not gradient(made, True).is_sparse


def test_a_loss_made_in_parts_has_no_second_derivative() -> None:
    states = torch.randn(6, 5, requires_grad=True)
    rest = (torch.randn(11, 5), None, TARGETS, draw(3, "row", "none"), WHERE, 4)
    total = losses.over_candidates(losses.bce, states, *rest)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, states, create_graph=True)
