"""Negatives: who shares them, what is rejected, and that the others follow their distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqtune.errors import UserError
from seqtune.negatives import Negatives, Sampler, Sharing, distinct, seen_keys

# Three users of two targets each, in rows of width 4; ten items.

TARGETS, USERS = torch.tensor([1, 2, 3, 4, 5, 6]), torch.arange(3)
ROWS = torch.tensor([0, 0, 1, 1, 2, 2])
SHARINGS: list[Sharing] = ["position", "row", "batch"]
KNOWN = [{1, 2, 7}, {3, 4}, set(range(1, 11)) - {9}]  # what the users have seen


def keys() -> Tensor:
    events = [(user, item) for user, items in enumerate(KNOWN) for item in items]
    users, items = torch.tensor([*events, (0, 2)]).T  # user 0 met item 2 twice
    return seen_keys(users, items, 10)


def draw(sampler: Sampler, *, seed: int = 0, users: Tensor = USERS) -> Negatives:
    rng = torch.Generator().manual_seed(seed)
    return sampler.draw(TARGETS, ROWS, users, rng, pool=TARGETS)


def spread(negatives: Negatives) -> Tensor:
    """The items (6, k) that each target is compared with."""
    if negatives.sharing == "row":
        return negatives.items[ROWS]
    return negatives.items.expand(6, -1)


def is_uniform(counts: Tensor) -> bool:
    """Whether counts are within 5 standard deviations of those of equal chances."""
    mean = counts.sum() / len(counts)
    return bool(((counts - mean).abs() < 5 * mean.sqrt()).all())


@pytest.mark.parametrize(
    ("sharing", "shape"), [("position", (6, 500)), ("row", (3, 500)), ("batch", (500,))]
)
def test_negatives_are_uniform_over_the_items(sharing: Sharing, shape: tuple[int, ...]) -> None:
    sampler = Sampler(10, 500, sharing, "none")
    negatives = draw(sampler)
    assert negatives.items.shape == shape
    assert negatives.rejected is None
    counts = negatives.items.flatten().bincount(minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert is_uniform(counts[1:])
    assert draw(sampler).items.equal(negatives.items)
    assert not draw(sampler, seed=1).items.equal(negatives.items)


def test_each_place_has_a_draw_of_its_own() -> None:
    """Pairs of neighbours are uniform over all pairs: nothing is drawn once and repeated."""
    (position,) = (draw(Sampler(10, 6000, "position", "none")).items,)
    for left, right in ((position[:, :-1], position[:, 1:]), (position[:-1], position[1:])):
        assert is_uniform(((left - 1) * 10 + right - 1).flatten().bincount(minlength=100))


def test_the_target_is_drawn_again_or_masked() -> None:
    own = draw(Sampler(10, 500, "position", "target"))
    hits = own.items == TARGETS[:, None]
    assert own.rejected is not None
    assert own.rejected.equal(hits)
    assert hits.float().mean() < 1e-3  # .1 before the three redraws, 1e-4 after
    assert not hits.any(1).all()
    for sharing in SHARINGS[1:]:
        shared = draw(Sampler(10, 50, sharing, "target"))
        assert shared.rejected is not None
        assert shared.rejected.equal(spread(shared) == TARGETS[:, None])
        assert shared.rejected.any()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_seen_items_are_never_negatives(sharing: Sharing) -> None:
    seen = keys()
    assert len(seen) == 3 + 2 + 9
    negatives = draw(Sampler(10, 400, sharing, "seen", seen))
    assert negatives.rejected is not None
    for row, drawn in enumerate(spread(negatives).tolist()):
        forbidden = [item in KNOWN[row // 2] for item in drawn]
        assert negatives.rejected[row].tolist() == forbidden
    if sharing != "batch":  # redrawn: .3^4 of user 0's are left, and .9^4 of user 2's
        assert negatives.rejected[:2].float().mean() < 0.03
        assert 0.4 < negatives.rejected[4:].float().mean() < 0.9


@pytest.mark.parametrize("reject", ["target", "seen"])
def test_what_is_left_is_uniform(reject: str) -> None:
    sampler = Sampler(10, 6000, "position", reject, keys())  # type: ignore[arg-type]
    negatives = draw(sampler)
    assert negatives.rejected is not None
    for n, target in enumerate(TARGETS.tolist()):
        forbidden = {target} if reject == "target" else KNOWN[n // 2]
        counts = negatives.items[n][~negatives.rejected[n]].bincount(minlength=11)
        allowed = [item for item in range(1, 11) if item not in forbidden]
        assert counts.nonzero().flatten().tolist() == allowed
        assert is_uniform(counts[allowed])


def test_a_stranger_has_seen_nothing() -> None:
    seen = seen_keys(torch.tensor([0]), torch.tensor([10]), 10)
    negatives = draw(Sampler(10, 50, "row", "seen", seen), users=torch.tensor([1, 2, 99]))
    assert negatives.rejected is not None
    assert not negatives.rejected.any()


def test_sampling_needs_a_negative() -> None:
    with pytest.raises(UserError, match="neg_samples must be at least 1"):
        draw(Sampler(10, 0, "batch", "none"))


@pytest.mark.parametrize(
    ("sharing", "shape"), [("position", (3, 900)), ("row", (2, 900)), ("batch", (900,))]
)
def test_some_negatives_come_from_a_pool(sharing: Sharing, shape: tuple[int, ...]) -> None:
    targets, rows = torch.tensor([7, 3, 3]), torch.tensor([0, 0, 1])
    pool = torch.tensor([[7, 3, 3, 0], [3, 5, 0, 0]])  # three distinct items
    sampler = Sampler(50, 900, sharing, "none", n_pool=600)
    rng = torch.Generator().manual_seed(0)
    drawn = sampler.draw(targets, rows, torch.tensor([0, 1]), rng, pool=pool).items
    assert drawn.shape == shape
    counts = drawn[..., :600].flatten().bincount(minlength=51)
    assert counts.nonzero().flatten().tolist() == [3, 5, 7]
    assert is_uniform(counts[[3, 5, 7]])
    assert len(drawn[..., 600:].unique()) == 50  # the others are of the whole catalogue


def test_distinct_marks_the_first_of_each_item() -> None:
    ids, fresh = distinct(torch.tensor([[4, 0, 2], [4, 9, 4]]))
    assert ids.tolist() == [0, 2, 4, 4, 4, 9]
    assert ids[fresh].tolist() == [2, 4, 9]
