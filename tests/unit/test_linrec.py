"""LinRec's attention, its cost, and what its states may see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from seqtune.errors import UserError
from seqtune.model import Batch, History
from seqtune.models.linrec import CHUNK, LinRec
from seqtune.nn import real
from seqtune.params import build


def model(**values: Any) -> LinRec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 16, "max_seq_len": 6, "dropout_prob": 0.0}
    return LinRec(build(LinRec.Params, sizes | values, "test"), 9, 2)


def history(*rows: list[int]) -> History:
    width = max(map(len, rows))
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return History(torch.arange(len(rows)), items, torch.tensor([len(row) for row in rows]))


def unit(x: Tensor, dim: int) -> Tensor:
    return x / x.square().sum(dim, keepdim=True).sqrt()


@pytest.mark.parametrize("values", [{}, {"k_norm": "sequence"}, {"causal": True}], ids=str)
def test_it_is_attention_with_explicit_weights(values: dict[str, Any]) -> None:
    length = 2 * CHUNK + 5
    attention = model(**values).body.blocks[0].attention
    q, k, v = torch.randn(3, 2, 2, length, 4)
    lengths = torch.tensor([length, length - 9])
    mask = None if "causal" in values else real(lengths, length)
    elu = torch.nn.functional.elu
    keys = elu(k) if mask is None else elu(k) * mask.mT
    keys = keys / (keys.square().sum(-2 if "k_norm" in values else -1, True) + 1e-30).sqrt()
    weights = unit(elu(q), -1) @ keys.mT / 4**0.5  # (B, H, L, L)
    expected = (weights.tril() if mask is None else weights) @ v
    found = attention.mix(q, k, v, mask, causal=mask is None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_cost_grows_with_the_length(causal: bool) -> None:
    made = model(causal=causal, max_seq_len=8 * CHUNK).eval()
    flops = []
    for length in (2 * CHUNK, 4 * CHUNK, 8 * CHUNK):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made.encode(history([1] * length))
        flops.append(counter.get_total_flops())
    assert flops[1] == 2 * flops[0]
    assert flops[2] == 4 * flops[0]


def test_the_last_block_computes_one_query() -> None:
    made = model(n_layers=1, max_seq_len=100).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made.encode_last(history([1] * 100))
    memory = 2 * 100 * 8 * 16 + 2 * 2 * 100 * 8  # keys and values, their products with the query
    assert counter.get_total_flops() == memory + 2 * (8 * 8 + 8 * 8 + 2 * 8 * 16)


def test_zero_vectors_give_numbers() -> None:
    """elu(0) = 0 has no direction."""
    for values in ({}, {"k_norm": "sequence"}, {"causal": True, "train_mode": "rows"}):
        made = model(**values)
        for block in made.body.blocks:
            for weight in block.attention.parameters():
                weight.data.zero_()
        prefixes = made.params.train_mode == "prefixes"
        rows = history([1, 2, 3], [4, 5])
        batch = Batch(
            rows.users,
            rows.items,
            rows.lengths,
            where=torch.tensor([2, 4]),
            targets=torch.tensor([4, 6]),
            events=torch.tensor([3, 6]),
            prefixes=prefixes,
        )
        loss = made(batch, torch.Generator())["ce"].total
        loss.backward()
        assert loss.isfinite()
        gradients = [weight.grad for weight in made.parameters() if weight.grad is not None]
        assert all(grad.isfinite().all() for grad in gradients)
        assert max(float(grad.abs().max()) for grad in gradients) < 1e3  # no 1 / 0 in disguise
        assert made.score(rows)[:, 1:].isfinite().all()


def test_what_is_trained_is_what_is_served() -> None:
    """The state that predicts a target has seen all items before it, the newest too."""
    made = model().eval()
    rows = history([1, 2, 3], [4, 5])
    batch = Batch(
        rows.users,
        rows.items,
        rows.lengths,
        where=torch.tensor([2, 4]),
        targets=torch.tensor([4, 6]),
        events=torch.tensor([3, 6]),
        prefixes=True,
    )
    scores = made.score(rows)
    log_probabilities = scores[:, 1:].log_softmax(1)
    expected = -(log_probabilities[0, 3] + log_probabilities[1, 5])
    torch.testing.assert_close(made(batch, torch.Generator())["ce"].total, expected)
    assert not made.score(history([1, 2, 7], [4, 5]))[0].equal(scores[0])


def test_states_see_later_items_unless_causal() -> None:
    for causal in (False, True):
        made = model(causal=causal).eval()
        first, second = (made.encode(history([1, 2, newest]))[:, :2] for newest in (3, 4))
        assert first.equal(second) is causal


def test_padding_takes_part_where_asked() -> None:
    short = history([1, 2])
    masked, counted = model().eval(), model(pad_mask=False).eval()
    assert not counted.score(short).allclose(masked.score(short), atol=1e-4)
    # A full window has no padding.
    full = history([1, 2, 3, 4, 5, 6])
    torch.testing.assert_close(counted.score(full), masked.score(full))
    none = History(torch.tensor([0]), torch.zeros(1, 3, dtype=torch.long), torch.tensor([0]))
    for made in (masked, counted):
        assert made.score(none)[:, 1:].isfinite().all()


def test_attention_dropout_is_on_the_queries() -> None:
    made = model(attn_dropout_prob=0.5)
    rows = history([1, 2, 3])
    torch.manual_seed(0)
    assert not made.encode_last(rows).equal(made.encode_last(rows))
    made.eval()
    assert made.encode_last(rows).equal(made.encode_last(rows))


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"train_mode": "rows"}, "train_mode rows would leak.*; use prefixes, or causal: true"),
        ({"causal": True, "k_norm": "sequence"}, "k_norm sequence would leak.*use k_norm position"),
        ({"causal": True, "pad_mask": False}, "pad_mask false needs causal false"),
    ],
)
def test_what_excludes_each_other(values: dict[str, Any], rule: str) -> None:
    with pytest.raises(UserError, match=f"--set: {rule}"):
        build(LinRec.Params, values, "--set")
    assert build(LinRec.Params, {"causal": True, "train_mode": "rows"}, "--set").causal
