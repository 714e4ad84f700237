"""Checkpoints come back as they were, and recommend in the user's own ids."""

from __future__ import annotations

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from seqtune import checkpoint
from seqtune.checkpoint import Recommendation, Recommender
from seqtune.errors import UserError
from seqtune.model import Encoder, History
from seqtune.params import Trained
from seqtune.storage import Folder

N_ITEMS = 6
# SCORE[a, b]: how well item b + 1 follows a history that ends with item a + 1.
SCORE = torch.tensor(
    [
        [9, 6, 5, 4, 3, 2],
        [6, 9, 5, 4, 3, 2],
        [1, 2, 9, 8, 7, 6],
        [6, 5, 4, 9, 3, 2],
        [1, 2, 3, 4, 9, 5],
        [6, 5, 4, 3, 2, 9],
    ],
    dtype=torch.float32,
)
POPULARITY = np.array([5, 9, 1, 9, 0, 7])
MOST_POPULAR = [2, 4, 6, 1, 3, 5]  # ties in the order of the catalogue
PADDING, SPECIAL = 100.0, 99.0  # scores that would win if they were ever in the race


class Follower(Encoder):
    """Scores by the last item alone; one special item beside the catalogue, as BERT4Rec has."""

    class Params(Trained):
        max_seq_len: int = 3

    def __init__(self, params: Trained, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = nn.Embedding(n_items + 2, n_items + 2)
        self.states = nn.Parameter(torch.rand(n_items + 2, n_items + 2))
        self.seen: list[History] = []

    def encode(self, history: History) -> Tensor:
        self.seen.append(history)
        return self.states[history.items]


def follower() -> Follower:
    model = Follower(Follower.Params(), N_ITEMS, n_users=4)
    table = torch.full((N_ITEMS + 2, N_ITEMS + 2), SPECIAL)
    table[0], table[:, 0] = PADDING, PADDING
    table[1:-1, 1:-1] = SCORE.T
    with torch.no_grad():
        model.states.copy_(torch.eye(N_ITEMS + 2))
        model.item_embedding.weight.copy_(table)
    return model


def recommender(item_ids: list[Any], mask_seen: bool = False) -> Recommender:
    ids = np.array(item_ids, dtype=object if isinstance(item_ids[0], str) else np.int64)
    return Recommender(follower().eval(), ids, POPULARITY, mask_seen, {}, torch.device("cpu"))


@pytest.fixture
def ints() -> Recommender:
    return recommender([10, 20, 30, 40, 50, 60])


@pytest.fixture
def texts() -> Recommender:
    return recommender(["a", "b", "c", "12", "e", "f"])


@pytest.fixture
def known_follower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "model_class", lambda name: Follower)
    monkeypatch.setattr(checkpoint, "check_model", lambda name, place: name)


def save(folder: Folder, **other: Any) -> None:
    given: dict[str, Any] = {
        "model": "follower",
        "params": Follower.Params(seed=3),
        "state": follower().state_dict(),
        "n_users": 4,
        "item_ids": np.array([10, 20, 30, 40, 50, 60]),
        "popularity": POPULARITY,
        "mask_seen": True,
        "meta": {"metric": "ndcg@10", "value": np.float64(0.25)},
    }
    given |= other
    checkpoint.save(folder, given.pop("state"), checkpoint.Card(**given))


# Saving and loading.


@pytest.mark.usefixtures("known_follower")
def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "best")
    save(folder)
    assert folder.names() == ["items.parquet", "model.json", "model.safetensors"]

    before = torch.random.get_rng_state()
    loaded = checkpoint.load(folder)
    assert torch.equal(torch.random.get_rng_state(), before)  # loading draws nothing
    for name, value in follower().state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert not loaded.model.training
    assert loaded.model.params == Follower.Params(seed=3)
    assert loaded.item_ids.tolist() == [10, 20, 30, 40, 50, 60]
    assert loaded.popularity.tolist() == POPULARITY.tolist()
    assert loaded.mask_seen
    assert loaded.meta == {"metric": "ndcg@10", "value": 0.25}


@pytest.mark.usefixtures("known_follower")
def test_text_ids_come_back(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    save(folder, item_ids=np.array(["a", "ü", "", "12", "e", "f"], dtype=object), mask_seen=False)
    assert checkpoint.load(folder).recommend([["ü"]], k=2)[0].items == ["ü", "a"]


def test_the_model_that_is_loaded_gives_the_scores_of_the_one_that_was_saved(
    tmp_path: Path,
) -> None:
    from seqtune.model import model_class

    kind = model_class("sasrec")
    torch.manual_seed(1)
    model = kind(kind.Params(embedding_size=16, max_seq_len=8), 40, 5).eval()
    folder = Folder.at(tmp_path)
    ids = np.arange(1000, 1040)
    save(
        folder,
        model="sasrec",
        params=model.params,
        state=model.state_dict(),
        n_users=5,
        item_ids=ids,
        popularity=np.ones(40, dtype=np.int64),
        mask_seen=False,
    )
    history = History(torch.tensor([5]), torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([5]))
    with torch.no_grad():
        scores = model.score(history)[0, 1:]
    best = scores.topk(10)
    found = checkpoint.load(folder).recommend([[1002, 1000, 1003, 1000, 1004]])[0]
    assert found.items == ids[best.indices.numpy()].tolist()
    assert found.scores == best.values.tolist()


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    shared = torch.rand(3, 2)
    save(Folder.at(tmp_path), state={"a": shared, "b": shared, "c": shared.T})
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "model.safetensors")
    assert torch.equal(loaded["b"], shared)
    assert torch.equal(loaded["c"], shared.T)


@pytest.mark.usefixtures("known_follower")
@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda f: (f / "model.json").unlink(), "model.json missing"),
        (lambda f: (f / "items.parquet").unlink(), "items.parquet missing"),
        (
            lambda f: (f / "model.json").write_text("{"),
            "model.json is damaged: the whole: invalid json",
        ),
        (
            lambda f: (f / "model.json").write_text('{"format": 1}'),
            "model.json is damaged: model: field required",
        ),
        (lambda f: shorten(f / "items.parquet"), "has 5 items, and model.json says 6"),
        (lambda f: edit(f, format=2), "model.json has format 2, and this seqtune reads 1"),
        (lambda f: edit(f, n_items=7), "has 6 items, and model.json says 7"),
        (lambda f: edit(f, params={"seeds": 1}), "no hyperparameter 'seeds'; did you mean 'seed'?"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "model.safetensors is damaged: "),
    ],
)
def test_a_broken_checkpoint_says_what_is_wrong(
    tmp_path: Path, break_it: Any, sentence: str
) -> None:
    save(Folder.at(tmp_path))
    break_it(tmp_path)
    with pytest.raises(UserError) as caught:
        checkpoint.load(Folder.at(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def shorten(items: Path) -> None:
    pq.write_table(pq.read_table(items).slice(1), items)


def edit(folder: Path, **values: Any) -> None:
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | values))


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    save(Folder.at(tmp_path), model="sasrek")
    with pytest.raises(UserError, match="did you mean 'sasrec'"):
        checkpoint.load(Folder.at(tmp_path))


# Recommending.


def test_the_best_come_first_in_own_ids(ints: Recommender) -> None:
    assert ints.recommend([[10], [30]], k=3) == [
        Recommendation([10, 20, 30], [9, 6, 5]),
        Recommendation([30, 40, 50], [9, 8, 7]),
    ]


def test_rows_do_not_depend_on_their_neighbours(ints: Recommender) -> None:
    histories = [[10], [50, 30, 20], [], [60, 40], [30]]
    together = ints.recommend(histories, k=4)
    assert together == [ints.recommend([history], k=4)[0] for history in histories]


def test_seen_items_are_left_out_where_evaluation_did(ints: Recommender) -> None:
    masking = recommender([10, 20, 30, 40, 50, 60], mask_seen=True)
    assert masking.recommend([[20, 10]], k=2)[0].items == [30, 40]
    assert masking.recommend([[20, 10]], k=2, exclude_seen=False)[0].items == [10, 20]
    assert ints.recommend([[20, 10]], k=2, exclude_seen=True)[0].items == [30, 40]
    # Also an item that lies too far back for the model to see: max_seq_len is 3.
    assert ints.recommend([[20, 50, 60, 10]], k=2, exclude_seen=True)[0].items == [30, 40]


def test_padding_and_special_items_never_appear(ints: Recommender) -> None:
    assert sorted(ints.recommend([[10]], k=100)[0].items) == [10, 20, 30, 40, 50, 60]


def test_fewer_items_than_asked_for(ints: Recommender) -> None:
    found = ints.recommend([[10, 20, 30, 40]], k=100, exclude_seen=True)[0]
    assert found.items == [50, 60]
    assert found.scores == [3, 2]


def test_unknown_ids_are_ignored_with_a_note(ints: Recommender) -> None:
    found = ints.recommend([["x", 10, "y", 30, 7, 8, 7]], k=2)[0]
    assert found.items == [30, 40]
    assert found.note == "5 of 7 items are unknown: 'x', 'y', 7, ..."


def test_a_history_without_known_items_gets_the_most_popular(ints: Recommender) -> None:
    empty, unknown = ints.recommend([[], ["x"]], k=4)
    assert empty.items == unknown.items == [10 * item for item in MOST_POPULAR[:4]]
    assert empty.scores == [9, 9, 7, 5]
    assert empty.note == "the history is empty; most popular items"
    assert unknown.note == "1 of 1 items are unknown: 'x'; most popular items"
    assert len(ints.recommend([[]], k=100)[0].items) == N_ITEMS


def test_ids_may_come_as_json_writes_them(ints: Recommender, texts: Recommender) -> None:
    assert [r.note for r in ints.recommend([["10"], [10.0], [np.int32(10)], [" 10 "]])] == [""] * 4
    assert [ints.number(own) for own in ("10.0", "20.00", 30.0, np.float32(40))] == [1, 2, 3, 4]
    assert [texts.number(own) for own in (12, 12.0, "12")] == [4, 4, 4]
    unknown: list[Any] = [None, True, 10.5, "1O", "²", [10], float("nan"), "10.5", "1" * 5000]
    assert [ints.number(own) for own in unknown] == [None] * len(unknown)
    floats = recommender(["12.0", "b", "c", "7", "e", "f"])  # texts of a file that had types
    assert [floats.number(own) for own in (12.0, "12.0", 12, 7.0)] == [1, 1, None, 4]
    one = uuid.UUID(int=5)
    assert recommender([str(one), "b", "c", "d", "e", "f"]).number(one) == 1


def test_a_recommender_is_shown_in_one_line(ints: Recommender) -> None:
    assert repr(ints) == "Recommender(Follower, 6 items, seen items ranked)"
    named = dataclasses.replace(ints, mask_seen=True, meta={"data": "shop"})
    assert repr(named) == "Recommender(Follower, 6 items of shop, seen items left out)"


def test_long_histories_keep_their_end_and_the_user_is_new(ints: Recommender) -> None:
    ints.recommend([[10, 20, 30, 40, 50], [60]])
    model = ints.model
    assert isinstance(model, Follower)
    (history,) = model.seen
    assert history.items.tolist() == [[6, 0, 0], [3, 4, 5]]  # shortest first
    assert history.lengths.tolist() == [1, 3]
    assert history.users.tolist() == [4, 4]  # n_users: not one of those it was trained on


def test_many_rows_are_scored_in_batches(
    ints: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SCORES", 3 * (N_ITEMS + 1))
    histories = [[10 * (k % 6 + 1)] * (k % 3 + 1) for k in range(20)]
    found = ints.recommend(histories, k=1)
    assert [r.items[0] for r in found] == [history[-1] for history in histories]
    assert [len(h.lengths) for h in ints.model.seen] == [3] * 6 + [2]  # type: ignore[union-attr]


@pytest.mark.parametrize("k", [0, -1, 1.5, "10", True])
def test_k_must_be_a_count(ints: Recommender, k: Any) -> None:
    with pytest.raises(UserError, match="k: must be a whole number of at least 1, not"):
        ints.recommend([[10]], k=k)


@pytest.mark.parametrize("history", ["10", 10, None, {"a": 1}])
def test_a_history_must_be_a_list(ints: Recommender, history: Any) -> None:
    with pytest.raises(UserError, match="history 1: must be a list of item ids"):
        ints.recommend([[10], history])


# Places.


@pytest.mark.parametrize("mask_seen", [False, True])
def test_places_are_those_of_evaluation(mask_seen: bool) -> None:
    from seqtune import batches
    from seqtune.data import Protocol, load
    from seqtune.evaluate import evaluate
    from seqtune.model import model_class

    dataset = load("tiny")
    split = Protocol(mask_seen).split(dataset)
    kind = model_class("sasrec")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(kind.Params(embedding_size=8, max_seq_len=9), dataset.n_items, dataset.n_users)
    model.eval()
    data = batches.sequences(split, torch.device("cpu"))
    wanted = evaluate(model, data, split, split.test, mask_seen=mask_seen).ranks
    loaded = Recommender(
        model, np.arange(dataset.n_items), split.counts(), mask_seen, {}, torch.device("cpu")
    )
    test = split.test
    spans = [slice(dataset.offsets[u], e) for u, e in zip(test.users, test.events, strict=True)]
    histories = [dataset.items[span].astype(np.int64) for span in spans]
    targets = dataset.items[split.test.events].astype(np.int64)
    assert loaded.places(histories, targets).tolist() == wanted.tolist()


def test_places_without_a_history_or_of_a_stranger(ints: Recommender) -> None:
    nothing, past = np.empty(0, np.int64), np.array([1])
    places = ints.places([nothing, nothing, past, past], np.array([4, 5, 0, 3]))
    assert places.tolist() == [1.5, 6, 7, 3]  # 2 and 4 are as popular; after all; SCORE's row
