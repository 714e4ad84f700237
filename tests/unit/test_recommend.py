"""A file of histories is answered user by user, in the types of its ids and the kind asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from seqtune import checkpoint, recommend
from seqtune.data import load
from seqtune.errors import UserError
from seqtune.model import Encoder, History
from seqtune.params import Trained
from seqtune.storage import Folder

POPULARITY = np.array([5, 9, 1, 9, 0, 7])  # of items 1..6


class Echo(Encoder):
    """Scores the last item 9, the next one 6, and all others less."""

    def __init__(self, params: Trained, n_items: int, n_users: int) -> None:
        super().__init__(params, n_items, n_users)
        self.item_embedding = nn.Embedding(n_items + 1, n_items + 1)
        table = 9 * torch.eye(n_items + 1) + 6 * torch.roll(torch.eye(n_items + 1), 1, 0)
        with torch.no_grad():
            self.item_embedding.weight.copy_(table)

    def encode(self, history: History) -> Tensor:
        return nn.functional.one_hot(history.items, self.item_embedding.num_embeddings).float()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "model_class", lambda name: Echo)
    monkeypatch.setattr(checkpoint, "check_model", lambda name, place: name)


def champion(folder: Path, item_ids: Any = (10, 20, 30, 40, 50, 60), **meta: Any) -> Folder:
    params = Echo.Params()
    checkpoint.save(
        Folder.at(folder / "best"),
        Echo(params, len(item_ids), 4).state_dict(),
        checkpoint.Card(
            model="echo",
            params=params,
            n_users=4,
            item_ids=np.array(item_ids),
            popularity=POPULARITY[: len(item_ids)],
            mask_seen=False,
            meta=meta,
        ),
    )
    return Folder.at(folder / "best")


def test_a_file_is_answered_user_by_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend, "USERS", 2)
    source = tmp_path / "new.csv"
    # Out of order in time; "zoe" has one event, "max" nothing that the model knows.
    source.write_text(
        "user,item,timestamp\nann,30,2000\nann,10,3000\nmax,77,1000\nzoe,40,5\nann,50,1000\n"
        "bob,20,1\nbob,99,2\n"
    )
    out = tmp_path / "made" / "top.parquet"
    written = recommend.recommend_file(champion(tmp_path), str(source), out, k=2)
    assert written == recommend.Written(4, 8, 1, [77, 99])
    table = pq.read_table(out)
    assert [f"{f.name}: {f.type}" for f in table.schema] == [
        "user: string",
        "rank: int32",
        "item: int64",
        "score: float",
    ]
    rows = {(r["user"], r["rank"]): (r["item"], r["score"]) for r in table.to_pylist()}
    assert rows == {
        ("ann", 1): (10, 9),
        ("ann", 2): (20, 6),
        ("max", 1): (20, 9),
        ("max", 2): (40, 9),
        ("zoe", 1): (40, 9),
        ("zoe", 2): (50, 6),
        ("bob", 1): (20, 9),
        ("bob", 2): (30, 6),
    }
    assert [path.name for path in out.parent.iterdir()] == ["top.parquet"]


def test_the_suffix_says_the_kind_of_file(tmp_path: Path) -> None:
    source, best = tmp_path / "new.csv", champion(tmp_path, ["a", "b, c", 'd "e"'])
    source.write_text('user,item,time\n1,a,1\n2,"b, c",1\n')
    made = {}
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        out = tmp_path / f"top.{suffix}"
        recommend.recommend_file(best, str(source), out, k=2)
        made[suffix] = out.read_bytes()
    assert made["csv"].decode().splitlines() == [
        '"user","rank","item","score"',
        '1,1,"a",9',
        '1,2,"b, c",6',
        '2,1,"b, c",9',
        '2,2,"d ""e""",6',
    ]
    assert made["tsv"].decode().splitlines()[1] == '1\t1\t"a"\t9'
    assert [json.loads(line) for line in made["jsonl"].decode().splitlines()][2:] == [
        {"user": 2, "rank": 1, "item": "b, c", "score": 9.0},
        {"user": 2, "rank": 2, "item": 'd "e"', "score": 6.0},
    ]
    assert made["parquet"][:4] == b"PAR1"


@pytest.mark.parametrize(("name", "suffix"), [("top.xlsx", ".xlsx"), ("top", "")])
def test_a_suffix_that_is_not_known(tmp_path: Path, name: str, suffix: str) -> None:
    with pytest.raises(UserError) as caught:  # before anything is read
        recommend.recommend_file(Folder.at(tmp_path / "no"), "no.csv", tmp_path / name)
    assert str(caught.value) == (
        f"--out {tmp_path / name}: the suffix {suffix!r} says no format that is known; write "
        ".parquet, .pq, .csv, .tsv, .jsonl"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (pa.array(["1000", "20", "7"]), "string"),
        (pa.array([2**64 - 1, 5, 7], pa.uint64()), "uint64"),
        (pa.array([5, 6, 7], pa.int32()), "int64"),
    ],
)
def test_ids_keep_their_type(tmp_path: Path, ids: pa.Array, kind: str) -> None:
    table = pa.table({"user": ids, "item": ids, "time": [1, 2, 3]})
    pq.write_table(table, tmp_path / "new.parquet")
    best = champion(tmp_path, load(str(tmp_path / "new.parquet"), min_user=1).item_ids)
    recommend.recommend_file(best, str(tmp_path / "new.parquet"), tmp_path / "top.parquet", k=1)
    top = pq.read_table(tmp_path / "top.parquet")
    assert [str(top.schema.field(name).type) for name in ("user", "item")] == [kind, kind]
    assert top["item"].to_pylist() == sorted(ids.to_pylist())
    assert top["user"].to_pylist() == top["item"].to_pylist()


def test_the_columns_of_the_training_are_remembered(tmp_path: Path) -> None:
    best = champion(tmp_path, columns={"user": "who", "item": "what", "time": "when"})
    source = tmp_path / "new.csv"
    source.write_text("who,what,when,item\nann,10,2,50\nann,20,1,60\n")
    out = tmp_path / "top.jsonl"
    recommend.recommend_file(best, str(source), out, k=1)
    assert json.loads(out.read_text())["item"] == 10
    recommend.recommend_file(best, str(source), out, k=1, item_col="item")
    assert json.loads(out.read_text())["item"] == 50
    source.write_text("user,item,time\nann,30,2\n")  # and need not be there
    recommend.recommend_file(best, str(source), out, k=1)
    assert json.loads(out.read_text())["item"] == 30
