"""LightSANs' interests, its positions, and what its pads may do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqtune.errors import UserError
from seqtune.model import Encoder, History
from seqtune.models.lightsans import LightSANs
from seqtune.params import build

LENGTHS = torch.tensor([1, 4, 6])
both_axes = pytest.mark.parametrize("axis", ["interest", "query"])


def made(**values: object) -> LightSANs:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": 6, "k_interests": 3}
    return LightSANs(build(LightSANs.Params, sizes | values, "test"), 30, 3).eval()


def history(*rows: list[int], width: int = 0) -> History:
    width = max(width, *map(len, rows))
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return History(torch.arange(len(rows)), items, torch.tensor([len(row) for row in rows]))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixed(model: LightSANs, x: Tensor, seen: Tensor) -> Tensor:
    """What the first block mixes before its output projection: (B, L, D)."""
    found: list[Tensor] = []
    block = model.blocks[0]
    hook = block.out.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    block(x, normal(6, 8, seed=7), seen)
    hook.remove()
    return found[0]


@torch.no_grad()
def constant_values(model: LightSANs) -> Tensor:
    """Makes every value the same vector v, so that what is mixed is v times the weights' sum."""
    v = normal(8, seed=3)
    for block in model.blocks:
        for weight in (block.query.weight, block.key.weight, block.positions[1].weight):
            weight *= 50  # weights far from uniform
        block.value.weight.zero_()
        block.value.bias.copy_(v)
    return v


@pytest.mark.parametrize("pad_mask", [True, False])
def test_over_interests_the_weights_of_a_query_sum_to_1(pad_mask: bool) -> None:
    model = made(softmax_axis="interest")
    v = constant_values(model)
    seen = LENGTHS if pad_mask else torch.full_like(LENGTHS, 6)
    a = mixed(model, normal(3, 6, 8), seen)
    # 1 from the interests, 1 from the positions
    torch.testing.assert_close(a, (2 * v).expand(3, 6, 8))


def test_over_queries_the_weights_of_an_interest_sum_to_1() -> None:
    model = made(softmax_axis="query")
    v = constant_values(model)
    a = mixed(model, normal(3, 6, 8), LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        # k interests and as many positions as there are items give 1 each, over all real queries.
        total = a[row, :length].sum(0)
        torch.testing.assert_close(total, (3 + length) * v, rtol=1e-4, atol=1e-4)
    shares = a[2] @ v / (v @ v)
    assert shares.max() > 1.2 * shares.min()  # but a query's own do not


@both_axes
def test_pads_have_no_weight(axis: str) -> None:
    model = made(softmax_axis=axis)
    x, positions = normal(3, 6, 8), normal(6, 8, seed=1)
    noise = normal(3, 6, 8, seed=2)
    pads = torch.arange(6) >= LENGTHS[:, None]
    changed = torch.where(pads[..., None], 10 * noise, x)
    block, last = model.blocks[0], LENGTHS - 1
    with torch.no_grad():
        block.value.weight *= 50
        block.out.weight *= 50
    first, second = (block(y, positions, LENGTHS)[~pads] for y in (x, changed))
    assert first.equal(second)
    assert block(x, positions, LENGTHS, last).equal(block(changed, positions, LENGTHS, last))
    # Without the mask, all six positions count.
    every = torch.full_like(LENGTHS, 6)
    first, second = (block(y, positions, every, last) for y in (x, changed))
    assert (first - second).abs().amax((1, 2))[:2].min() > 0.01


@both_axes
def test_the_last_block_computes_one_row_of_all(axis: str) -> None:
    model = made(softmax_axis=axis, n_heads=4)
    x, positions, last = normal(3, 6, 8), normal(6, 8, seed=1), LENGTHS - 1
    for seen in (LENGTHS, torch.full_like(LENGTHS, 6)):
        every = model.blocks[0](x, positions, seen)
        one = model.blocks[0](x, positions, seen, last)
        torch.testing.assert_close(one[:, 0], every[torch.arange(3), last])


def test_rows_are_refused_since_a_state_sees_later_items() -> None:
    with pytest.raises(
        UserError, match=r"train_mode must be 'prefixes', not 'rows' \(Rows would leak"
    ):
        made(train_mode="rows")
    assert LightSANs.encode is Encoder.encode  # no states at all positions are promised

    block = made().blocks[0]
    with torch.no_grad():
        block.value.weight *= 50
        block.out.weight *= 50
    x, positions, six = normal(1, 6, 8), normal(6, 8, seed=1), torch.tensor([6])
    changed = x.clone()
    changed[:, -1] += normal(8, seed=2)
    first, second = (block(y, positions, six)[:, 0] for y in (x, changed))
    assert (first - second).abs().max() > 0.01


@both_axes
@pytest.mark.parametrize("pad_mask", [True, False])
def test_scores_do_not_depend_on_who_shares_the_batch(axis: str, pad_mask: bool) -> None:
    model = made(softmax_axis=axis, pad_mask=pad_mask)
    rows = [[3, 4], [5, 6, 7, 8, 9, 10], [11]]
    together = model.score(history(*rows))
    for row, scores in zip(rows, together, strict=True):
        for width in (len(row), 4, 6):
            alone = model.score(history(row, width=width))[0]
            torch.testing.assert_close(alone, scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pad_mask", [True, False])
def test_without_the_mask_pads_up_to_the_longest_history_count(pad_mask: bool) -> None:
    model = made(pad_mask=pad_mask)
    with torch.no_grad():
        for block in model.blocks:
            for weight in (block.positions[1].weight, block.value.weight, block.out.weight):
                weight *= 30
    before = model.score(history([1, 2], [1, 2, 3, 4, 5, 6]))
    with torch.no_grad():
        model.position_embedding.weight[5] = normal(8)  # where the longer history alone has an item
    after = model.score(history([1, 2], [1, 2, 3, 4, 5, 6]))
    assert after[0].allclose(before[0], atol=1e-6) == pad_mask
    assert not after[1].allclose(before[1], atol=1e-6)


@both_axes
def test_large_scores_beyond_the_end_of_a_history_do_no_harm(axis: str) -> None:
    model = made(softmax_axis=axis)
    block = model.blocks[0]
    with torch.no_grad():
        block.positions[1].weight *= 4000
    seen = torch.tensor([1, 2, 6])
    x = normal(3, 6, 8).requires_grad_()
    out = block(x, normal(6, 8, seed=1), seen)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert block.positions[1].weight.grad.isfinite().all()


def test_keys_and_values_have_interests_of_their_own() -> None:
    model = made()
    before = model.score(history([1, 2, 3]))
    assert not model.blocks[0].theta[0].equal(model.blocks[0].theta[1])
    assert model.blocks[0].theta.std().item() == pytest.approx(1, abs=0.3)
    for own in (0, 1):
        with torch.no_grad():
            for part in (model.blocks[-1].key, model.blocks[-1].value, model.blocks[-1].query):
                part.weight *= 20
            before = model.score(history([1, 2, 3]))
            model.blocks[-1].theta[own] += normal(8, 3)
        assert not model.score(history([1, 2, 3])).equal(before)


def test_there_are_at_most_as_many_interests_as_items() -> None:
    assert made(k_interests=6).params.k_interests == 6
    message = "k_interests must be at most max_seq_len 6, not 7; a tenth of max_seq_len is usual"
    with pytest.raises(UserError, match=message):
        made(k_interests=7)
