"""DuoRec's views and terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seqtune.model import Batch, Sequences
from seqtune.models.duorec import DuoRec, one_per_row

# Two users: 1 2 3 2 1 | 3 2 1 4. Every event but a user's first is a target.
ITEMS = [1, 2, 3, 2, 1, 3, 2, 1, 4]
TARGETS = [1, 2, 3, 4, 6, 7, 8]
DATA = Sequences(
    items=torch.tensor(ITEMS),
    offsets=torch.tensor([0, 5, 9]),
    train_end=torch.tensor([5, 9]),
    n_items=4,
)


def model(**values: object) -> DuoRec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": 4}
    made = DuoRec(DuoRec.Params.model_validate(sizes | values), 4, 2)
    made.prepare(DATA)
    return made


def prefixes() -> Batch:
    events = torch.tensor([3, 4, 6, 8])
    history = DATA.before(events, 4)
    where = 4 * torch.arange(4) + history.lengths - 1
    return Batch(
        history.users,
        history.items,
        history.lengths,
        where=where,
        targets=DATA.items[events],
        events=events,
        prefixes=True,
    )


def rows() -> Batch:
    history = DATA.before(torch.tensor([4, 8]), 4)
    return Batch(
        history.users,
        history.items,
        history.lengths,
        where=torch.tensor([0, 1, 2, 3, 4, 5, 6]),
        targets=torch.tensor([2, 3, 2, 1, 2, 1, 4]),
        events=torch.tensor(TARGETS),
    )


def terms(made: DuoRec, batch: Batch) -> dict[str, tuple[float, int, float]]:
    torch.manual_seed(1)
    found = made(batch, torch.Generator().manual_seed(1))
    return {name: (float(t.total.detach()), t.count, t.weight) for name, t in found.items()}


def test_the_semantic_view_is_another_event_with_the_same_target() -> None:
    made = model()
    events = torch.tensor(TARGETS).repeat_interleave(600)
    drawn = made.same_target(events, torch.Generator().manual_seed(0))
    others = {1: [3, 6], 2: [], 3: [1, 6], 4: [7], 6: [1, 3], 7: [4], 8: []}
    for event, found in zip(TARGETS, drawn.reshape(-1, 600), strict=True):
        wanted = others[event] or [event]  # itself where it is the only one
        assert found.unique().tolist() == wanted
        for other in wanted:  # and each alternative as often
            share = (found == other).float().mean().item()
            assert share == pytest.approx(1 / len(wanted), abs=0.1)


def test_one_target_is_drawn_of_each_row() -> None:
    rng, batch = torch.Generator().manual_seed(0), rows()
    drawn = torch.stack([one_per_row(batch, rng) for _ in range(400)])  # (400, 2)
    assert drawn[:, 0].bincount(minlength=4).min() > 60
    assert drawn[:, 1].bincount(minlength=7)[4:].min() > 80
    assert drawn[:, 0].max() == 3
    assert drawn[:, 1].min() == 4
    scrambled = replace(batch, where=batch.where.flip(0))
    assert (scrambled.where[one_per_row(scrambled, rng)] // 4).tolist() == [0, 1]


@pytest.mark.parametrize("batch", [prefixes(), rows()], ids=["prefixes", "rows"])
@pytest.mark.parametrize(
    ("ssl_type", "expected"),
    [
        ("un", {"un": 0.3}),
        ("su", {"su": 0.7}),
        ("us", {"un": 0.3, "su": 0.7}),
        ("us_x", {"us_x": 0.7}),  # one term: ssl_lambda has no part in it
    ],
)
def test_terms_and_weights(ssl_type: str, expected: dict[str, float], batch: Batch) -> None:
    made = model(ssl_type=ssl_type, ssl_lambda=0.3, ssl_lambda_sem=0.7)
    found = terms(made, batch)
    assert found.pop("ce")[1] == len(batch.targets)
    assert {name: weight for name, (_, _, weight) in found.items()} == expected
    assert {count for _, count, _ in found.values()} == {2 * len(batch.items)}
    assert len({total for total, _, _ in found.values()}) == len(found)


def test_the_unsupervised_view_differs_by_dropout_alone() -> None:
    """Without dropout h' = h, so that InfoNCE(h, h') is that of identical views."""
    made, batch = model(ssl_type="un", dropout_prob=0.0, sim_type="cos", tau=0.5), prefixes()
    h: Tensor = torch.nn.functional.normalize(made.encode_last(batch), dim=1).repeat(2, 1)
    logits = (h @ h.T / 0.5).fill_diagonal_(-torch.inf)
    expected = (logits.logsumexp(1) - 1 / 0.5).sum().item()
    assert terms(made, batch)["un"][0] == pytest.approx(expected, rel=1e-5)


def test_us_x_contrasts_both_views_and_leaves_out_same_targets_where_asked() -> None:
    # Targets of the batch are 2, 1, 2, 4: without same-target negatives the loss is smaller.
    values = {"dropout_prob": 0.0, "ssl_type": "us_x"}
    plain = terms(model(**values), prefixes())["us_x"][0]
    masked = terms(model(**values, mask_same_target=True), prefixes())["us_x"][0]
    assert masked < plain
    # su contrasts h with the same semantic view, and without dropout h = h'.
    su = terms(model(dropout_prob=0.0, ssl_type="su"), prefixes())["su"][0]
    assert su == pytest.approx(plain, rel=1e-5)
