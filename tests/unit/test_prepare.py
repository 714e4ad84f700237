"""Data sets that are prepared in files equal those that are read at once, whatever the parts."""

from __future__ import annotations

import json
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqtune.data import Dataset, load, protocol_of, read
from seqtune.data.prepare import prepare
from seqtune.data.prepared import Prepared, open_prepared
from seqtune.errors import UserError
from seqtune.options import TrainOptions
from seqtune.study import resources

N = 4000
WANTED: dict[str, str | None] = {"user": None, "item": None, "time": None}


def frame(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 300, N)
    users[: N // 10] = 7  # one has many
    return pd.DataFrame(
        {
            "user": users,
            "item": rng.zipf(1.4, N) % 500,
            "other": "x",
            "time": 1_600_000_000 + rng.integers(0, 2000, N),  # with ties
        }
    )


def as_text(column: Any) -> Any:
    return column.map(lambda n: f"ü{n:x}")


FRAMES = {
    "integers": frame(),
    "text": frame().assign(user=as_text(frame().user), item=as_text(frame().item)),
    "negative": frame().assign(user=frame().user - 150),
    "fractions": frame().assign(time=frame().time + 0.25),
    "milliseconds": frame().assign(time=frame().time * 1000),
    "dates": frame().assign(time=pd.to_datetime(frame().time, unit="s")),
    "unsigned": frame().assign(user=frame().user.astype("uint64") + 2**63),
    "categories": frame().assign(item=as_text(frame().item).astype("category")),
}


def written(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, row_group_size=700)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def assert_same(one: Dataset, other: Dataset) -> None:
    for name in ("items", "offsets", "times", "user_ids", "item_ids"):
        mine, theirs = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        assert mine.dtype == theirs.dtype, name
        assert mine.tolist() == theirs.tolist(), name
    assert one.fingerprint == other.fingerprint
    assert one.n_repeats == other.n_repeats
    assert one.columns == other.columns
    assert sorted(one.notes) == sorted(other.notes)
    assert one.name == other.name


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_it_equals_what_is_read_at_once(tmp_path: Path, name: str, suffix: str) -> None:
    path = written(FRAMES[name], tmp_path / f"shop{suffix}")
    made = prepare(str(path), tmp_path / "out", WANTED, rows=300, part=500)
    assert_same(made, load(str(path)))
    assert_same(load(str(tmp_path / "out")), made)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("min_user", "min_item"), [(3, 1), (5, 5), (10, 30)])
def test_filters_are_those_of_reading(
    tmp_path: Path, min_user: int, min_item: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqtune.data.prepare.PART", 500)
    path = written(FRAMES["text"], tmp_path / "shop.parquet")
    filters = {"min_user": min_user, "min_item": min_item}
    made = prepare(str(path), tmp_path / "out", WANTED, rows=300, part=500, **filters)
    assert_same(made, load(str(path), min_user=min_user, min_item=min_item))


def test_a_folder_of_files_is_one_data_set(tmp_path: Path) -> None:
    whole = FRAMES["text"]
    (tmp_path / "shop").mkdir()
    for k in range(3):
        written(whole[k::3], tmp_path / "shop" / f"part-{k}.parquet")
    one = written(pd.concat([whole[k::3] for k in range(3)]), tmp_path / "shop.parquet")
    made = prepare(str(tmp_path / "shop"), tmp_path / "out", WANTED, rows=300)
    assert_same(made, load(str(one)))


def test_text_ids_that_look_like_integers_for_a_while_stay_text(tmp_path: Path) -> None:
    mixed = frame().sort_values("user", kind="stable")
    mixed["user"] = mixed.user.astype(str).where(mixed.user < 200, "x" + mixed.user.astype(str))
    path = written(mixed, tmp_path / "shop.csv")
    assert_same(prepare(str(path), tmp_path / "out", WANTED, rows=100, part=300), load(str(path)))


def test_another_process_maps_the_files(tmp_path: Path) -> None:
    path = written(FRAMES["integers"], tmp_path / "shop.parquet")
    made = prepare(str(path), tmp_path / "out", WANTED)
    sent = pickle.dumps(made)
    assert len(sent) < 400
    got = pickle.loads(sent)
    assert isinstance(got, Prepared)
    assert isinstance(got.items, np.memmap)
    assert_same(got, made)
    other = written(frame(1), tmp_path / "other.parquet")
    (tmp_path / "out").rename(tmp_path / "old")
    prepare(str(other), tmp_path / "out", WANTED)
    with pytest.raises(UserError, match="holds another data set than when the study began"):
        pickle.loads(sent)


def test_it_trains_from_the_map(tmp_path: Path) -> None:
    from seqtune.params import build
    from seqtune.train import train

    path = written(FRAMES["integers"], tmp_path / "shop.parquet")
    prepare(str(path), tmp_path / "out", WANTED)
    rows = []
    for source in (path, tmp_path / "out"):
        options = TrainOptions("sasrec", data=str(source))
        dataset = read(options)
        split = protocol_of(options, dataset, 0).split(dataset)
        from seqtune.model import model_class

        params = build(model_class("sasrec").Params, {"epochs": 2, "embedding_size": 8}, "sasrec")
        rows.append([row["metrics"] for row in train("sasrec", params, split).history])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": None}, "rows counted from 2,101 on: row 1 has no user"),
        ({"time": None}, "rows counted from 2,101 on: row 1 has no time"),
        ({"time": 1.0}, "row 1 has the time 1"),
        ({"item": "a"}, "some item ids are whole numbers and others are not"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    whole = FRAMES["milliseconds"].astype(dict.fromkeys(change, object))
    for name, value in change.items():
        whole.loc[2100, name] = value
    if change.get("item"):
        whole["item"] = [str(n) + ".5" if n == "a" else str(n) for n in whole["item"]]
        whole = whole.assign(item=[float(n) if n != "a.5" else 0.5 for n in whole["item"]])
    else:
        name = next(iter(change))
        whole[name] = whole[name].astype("Int64")
    path = written(whole, tmp_path / "shop.parquet")
    with pytest.raises(UserError) as refused:
        prepare(str(path), tmp_path / "out", WANTED, rows=300, part=500)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('user,item,time\n1,"a\nb",5\n', "write it as parquet"),
        ('user,item,time\n1,"a,b",5\n', "write it as parquet"),
        ("1::2::5::978300760\n1::3::5::978300760\n", "a file that has :: in it"),
        ("user,time\n1,5\n", "no item column found"),
        ("user,item,time\n", "it needs one row for each"),
    ],
)
def test_what_is_not_read_in_parts_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "shop.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        prepare(str(path), tmp_path / "out", WANTED)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    path = written(FRAMES["integers"], tmp_path / "shop.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(UserError, match="holds something"):
        prepare(str(path), tmp_path / "out", WANTED)
    assert (tmp_path / "out" / "mine").exists()


def test_filters_that_come_too_late_are_refused(tmp_path: Path) -> None:
    path = written(FRAMES["integers"], tmp_path / "shop.parquet")
    prepare(str(path), tmp_path / "out", WANTED, min_user=5)
    assert load(str(tmp_path / "out"), min_user=4).n_users
    with pytest.raises(UserError, match="prepare it again with --min-item 2"):
        load(str(tmp_path / "out"), min_item=2)


@pytest.mark.parametrize("damage", ["torn", "gone", "noise", "older"])
def test_a_damaged_folder_is_named(tmp_path: Path, damage: str) -> None:
    path = written(FRAMES["integers"], tmp_path / "shop.parquet")
    out = tmp_path / "out"
    prepare(str(path), out, WANTED)
    if damage == "torn":
        (out / "items.npy").write_bytes((out / "items.npy").read_bytes()[:200])
    elif damage == "gone":
        (out / "times.npy").unlink()
    elif damage == "noise":
        (out / "prepared.json").write_text("{}")
    else:
        about = json.loads((out / "prepared.json").read_text())
        (out / "prepared.json").write_text(json.dumps(about | {"format": -1}))
    with pytest.raises(UserError, match=str(out)):
        open_prepared(str(out))


def test_a_machine_that_cannot_map_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(FRAMES["integers"], tmp_path / "shop.parquet")
    made = prepare(str(path), tmp_path / "out", WANTED)
    monkeypatch.setattr(resources, "everywhere", lambda look, *words: ["", look(*words)])
    resources.check_data(made)
    resources.check_data(load(str(path)))  # it travels with the trials
    (tmp_path / "out" / "times.npy").unlink()
    where = f"the machine {socket.gethostname()} cannot use it \\(cannot be read as a prepared"
    with pytest.raises(UserError, match=where):
        resources.check_data(made)
