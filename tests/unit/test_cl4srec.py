"""CL4SRec's views and terms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seqtune.model import Batch, History, Sequences
from seqtune.models.cl4srec import CL4SRec, crop, reorder
from seqtune.models.sasrec import SASRec

N_ITEMS, WIDTH, MASK = 30, 24, 31


def made(**values: object) -> CL4SRec:
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": WIDTH, "dropout_prob": 0.0}
    return CL4SRec(CL4SRec.Params.model_validate(sizes | values), N_ITEMS, 500)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walks(lengths: Tensor) -> Tensor:
    """Rows 1 2 3 .. n: an item tells where it stood."""
    steps = torch.arange(1, WIDTH + 1).expand(len(lengths), -1)
    return steps.masked_fill(steps > lengths[:, None], 0)


def history(lengths: Tensor) -> History:
    return History(torch.arange(len(lengths)), walks(lengths), lengths)


def batch() -> Batch:
    lengths = torch.tensor([1, 5, 9, 24])
    rows = walks(lengths)
    where = rows.flatten().nonzero().squeeze(1)
    targets = rows.flatten()[where] + 1
    return Batch(torch.arange(4), rows, lengths, where=where, targets=targets, events=targets)


def operator(row: list[int], n: int) -> str:
    """Which operator made a view of the items 1..n."""
    if len(row) < n:
        return "crop"
    return "mask" if MASK in row else "reorder"


def rows_of(view: History) -> list[list[int]]:
    pairs = zip(view.items.tolist(), view.lengths.tolist(), strict=True)
    return [items[:n] for items, n in pairs]


@pytest.mark.parametrize("rate", [0.1, 0.35, 0.6, 1.0])
def test_views_follow_their_operators(rate: float) -> None:
    lengths = torch.arange(2, WIDTH + 1).repeat(60)
    model = made(crop_eta=rate, mask_gamma=rate, reorder_beta=rate)
    whole = [list(range(1, n + 1)) for n in lengths.tolist()]
    moved = 0
    for view in model.views(history(lengths), rng()):
        pads = torch.arange(WIDTH) >= view.lengths[:, None]
        assert view.users.equal(torch.arange(len(lengths)))
        assert not view.items[pads].any()
        assert view.items[~pads].all()
        for row, items in zip(rows_of(view), whole, strict=True):
            n, count = len(items), math.floor(rate * len(items))
            if len(row) < n:
                assert len(row) == max(1, count)
                assert row == list(range(row[0], row[0] + len(row)))
            elif MASK in row:
                assert row.count(MASK) == count
                assert all(item in (at, MASK) for at, item in enumerate(row, 1))
            else:
                assert sorted(row) == items
                other = [at for at, item in enumerate(row, 1) if item != at]
                assert not other or other[-1] - other[0] < count
                moved += bool(other)
    assert moved or rate == 0.1


def test_the_input_is_left_as_it_is() -> None:
    lengths = torch.arange(1, WIDTH + 1).repeat(20)
    given = history(lengths)
    items, kept = given.items.clone(), given.lengths.clone()
    views = made(mask_gamma=0.9).views(given, rng())
    assert given.items.equal(items)
    assert given.lengths.equal(kept)
    assert not any(view.items.equal(items) for view in views)


def test_a_single_item_is_its_own_view() -> None:
    given = history(torch.ones(100, dtype=torch.long))
    for view in made(crop_eta=0.1, mask_gamma=1.0, reorder_beta=1.0).views(given, rng()):
        assert view.items.equal(given.items)
        assert view.lengths.equal(given.lengths)


@pytest.mark.parametrize("distinct", [True, False])
def test_pairs_of_operators(distinct: bool) -> None:
    n, rows = 20, 6000
    views = made(distinct_ops=distinct).views(history(torch.full((rows,), n)), rng())
    pairs = list(zip(*([operator(row, n) for row in rows_of(view)] for view in views), strict=True))
    names = ("crop", "mask", "reorder")
    counts = {(a, b): pairs.count((a, b)) / rows for a in names for b in names}
    for (first, second), share in counts.items():
        if distinct:
            assert share == (0 if first == second else pytest.approx(1 / 6, abs=0.02))
        else:
            assert share == pytest.approx(1 / 9, abs=0.02)


def test_pieces_begin_everywhere_and_are_shuffled_in_every_way() -> None:
    lengths, counts = torch.full((3000,), 5), torch.full((3000,), 3)
    starts = crop(walks(lengths), lengths, counts, rng())[:, 0]
    assert (starts.bincount()[1:] / 3000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    shuffled = reorder(walks(lengths), lengths, torch.full((3000,), 5), rng())
    assert len(shuffled.unique(dim=0)) == 120  # of 5!
    assert shuffled[:, 5:].eq(0).all()
    for at in range(5):
        share = shuffled[:, at].bincount()[1:] / 3000
        assert share.tolist() == pytest.approx([0.2] * 5, abs=0.03)


def test_views_come_from_the_generator_alone() -> None:
    given = history(torch.full((50,), 20))
    first, same, other = (made().views(given, rng(seed)) for seed in (0, 0, 1))
    assert all(a.items.equal(b.items) for a, b in zip(first, same, strict=True))
    assert not any(a.items.equal(b.items) for a, b in zip(first, other, strict=True))
    assert not first[0].items.equal(first[1].items)


def test_terms() -> None:
    terms = made(ssl_lambda=0.3)(batch(), rng())
    assert {name: (t.count, t.weight) for name, t in terms.items()} == {
        "ce": (39, 1.0),
        "ssl": (8, 0.3),
    }
    assert set(made(ssl_lambda=0)(batch(), rng())) == {"ce"}


def test_the_main_loss_is_that_of_sasrec() -> None:
    model = made()
    sizes = {"embedding_size": 8, "inner_size": 8, "max_seq_len": WIDTH, "dropout_prob": 0.0}
    sasrec = SASRec(SASRec.Params.model_validate(sizes), N_ITEMS, 500)
    weights = model.state_dict()
    weights["item_embedding.weight"] = weights["item_embedding.weight"][: N_ITEMS + 1]
    sasrec.load_state_dict(weights)
    assert model(batch(), rng())["ce"].total.equal(sasrec(batch(), rng())["ce"].total)
    assert model.score(batch()).equal(sasrec.score(batch()))


def test_the_mask_is_trained_by_the_contrast_alone_and_never_ranked() -> None:
    for name, trained in (("ce", False), ("ssl", True)):
        model = made()
        model(batch(), rng())[name].total.backward()
        grad = model.item_embedding.weight.grad
        assert grad is not None
        assert bool(grad[MASK].any()) == trained
    scores = made().score(batch())
    assert scores.shape == (4, N_ITEMS + 1)


def test_identical_views_are_as_far_as_the_other_rows_are_near() -> None:
    """With nothing to crop, mask or shuffle, InfoNCE is that of two equal views."""
    model = made(crop_eta=1.0, mask_gamma=0.0, reorder_beta=0.0, sim_type="cos", tau=0.5)
    h = torch.nn.functional.normalize(model.encode_last(batch()), dim=1).repeat(2, 1)
    logits = (h @ h.T / 0.5).fill_diagonal_(-torch.inf)
    expected = (logits.logsumexp(1) - 1 / 0.5).sum().item()
    assert model(batch(), rng())["ssl"].total.item() == pytest.approx(expected, rel=1e-5)


def test_prefixes_give_one_state_per_row() -> None:
    data = Sequences(
        items=torch.tensor([1, 2, 3, 4]),
        offsets=torch.tensor([0, 4]),
        train_end=torch.tensor([4]),
        n_items=N_ITEMS,
    )
    prefix = data.before(data.targets, 4)
    one = Batch(
        prefix.users,
        prefix.items,
        prefix.lengths,
        where=4 * torch.arange(3) + prefix.lengths - 1,
        targets=data.items[data.targets],
        events=data.targets,
        prefixes=True,
    )
    row = Batch(
        prefix.users[:1],
        prefix.items[2:],
        prefix.lengths[2:],
        where=torch.arange(3),
        targets=one.targets,
        events=one.events,
    )
    terms = made(train_mode="prefixes")(one, rng())
    rows = made(train_mode="rows")(row, rng())
    assert (terms["ce"].count, terms["ssl"].count, rows["ssl"].count) == (3, 6, 2)
    assert terms["ce"].total.item() == pytest.approx(rows["ce"].total.item(), rel=1e-5)
