"""Files as people bring them: other forms, encodings, dates, several at once, and bad rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from seqtune.cli.ready import ready
from seqtune.data import Dataset, Protocol, from_table, load
from seqtune.errors import UserError
from seqtune.options import StudyOptions

START = pd.Timestamp("2023-11-14 22:17:37", tz="UTC")


def events(users: int = 3, each: int = 4) -> pd.DataFrame:
    """User u has the items u, u + 1, ... a quarter of an hour apart; the rows stand upside down."""
    rows = [
        (u, u + n, START + pd.Timedelta(minutes=15 * n + u))
        for u in range(users)
        for n in range(each)
    ]
    return pd.DataFrame(rows, columns=["user", "item", "time"])[::-1]


def in_seconds(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(time=frame["time"].dt.as_unit("s").astype("int64"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_right(data: Dataset, users: int = 3, each: int = 4) -> None:
    assert data.user_ids.tolist() == list(range(users))
    assert data.offsets.tolist() == list(range(0, users * each + 1, each))
    items = [data.item_ids[i - 1] for i in data.items]
    assert items == [u + n for u in range(users) for n in range(each)]


def refusal(source: str, **how: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **how)
    return str(caught.value)


# Forms


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.ndjson", "x.json.gz", "x.jsonl.gz"])
def test_json_lines(folder: Path, name: str) -> None:
    rows = in_seconds(events())
    lines = "".join(json.dumps(row | {"more": {"a": 1}}) + "\n" for row in rows.to_dict("records"))
    content = gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode()
    Path(name).write_bytes(content)
    assert_right(load(name))


def test_json_that_is_none(folder: Path) -> None:
    Path("x.json").write_text('[{"user": 1}]')
    assert refusal("x.json") == (
        "x.json: is one JSON array; write an object a line, as jq -c '.[]' does"
    )
    Path("x.jsonl").write_text('{"user": 1, "item": 2, "time": 3}\n{"user": \n')
    assert refusal("x.jsonl").startswith("x.jsonl: not readable as JSON lines (")
    Path("x.jsonl").write_text('{"who": 1, "item": 2, "time": 3}\n')
    assert "no user column found; the columns are who, item, time" in refusal("x.jsonl")


def test_lists_of_items_are_rows(folder: Path) -> None:
    frame = events().iloc[::-1].groupby("user").agg(list).reset_index()
    frame["time"] = frame["time"].map(lambda times: [int(t.timestamp()) for t in times])
    frame.to_parquet("x.parquet")
    data = load("x.parquet")
    assert_right(data)
    assert data.notes == ("each item of a list is read as a row",)
    frame.assign(time=[1_700_000_000] * 3).to_parquet("y.parquet")  # one time for a basket
    assert_right(load("y.parquet"))
    frame.assign(time=[[1], [2, 3], [4]]).to_parquet("z.parquet")
    assert refusal("z.parquet") == (
        "z.parquet: the lists of times and items are not of the same lengths"
    )


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_lines_of_a_user_and_its_items(folder: Path, name: str) -> None:
    content = b"0 7 8 9\n1 8 9\n\n2 9 7 8 8\n"
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    data = load(name, min_user=1)
    assert data.offsets.tolist() == [0, 3, 5, 9]
    assert [data.item_ids[i - 1] for i in data.items] == [7, 8, 9, 8, 9, 9, 7, 8, 8]
    assert data.notes[0] == "each line is read as a user and its items, in order"


def test_rows_without_a_time_are_in_order(folder: Path) -> None:
    Path("x.txt").write_text("".join(f"{u} {i}\n" for u, i, _ in events()[::-1].to_numpy()))
    data = load("x.txt")
    assert_right(data)
    assert data.notes == ("the rows have no times: their order is taken for it",)
    events()[::-1].drop(columns="time").to_csv("x.csv", index=False)
    assert "name it with --time-col, or give none for the order of the rows" in refusal("x.csv")
    assert_right(load("x.csv", time_col="none"))
    events().assign(none=events()["time"]).drop(columns="time").to_csv("y.csv", index=False)
    assert_right(load("y.csv", time_col="none"))  # a column of that name is one


# Encodings and dates


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252", "utf-16-le"])
def test_encodings(folder: Path, encoding: str) -> None:
    named = events().assign(item=lambda t: "caf\xe9 " + t["item"].astype(str))
    Path("x.csv").write_bytes(named.to_csv(index=False).encode(encoding))
    how = {} if encoding in ("utf-16", "utf-8-sig") else {"encoding": encoding}
    data = load("x.csv", **how)
    assert data.item_ids.tolist() == [f"caf\xe9 {n}" for n in range(6)]
    assert data.n_interactions == 12


def test_an_encoding_that_is_none(folder: Path) -> None:
    Path("x.csv").write_bytes(b"user,item,time\ncaf\xe9,1,1\n")
    assert "line 2 has the byte 0xe9, which is not UTF-8" in refusal("x.csv")
    assert refusal("x.csv", encoding="klingon") == (
        "x.csv: --encoding klingon: there is no such encoding; try cp1252"
    )


FORMS = [
    "%d.%m.%Y %H:%M:%S",
    "%m/%d/%Y %I:%M %p",
    "%d/%m/%Y %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%d-%m-%Y %H:%M",
]


@pytest.mark.parametrize("form", FORMS)
def test_dates_in_another_form_are_refused_with_the_form_that_reads_them(
    folder: Path, form: str
) -> None:
    events().assign(time=lambda t: t["time"].dt.strftime(form)).to_csv("x.csv", index=False)
    said = refusal("x.csv")
    assert f"--time-format '{form}'" in said
    data = load("x.csv", time_format=form)
    assert_right(data)
    minute = START.floor("min") if "%S" not in form else START
    assert data.times[0] == int(minute.timestamp() * 1000)


def test_days_and_months_that_could_be_either(folder: Path) -> None:
    Path("x.csv").write_text("user,item,time\n1,1,05/06/2023\n1,2,06/05/2023\n1,3,07/05/2023\n")
    assert "--time-format '%m/%d/%Y' or '%d/%m/%Y' reads it" in refusal("x.csv")
    assert "which is not as --time-format %d.%m.%Y says" in refusal("x.csv", time_format="%d.%m.%Y")
    data = load("x.csv", time_format="%d/%m/%Y")
    assert data.items.tolist() == [2, 3, 1]


# Rows that are bad


def test_bad_rows_are_left_out_where_that_is_asked_for(folder: Path) -> None:
    good = in_seconds(events())
    bad = ["9,,1700000000", ",3,1700000000", "9,1,", "9,1,-5", "9,1,soon", "9,1,99999999999999"]
    Path("x.csv").write_text(good.to_csv(index=False) + "\n".join(bad) + "\n")
    assert "--drop-bad-rows" in refusal("x.csv")
    data = load("x.csv", drop_bad_rows=True)
    assert_right(data)
    note = data.notes[0]
    assert note.startswith(
        "6 rows that cannot be read are left out: 1 without a user, 1 without an"
    )
    assert note.endswith(" item, 4 without a time")


def test_bad_dates_are_left_out(folder: Path) -> None:
    good = events().assign(time=lambda t: t["time"].dt.strftime("%d.%m.%Y %H:%M:%S"))
    Path("x.csv").write_text(good.to_csv(index=False) + "9,1,31.02.2023 00:00:00\n9,1,-\n")
    how = {"time_format": "%d.%m.%Y %H:%M:%S"}
    assert "row 13 has the time '31.02.2023 00:00:00', which is not as" in refusal("x.csv", **how)
    assert_right(load("x.csv", drop_bad_rows=True, **how))
    iso = events().assign(time=lambda t: t["time"].dt.strftime("%Y-%m-%dT%H:%M:%S"))
    Path("y.csv").write_text(iso.to_csv(index=False) + "9,1,never\n")
    assert_right(load("y.csv", drop_bad_rows=True))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_bad_rows_of_typed_files(folder: Path, suffix: str) -> None:
    frame = in_seconds(events())
    frame = pd.concat([frame, pd.DataFrame({"user": [9, None], "item": [None, 1], "time": [1, 2]})])
    if suffix == "parquet":
        frame.to_parquet("x.parquet")
    else:
        frame.to_json("x.jsonl", orient="records", lines=True)
    assert_right(load(f"x.{suffix}", drop_bad_rows=True))


# Several files


@pytest.mark.parametrize("source", ["parts", "parts/day-*.csv"])
def test_the_files_of_a_folder_or_a_pattern_are_one(folder: Path, source: str) -> None:
    Path("parts").mkdir()
    for n in range(3):
        events().iloc[n::3].to_csv(f"parts/day-{n}.csv", index=False)
    Path("parts/readme.md").write_text("not data")
    data = load(source)
    assert_right(data)
    assert data.name == "parts"


def test_parts_of_parquet_whose_types_differ(folder: Path) -> None:
    Path("parts").mkdir()
    rows = events()
    rows.iloc[:6].astype({"user": "int32"}).to_parquet("parts/a.parquet")
    rows.iloc[6:].to_parquet("parts/b.parquet")
    assert_right(load("parts"))
    rows.iloc[6:].astype({"item": str}).to_parquet("parts/b.parquet")
    assert refusal("parts").startswith("parts/a.parquet and others: ")


def test_a_folder_without_files_or_with_several_kinds(folder: Path) -> None:
    Path("parts").mkdir()
    assert refusal("parts").startswith("--data parts: holds no file of a known kind")
    Path("parts/a.csv").write_text("user,item,time\n")
    Path("parts/b.tsv").write_text("user\titem\ttime\n")
    assert refusal("parts") == "--data parts: holds files of several kinds (.csv, .tsv)"
    assert refusal("parts/x*.csv").startswith("--data parts/x*.csv: holds no file of a known kind")


def test_files_that_train_validate_and_test(folder: Path) -> None:
    rows = events().sort_values(["user", "time"])
    last = rows.groupby("user").cumcount(ascending=False)
    rows[last >= 2].to_csv("train.csv", index=False)
    rows[last == 1].to_csv("valid.csv", index=False)
    rows[last == 0].to_csv("test.csv", index=False)
    asked = ready(StudyOptions("sasrec", train="train.csv", valid="valid.csv", test="test.csv"))
    assert asked.data == "train.csv"
    data = load(asked.data, valid=asked.valid, test=asked.test)
    assert_right(data)
    assert data.name == "train"
    given = Protocol.of(data, split_by="given").split(data)
    usual = Protocol.of(data).split(data)
    assert given.train_end.tolist() == usual.train_end.tolist()
    assert given.test.events.tolist() == usual.test.events.tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "x.csv", "train": "y.csv"}, "--train y.csv: --data names another file"),
        ({"data": "x.csv", "test": "y.csv"}, "--test: --valid names the events that are held out"),
        ({"data": "x.csv", "valid": "no.csv", "test": "y.csv"}, "--valid no.csv: no such file"),
    ],
)
def test_files_of_parts_come_together(folder: Path, options: dict[str, str], said: str) -> None:
    for name in ("x.csv", "y.csv"):
        events().to_csv(name, index=False)
    with pytest.raises(UserError, match=said):
        ready(StudyOptions("sasrec", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "option"),
    [("rating", "--min-rating"), ("overall", "--min-rating"), ("event_type", "--events")],
)
def test_a_column_that_would_say_which_rows_count_is_told(
    folder: Path, column: str, option: str
) -> None:
    events().assign(**{column: 1}).to_csv("x.csv", index=False)
    data = load("x.csv")
    assert f"all rows count, whatever {column} they have ({option} chooses some)" in data.notes
    more = {"rating_col": column, "min_rating": 0.0} if option == "--min-rating" else {}
    more = more or {"event_col": column, "events": ("1",)}
    assert not [note for note in load("x.csv", **more).notes if "all rows count" in note]


# Tables in memory


def test_tables_of_pandas_and_pyarrow(folder: Path) -> None:
    frame = events()
    for table in (
        frame,
        pa.Table.from_pandas(in_seconds(frame)),
        frame.set_index(frame["item"] * 2),
    ):
        data = from_table(table, "shop")
        assert_right(data)
        assert data.name == "shop"
    in_seconds(frame).to_parquet("x.parquet")
    assert from_table(in_seconds(frame)).fingerprint == load("x.parquet").fingerprint
    half = from_table(frame, user_col="user", since="2023-11-14T22:40", min_user=1)
    assert half.n_interactions < 12
    with pytest.raises(UserError, match="shop: no item column found; the columns are user, time"):
        from_table(frame.drop(columns="item"), "shop")
    with pytest.raises(UserError, match="shop: row 1 has no user"):
        from_table(frame.assign(user=[None, *frame["user"][1:]]), "shop")
