"""eSASRec's blocks, its negatives, and its switches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from seqtune.errors import UserError
from seqtune.model import Batch, History, Sequences, Term
from seqtune.models.esasrec import ESASRec
from seqtune.negatives import Negatives
from seqtune.params import build

N_ITEMS = 12
# Two users: 1 2 3 2 1 | 3 2 1 4; the last event of each is held out. Items 5..12 never occur.
DATA = Sequences(
    items=torch.tensor([1, 2, 3, 2, 1, 3, 2, 1, 4]),
    offsets=torch.tensor([0, 5, 9]),
    train_end=torch.tensor([4, 8]),
    n_items=N_ITEMS,
)
BATCH = Batch(
    users=torch.tensor([0, 1]),
    items=torch.tensor([[1, 2, 3], [3, 2, 0]]),
    lengths=torch.tensor([3, 2]),
    where=torch.tensor([0, 1, 2, 3, 4]),
    targets=torch.tensor([2, 3, 2, 2, 1]),
    events=torch.tensor([1, 2, 3, 6, 7]),
)


def model(**values: Any) -> ESASRec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 16, "max_seq_len": 4, "dropout_prob": 0.0}
    made = ESASRec(build(ESASRec.Params, sizes | values, "test"), N_ITEMS, 2)
    made.prepare(DATA)
    return made


def loss(made: ESASRec) -> Term:
    (term,) = made(BATCH, torch.Generator().manual_seed(0)).values()
    return term


def test_gates_read_the_states_as_they_are() -> None:
    """Adding the same number to all of a state is invisible behind its normalisation."""
    (block,) = model(n_layers=1).eval().body.blocks
    x = torch.randn(2, 3, 8)
    moved, plain = block(x + 3) - 3, block(x)
    assert (moved - plain).abs().max() > 0.05
    for gate in (block.gate_1, block.gate_2):
        gate.weight.data.zero_()
    torch.testing.assert_close(block(x + 3) - 3, block(x), rtol=1e-4, atol=1e-5)


def test_a_closed_gate_leaves_a_state_alone() -> None:
    (block,) = model(n_layers=1).eval().body.blocks
    for gate in (block.gate_1, block.gate_2):
        gate.weight.data.zero_()
        gate.bias.data.fill_(-100)
    x = torch.randn(2, 3, 8)
    assert block(x).equal(x)


def test_every_position_is_trained() -> None:
    made = model()
    states = made.encode(BATCH)
    states.retain_grad()
    at_targets = states.flatten(0, 1)[BATCH.where]
    (term,) = made.next_item(at_targets, BATCH, torch.Generator().manual_seed(0)).values()
    term.total.backward()
    assert term.count == 5
    assert states.grad is not None
    assert states.grad.any(2).flatten().tolist() == [True] * 5 + [False]  # the pad is not


def test_weights_start_from_xavier_and_padding_from_zero() -> None:
    torch.manual_seed(0)
    made = ESASRec(ESASRec.Params(embedding_size=64), 2000, 1)
    table, block = made.item_embedding.weight, made.body.blocks[0]
    assert not table[0].any()
    assert table[1:].std().item() == pytest.approx(math.sqrt(2 / (2001 + 64)), rel=0.02)
    for matrix, shape in (
        (block.gate_1.weight, (64, 64)),
        (block.feed_forward.gate.weight, (256, 64)),
        (block.attention.project_out.weight, (64, 64)),
    ):
        assert tuple(matrix.shape) == shape
        assert matrix.std().item() == pytest.approx(math.sqrt(2 / sum(shape)), rel=0.1)
    assert made.params.adam_beta2 == 0.98


def test_relative_positions_weigh_by_distance() -> None:
    made = model(n_layers=1, n_heads=1, use_relative_pos=True).eval()
    block = made.body.blocks[0]
    plain = model(n_layers=1, n_heads=1).eval()
    own, others = sum(w.numel() for w in made.parameters()), plain.parameters()
    assert own == sum(w.numel() for w in others) + 4  # a number for each distance below 4
    block.bias.weight.data[:] = torch.tensor([[0.0], [0.0], [50.0], [0.0]])
    memory = torch.randn(1, 4, 8)
    mask = block.biases(block.bias, 4, None)
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0, 3].tolist() == [0, 50, 0, 0]
    assert mask[0, 0, 1].tolist() == [0, 0, -math.inf, -math.inf]
    mixed = block.attention(memory, mask=mask)
    value = torch.nn.functional.linear(memory[:, 1], block.attention.project_in.weight[16:])
    torch.testing.assert_close(mixed[:, 3], block.attention.project_out(value))
    torch.testing.assert_close(
        mixed[:, 2], block.attention(memory[:, :3], mask=mask[..., :3, :3])[:, 2]
    )
    last = block.biases(block.bias, 4, torch.tensor([[3], [1]]))
    assert last[:, :, 0].equal(mask[0, :, [3, 1]].transpose(0, 1))


def test_relative_positions_under_autocast_and_without_a_history() -> None:
    made = model(use_relative_pos=True).eval()
    history = History(BATCH.users, BATCH.items, torch.tensor([3, 0]))
    exact = made.score(history)
    assert exact[:, 1:].isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made.score(history), exact, rtol=0.1, atol=0.05)
        assert loss(made).total.isfinite()


def test_one_negative_is_bpr_and_all_of_them_are_cross_entropy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = {"neg_samples": 1, "reject": "none"}
    bpr = loss(model(**one, loss_type="bpr")).total.item()
    assert loss(model(**one)).total.item() == pytest.approx(bpr, rel=1e-6)

    made, items = model(), torch.arange(1, N_ITEMS + 1)
    everything = Negatives(items, "batch", items == BATCH.targets[:, None])
    monkeypatch.setattr(made, "negatives", lambda batch, rng: everything)
    ce = loss(model(loss_type="ce")).total.item()
    assert loss(made).total.item() == pytest.approx(ce, rel=1e-6)


@pytest.mark.parametrize("sharing", ["position", "row", "batch"])
def test_mixed_negatives_are_items_of_the_batch(sharing: str) -> None:
    made = model(neg_samples=1000, mn_ratio=0.6, neg_sharing=sharing, reject="none")
    drawn = made.negatives(BATCH, torch.Generator().manual_seed(0)).items
    shape = {"position": (5, 1000), "row": (2, 1000), "batch": (1000,)}[sharing]
    assert drawn.shape == shape
    mixed, uniform = drawn[..., :600], drawn[..., 600:]
    # Item 2 stands in the batch twice, and is drawn no more often for it.
    share = mixed.flatten().bincount(minlength=N_ITEMS + 1) / mixed.numel()
    torch.testing.assert_close(share[1:4], torch.full((3,), 1 / 3), rtol=0, atol=0.05)
    assert not share[[0, *range(4, N_ITEMS + 1)]].any()
    share = uniform.flatten().bincount(minlength=N_ITEMS + 1) / uniform.numel()
    torch.testing.assert_close(share[1:], torch.full((N_ITEMS,), 1 / N_ITEMS), rtol=0, atol=0.05)


def test_mixed_negatives_never_count_as_the_target() -> None:
    for sharing in ("position", "row", "batch"):
        made = model(neg_samples=50, mn_ratio=1.0, neg_sharing=sharing)
        drawn = made.negatives(BATCH, torch.Generator().manual_seed(0))
        per_target = drawn.items[BATCH.where // 3] if sharing == "row" else drawn.items
        assert drawn.rejected is not None
        assert drawn.rejected.equal(per_target == BATCH.targets[:, None])
        if sharing == "position":  # drawn again, so hardly any is left to mask
            assert drawn.rejected.float().mean() < 0.05


def test_less_than_one_mixed_negative_is_none() -> None:
    found = []
    for ratio in (0, 0.003):  # int(0.003 * 256) = 0
        drawn = model(mn_ratio=ratio).negatives(BATCH, torch.Generator().manual_seed(0))
        found.append(drawn.items)
    assert found[0].equal(found[1])


def test_logq_subtracts_log_training_counts_in_the_loss_alone() -> None:
    made, plain = model(logq=True, reject="none"), model(reject="none")
    # Held-out events are not counted: 1 thrice becomes 1 twice, 4 is never seen.
    counts = torch.tensor([2, 3, 2] + [1] * 9)  # 0 is taken for 1
    assert made.log_q is not None
    torch.testing.assert_close(made.log_q[1:], counts.log())
    states = plain.states_at_targets(BATCH)
    with_q, without = (
        m.candidate_scores(states, BATCH, torch.Generator().manual_seed(0)) for m in (made, plain)
    )
    drawn: Tensor = plain.negatives(BATCH, torch.Generator().manual_seed(0)).items
    own = drawn[BATCH.where // 3]
    torch.testing.assert_close(without[0] - with_q[0], made.log_q[BATCH.targets])
    torch.testing.assert_close(without[1] - with_q[1], made.log_q[own])
    assert made.eval().score(BATCH).equal(plain.eval().score(BATCH))


def test_switches_and_the_loss() -> None:
    def kind(**values: Any) -> str:
        return build(ESASRec.Params, values, "--set").loss_type

    assert kind() == "sampled_softmax"
    assert kind(use_sampled_softmax=False) == "ce"
    assert kind(use_sampled_softmax="false", loss_type="sampled_softmax") == "ce"
    assert kind(use_sampled_softmax=False, loss_type="bce") == "bce"
    assert kind(loss_type="gbce") == "gbce"
    with pytest.raises(UserError, match="--set: logq needs loss_type sampled_softmax, not ce"):
        kind(logq=True, use_sampled_softmax=False)
    with pytest.raises(UserError, match="--set: use_relative_pos needs use_ligr true"):
        kind(use_relative_pos=True, use_ligr=False)


def test_a_padded_row_scores_as_its_items_do() -> None:
    for values in ({}, {"use_relative_pos": True}, {"use_ligr": False}):
        made = model(**values).eval()
        short = made.score(History(BATCH.users[:1], torch.tensor([[3, 2]]), torch.tensor([2])))
        wide = made.score(
            replace(BATCH, items=torch.tensor([[3, 2, 0, 0]] * 2), lengths=torch.tensor([2, 2]))
        )
        torch.testing.assert_close(wide[:1], short)
