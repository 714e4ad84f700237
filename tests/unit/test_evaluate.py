import numpy as np
import pytest
import torch

from seqtune import batches
from seqtune.data import Dataset, leave_one_out
from seqtune.evaluate import evaluate
from seqtune.model import Model
from seqtune.params import Params

CPU = torch.device("cpu")


def split_of(*histories):
    items = np.concatenate([np.array(h, dtype=np.int32) for h in histories])
    data = Dataset(
        name="by hand",
        items=items,
        offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        times=np.arange(len(items), dtype=np.int64),
        user_ids=np.arange(len(histories)),
        item_ids=np.arange(1, items.max() + 1),
    )
    return leave_one_out(data)


class Fixed(Model):
    """Scores item i of user u by a table, and remembers what it was shown."""

    def __init__(self, table):
        super().__init__(Params(max_seq_len=4), len(table[0]) - 1, len(table))
        self.table, self.seen = torch.tensor(table), {}

    def score(self, history):
        for user, row, n in zip(history.users, history.items, history.lengths, strict=True):
            self.seen[int(user)] = row[:n].tolist()
        return self.table[history.users]


SPLIT = split_of([1, 2, 3, 4], [5, 1, 2], [1, 2, 3, 4, 5, 2])
VOID = -float("inf")  # the padding's score, by the contract of Model.score
#             1     2     3     4     5
TABLE = [
    [VOID, 0.9, 0.8, 0.7, 0.1, 0.5],  # test item 4
    [VOID, 0.9, 0.3, 0.3, 0.3, 0.8],  # test item 2
    [VOID, 0.9, 0.8, 0.7, 0.1, 0.95],  # test item 2, which the history holds
]


def ranks(held, model=None, **options):
    data = batches.sequences(SPLIT, CPU)
    options = {"mask_seen": True} | options
    return evaluate(model or Fixed(TABLE), data, SPLIT, held, **options)


def test_ranks_by_hand_with_seen_items_left_out():
    # User 0 has seen 1 2 3: only 5 beats 4. User 1 has seen 5 1: items 2 3 4 tie. User 2: alone.
    assert ranks(SPLIT.test).ranks.tolist() == [2, 2, 1]


def test_ranks_by_hand_with_seen_items_kept():
    assert ranks(SPLIT.test, mask_seen=False).ranks.tolist() == [5, 4, 3]


def test_the_test_history_holds_the_validation_item_and_the_last_items_are_kept():
    model = Fixed(TABLE)
    ranks(SPLIT.test, model)
    assert model.seen == {0: [1, 2, 3], 1: [5, 1], 2: [2, 3, 4, 5]}
    ranks(SPLIT.valid, model)
    assert model.seen == {0: [1, 2], 1: [5], 2: [1, 2, 3, 4]}


def test_the_lists_hold_neither_padding_nor_seen_items():
    top = ranks(SPLIT.test, top_k=2).top
    assert top[0].tolist() == [5, 4]
    assert top[1][0] in (2, 3, 4)
    assert 0 not in top


def test_a_score_that_is_not_finite_ranks_last():
    table = [[VOID] + [float("nan")] * 5] * 3
    assert ranks(SPLIT.test, Fixed(table)).ranks.tolist() == [5, 5, 5]


def test_constant_scores_rank_in_the_middle():
    assert ranks(SPLIT.test, Fixed([[VOID] + [0.0] * 5] * 3), mask_seen=False).ranks.tolist() == [
        3,
        3,
        3,
    ]


def test_shards_rank_their_own_users(monkeypatch):
    held = SPLIT.test
    parts = []
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda out, mine: parts.append(mine[0].copy())
    )
    for rank in (0, 1):
        ranks(held, shard=(rank, 2))
    assert (parts[0] + parts[1]).tolist() == [2, 2, 1]
    assert np.count_nonzero(parts[0]) == 2
    assert np.count_nonzero(parts[1]) == 1


def test_training_mode_comes_back():
    model = Fixed(TABLE)
    model.train()
    ranks(SPLIT.test, model)
    assert model.training


@pytest.mark.parametrize("rows", [1, 2])
def test_the_number_of_rows_at_once_changes_nothing(monkeypatch, rows):
    monkeypatch.setattr("seqtune.evaluate.ROWS", rows)
    assert ranks(SPLIT.test).ranks.tolist() == [2, 2, 1]
