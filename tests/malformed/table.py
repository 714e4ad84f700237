"""The table: wrong input of every kind, each a name and the words of a command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

LONG, DIGITS, ESCAPE = "x" * 70_000, "9" * 100_000, "\x1b[31mred\x1b[0m"
NESTED = "[" * 5_000 + "]" * 5_000
BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)
Case = tuple[str, list[str]]
DATA = ["--data", "good.csv"]

INTEGERS = ("trials", "concurrency", "workers-per-trial", "max-failures", "valid-users", "seed")
INTEGERS += ("min-user", "min-item")
NO_INTEGER = ["", "x", "-1", "1.5", "nan", "1e9", DIGITS, "-" + DIGITS, "²", ESCAPE, LONG, "0x10"]
NO_INTEGER += ["1 2", "1,000", "٣x", "\n", "99999999999", "[3]", "{", "null"]
FLOATS = ("cpus-per-trial", "gpus-per-trial")
NO_FLOAT = ["", "x", "-1", "inf", "-inf", "nan", "1e400", DIGITS, ESCAPE, LONG, "1e9", "[1]", "1,5"]


def options() -> Iterator[Case]:
    """Every option with values that it cannot have."""
    start = ["tune", "--model", "sasrec", *DATA]
    for option in INTEGERS:
        for value in NO_INTEGER:
            yield f"--{option} {value[:20]!r}", [*start, f"--{option}={value}"]
    for option in FLOATS:
        for value in NO_FLOAT:
            yield f"--{option} {value[:20]!r}", [*start, f"--{option}={value}"]
    for command, workers in (("tune", "--workers-per-trial"), ("train", "--workers")):
        few = [command, "--model", "sasrec", *DATA, "--set"]
        yield f"{command} with a batch of 1", [*few, "batch_size=1"]
        yield f"{command}, a batch of 3 for two", [*few, "batch_size=3", workers, "2"]
    for value in ("2:8:9", "8:2", ":2", "2:", "0:3", "2:1001", "2-8"):
        yield f"--workers-per-trial {value}", [*start, "--workers-per-trial", value]
    yield "--cpus-per-trial 0", [*start, "--cpus-per-trial", "0"]
    wrong: dict[str, list[str]] = {
        "metric": [
            "",
            "ndcg",
            "ndcg@",
            "ndcg@0",
            "ndcg@-1",
            "ndcg@²",
            "ndcg@x",
            "@10",
            ESCAPE,
            LONG,
            f"ndcg@{DIGITS}",
            "ndcg@1.5",
            "ndcg@10@20",
            "ndgc@10",
            "coverage@10",
            "ndcg@٣",
        ],
        "time-budget": [
            "",
            "5",
            "x",
            "-5m",
            "0s",
            "1y",
            DIGITS + "s",
            ESCAPE,
            LONG,
            "5m5",
            "inf",
            "nans",
            "1h-3m",
            "m",
            ".",
        ],
        "scheduler": ["", "ASHAA", "bohb", ESCAPE, LONG],
        "name": ["", ".", "..", "/", "a/b", "../a", "a b", ESCAPE, "a\nb", "-a", "é/é", "~", LONG],
        "model": ["", "sasrek", ESCAPE, LONG, "a,b", "../sasrec", "sasrec ", "None", "_windows"],
        "data": [
            "",
            ".",
            "/",
            "nothing.csv",
            "~nobody/x.csv",
            "/dev/null",
            ESCAPE,
            LONG,
            "s3:",
            "http://x/y.csv",
            "demo2",
            "good.xlsx",
            "/proc/self/mem",
        ],
        "user-col": ["", "nobody", ESCAPE, LONG],
        "item-col": ["", "nothing", ESCAPE, LONG],
        "time-col": ["", "never", ESCAPE, LONG, "user"],
        "space": [
            "",
            ".",
            "nothing.yaml",
            "/dev/null",
            ESCAPE,
            LONG,
            "/proc/self/mem",
        ],
        "params": ["", ".", "/", "nothing.yaml", "/dev/null", ESCAPE, LONG],
    }
    for option, values in wrong.items():
        given = start if option not in ("model", "data") else ["tune", "--trials", "2"]
        given = [*given, "--model", "sasrec"] if option == "data" else given
        for value in values:
            yield f"--{option} {value[:20]!r}", [*given, f"--{option}={value}"]
    for words in (["tune"], ["tune", "--modl", "sasrec"], ["tune", "--model"], [ESCAPE], [LONG]):
        yield f"{[word[:20] for word in words]}", words
    for words in (["--epochs", "3"], ["sasrec"], ["--trials", "2", "--trials", "3"], [f"--{LONG}"]):
        yield f"{[word[:20] for word in words]}", [*start, *words]


def assignments() -> Iterator[Case]:
    """``--set`` with values that a hyperparameter cannot have."""
    wrong = ["", "x", "-1", "0", "1.5", "nan", ".inf", "[1, 2]", "{a: 1}", "null", "true", NESTED]
    wrong += [DIGITS, LONG, ESCAPE, "&a [*a]", "2020-99-99", "!!python/object:os.system x", "1e400"]
    wrong += ["9" * 60, "'1", "*a", "0o9", "1_000_000_000_000_000_000_000"]
    for name in (
        "n_layers",
        "batch_size",
        "epochs",
        "max_seq_len",
        "learning_rate",
        "dropout_prob",
    ):
        fine = {"dropout_prob": ["0"], "learning_rate": ["1.5"], "max_seq_len": []}.get(name, [])
        fine = {"epochs": ["0"]}.get(name, fine)
        for value in wrong:
            if value not in fine:
                words = ["tune", "--model", "sasrec", *DATA, "--set", f"{name}={value}"]
                yield f"--set {name}={value[:20]!r}", words
    bare = ["", "=", "=3", "n_layers", "n_layers=", "n_layer=3", f"{ESCAPE}=3", f"{LONG}=3", " =3"]
    bare += [
        "n_heads=3",
        "loss_type=cee",
        "optimizer=adm",
        "n_layers==3",
        "seed=-1",
        "loss_type=[]",
    ]
    for text in bare:
        words = ["train", "--model", "sasrec", *DATA, "--set", text]
        yield f"--set {text[:20]!r}", words


TEXTS = {
    "empty": "",
    "blank": "\n\n",
    "text": "hello",
    "number": "3",
    "list": "- a\n- b\n",
    "null": "null",
    "bomb": BOMB,
    "nested": "a: " + NESTED,
    "deep mapping": "{a: " * 2_000 + "1" + "}" * 2_000,
    "itself": "a: &a [*a]",
    "unknown alias": "a: *b",
    "tabs": "a:\t- b\n\t- c",
    "open quote": "a: 'b",
    "open bracket": "a: [1, 2",
    "control": "a: \x07",
    "escape": 'a: "\\e[31m"',
    "python": "a: !!python/object/apply:os.system [ls]",
    "tag": "a: !mine 3",
    "date": "a: 2020-99-99",
    "many digits": f"a: {DIGITS}",
    "twice": "a: 1\na: 2\n",
    "list as a key": "? [1, 2]\n: 3\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "long": f"a: {LONG}",
    "long key": f"{LONG}: 1",
    "huge": "a: [" + "1, " * 600_000 + "1]",
    "merge": "<<: 3",
    "merge of a bomb": BOMB + "\n<<: *i",
}
SPACES = {
    "no model": "space: {n_layers: {choice: [1, 2]}}",
    "another model": "model: gru4rec\nspace: {layers: {choice: [1, 2]}}",
    "a model that is none": f"model: {LONG}\nspace: {{}}",
    "space is a list": "model: sasrec\nspace: [1]",
    "fixed is a list": "model: sasrec\nfixed: [1]\nspace: {n_layers: {choice: [1]}}",
    "unknown part": "model: sasrec\nspaces: {}\nspace: {n_layers: {choice: [1, 2]}}",
}
DIMENSIONS = ["3", "[]", "null", "{}", "{choice: []}", "{choice: 3}", "{choice: [[1]]}", "{low: 1}"]
DIMENSIONS += [
    "{low: 3, high: 1}",
    "{low: a, high: b}",
    "{low: 1, high: .inf}",
    "{low: .nan, high: 2}",
]
DIMENSIONS += [
    "{low: 1, high: 2, log: maybe}",
    "{low: 0, high: 2, log: true}",
    "{low: 1, high: 9, step: 0}",
]
DIMENSIONS += [
    "{low: 1, high: 9, step: -1}",
    "{choice: [1], low: 1}",
    "{chioce: [1, 2]}",
    "{choice: [1, 1]}",
]
DIMENSIONS += [
    "{choice: [1, x]}",
    "{choice: [0]}",
    "{choice: [1.5]}",
    "{low: 1, high: 1000000000000}",
]
DIMENSIONS += ["{choice: [1, 2], when: 3}", "{choice: [1, 2], when: {x: [1]}}", "{choice: [true]}"]
DIMENSIONS += ["{choice: [1, 2], when: {n_layers: [1]}}", "{low: -1, high: 3}", "{choice: [null]}"]


def spaces(world: Path) -> Iterator[Case]:
    """Search spaces that are none."""
    texts = TEXTS | SPACES
    texts |= {text: f"model: sasrec\nspace: {{n_layers: {text}}}" for text in DIMENSIONS}
    texts |= {f"rate {t}": f"model: sasrec\nspace: {{learning_rate: {t}}}" for t in DIMENSIONS[:16]}
    for name, text in texts.items():
        (world / "space.yaml").write_text(text, encoding="utf-8")
        yield f"space: {name[:40]}", ["tune", "--model", "sasrec", *DATA, "--space", "space.yaml"]
    for name, content in {
        "utf-16": "a: 1".encode("utf-16"),
        "noise": bytes(range(256)) * 9,
    }.items():
        (world / "space.yaml").write_bytes(content)
        yield f"space: {name}", ["tune", "--model", "sasrec", *DATA, "--space", "space.yaml"]


VALUES = ["[]", "{}", "[[1]]", "x", "-1", "[choice]", "[quniform, 1, 9, 0]"]
VALUES += [
    "[randint, 5, 1]",
    "[loguniform, 0, 1]",
    "[uniform, a, b]",
    "[uniform, 1]",
    "[foo, 1, 2]",
]
VALUES += [DIGITS, LONG, f'"{LONG}"', "[quniform, 1, 9, -1]", "[1, x]", "null", "[null]", "{a: 1}"]


def params(world: Path) -> Iterator[Case]:
    """Files of ``--params`` that are none."""
    texts = {f"params: {name}": text for name, text in TEXTS.items()}
    inner = [
        "3",
        "[]",
        "null",
        "{Nobody: {}}",
        "{SASRec: 3}",
        "{SASRec: [1]}",
        f"{{{LONG[:100]}: 1}}",
    ]
    texts |= {f"models: {text[:30]}": f"models: {text}" for text in inner}
    texts |= {f"n_layers: {v[:30]}": f"models: {{SASRec: {{n_layers: {v}}}}}" for v in VALUES}
    texts |= {f"batch: {v[:30]}": f"models: {{SASRec: {{batch_size: {v}}}}}" for v in VALUES[:16]}
    texts |= {
        f"no name {n[:9]}": f"models: {{SASRec: {{{n}: 3}}}}" for n in ("n_layer", LONG, '"\\e"')
    }
    for name, text in texts.items():
        (world / "params.yaml").write_text(text, encoding="utf-8")
        yield name, ["tune", "--model", "sasrec", *DATA, "--params", "params.yaml"]


PLACES = [
    "",
    "/dev/null",
    "/dev/null/x",
    "/proc/x",
    "x" * 300,
    "~no-such-user/x",
    "good.csv",
]
PLACES += ["good.csv/x", "http://127.0.0.1:1/x", "s3://", "nope://x", "://", "gs://", "file://"]
TRACKING = ["", "http://", "http://x:port", "https://", "nope://x"]
TRACKING += [
    "mysql://u@h/x",
    "postgresql+x://h/y",
    "http:/x",
    "://",
    ESCAPE,
    LONG,
    "http://[::1",
    "sqlite:",
]
TRACKING += ["databricks-x://", "sqlite:////dev/null/x.db", "ftp://x"]


def places() -> Iterator[Case]:
    """Folders, files and servers that cannot be written, read or asked."""
    for place in PLACES:
        start = ["tune", "--model", "sasrec", *DATA]
        yield f"--storage {place[:30]!r}", [*start, f"--storage={place}"]
        yield f"--out {place[:30]!r}", ["train", "--model", "sasrec", *DATA, f"--out={place}"]
        yield (
            f"train in {place[:30]!r}",
            ["train", "--model", "fossil", *DATA, f"--storage={place}"],
        )
        recommend = ["recommend", "--data", "good.csv", f"--checkpoint={place}"]
        yield f"--checkpoint {place[:30]!r}", recommend
        yield f"repair in {place[:30]!r}", ["repair", "mine", f"--storage={place}"]
        yield f"repair {place[:30]!r}", ["repair", place, "--storage", "."]
    for place in TRACKING:
        start = ["tune", "--model", "sasrec", *DATA]
        yield f"--tracking-uri {place[:30]!r}", [*start, f"--tracking-uri={place}"]


HEAD = "user,item,time\n"
ROWS = {
    "no bytes": b"",
    "a header": HEAD.encode(),
    "one row": (HEAD + "a,b,1\n").encode(),
    "three events a user": (
        HEAD + "".join(f"u{n // 3},i{n % 7},{n}\n" for n in range(90))
    ).encode(),
    "one item": (HEAD + "".join(f"u{n % 9},i,{n}\n" for n in range(90))).encode(),
    "two events a user": (HEAD + "".join(f"u{n // 2},i{n},{n}\n" for n in range(90))).encode(),
    "noise": bytes(range(256)) * 40,
    "zeros": b"\0" * 4096,
    "users are empty": (HEAD + ",b,1\n" * 40).encode(),
    "items are empty": (HEAD + "a,,1\n" * 40).encode(),
    "times are empty": (HEAD + "a,b,\n" * 40).encode(),
    "times are words": (HEAD + "a,b,soon\n" * 40).encode(),
    "times are huge": (HEAD + f"a,b,{'9' * 400}\n" * 40).encode(),
    "times are digits": (HEAD + f"a,b,{DIGITS}\n").encode(),
    "ragged": (HEAD + "a,b\na,b,1,2\n" * 20).encode(),
    "utf-16": (HEAD + "a,b,1\n" * 20).encode("utf-16"),
    "no header": b"".join(b"%d,%d,%d\n" % (n, n, n) for n in range(20)),
    "columns twice": b"user,user,item,time\na,a,b,1\n",
    "names that move the cursor": ("us\x1ber,it\x07em,when\n" + "a,b,1\n" * 9).encode(),
    "500 columns": (",".join(f"c{n}" for n in range(500)) + "\n").encode(),
    "a column of 70,000 letters": f"{LONG},item,time\na,b,1\n".encode(),
    "json": b'{"user": 1}',
    "gzip, cut": b"\x1f\x8b\x08\x00\x00",
    "parquet, cut": b"PAR1 and no more",
}


def data(world: Path) -> Iterator[Case]:
    """Files of interactions that are none."""
    for name, content in ROWS.items():
        for suffix in ("csv", "tsv", "parquet", "inter", "csv.gz"):
            (world / f"rows.{suffix}").write_bytes(content)
            words = ["tune", "--model", "sasrec", "--data", f"rows.{suffix}"]
            yield f"{name} as {suffix}", words


JSONS = ["", "{", "[]", "null", "3", '"x"', "{}", '{"format": 1}', "[" * 50_000, "x" * 70_000, "\0"]
FIELDS: dict[str, list[object]] = {
    "format": [None, 0, 2, -1, "1", 1.5, True, [1], 10**30],
    "model": [None, 3, "", "nobody", "x" * 70_000, "\x1b[31m", ["sasrec"], "gru4rec"],
    "params": [
        None,
        3,
        [],
        "x",
        {"n_layers": 0},
        {"n_layers": 10**9},
        {"nobody": 1},
        {"a": {}},
        {"embedding_size": 10**9},
        {"max_seq_len": 10**12},
        {"n_heads": 7},
        {"embedding_size": 16},
    ],
    "n_items": [None, 0, -1, 1.5, "9", True, 10**9, 10**30, 8, [9]],
    "n_users": [None, 0, -1, 1.5, "9", True, [9]],
    "mask_seen": [None, 1, "yes", [], {}],
    "meta": [None, 3, [], "x"],
}


def checkpoints(good: dict[str, bytes]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Files of a checkpoint that cannot be believed: name -> content, None for a folder."""
    for name, content in good.items():
        for cut in (0, 1, 8, len(content) // 2, len(content) - 1):
            yield f"{name}: {cut} bytes", {**good, name: content[:cut]}
        yield f"{name}: a folder", {**good, name: None}
        yield f"{name}: noise", {**good, name: bytes(range(256)) * 40}
        yield f"{name}: zeros", {**good, name: b"\0" * len(content)}
        yield f"{name}: missing", {key: value for key, value in good.items() if key != name}
        for other in good.keys() - {name}:
            yield f"{name}: is {other}", {**good, name: good[other]}
    for text in JSONS:
        yield f"model.json: {text[:20]!r}", {**good, "model.json": text.encode()}
    about = json.loads(good["model.json"])
    for field, values in FIELDS.items():
        rest = {key: value for key, value in about.items() if key != field}
        yield f"no {field}", {**good, "model.json": json.dumps(rest).encode()}
        for value in values:
            changed = about | {field: about["params"] | value if isinstance(value, dict) else value}
            content = json.dumps(changed).encode()
            yield f"{field}: {str(value)[:30]}", {**good, "model.json": content}
    header, size = good["model.safetensors"], len(good["model.safetensors"])
    for length in (0, 1, size, 2**40, 2**63):
        torn = length.to_bytes(8, "little") + header[8:]
        yield f"weights: a header of {length}", {**good, "model.safetensors": torn}


def catalogues(n: int) -> dict[str, pa.Table]:
    """Catalogues of n items that are none."""
    items, counts = pa.array(range(n)), pa.array([1] * n)
    return {
        "no items": pa.table({"popularity": counts}),
        "no popularity": pa.table({"item": items}),
        "popularity is NaN": pa.table({"item": items, "popularity": [float("nan")] * n}),
        "popularity is text": pa.table({"item": items, "popularity": ["1"] * n}),
        "popularity is missing": pa.table({"item": items, "popularity": [None] * n}),
        "items are missing": pa.table({"item": [None] * n, "popularity": counts}),
        "items are lists": pa.table({"item": [[1]] * n, "popularity": counts}),
        "items twice": pa.table({"item": [1] * n, "popularity": counts}),
        "one item less": pa.table({"item": items[1:], "popularity": counts[1:]}),
        "none": pa.table({"item": items[:0], "popularity": counts[:0]}),
    }


HISTORIES: list[object] = [3, "abc", None, {"a": 1}, b"x", 1.5, [[1]], [{"a": 1}], [None], [True]]
HISTORIES += [[[[[1]]]], [1, [2]], [1, None], [10**5_000], object()]
HISTORIES += [["\x1b[31m" * 9_000, {}], [float("inf"), []]]
WRONG_K: list[object] = [0, -1, 1.5, "3", None, [3], True, float("nan"), "x" * 70_000]
