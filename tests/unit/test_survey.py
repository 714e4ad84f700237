"""What ``seqtune data FILE`` tells, on data of which everything is known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from seqtune.cli.app import main
from seqtune.data import Dataset, Protocol
from seqtune.data.generate import make_preset
from seqtune.data.split import DAY
from seqtune.survey import held_out, rows, shuffled, sizes, survey


@pytest.fixture
def data() -> Dataset:
    """Three users of a dozen events, of items whose counts are 6, 3, 2 and 1."""
    return Dataset(
        name="dozen",
        items=np.array([1, 1, 2, 1, 1, 3, 2, 1, 2, 1, 3, 4], np.int32),
        offsets=np.array([0, 3, 8, 12]),
        times=np.array([1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9, 9]) * DAY,
        user_ids=np.arange(3),
        item_ids=np.arange(4),
    )


def test_sizes_by_hand(data: Dataset) -> None:
    found = sizes(data)
    assert (found["users"], found["items"], found["interactions"]) == (3, 4, 12)
    assert found["density"] == 1.0
    assert found["events per user"]["median"] == 4
    assert (found["events per user"]["least"], found["events per user"]["most"]) == (3, 5)
    assert (found["first"], found["last"]) == ("1970-01-02 00:00", "1970-01-10 00:00")
    assert found["repeated"] == pytest.approx(3 / 12)
    assert found["of the top 1 % of items"] == 0.5
    shares = np.cumsum([1, 2, 3, 6]) / 12
    assert found["gini"] == pytest.approx(1 + 1 / 4 - 2 * shares.mean())
    assert "groups" not in found
    of = np.array([1, 0, 1], np.int16)
    named = replace(data, groups=of, group_names=("new", "old", "none"))
    assert sizes(named)["groups"] == {"new": 1, "old": 2, "none": 0}
    equal = replace(data, items=np.array([1, 2, 3, 4] * 3, np.int32))
    assert sizes(equal)["gini"] == pytest.approx(0)


def test_what_is_held_out_by_hand(data: Dataset) -> None:
    found = held_out(data, Protocol(True).split(data))
    assert found["training events"] == 6
    assert found["test targets"] == found["test users"] == 3
    assert found["later than the first test target"] == pytest.approx(3 / 6)  # days 4, 7 and 8
    assert found["tied with the event before"] == pytest.approx(1 / 3)
    assert found["cold test items"] == pytest.approx(1 / 3)  # item 4


def test_histories_are_shuffled_and_targets_stay(data: Dataset) -> None:
    split = Protocol(True, split_by="leave-2-out", targets="successive").split(make_preset("tiny"))
    other = shuffled(split)
    assert other.dataset.items.tolist() != split.dataset.items.tolist()
    for user in range(split.dataset.n_users):
        span = slice(split.dataset.offsets[user], split.dataset.offsets[user + 1])
        one, two = split.dataset.items[span], other.dataset.items[span]
        assert sorted(one) == sorted(two)
        assert one[-2:].tolist() == two[-2:].tolist() or len(one) < 5


def test_order_says_much_where_it_was_made_so() -> None:
    found = survey(make_preset("tiny"), Protocol.of(make_preset("tiny")), "ndcg@10")
    assert found.order > 0.5
    assert not [text for text in found.remarks() if "their order says little" in text]
    mixed = shuffled(found.split, 1).dataset
    assert survey(mixed, found.protocol, "ndcg@10").order < 0.2
    said = " ".join(survey(mixed, found.protocol, "ndcg@10").remarks())
    assert "their order says little here" in said
    assert "later than the first test target" in said
    assert dict(rows(found))["users"] == "200"


def test_positions_are_no_moments() -> None:
    data, by_time = make_preset("tiny"), Protocol(True, split_by="time:0.8")
    for times, expected in ((data.times // 10**6, True), (data.times, False)):
        found = survey(replace(data, times=times), by_time, "hr@10")
        assert any("positions in each history" in one for one in found.remarks()) is expected


def test_the_command_tells_and_has_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["seqtune", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    code, out, _ = run("data", "tiny", "--split", "time:0.8", "--targets", "successive")
    assert code == 0
    for words in ("2,534 (21.12% of all pairs)", "Global temporal split", "decayed markov"):
        assert words in out
    found = json.loads(run("data", "tiny", "--json")[1])
    assert found["users"] == 200
    assert found["floors"]["markov"]["ndcg@10"] == pytest.approx(0.6819, abs=1e-4)
    code, _, err = run("data", "tinny")
    assert code == 2
    assert "did you mean 'tiny'?" in err
