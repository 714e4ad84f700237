import math

import numpy as np
import pytest
import torch

from seqtune import batches
from seqtune.data import Dataset, leave_one_out
from seqtune.errors import UserError
from seqtune.models.gru4rec import GRU4Rec
from seqtune.models.sasrec import SASRec
from seqtune.params import OnPrefixes, Trained

CPU = torch.device("cpu")


def dataset(*histories: list[int]) -> Dataset:
    items = np.concatenate([np.array(h, dtype=np.int32) for h in histories])
    return Dataset(
        name="by hand",
        items=items,
        offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        times=np.arange(len(items), dtype=np.int64) * 1000,
        user_ids=np.arange(len(histories)),
        item_ids=np.arange(1, items.max() + 1),
    )


# The last two items of each are held out, so users train on 1 2 3 4 5, on 6 7, and on 8 alone.
SPLIT = leave_one_out(dataset([1, 2, 3, 4, 5, 8, 9], [6, 7, 1, 2], [8, 9, 1]))


def one_epoch(windows, split, **options):
    data = batches.sequences(split, CPU, times=True)
    options = {"batch_size": 128, "seed": (0, 0)} | options
    return list(batches.epoch(windows, data, **options))


def samples(found):
    """Returns {(history, ((position, target), ...)), ...} of batches."""
    out = set()
    for batch in found:
        width = batch.items.shape[1]
        for b, row in enumerate(batch.items.tolist()):
            mine = batch.where // width == b
            pairs = zip(
                (batch.where[mine] % width).tolist(), batch.targets[mine].tolist(), strict=True
            )
            out.add((tuple(row[: batch.lengths[b]]), tuple(pairs)))
    return out


def test_rows_carry_the_next_item_at_every_position_and_no_held_out_item():
    found = samples(one_epoch(batches.rows(SPLIT, 10), SPLIT))
    assert found == {((1, 2, 3, 4), ((0, 2), (1, 3), (2, 4), (3, 5))), ((6,), ((0, 7),))}


def test_a_long_history_keeps_its_last_window():
    found = samples(one_epoch(batches.rows(SPLIT, 2), SPLIT))
    assert found == {((3, 4), ((0, 4), (1, 5))), ((6,), ((0, 7),))}


def test_strided_windows_train_each_target_once_with_the_promised_history():
    split = leave_one_out(dataset(list(range(1, 13)), [1, 2, 3]))  # trains on 1..10
    found = samples(one_epoch(batches.rows(split, 4, stride=2), split))
    assert found == {
        ((6, 7, 8, 9), ((2, 9), (3, 10))),
        ((4, 5, 6, 7), ((2, 7), (3, 8))),
        ((2, 3, 4, 5), ((2, 5), (3, 6))),
        ((1, 2, 3), ((0, 2), (1, 3), (2, 4))),
    }


def test_a_stride_longer_than_the_window_is_refused():
    with pytest.raises(UserError, match="window_stride 5 must be at most max_seq_len 4"):
        batches.rows(SPLIT, 4, stride=5)


def test_prefixes_carry_one_target_each():
    found = samples(one_epoch(batches.prefixes(SPLIT, 3), SPLIT))
    assert found == {
        ((1,), ((0, 2),)),
        ((1, 2), ((1, 3),)),
        ((1, 2, 3), ((2, 4),)),
        ((2, 3, 4), ((2, 5),)),
        ((6,), ((0, 7),)),
    }


def test_events_point_at_the_targets_and_users_and_times_come_along():
    for batch in one_epoch(batches.rows(SPLIT, 10), SPLIT):
        assert SPLIT.dataset.items[batch.events].tolist() == batch.targets.tolist()
        longest = batch.lengths.argmax()
        assert batch.users[longest] == 0
        assert batch.times[longest].tolist() == [0, 1000, 2000, 3000]
        assert batch.times[1 - longest].tolist() == [7000, 0, 0, 0]


def test_before_returns_the_prefixes_that_batches_contain():
    data = batches.sequences(SPLIT, CPU)
    history = data.before(torch.tensor([4, 8]), 3)
    assert history.items.tolist() == [[2, 3, 4], [6, 0, 0]]
    assert history.lengths.tolist() == [3, 1]
    assert data.targets.tolist() == [1, 2, 3, 4, 8]


def many(n_users=300, seed=1):
    rng = np.random.default_rng(seed)
    return leave_one_out(
        dataset(*[rng.integers(1, 50, rng.integers(3, 40)).tolist() for _ in range(n_users)])
    )


def test_order_depends_on_seed_and_epoch_alone():
    split = many()
    windows = batches.rows(split, 20)

    def items(seed):
        return [b.items.tolist() for b in one_epoch(windows, split, batch_size=16, seed=seed)]

    assert items((0, 1)) == items((0, 1))
    assert items((0, 1)) != items((0, 2))
    assert items((0, 1)) != items((1, 1))


def test_batches_are_full_and_waste_little_padding():
    split = many()
    found = one_epoch(batches.rows(split, 40), split, batch_size=16)
    assert len(found) == math.ceil(300 / 16)  # 16 windows on average
    mean = sum(len(b.targets) for b in found) / len(found)
    assert all(abs(len(b.targets) - mean) < 40 for b in found)  # the targets of a window
    filled = sum(int(b.lengths.sum()) for b in found) / sum(b.items.numel() for b in found)
    assert filled > 0.9


@pytest.mark.parametrize("mode", ["rows", "prefixes"])
def test_batches_hold_the_items_asked_for_on_average(mode):
    split = many()
    params = SASRec.Params(max_seq_len=40, train_mode=mode, tokens_per_batch=300)
    windows = batches.windows(split, params)
    found = one_epoch(windows, split, batch_size=windows.batch_size(params))
    assert np.mean([int(batch.lengths.sum()) for batch in found]) == pytest.approx(300, rel=0.1)
    assert windows.batch_size(SASRec.Params(batch_size=7)) == 7


def test_sessions_have_no_items_per_batch():
    params = GRU4Rec.Params(variant="official", train_mode="sessions", tokens_per_batch=300)
    with pytest.raises(UserError, match="tokens_per_batch: a batch of train_mode sessions"):
        batches.windows(SPLIT, params)


@pytest.mark.parametrize("stride", [0, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_batch_has_a_window_for_each_rank(ranks, stride):
    lengths = [5] * 60 + [200] * 3  # targets of one long history would fill several batches
    split = leave_one_out(dataset(*[[1 + k % 9 for k in range(n)] for n in lengths]))
    windows = batches.rows(split, 200, stride)
    shards = [
        one_epoch(windows, split, batch_size=2 * ranks, shard=(rank, ranks))
        for rank in range(ranks)
    ]
    assert {len(shard) for shard in shards} == {windows.n_batches(2 * ranks)}
    assert all(len(batch.items) for shard in shards for batch in shard)


@pytest.mark.parametrize("n_users", [1, 30, 805, 1_999])
def test_the_number_of_batches_is_known_beforehand(n_users):
    split = many(n_users)
    windows = batches.rows(split, 20)
    found = one_epoch(windows, split, batch_size=8)
    assert windows.n_batches(8) == len(found)
    assert sum(len(batch.items) for batch in found) == len(windows)


def test_shards_of_a_batch_make_up_the_batch():
    split = many()
    windows = batches.rows(split, 20)
    whole = one_epoch(windows, split, batch_size=16)
    halves = [one_epoch(windows, split, batch_size=16, shard=(rank, 2)) for rank in (0, 1)]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert samples([left, right]) == samples([batch])


def test_a_model_may_train_on_rows_longer_than_its_window():
    class Short(Trained):
        @property
        def row_shape(self) -> tuple[int, int]:
            return 7, 4

    made, expected = batches.windows(SPLIT, Short(max_seq_len=3)), batches.rows(SPLIT, 7, 4)
    assert made.start.tolist() == expected.start.tolist()
    assert made.loss_from.tolist() == expected.loss_from.tolist()


def test_the_mode_is_the_params():
    assert batches.windows(SPLIT, OnPrefixes()).prefixes
    assert not batches.windows(SPLIT, Trained()).prefixes
