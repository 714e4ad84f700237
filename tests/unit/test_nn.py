"""Layers against torch's own, explicit formulas, and each other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqtune.nn import (
    EPS,
    Attention,
    Block,
    ByteDropout,
    FeedForward,
    ItemEmbedding,
    Stacked,
    Transformer,
    initialise,
    initialise_normal,
    left_padded,
)
from seqtune.params import Blocks, Norm, Position


def body(norm: Norm = "post", position: Position = "abs", causal: bool = True) -> Transformer:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "max_seq_len": 6, "inner_size": 12}
    params = Blocks(**sizes, n_layers=2, n_heads=2, dropout_prob=0.3)
    transformer = Transformer.of(params, norm=norm, position=position, causal=causal)
    for weight in transformer.parameters():  # biases and gains too, so that none can hide
        nn.init.normal_(weight, std=0.5)
    return transformer.eval()


def test_item_embedding_has_a_padding_row_and_special_rows() -> None:
    table = ItemEmbedding(10, 4, n_special=2)
    assert table.weight.shape == (13, 4)
    assert not table.weight[0].any()
    table(torch.tensor([[3, 0, 0, 12]])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.sum(1).tolist() == [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4]


@pytest.mark.parametrize("draw", [nn.init.xavier_normal_, nn.init.xavier_uniform_])
def test_initialise_keeps_the_padding_row_zero(draw: object) -> None:
    module = nn.ModuleList([ItemEmbedding(50, 8), nn.Linear(8, 4), nn.GRU(8, 6), nn.LayerNorm(8)])
    before = [weight.clone() for weight in module.parameters()]
    initialise(module, draw)  # type: ignore[arg-type]
    assert not module[0].weight[0].any()
    assert module[0].weight[1:].all()
    assert not module[1].bias.any()
    assert not module[2].bias_hh_l0.any()
    assert module[3].weight.eq(1).all()
    drawn = [weight for weight in module.parameters() if weight.dim() == 2]
    old = [weight for weight in before if weight.dim() == 2]
    assert all(not torch.equal(a, b) for a, b in zip(drawn, old, strict=True))


def test_initialise_draws_stacked_matrices_one_by_one() -> None:
    stacked = Stacked(16, 3)
    initialise(stacked, nn.init.xavier_uniform_)
    bound = math.sqrt(6 / (16 + 16))  # of a square matrix; of the whole it would be .31
    largest = stacked.weight.abs().amax().item()
    assert 0.9 * bound < largest <= bound
    initialise_normal(stacked)
    assert stacked.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not stacked.bias.any()


@pytest.mark.parametrize("p", [0.5, 0.2, 0.1, 0.001, 0.999])
def test_byte_dropout_keeps_the_expectation(p: float) -> None:
    torch.manual_seed(0)
    dropout = ByteDropout(p)
    x = torch.full((401, 501), 3.0, requires_grad=True)
    y = dropout(x)
    kept = y != 0
    rate = max(1, min(255, round(256 * p))) / 256
    assert abs(rate - p) <= 1 / 256
    assert 1 - kept.float().mean().item() == pytest.approx(
        rate, abs=4 * math.sqrt(rate / x.numel())
    )
    assert y[kept].unique().item() == pytest.approx(3 / (1 - rate))
    gradient = torch.autograd.grad(y.sum(), x)[0]
    torch.testing.assert_close(gradient, kept.float() / (1 - rate))
    # Neighbours, which share a 64-bit draw, are independent.
    both = (~kept[:, :-1] & ~kept[:, 1:]).float().mean().item()
    assert both == pytest.approx(rate**2, abs=4 * math.sqrt(rate**2 / x.numel()))


def test_byte_dropout_repeats_by_seed_alone() -> None:
    dropout, x = ByteDropout(0.5), torch.ones(3, 5, 7)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    assert not first.equal(second)
    torch.manual_seed(1)
    assert dropout(x).equal(first)
    assert dropout(x.transpose(0, 2)).shape == (7, 5, 3)
    assert dropout(torch.ones(0, 4)).shape == (0, 4)
    assert dropout(x.bfloat16()).dtype == torch.bfloat16


def test_byte_dropout_is_off_in_evaluation_and_at_zero() -> None:
    x = torch.randn(5)
    assert ByteDropout(0.5).eval()(x) is x
    assert ByteDropout(0.0)(x) is x


def test_attention_is_causal_softmax_attention() -> None:
    torch.manual_seed(0)
    attention, x = Attention(6, 2), torch.randn(2, 4, 6)
    q, k, v = attention.project_in(x).split(6, -1)
    expected = torch.zeros(2, 4, 6)
    for row, t, head in itertools.product(range(2), range(4), range(2)):
        part = slice(3 * head, 3 * head + 3)
        weights = (k[row, : t + 1, part] @ q[row, t, part] / math.sqrt(3)).softmax(0)
        expected[row, t, part] = weights @ v[row, : t + 1, part]
    torch.testing.assert_close(attention(x, causal=True), attention.project_out(expected))


def test_attention_dropout_is_on_in_training_alone() -> None:
    torch.manual_seed(0)
    attention, x = Attention(6, 2, dropout=0.5), torch.randn(2, 4, 6)
    assert not attention(x).equal(attention(x))
    attention.eval()
    assert attention(x).equal(attention(x))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_block_is_torchs_encoder_layer(norm: Norm) -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        8, 2, 12, 0.0, "gelu", EPS, batch_first=True, norm_first=norm == "pre"
    )
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.5)
    ours = Block(8, Attention(8, 2), FeedForward(8, 12, "gelu"), 0.0, norm)
    names = {
        "attention.project_in.weight": "self_attn.in_proj_weight",
        "attention.project_in.bias": "self_attn.in_proj_bias",
        "attention.project_out.weight": "self_attn.out_proj.weight",
        "attention.project_out.bias": "self_attn.out_proj.bias",
        "feed_forward.widen.weight": "linear1.weight",
        "feed_forward.widen.bias": "linear1.bias",
        "feed_forward.narrow.weight": "linear2.weight",
        "feed_forward.narrow.bias": "linear2.bias",
        "norm_1.weight": "norm1.weight",
        "norm_1.bias": "norm1.bias",
        "norm_2.weight": "norm2.weight",
        "norm_2.bias": "norm2.bias",
    }
    ours.load_state_dict({name: theirs.state_dict()[key] for name, key in names.items()})
    x = torch.randn(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(ours(x, causal=True), theirs(x, mask), rtol=1e-4, atol=1e-5)


def test_sasrec_block_is_the_official_one() -> None:
    """Queries alone are normalised; residuals are the normalised values; no output projection."""
    torch.manual_seed(0)
    transformer = body("sasrec")
    block = transformer.blocks[0]
    x = torch.randn(3, 5, 8)

    q = block.norm_1(x)
    weight, bias = block.attention.project_in.weight, block.attention.project_in.bias
    heads = [
        F.linear(source, weight[8 * i : 8 * i + 8], bias[8 * i : 8 * i + 8])
        .unflatten(-1, (2, 4))
        .transpose(1, 2)
        for i, source in enumerate([q, x, x])
    ]
    scores = heads[0] @ heads[1].mT / 2
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    attended = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    u = block.norm_2(q + attended)
    hidden = F.relu(block.feed_forward.widen(u))

    block.feed_forward.activation = F.relu
    torch.testing.assert_close(block(x, causal=True), u + block.feed_forward.narrow(hidden))
    assert isinstance(block.attention.project_out, nn.Identity)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("position", ["abs", "rev"])
@pytest.mark.parametrize("norm", ["post", "pre", "sasrec"])
def test_last_is_the_state_at_the_last_item(norm: Norm, position: Position, causal: bool) -> None:
    transformer = body(norm, position, causal)
    x, lengths = torch.randn(4, 6, 8), torch.tensor([6, 1, 3, 5])
    states = transformer(x, lengths)
    last = transformer.last(x, lengths)
    torch.testing.assert_close(last, states[torch.arange(4), lengths - 1], rtol=1e-4, atol=1e-5)
    for row, length in enumerate(lengths.tolist()):  # and does not see the pads
        alone = transformer.last(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], last[row], rtol=1e-4, atol=1e-5)


def test_last_of_an_empty_history_is_a_number() -> None:
    for causal in (True, False):
        assert body(causal=causal).last(torch.zeros(1, 3, 8), torch.tensor([0])).isfinite().all()


def test_a_bidirectional_body_sees_the_future_and_a_causal_one_does_not() -> None:
    x, lengths = torch.randn(1, 6, 8), torch.tensor([6])
    changed = x.clone()
    changed[0, 5] = torch.randn(8)
    for causal in (True, False):
        transformer = body(causal=causal)
        same = transformer(x, lengths)[:, :5].equal(transformer(changed, lengths)[:, :5])
        assert same is causal


def test_position_ids() -> None:
    lengths = torch.tensor([3, 6, 1])
    assert body(position="abs").positions(4, lengths).tolist() == [0, 1, 2, 3]
    ids = body(position="rev").positions(6, lengths)
    assert ids[0, :3].tolist() == [3, 4, 5]
    assert ids[1].tolist() == [0, 1, 2, 3, 4, 5]
    assert ids[2, 0] == 5
    assert ids.max() == 5  # pads too have an id that exists


def test_dropout_stands_where_recbole_has_it() -> None:
    """On the embeddings, after attention, after the feed-forward; the official block differs."""
    masks: list[Tensor] = []
    for norm, expected in [("post", 1 + 2 * 2), ("pre", 1 + 2 * 2), ("sasrec", 1 + 2 * 2)]:
        transformer = body(norm).train()  # type: ignore[arg-type]
        masks.clear()
        for module in transformer.modules():
            if isinstance(module, ByteDropout) and module.p:
                module.register_forward_hook(lambda _, __, y: masks.append(y))
        transformer(torch.randn(2, 3, 8), torch.tensor([3, 3]))
        assert len(masks) == expected
        widths = sorted(mask.shape[-1] for mask in masks)
        assert widths == ([8] * 3 + [12] * 2 if norm == "sasrec" else [8] * 5)


def test_left_padded_keeps_the_newest_items_at_the_right_end() -> None:
    items = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]])
    lengths = torch.tensor([4, 2, 0])
    assert left_padded(items, lengths, 3).tolist() == [[2, 3, 4], [0, 5, 6], [0, 0, 0]]
    assert left_padded(items, lengths, 5).tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 5, 6], [0] * 5]
