"""Which rows of a file count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqtune.data import Dataset, from_table, load
from seqtune.data.kinds import moment
from seqtune.errors import UserError

KINDS = {"a": "new", "b": "new", "c": "", "d": "old"}  # of users
HEADER = "user,item,time,rating,event,split\n"
ROWS = """a,x,2024-01-01,5,view,train
a,y,2024-01-02,2,cart,train
a,y,2024-01-02,2,cart,train
a,x,2024-01-03,4,view,valid
a,z,2024-01-04,,purchase,test
b,x,2024-01-01,3,view,train
b,x,2024-01-02,3.5,view,train
b,z,2024-01-03,1,cart,validation
b,y,2024-01-04,4.5,purchase,test
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.csv"
    path.write_text(HEADER + ROWS)
    return path


def read(file: Path, **how: Any) -> Dataset:
    return load(str(file), **{"min_user": 1} | how)


def histories(data: Dataset) -> dict[str, str]:
    spans = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    own = [[str(data.item_ids[i - 1]) for i in data.items[a:b]] for a, b in spans]
    return dict(zip(data.user_ids.tolist(), map("".join, own), strict=True))


@pytest.mark.parametrize(
    ("how", "expected", "note"),
    [
        ({}, {"a": "xyxz", "b": "xxzy"}, "1 row left out, a copy of another"),
        ({"min_rating": 3.0}, {"a": "xx", "b": "xxy"}, "not rated 3 or more"),
        ({"events": ("view",)}, {"a": "xx", "b": "xx"}, "5 of 9"),
        ({"events": ("cart", "purchase")}, {"a": "yz", "b": "zy"}, "of kind cart or purchase"),
        ({"since": "2024-01-03"}, {"a": "xz", "b": "zy"}, "not of 2024-01-03 or later"),
        ({"before": "2024-01-03"}, {"a": "xy", "b": "xx"}, "not before 2024-01-03"),
        ({"drop_repeats": "consecutive"}, {"a": "xyxz", "b": "xzy"}, "the user had just before"),
        ({"drop_repeats": "all"}, {"a": "xyz", "b": "xzy"}, "2 rows left out, of an item that"),
        ({"since": "2024-01-02", "min_rating": 4.0}, {"a": "x", "b": "y"}, "not rated 4 or more"),
    ],
)
def test_the_rows_that_count(
    file: Path, how: dict[str, Any], expected: dict[str, str], note: str
) -> None:
    data = read(file, **how)
    assert histories(data) == expected
    assert note in " ".join(data.notes)
    assert data.n_items == len(set("".join(expected.values())))
    assert set(data.columns) == {"user", "item", "time"}


def test_columns_of_other_names(tmp_path: Path) -> None:
    file = tmp_path / "shop.csv"
    file.write_text(HEADER.replace("rating", "stars").replace("event", "what") + ROWS)
    both = read(file, rating_col="stars", min_rating=4.0, event_col="what", events=("view",))
    assert histories(both) == {"a": "xx"}
    with pytest.raises(UserError, match="--rating-col rating: there is no such column"):
        read(file, min_rating=4.0)


def test_the_parts_that_a_column_names(file: Path) -> None:
    data = read(file, split_col="split")
    assert data.parts is not None
    assert data.parts.tolist() == [0, 0, 1, 2, 0, 0, 1, 2]
    assert data.fingerprint != read(file).fingerprint


def test_parts_that_are_not_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "shop.csv"
    file.write_text(HEADER + ROWS.replace("a,x,2024-01-01,5,view,train", "a,x,2024-01-01,5,v,test"))
    data = read(file, split_col="split")
    assert histories(data)["a"] == "yxxz"
    assert data.parts is not None
    assert data.parts[:4].tolist() == [0, 1, 2, 2]
    assert data.times[:4].tolist() != sorted(data.times[:4])
    assert "1 user with test or validation events earlier than others" in " ".join(data.notes)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"min_rating": 9.0}, "no row is rated 9 or more"),
        (
            {"events": ("veiw",)},
            "no row has that kind; did you mean 'view'?",
        ),
        ({"since": "soon"}, "--since soon: write a date as 2024-03-01, or 2024-03-01T12:00"),
        ({"rating_col": "event", "min_rating": 3.0}, "'view' is no number; is --rating-col the"),
        ({"split_col": "event"}, "--split-col: a row has 'view'; write train, valid or test"),
        ({"split_col": "part"}, "--split-col part: there is no such column"),
    ],
)
def test_what_is_none(file: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(file, **how)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_generated_data_have_dates_and_no_ratings() -> None:
    whole = load("tiny")
    middle = int(np.median(whole.times)) // 1000 * 1000
    text = np.datetime_as_string(np.datetime64(middle, "ms"))
    half = load("tiny", before=str(text), min_user=1)
    assert half.n_interactions < whole.n_interactions
    assert half.times.max() < middle
    with pytest.raises(UserError, match="--min-rating: tiny has no such column"):
        load("tiny", min_rating=3.0)


@pytest.mark.parametrize(
    ("text", "when"),
    [("1970-01-02", 86_400_000), ("1970-01-01T01:00:00+01:00", 0), ("1970-01-01T00:00:01", 1000)],
)
def test_a_date_is_of_utc_unless_it_says_so(text: str, when: int) -> None:
    assert moment(text, "--since") == when


def test_a_copy_is_of_the_same_moment_alone(tmp_path: Path) -> None:
    file = tmp_path / "shop.csv"
    rows = ["a,x,1", "a,y,1", "a,x,1", "a,x,2", "b,x,1", "b,x,1", "b,x,1"]
    file.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    data = read(file)
    assert histories(data) == {"a": "xyx", "b": "x"}
    assert "3 rows left out, copies of another" in data.notes


def test_candidates_are_named_in_a_file(file: Path, tmp_path: Path) -> None:
    for name, content in (("a.txt", "x\nz\n\nother\n"), ("b.csv", '"item"\n"x"\n"z"\n')):
        (tmp_path / name).write_text(content)
    pd.DataFrame({"item": ["x", "z", None]}).to_parquet(tmp_path / "c.parquet")
    for name in ("a.txt", "b.csv", "c.parquet"):
        data = read(file, candidates=str(tmp_path / name))
        assert data.candidates is not None
        assert data.item_ids[data.candidates].tolist() == ["x", "z"]
        assert "2 of 3 items are ranked" in data.notes[-1]
    (tmp_path / "none.txt").write_text("q\n")
    pd.DataFrame({"item": ["x"], "n": [1]}).to_parquet(tmp_path / "two.parquet")
    for name, said in (
        ("none.txt", "names none of the 3 items, such as 'x'"),
        ("two.parquet", "has 2 columns, and needs one, of items"),
        ("absent.txt", "cannot be read (No such file or directory)"),
    ):
        with pytest.raises(UserError) as caught:
            read(file, candidates=str(tmp_path / name))
        assert said in str(caught.value)


def test_users_are_in_groups_that_a_column_names(tmp_path: Path) -> None:
    rows = [f"{user},{item},{item},{group}" for item in (1, 2, 3) for user, group in KINDS.items()]
    path = tmp_path / "kinds.csv"
    path.write_text("user,item,time,kind\n" + "\n".join([*rows, "a,4,4,old", "e,4,4,new"]) + "\n")
    data = load(str(path), user_group_col="kind")
    named = [data.group_names[k] for k in data.groups]
    expected = {"a": "old", "b": "new", "c": "(none)", "d": "old"}
    assert dict(zip(data.user_ids.tolist(), named, strict=True)) == expected
    assert "1 user in several groups: that of the last row counts" in data.notes
    assert data.fingerprint == load(str(path)).fingerprint  # they change no training
    assert load(str(path)).groups is None
    with pytest.raises(UserError, match=r"kindd.*did you mean 'kind'"):
        load(str(path), user_group_col="kindd")
    table = pd.DataFrame({"user": list("aaabbb"), "item": [1, 2, 3] * 2, "time": [1, 2, 3] * 2})
    kinds = from_table(table.assign(kind=["x"] * 3 + [" "] * 3), user_group_col="kind")
    assert kinds.group_names == ("x", "(none)")
    many = "".join(f"u{n},{i},{i},{n}\n" for n in range(25) for i in (1, 2, 3))
    path.write_text("user,item,time,kind\n" + many)
    with pytest.raises(UserError, match="--user-group-col: has 25 values"):
        load(str(path), user_group_col="kind")
