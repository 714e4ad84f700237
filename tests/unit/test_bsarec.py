"""BSARec's filter, its window, and what its pads may do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqtune.errors import UserError
from seqtune.model import Encoder, History
from seqtune.models.bsarec import BSARec, waves
from seqtune.params import build

WINDOWS = [(1, 0), (1, 1), (2, 2), (7, 3), (7, 7), (8, 5), (8, 8), (50, 5), (50, 49), (200, 10)]
windows = pytest.mark.parametrize(("length", "c"), WINDOWS)


def made(**values: object) -> BSARec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": 6}
    return BSARec(build(BSARec.Params, sizes | values, "test"), 30, 3).eval()


def history(*rows: list[int], width: int = 0) -> History:
    width = max(width, *map(len, rows))
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return History(torch.arange(len(rows)), items, torch.tensor([len(row) for row in rows]))


def projection(length: int, c: int) -> Tensor:
    basis = waves(length, c // 2)
    return basis @ basis.T


@windows
def test_the_filter_is_a_symmetric_projection(length: int, c: int) -> None:
    p = projection(length, c)
    assert p.shape == (length, length)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p, p.T, rtol=0, atol=1e-15)
    torch.testing.assert_close(p @ p, p, rtol=0, atol=1e-12)
    rank = min(2 * (c // 2) + 1, length)
    assert int(torch.linalg.matrix_rank(p, atol=1e-6)) == rank
    assert waves(length, c // 2).shape == (length, rank)


@windows
def test_the_filter_is_a_fourier_transform_cut_off_and_inverted(length: int, c: int) -> None:
    x = np.random.default_rng(0).normal(size=(length, 3))
    spectrum = np.fft.rfft(x, axis=0, norm="ortho")
    spectrum[c // 2 + 1 :] = 0
    expected = np.fft.irfft(spectrum, n=length, axis=0, norm="ortho")
    low = projection(length, c).float() @ torch.tensor(x).float()
    torch.testing.assert_close(low, torch.tensor(expected).float(), rtol=0, atol=1e-5)


def test_an_even_cut_off_is_the_same_as_the_next_one() -> None:
    for c in (0, 2, 4):
        even, odd, other = made(c=c), made(c=c + 1), made(c=c + 2)
        rows = history([1, 2, 3, 4, 5, 6], [7, 8])
        assert even.score(rows).equal(odd.score(rows))
        assert not even.score(rows).equal(other.score(rows))


def test_the_cut_off_fits_the_window() -> None:
    assert made(c=6).waves.shape == (6, 6)  # keeps everything
    assert made(c=10, max_seq_len=200).waves.shape == (200, 11)  # 6 frequencies, not 10
    with pytest.raises(UserError, match="c must be at most max_seq_len 6, not 7; lower it"):
        made(c=7)


def test_rows_are_refused_since_a_state_sees_later_items() -> None:
    with pytest.raises(
        UserError, match=r"train_mode must be 'prefixes', not 'rows' \(Rows would leak"
    ):
        made(train_mode="rows")
    assert BSARec.encode is Encoder.encode  # no states at all positions are promised

    model = made()
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    see = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    keep = torch.ones(1, 6, 1)
    changed = x.clone()
    changed[:, -1] += torch.randn(8, generator=torch.Generator().manual_seed(1))
    first, second = (model.blocks[0](y, model.waves, model.waves, see, keep) for y in (x, changed))
    assert (first[:, 0] - second[:, 0]).abs().max() > 0.01


def test_the_last_block_computes_the_last_slot_of_all() -> None:
    model = made(n_heads=2)
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1], [1] * 6]).bool()
    see = (real[:, None] & torch.ones(6, 6).bool().tril()) | torch.eye(6).bool()
    see, keep, basis = see[:, None], real[:, :, None], model.waves
    every = model.blocks[1](x, basis, basis, see, keep)
    last = model.blocks[1](x, basis, basis[-1:], see[:, :, -1:], keep[:, -1:])
    torch.testing.assert_close(last, every[:, -1:])


@pytest.mark.parametrize("official", [False, True])
def test_scores_do_not_depend_on_who_shares_the_batch(official: bool) -> None:
    model = made(official_pads=official)
    rows = [[3, 4], [5, 6, 7, 8, 9, 10], [11]]
    together = model.score(history(*rows))
    for row, scores in zip(rows, together, strict=True):
        for width in (len(row), 4, 6):
            alone = model.score(history(row, width=width))[0]
            torch.testing.assert_close(alone, scores, rtol=1e-5, atol=1e-6)


def test_the_newest_item_has_the_last_position() -> None:
    """Items beyond the window are dropped, and a shorter history is another one."""
    model = made()
    long = model.score(history([20, 21, 1, 2, 3, 4, 5, 6]))
    assert long.equal(model.score(history([1, 2, 3, 4, 5, 6])))
    before = model.score(history([5, 6]))
    with torch.no_grad():
        model.position_embedding.weight[-1] += torch.randn(8)
    assert not before.allclose(model.score(history([5, 6])), atol=1e-4)


def test_empty_slots_reach_the_filter_and_not_the_attention() -> None:
    rows, full = history([1, 2], [3]), history([1, 2, 3, 4, 5, 6])
    for alpha, filtered in ((0.0, False), (0.5, True)):
        model = made(alpha=alpha)
        before = model.score(rows)
        with torch.no_grad():
            model.position_embedding.weight[:4] += torch.randn(4, 8)
        assert model.score(rows).equal(before) != filtered

    ours, official = (made(official_pads=official, alpha=0.5) for official in (False, True))
    with torch.no_grad():
        for model in (ours, official):
            for block in model.blocks:
                block.attention.project_in.weight *= 50
                block.attention.project_out.weight *= 50
    torch.testing.assert_close(ours.score(full), official.score(full))
    assert not ours.score(rows).allclose(official.score(rows), atol=1e-3)


def test_weights_are_drawn_small_but_for_the_filter() -> None:
    model = made(embedding_size=64, inner_size=64, max_seq_len=50)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not part.bias.any()
    assert model.item_embedding.weight[1:].std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.item_embedding.weight[0].any()
    scales = torch.cat([block.scale.flatten() for block in model.blocks])
    assert scales.std().item() == pytest.approx(1, abs=0.25)
    assert "waves" not in model.state_dict()


def test_each_branch_has_a_residual_and_a_norm_of_its_own() -> None:
    """With alpha 1 a block is its filter alone; the cut off part is scaled by the square."""
    model = made(alpha=1.0, n_layers=1, c=1)
    block = model.blocks[0]
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    see, keep = torch.ones(1, 1, 6, 6).bool().tril(), torch.ones(1, 6, 1)
    mean = x.mean(1, keepdim=True)  # c 1 keeps the mean over the window
    y = block.norm_filter(x + mean + block.scale**2 * (x - mean))
    expected = block.norm(y + block.feed_forward(y))
    torch.testing.assert_close(block(x, model.waves, model.waves, see, keep), expected)
