"""gSASRec's loss, its tables, and the windows it is trained on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from seqtune import batches
from seqtune.data import Dataset, leave_one_out
from seqtune.errors import UserError
from seqtune.model import Batch, History
from seqtune.models.gsasrec import GSASRec
from seqtune.params import build

N_ITEMS = 9
BATCH = Batch(
    users=torch.tensor([0, 1]),
    items=torch.tensor([[1, 2, 3], [3, 2, 0]]),
    lengths=torch.tensor([3, 2]),
    where=torch.tensor([0, 1, 2, 3, 4]),
    targets=torch.tensor([2, 3, 2, 2, 1]),
    events=torch.tensor([1, 2, 3, 6, 7]),
)


def model(**values: Any) -> GSASRec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": 4, "dropout_prob": 0.0}
    sizes |= {"neg_samples": 4}
    return GSASRec(build(GSASRec.Params, sizes | values, "test"), N_ITEMS, 2)


def loss(made: GSASRec) -> float:
    (term,) = made(BATCH, torch.Generator().manual_seed(0)).values()
    return float(term.total.detach())


def test_no_calibration_is_bce_averaged_over_its_terms() -> None:
    assert loss(model(gbce_t=0)) == pytest.approx(loss(model(loss_type="bce")) / 5, rel=1e-6)


def test_calibration_weakens_the_pull_of_the_target() -> None:
    """alpha = 4 / 8, so that beta = 1 - gbce_t / 2: the positive term is multiplied by it."""
    terms = {t: loss(model(gbce_t=t)) for t in (0.0, 0.5, 1.0)}
    assert terms[0.0] > terms[0.5] > terms[1.0]
    assert terms[0.0] - terms[0.5] == pytest.approx(terms[0.5] - terms[1.0], rel=1e-5)
    made = model()
    states = made.states_at_targets(BATCH)
    positive, _ = made.candidate_scores(states, BATCH, torch.Generator())
    expected = sum(math.log1p(math.exp(-s)) for s in positive.tolist()) / 5
    assert terms[0.0] - terms[1.0] == pytest.approx(expected / 2, rel=1e-5)


def test_there_must_be_more_items_than_negatives() -> None:
    assert loss(model(neg_samples=N_ITEMS - 1)) > 0
    with pytest.raises(UserError, match="neg_samples must be at most 8, one less than the 9 items"):
        loss(model(neg_samples=N_ITEMS))
    assert loss(model(neg_samples=N_ITEMS, loss_type="sampled_softmax")) > 0


def test_targets_among_the_negatives_are_left_out_unless_kept() -> None:
    rejected = model(neg_sharing="batch", neg_samples=8)
    kept = model(neg_sharing="batch", neg_samples=8, reject="none")
    states = rejected.states_at_targets(BATCH)
    found = []
    for made in (rejected, kept):
        _, negative = made.candidate_scores(states, BATCH, torch.Generator().manual_seed(0))
        found.append(negative == -torch.inf)
    drawn = kept.negatives(BATCH, torch.Generator().manual_seed(0)).items
    assert found[0].equal(drawn == BATCH.targets[:, None])
    assert found[0].any()
    assert not found[1].any()


def test_states_are_compared_with_a_table_of_their_own() -> None:
    history = History(torch.tensor([0]), torch.tensor([[1, 2]]), torch.tensor([2]))
    for reuse in (False, True):
        made = model(tie_weights=reuse).eval()
        before = made.score(history)
        made.item_embedding.weight.data[5] *= 2  # no item of the history
        changed = (made.score(history) != before).nonzero().tolist()
        assert changed == ([[0, 5]] if reuse else [])
        tables = [m for m in made.modules() if isinstance(m, type(made.item_embedding))]
        assert len(tables) == 2 - reuse
        assert all(not table.weight[0].any() for table in tables)


def test_a_long_history_counts_each_target_once() -> None:
    """Also where a user meets an item again, and however far apart the windows are."""
    items = np.array([1, 2, 1, 2, 3, 3, 4, 5, 1, 6, 7, 8, 9, 1, 2, 3, 7, 7, 4, 5], dtype=np.int32)
    dataset = Dataset(
        name="long",
        items=items,
        offsets=np.array([0, 15, 20]),
        times=np.arange(20),
        user_ids=np.arange(2),
        item_ids=np.arange(1, 10),
    )
    split = leave_one_out(dataset)
    data = batches.sequences(split, torch.device("cpu"))
    for stride in (1, 2, 4):
        params = model(window_stride=stride).params
        windows = batches.windows(split, params)
        (batch,) = batches.epoch(windows, data, batch_size=100, seed=(0, 0))
        assert sorted(batch.events.tolist()) == [*range(1, 13), 16, 17]
        assert batch.targets.equal(data.items[batch.events])
        inputs = batch.items.flatten()[batch.where]  # max_seq_len of them, not one less
        assert inputs.equal(data.items[batch.events - 1])
        assert int(batch.lengths.max()) == 4
