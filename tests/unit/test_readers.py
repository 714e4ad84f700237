"""Reading interactions: every format gives the same arrays, and every mistake one sentence."""

from __future__ import annotations

import gzip
import pickle
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqtune.data import Dataset, load, readers
from seqtune.data.dataset import k_core
from seqtune.data.readers import in_time
from seqtune.errors import UserError

# Two users, out of order, with a tie: user 7 meets items 30 and 10 in the second 1_400_000_100.
HEADER = "user_id,item_id,timestamp"
ROWS = [
    "7,20,1400000200",
    "5,30,1400000003",
    "7,30,1400000100",
    "5,10,1400000001",
    "7,10,1400000100",
    "5,20,1400000002",
]
ITEMS = [1, 2, 3, 3, 1, 2]  # user 5: 10 20 30; user 7: 30 10 (the order of the file), 20
TIMES = [1400000001, 1400000002, 1400000003, 1400000100, 1400000100, 1400000200]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, *lines: str) -> str:
    text = "".join(f"{line}\n" for line in lines)
    Path(name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return name


def parquet(**columns: object) -> str:
    pq.write_table(pa.table(columns), "data.parquet")
    return "data.parquet"


def same(dataset: Dataset) -> bool:
    return [dataset.items.tolist(), dataset.offsets.tolist(), dataset.times.tolist()] == [
        ITEMS,
        [0, 3, 6],
        [second * 1000 for second in TIMES],
    ] and [dataset.user_ids.tolist(), dataset.item_ids.tolist()] == [[5, 7], [10, 20, 30]]


def refusal(source: str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        load(source, **options)  # type: ignore[arg-type]
    return str(error.value)


# Formats.


@pytest.mark.parametrize(
    ("name", "delimiter"),
    [
        ("ratings.csv", ","),
        ("ratings.CSV", ";"),
        ("ratings.tsv", "\t"),
        ("ratings.txt", "|"),
        ("ratings.dat", "::"),
        ("ratings.data", " "),
        ("ratings.csv.gz", ","),
        ("ratings.dat.gz", "::"),
    ],
)
def test_text_tables(folder: Path, name: str, delimiter: str) -> None:
    lines = [line.replace(",", delimiter) for line in (HEADER, *ROWS)]
    dataset = load(write(name, *lines))
    assert same(dataset)
    assert dataset.name == "ratings"
    assert dataset.notes == ()


def test_recbole_inter(folder: Path) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    rows = [line.replace(",", "\t5\t", 1).replace(",", "\t").split("\t") for line in ROWS]
    lines = ["\t".join((user, item, five, f"{time}.0")) for user, five, item, time in rows]
    assert same(load(write("ml.inter", header, *lines)))
    assert same(load("ml.inter", time_col="timestamp:float", user_col="user_id"))


def test_a_quotation_mark_in_an_inter_file_is_an_ordinary_character(folder: Path) -> None:
    rows = ['u\t"a\t1', "u\tb\t2", 'u\tc"\t3']
    dataset = load(write("x.inter", "user_id:token\titem_id:token\ttimestamp:float", *rows))
    assert dataset.item_ids.tolist() == ['"a', "b", 'c"']


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.float64(), pa.decimal128(22, 2)])
def test_parquet(folder: Path, kind: pa.DataType) -> None:
    user, item, time = (
        list(map(int, column)) for column in zip(*(r.split(",") for r in ROWS), strict=True)
    )
    ids = pa.array(item).cast(kind)
    assert same(load(parquet(extra=["x"] * 6, item=ids, user=user, time=time)))
    assert same(load(parquet(item=ids.dictionary_encode(), user=user, time=time)))
    codes = pa.array([{10: 2, 20: 0, 30: 1}[i] for i in item])
    unused = pa.DictionaryArray.from_arrays(codes, pa.array([20, 30, 10, 40]).cast(kind))
    assert same(load(parquet(item=unused, user=user, time=time)))


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint32(), pa.uint64(), pa.float64()])
def test_times_of_narrow_types_do_not_overflow(folder: Path, kind: pa.DataType) -> None:
    time = pa.array([1400000003, 1400000001, 1400000002]).cast(kind)
    dataset = load(parquet(user=[1, 1, 1], item=[3, 1, 2], time=time))
    assert dataset.items.tolist() == [1, 2, 3]
    assert dataset.times.tolist() == [1400000001000, 1400000002000, 1400000003000]


def test_movielens_files_without_a_header(folder: Path) -> None:
    rows = [line.split(",") for line in ROWS]
    notes = (
        "the file has no header: its columns are read as user, item, rating, timestamp",
        "all rows count, whatever rating they have (--min-rating chooses some)",
    )
    for name, delimiter in (("u.data", "\t"), ("ratings.dat", "::")):
        dataset = load(write(name, *(delimiter.join((u, i, "4.5", t)) for u, i, t in rows)))
        assert same(dataset)
        assert dataset.notes == notes


def test_columns_without_a_header_are_named_by_position(folder: Path) -> None:
    source = write("clicks.csv", *(",".join(line.split(",")[::-1]) for line in ROWS))
    assert same(load(source, user_col="3", item_col="2", time_col="1"))
    assert refusal(source) == (
        "clicks.csv: the file has no header line; name its 3 columns by position, for example "
        "--user-col 1 --item-col 2 --time-col 3"
    )


def test_spaces_byte_order_mark_line_ends_and_blank_lines(folder: Path) -> None:
    lines = [line.replace(",", " , ") for line in (HEADER, *ROWS)]
    text = "\r\n" + "\r\n\r\n".join(lines) + "\r\n"
    Path("windows.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert same(load("windows.csv"))


def test_only_line_ends_end_a_line(folder: Path) -> None:
    titles = ["a\x0bb", "c\u2028d", "e\x1cf"] * 2
    lines = [f"{title},{row}" for title, row in zip(titles, ROWS, strict=True)]
    assert same(load(write("x.csv", f"title,{HEADER}", *lines)))


def test_quoted_values_may_hold_the_delimiter_and_line_breaks(folder: Path) -> None:
    rows = [f'"a, ""b""\nc",{line}' for line in ROWS]
    assert same(load(write("quoted.csv", f"title,{HEADER}", *rows)))


def test_a_title_that_opens_with_a_quote_swallows_nothing(folder: Path) -> None:
    titles = ["007", '"Heroes (live)', "Plain", '"Odd Al" Band', 'Live at 7"', '"', "End"]
    lines = [f"7\t{1_400_000_000 + at}\t{title}" for at, title in enumerate(titles)]
    dataset = load(write("x.tsv", "user\ttime\ttitle", *lines), item_col="title")
    assert dataset.n_interactions == len(titles)
    assert dataset.item_ids[dataset.items - 1].tolist() == titles
    # Nor does it where the column is not used, or beyond what is looked at first.
    far = [f"9\t{1_300_000_000 + at}\t{at}\t{title}" for at, title in enumerate(titles * 1000)]
    far = [*[f"8\t1300000000\t{at}\tplain title" for at in range(4000)], *far]
    dataset = load(write("x.tsv", "user\ttime\titem\ttitle", *far))
    assert dataset.n_interactions == 11_000
    assert dataset.notes == ()


def test_quotes_are_taken_off_where_they_quote(folder: Path) -> None:
    rows = ['"7","say ""hi""","1400000000"', '"7","b","1400000001"', '"7","c, d","1400000002"']
    for lines in ([*rows[:2], rows[1].replace("1400000001", "1400000002")], rows):
        dataset = load(write("x.csv", '"user","item","time"', *lines))
        assert set(dataset.item_ids.tolist()) >= {'say "hi"', "b"}
        assert dataset.user_ids.tolist() == [7]
        assert dataset.notes == ()
    dataset = load(write("x.csv", HEADER, '1,"a",1', "1,b,2", "1,a,3"))
    assert dataset.item_ids.tolist() == ["a", "b"]
    assert dataset.notes[0] == 'quotes around some item ids are taken off: "a" is a'


def test_fewer_rows_than_lines_are_told(folder: Path) -> None:
    dataset = load(write("x.csv", HEADER, '1,"a\nb",1', '1,"c, d",2', "1,e,3"))
    assert dataset.item_ids.tolist() == ["a\nb", "c, d", "e"]
    assert dataset.notes[0] == "quoted values hold line breaks: 4 lines are 3 rows"


def test_a_quote_that_is_not_closed_is_shown(folder: Path) -> None:
    source = write("x.csv", HEADER, '1,"a, b",1', '1,"Heroes (live),2', '1,"c",3')
    assert refusal(source) == (
        "x.csv: line 3 opens a value with a quotation mark and does not close it before the next "
        'column (1,"Heroes (live),2); write quotes inside a quoted value twice ("")'
    )
    assert "line 2 opens" in refusal(write("x.csv", HEADER, r'1,"say \"hi\", b",1'))


def test_ids_that_are_spelt_like_nothing(folder: Path) -> None:
    dataset = load(write("x.csv", HEADER, '1,"NA",1', '1,"null",2', '1,"a",3'))
    assert dataset.item_ids.tolist() == ["NA", "a", "null"]
    note = "the item ids NA, null are in quotes, and so are read as ids"
    assert note in dataset.notes
    assert "row 2 has no item" in refusal(write("x.csv", HEADER, '1,"a",1', '1,"",2'))
    assert "row 2 has no time" in refusal(write("x.csv", HEADER, '1,"a","1"', '1,"b",""'))


def test_lines_on_top_that_begin_with_a_hash(folder: Path) -> None:
    dataset = load(write("x.csv", "# made in 2024, at home", "#", HEADER, *ROWS))
    assert same(dataset)
    assert dataset.notes == ("2 lines on top begin with # and are skipped",)
    assert same(load(write("x.csv", f"# {HEADER}", *ROWS)))  # the header itself
    source = write("x.csv", "#a,1,1400000000", "#a,2,1400000001", "b,3,1400000003")
    dataset = load(source, user_col="1", item_col="2", time_col="3", min_user=1)
    assert dataset.user_ids.tolist() == ["#a", "b"]
    assert dataset.n_interactions == 3


def test_a_column_that_is_not_used_may_be_in_any_encoding(folder: Path) -> None:
    lines = [f"title,{HEADER}", *(f"caf\xe9 {at},{row}" for at, row in enumerate(ROWS))]
    Path("x.csv").write_bytes("\n".join(lines).encode("latin-1"))
    assert same(load("x.csv"))


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    lines = ["who,item,when", "caf\xe9,1,31/12/2003", "b,,31/12/2003", "c,2,31/12/2003"]
    Path("x.csv").write_bytes("\n".join(lines).encode("latin-1"))
    assert refusal("x.csv", user_col="who", time_col="wen") == (
        "x.csv: 3 things are wrong: (1) --time-col wen: there is no such column; did you mean "
        "'when'?; (2) line 2 has the byte 0xe9, which is not UTF-8; name how it is written, for "
        "example with --encoding cp1252; (3) row 2 has no item; --drop-bad-rows leaves them out, "
        "and --item-col names another column (quote an id that is spelt NA or null)"
    )
    assert "(3) row 1 has the time '31/12/2003'; write" in refusal(
        "x.csv", user_col="who", time_col="when"
    )


def test_the_file_may_be_larger_than_what_is_looked_at_first(folder: Path) -> None:
    many = [f"9,{i % 50},{1_300_000_000 + i}" for i in range(20_000)]
    dataset = load(write("large.csv", HEADER, *many, *ROWS))
    assert dataset.n_interactions == 20_006
    assert dataset.user_ids.tolist() == [5, 7, 9]
    assert dataset.items[:3].tolist() == [11, 21, 31]  # items 0..49


# Columns.


@pytest.mark.parametrize(
    "header",
    [
        "UserId,ItemId,Time",
        "USER,ITEM,TS",
        "User ID,Item-ID,DateTime",
        "reviewerID,asin,unixReviewTime",
        "visitorid,product_id,timestamp",
        "session_id,movieId,date",
    ],
)
def test_usual_names(folder: Path, header: str) -> None:
    assert same(load(write("x.csv", header, *ROWS)))


def test_the_plainest_name_wins(folder: Path) -> None:
    rows = [f"{line},1,x,2009-09-13" for line in ROWS]
    header = "user_id,item_id,timestamp,session_id,movieId,date"
    assert same(load(write("x.csv", header, *rows)))


def test_named_columns_in_any_case(folder: Path) -> None:
    source = write("x.csv", "who,What,when", *ROWS)
    assert same(load(source, user_col="who", item_col="what", time_col="When"))


def test_the_columns_that_were_read_are_known(folder: Path) -> None:
    dataset = load(write("x.csv", "who,What,time", *ROWS), user_col="who", item_col="what")
    assert dataset.columns == {"user": "who", "item": "What", "time": "time"}
    assert dataset.describe() == "x: 2 users, 3 items, 6 interactions (who, What, time)"
    assert load("tiny").columns == {}


def test_another_column_that_could_be_the_history_is_told(folder: Path) -> None:
    rows = [f"{line},1,2" for line in ROWS]
    source = write("x.csv", f"{HEADER},session_id,product_id", *rows)
    assert load(source).notes == (
        (
            "a history is all that one user_id has; session_id could be meant too: choose with "
            "--user-col"
        ),
        "the items are those of item_id; product_id could be meant too: choose with --item-col",
    )
    assert load(source, user_col="user_id", item_col="item_id").notes == ()


def test_columns_that_are_expected_win_where_they_are_there(folder: Path) -> None:
    columns = {"user": "who", "item": "item_id", "time": "when"}
    rows = [f"{line},9,9,2009-09-13" for line in ROWS]
    source = write("x.csv", "who,item_id,when,user_id,item,date", *rows)
    assert same(load(source, expected=columns))
    assert same(load(write("y.csv", HEADER, *ROWS), expected=columns))
    assert load(source, expected=columns, user_col="user_id").user_ids.tolist() == [9]


def test_a_missing_column_is_named_with_those_there_are(folder: Path) -> None:
    source = write("x.csv", "user_id,thing,timestamp", *ROWS)
    assert refusal(source) == (
        "x.csv: no item column found; the columns are user_id, thing, timestamp; name it with "
        "--item-col"
    )
    assert refusal(source, item_col="thin") == (
        "x.csv: --item-col thin: there is no such column; did you mean 'thing'?"
    )
    assert refusal(source, item_col="zzz") == (
        "x.csv: --item-col zzz: there is no such column; the columns are user_id, thing, timestamp"
    )


def test_two_candidates_for_a_column(folder: Path) -> None:
    source = write("x.csv", "user_id,asin,parent_asin,timestamp", "1,2,3,4")
    assert refusal(source) == (
        "x.csv: 'asin' and 'parent_asin' could each be the item column; choose one with --item-col"
    )
    source = write("x.csv", "user,item,item,time", "1,2,3,4")
    assert refusal(source, item_col="item") == (
        "x.csv: 'item' and 'item' could each be the item column; rename one of them"
    )


def test_one_column_for_two_roles(folder: Path) -> None:
    source = write("x.csv", HEADER, *ROWS)
    assert refusal(source, item_col="user_id") == (
        "x.csv: --item-col and --user-col both name 'user_id'; each needs a column of its own"
    )


# Ids.


def test_ids_are_integers_only_where_all_are_in_plain_form(folder: Path) -> None:
    rows = ["007,10,1", "007,9,2", "007,-1,3"]
    dataset = load(write("x.csv", HEADER, *rows))
    assert dataset.user_ids.tolist() == ["007"]
    assert dataset.item_ids.dtype == np.int64
    assert dataset.item_ids.tolist() == [-1, 9, 10]
    assert dataset.items.tolist() == [3, 2, 1]


def test_ids_that_were_written_as_floats_are_integers(folder: Path) -> None:
    dataset = load(write("x.csv", HEADER, "1.0,1000.0,1", "1.0,1001.0,2", "1.0,1000,3"))
    assert dataset.item_ids.tolist() == [1000, 1001]
    assert dataset.item_ids.dtype == np.int64
    assert dataset.user_ids.tolist() == [1]
    assert dataset.notes[:2] == (
        "user ids are written as floats and read as integers: 1.0 is 1",
        "item ids are written as floats and read as integers: 1000.0 is 1000",
    )
    versions = load(write("x.csv", HEADER, "1,1.0,1", "1,1.5,2", "1,2.0,3"))
    assert versions.item_ids.tolist() == ["1.0", "1.5", "2.0"]


def test_ids_keep_the_type_of_a_parquet_file(folder: Path) -> None:
    texts = load(parquet(user=["1"] * 3, item=["1000", "20", "3.0"], time=[1, 2, 3]))
    assert texts.user_ids.tolist() == ["1"]
    assert texts.item_ids.tolist() == ["1000", "20", "3.0"]
    large = pa.array([2**64 - 1, 5, 2**64 - 2], pa.uint64())
    unsigned = load(parquet(user=[1, 1, 1], item=large, time=[1, 2, 3]))
    assert unsigned.item_ids.dtype == np.uint64
    assert unsigned.item_ids.tolist() == [5, 2**64 - 2, 2**64 - 1]
    assert unsigned.items.tolist() == [3, 1, 2]
    own = [uuid.UUID(int=n) for n in (3, 1, 2)]
    for ids in (
        pa.array([one.bytes for one in own], pa.binary(16)),
        pa.array([one.bytes for one in own], pa.binary(16)).dictionary_encode(),
        pa.array([one.bytes for one in own], pa.uuid()),
    ):
        dataset = load(parquet(user=[1, 1, 1], item=ids, time=[1, 2, 3]))
        assert dataset.item_ids.tolist() == sorted(map(str, own))
        assert dataset.items.tolist() == [3, 1, 2]
    missing = pa.array([own[0].bytes, None], pa.binary(16))
    assert "row 2 has no item" in refusal(parquet(user=[1, 1], item=missing, time=[1, 2]))


def test_text_ids_sort_as_text_and_lose_outer_spaces(folder: Path) -> None:
    dataset = load(
        write("x.csv", HEADER, "ü, b10,1", "ü,b9,2", "ü,b10 ,3", "ü,99999999999999999999,4")
    )
    assert dataset.item_ids.tolist() == ["99999999999999999999", "b10", "b9"]
    assert dataset.items.tolist() == [2, 3, 2, 1]
    assert dataset.user_ids.tolist() == ["ü"]
    assert dataset.has_repeats


@pytest.mark.parametrize("empty", ["", "  ", "NaN", "null"])
def test_a_row_without_an_id(folder: Path, empty: str) -> None:
    source = write("x.csv", HEADER, ROWS[0], f"{empty},20,1400000000", *ROWS)
    assert refusal(source) == (
        "x.csv: row 2 has no user; --drop-bad-rows leaves them out, and --user-col names another "
        "column (quote an id that is spelt NA or null)"
    )


def test_a_row_without_an_id_in_parquet(folder: Path) -> None:
    source = parquet(user=[1, 1, 1], item=[1.0, 2.0, float("nan")], time=[1, 2, 3])
    assert "row 3 has no item" in refusal(source)
    assert "row 1 has no item" in refusal(parquet(user=[1, 1], item=[None, "a"], time=[1, 2]))


# Times.


@pytest.mark.parametrize(
    ("scale", "note"),
    [
        (1, ()),
        (10**3, ("times are read as milliseconds, by their size",)),
        (10**6, ("times are read as microseconds, by their size",)),
        (10**9, ("times are read as nanoseconds, by their size",)),
    ],
)
def test_units_of_time(folder: Path, scale: int, note: tuple[str, ...]) -> None:
    rows = [row.split(",") for row in ROWS]
    lines = [f"{user},{item},{int(time) * scale}" for user, item, time in rows]
    dataset = load(write("x.csv", HEADER, *lines))
    assert same(dataset)
    assert dataset.notes == note


@pytest.mark.parametrize(
    ("form", "notes"),
    [
        ("%Y-%m-%dT%H:%M:%SZ", ()),
        ("%Y-%m-%dT%H:%M:%S.000+00:00", ()),
        ("%Y-%m-%d %H:%M:%S UTC", ()),
        ("%Y-%m-%d %H:%M:%S", ("times have no time zone and are read as UTC",)),
    ],
)
def test_text_times(folder: Path, form: str, notes: tuple[str, ...]) -> None:
    rows = [row.split(",") for row in ROWS]
    moments = [datetime.fromtimestamp(int(time), UTC) for *_, time in rows]
    lines = [
        f"{row[0]},{row[1]},{moment.strftime(form)}"
        for row, moment in zip(rows, moments, strict=True)
    ]
    dataset = load(write("x.csv", HEADER, *lines))
    assert same(dataset)
    assert dataset.notes == notes
    user, item = ([int(row[i]) for row in rows] for i in (0, 1))
    for kind in (pa.timestamp("us", "Europe/Rome"), pa.timestamp("s")):
        assert same(load(parquet(user=user, item=item, time=pa.array(moments, kind))))


def test_offsets_days_and_fractions(folder: Path) -> None:
    rows = ["1,1,1970-01-02T00:00:00+02:00", "1,2,1970-01-02T00:00:00+01:00"]
    dataset = load(write("x.csv", HEADER, *rows), min_user=2)
    assert dataset.times.tolist() == [22 * 3_600_000, 23 * 3_600_000]
    dataset = load(write("x.csv", HEADER, "1,1,1970-01-02", "1,2,1970-01-03"), min_user=2)
    assert dataset.times.tolist() == [86_400_000, 2 * 86_400_000]
    days = pa.array([date(1970, 1, 3), date(1970, 1, 2)])
    dataset = load(parquet(user=[1, 1], item=[1, 2], time=days), min_user=2)
    assert dataset.items.tolist() == [2, 1]
    assert dataset.times.tolist() == [86_400_000, 2 * 86_400_000]
    dataset = load(write("x.csv", HEADER, "1,1,1400000000.125", "1,2,1.4e9"), min_user=2)
    assert dataset.times.tolist() == [1_400_000_000_000, 1_400_000_000_125]
    assert dataset.items.tolist() == [2, 1]


def test_order_is_finer_than_milliseconds(folder: Path) -> None:
    times = [1_400_000_000_000_002, 1_400_000_000_000_001, 1_400_000_000_000_000]
    dataset = load(parquet(user=[1, 1, 1], item=[1, 2, 3], time=times))
    assert dataset.items.tolist() == [3, 2, 1]
    assert dataset.times.tolist() == [1_400_000_000_000] * 3


def test_positions_instead_of_times(folder: Path) -> None:
    dataset = load(write("x.csv", HEADER, "1,5,2", "1,6,0", "1,7,1"))
    assert dataset.items.tolist() == [2, 3, 1]
    assert dataset.notes == (
        "times are small numbers, read as seconds: only their order is meaningful",
    )


@pytest.mark.parametrize(
    ("times", "note"),
    [
        (
            ["9.99", "12.5", "3"],
            (
                "the time column timestamp holds small fractions such as 9.99, which no clock "
                "gives: only their order is used; is --time-col right?"
            ),
        ),
        (
            ["20240531", "20240601", "20231231"],
            ("times are dates in digits: only their order is meaningful"),
        ),
        (
            ["5", "6", "1400000000"],
            ("times are small numbers, read as seconds: only their order is meaningful"),
        ),
    ],
)
def test_numbers_that_no_clock_gives_are_told(folder: Path, times: list[str], note: str) -> None:
    lines = [f"1,{at},{time}" for at, time in enumerate(times)]
    assert load(write("x.csv", HEADER, *lines)).notes == (note,)


def test_ties_keep_the_order_of_the_file(folder: Path) -> None:
    items = np.random.default_rng(0).permutation(1000)
    user = np.arange(1000) % 2
    dataset = load(parquet(user=user, item=items, time=np.full(1000, 1_400_000_000)))
    assert dataset.items.tolist() == [*(items[0::2] + 1), *(items[1::2] + 1)]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["1400000000", "yesterday"], "row 2 has the time 'yesterday'; write seconds or"),
        (["13/09/2009", "14/09/2009"], "row 1 has the time '13/09/2009'; write seconds or"),
        (["2009-09-13", "1400000000"], "row 2 has the time '1400000000'; write seconds or"),
        (["2009-09-13", "2009-09-31"], "row 2 has the time '2009-09-31'; write seconds or"),
        (["1400000000", ""], "2 rows have no time (the first is row 2); --drop-bad-rows"),
        (["1400000000", "NaN"], "2 rows have no time (the first is row 2); --drop-bad-rows"),
        (
            ["20240531183000", "20240531183001"],
            (
                "the time column timestamp holds 20240531183000, "
                "which is 2024-05-31T18:30:00 in digits and no number of seconds; write it so"
            ),
        ),
        (["'1400000000'"], "row 1 has the time \"'1400000000'\"; single quotes are no quoting"),
        (["1400000000", "-5"], "row 2 has the time -5, which is not between 1970 and 2100 in sec"),
        (["0", "1400000000000"], "row 1 has the time 0, which is not between 1970 and 2100 in mil"),
        (["1400000000", "inf"], "row 2 has the time inf, which is not between 1970 and 2100"),
        (["9000000000", "9000000000"], "row 1 has the time 9000000000, which is not between"),
        (["1969-12-31", "1970-01-01"], "row 1 has the time 1969-12-31, which is not between"),
    ],
)
def test_times_that_cannot_be(folder: Path, times: list[str], said: str) -> None:
    lines = [f"1,{i},{time}" for i, time in enumerate([*times, times[-1]])]
    assert f"x.csv: {said}" in refusal(write("x.csv", HEADER, *lines))


def test_the_first_bad_time_of_many_rows_is_found(folder: Path) -> None:
    lines = [f"1,{i},{1_400_000_000 + i}" for i in range(3000)]
    lines[1776] = "1,1776,?"
    lines[2500] = "1,2500,!"
    assert "row 1777 has the time '?'" in refusal(write("x.csv", HEADER, *lines))


def test_columns_of_another_kind(folder: Path) -> None:
    source = parquet(user=[[1, 2]], item=[1], time=[1])
    assert refusal(source) == (
        "data.parquet: the user column holds list<element: int64>, not ids; write one row for each "
        "user, or choose with --user-col"
    )
    source = parquet(user=[1], item=[1], time=[True])
    assert refusal(source) == (
        "data.parquet: the time column holds bool, not times; choose with --time-col"
    )


# Files.


def test_a_missing_file_with_the_nearest_names(folder: Path) -> None:
    write("ratings.csv", HEADER)
    write("notes.md", "not data")
    assert refusal("ratngs.csv") == ("--data ratngs.csv: no such file; did you mean 'ratings.csv'?")
    assert refusal("./zzz.zzz") == f"--data ./zzz.zzz: no such file; {folder} holds ratings.csv"
    assert refusal("nowhere/x.csv") == "--data nowhere/x.csv: no such file, and no folder nowhere"
    assert "'ftp' is no place for files" in refusal("ftp://host/x.csv")


def test_a_misspelt_preset(folder: Path) -> None:
    assert refusal("dmo") == "--data dmo: no such file or generated set; did you mean 'demo'?"
    there = "; there are: demo, tiny, ml1m, beauty, yoochoose, xl, ml-100k, "
    assert there in refusal("qqqq")


def test_an_unknown_kind_of_file(folder: Path) -> None:
    for name in ("x.xlsx", "x.zip", "x.parquet.gz"):
        write(name, HEADER)
        said = refusal(name)
        assert said.startswith(f"--data {name}: unknown kind of file ")
        assert ".csv, .tsv" in said
        assert ".parquet, .pq; write it as one of them" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "x.csv: the file is empty; it needs a row per interaction"),
        (b"\n \n", "x.csv: the file is empty; it needs a row per interaction"),
        (b"user,item,time\n", "x.csv: the file has no interactions; it needs one row for each"),
        (
            b"user,item,time\n1,2,3\n1,2\n",
            "x.csv: the row '1,2' has 2 columns where 3 are expected; mend or remove it",
        ),
        (
            b"user,item,time\n\xff\xfe,2,3\n",
            (
                "x.csv: line 2 has the byte 0xff, which is not UTF-8; name how it is written, for "
                "example with --encoding cp1252"
            ),
        ),
        (
            b"user,item,time\n\0,2,3\n",
            "x.csv: holds zero bytes, so it is no text table; name it by what it is",
        ),
    ],
)
def test_files_that_cannot_be_used(folder: Path, content: bytes, said: str) -> None:
    Path("x.csv").write_bytes(content)
    assert refusal("x.csv") == said


def test_files_that_are_not_what_they_say(folder: Path) -> None:
    write("x.parquet", HEADER, *ROWS)
    assert refusal("x.parquet").startswith("x.parquet: not a readable parquet file (")
    Path("x.csv.gz").write_text("user,item,time\n1,2,3\n")
    assert refusal("x.csv.gz").startswith("x.csv.gz: cannot be read (")
    whole = gzip.compress("\n".join([HEADER, *ROWS * 20_000]).encode())
    Path("cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert refusal("cut.csv.gz").startswith("cut.csv.gz: cannot be read (")


# Filters.


def test_users_and_items_are_dropped_until_all_have_enough(folder: Path) -> None:
    # Item d is met once: without it user 3 has one event left, without user 3 item c has one,
    # without c user 2 has two; users 1 and 2 keep a and b.
    histories = {"1": "ab", "2": "abc", "3": "cd"}
    lines = [f"{u},{i},{t}" for u, items in histories.items() for t, i in enumerate(items)]
    source = write("x.csv", HEADER, *lines)
    dataset = load(source, min_user=2, min_item=2)
    assert dataset.user_ids.tolist() == [1, 2]
    assert dataset.item_ids.tolist() == ["a", "b"]
    assert dataset.items.tolist() == [1, 2, 1, 2]
    assert dataset.offsets.tolist() == [0, 2, 4]
    assert dataset.times.tolist() == [0, 1000, 0, 1000]
    assert dataset.notes[-1] == (
        "kept 2 of 3 users (with at least 2 interactions), 2 of 4 items (at least 2) and 4 of 7 "
        "interactions"
    )
    assert refusal(source, min_user=3, min_item=2) == (
        "x.csv: nothing is left once users with fewer than 3 and items with fewer than 2 "
        "interactions are dropped; lower --min-user or --min-item"
    )
    assert refusal(source, min_user=4).startswith(
        "x.csv: no user has 4 interactions (the most is 3), and each needs at least three"
    )


def test_short_histories_are_dropped_by_default(folder: Path) -> None:
    dataset = load(write("x.csv", HEADER, "9,40,1", "9,50,2", *ROWS))
    assert dataset.user_ids.tolist() == [5, 7]
    assert dataset.item_ids.tolist() == [10, 20, 30]
    (note,) = dataset.notes
    assert note == (
        "kept 2 of 3 users (with at least 3 interactions), 3 of 5 items (at least 1) and 6 of 8 "
        "interactions"
    )


def test_what_needs_no_filter_is_left_alone() -> None:
    dataset = load("tiny")
    assert k_core(dataset, 3, 1, "tiny") is dataset


def test_the_known_best_score_is_forgotten_where_a_filter_changed_the_data() -> None:
    dataset = load("tiny", min_user=12)
    assert 0 < dataset.n_users < 200
    assert np.diff(dataset.offsets).min() >= 12
    assert dataset.best_hit_10 is None


# The data set.


def example() -> Dataset:
    return Dataset(
        name="example",
        items=np.array([1, 2, 3, 3, 1], np.int32),
        offsets=np.array([0, 3, 5]),
        times=np.array([1, 2, 3, 4, 5]),
        user_ids=np.array(["a", "b"], object),
        item_ids=np.array([10, 20, 30]),
    )


def test_sizes() -> None:
    dataset = example()
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (2, 3, 5)


def test_repeats_are_within_a_user() -> None:
    assert not example().has_repeats
    assert replace(example(), items=np.array([1, 2, 1, 3, 1], np.int32)).has_repeats


def test_the_fingerprint_changes_with_the_data_and_only_then() -> None:
    dataset = example()
    changed = {
        "items": np.array([1, 2, 3, 3, 2], np.int32),
        "offsets": np.array([0, 2, 5]),
        "times": np.array([1, 2, 3, 4, 6]),
        "user_ids": np.array(["ab", ""], object),
        "item_ids": np.array([10, 20, 31]),
    }
    prints = {replace(dataset, **{k: v}).fingerprint for k, v in changed.items()}  # type: ignore[arg-type]
    assert len(prints | {dataset.fingerprint}) == 6
    renamed = replace(dataset, name="other", notes=("x",), times=dataset.times.copy())
    assert renamed.fingerprint == dataset.fingerprint
    assert len(dataset.fingerprint) == 16


def test_arrays_may_be_read_only_and_pickle_without_copies() -> None:
    dataset = load("tiny")
    buffers: list[pickle.PickleBuffer] = []
    dump = pickle.dumps(dataset, protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 5  # every array travels out of band
    frozen = pickle.loads(dump, buffers=[bytes(buffer) for buffer in buffers])
    assert not frozen.items.flags.writeable
    assert frozen.fingerprint == dataset.fingerprint
    assert frozen.has_repeats == dataset.has_repeats
    assert k_core(frozen, 12, 1, "tiny").n_users == k_core(dataset, 12, 1, "tiny").n_users


@pytest.mark.parametrize("times", [np.int64, np.uint64, np.float64, "wide"])
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_rows_are_sorted_by_user_and_time_and_ties_stay(
    times: Any, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "PARALLEL", 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    rng = np.random.default_rng(0)
    users = rng.integers(0, 50, 2000)
    when = rng.integers(0, 30, 2000).astype(np.int64 if times == "wide" else times)
    if times == "wide":
        when[0] = 2**61
    assert in_time(users, when).tolist() == np.lexsort((when, users)).tolist()
    assert in_time(users[:0], when[:0]).tolist() == []
