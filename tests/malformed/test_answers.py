"""Wrong input of every kind is answered in one sentence, in a second, and leaves nothing behind."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import table
import torch
from judge import judged, refused, report, started
from safetensors.torch import load, save

from seqtune import checkpoint
from seqtune.catalogue import declaration
from seqtune.model import model_class
from seqtune.params import build
from seqtune.storage import Folder

GOOD = "user,item,time\n" + "".join(
    f"u{u},i{(u + t) % 9},{t}\n" for u in range(12) for t in range(6)
)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with good data in it; whatever is accepted ends before it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "SEQTUNE_OPTUNA_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("seqtune.cluster.connected", started)
    monkeypatch.setattr("seqtune.study.once.train_here", started)
    (tmp_path / "good.csv").write_text(GOOD)
    import_module("seqtune.data.readers")  # the first case would pay for what all need
    import_module("seqtune.study.study")
    return tmp_path


GROUPS: dict[str, Callable[[Path], Iterator[table.Case]]] = {
    "options": lambda world: table.options(),
    "assignments": lambda world: table.assignments(),
    "spaces": table.spaces,
    "params": table.params,
    "places": lambda world: table.places(),
    "data": table.data,
}


@pytest.mark.parametrize("group", GROUPS)
def test_it_is_refused_in_a_sentence(world: Path, group: str) -> None:
    report(judged(world, name, words) for name, words in GROUPS[group](world))


def test_the_table_is_long(world: Path) -> None:
    assert sum(len(list(group(world))) for group in GROUPS.values()) >= 500


def test_good_input_is_accepted(world: Path) -> None:
    for words in (["tune", "--model", "sasrec"], ["train", "--model", "sasrec"]):
        assert judged(world, "good", [*words, *table.DATA]) == "good: accepted"


# Checkpoints


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a checkpoint that is whole."""
    folder = Folder.at(tmp_path_factory.mktemp("good"))
    values = {"embedding_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 8, "max_seq_len": 5}
    params = build(declaration("sasrec").params, values, "here")
    model = model_class("sasrec")(params, 9, 12)
    card = checkpoint.Card("sasrec", params, 12, np.arange(9), np.arange(1, 10), mask_seen=True)
    checkpoint.save(folder, model.state_dict(), card)
    checkpoint.load(folder)
    return {name: folder.read(name) or b"" for name in folder.names()}


def loaded(folder: Path, files: dict[str, bytes | None]) -> checkpoint.Recommender:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
    return checkpoint.load(Folder.at(folder))


def parquet(table_: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table_, out)
    return out.getvalue()


def test_a_checkpoint_is_believed_when_it_is_whole(good: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    cases = list(table.checkpoints(good))
    cases += [
        (f"items.parquet: {name}", {**good, "items.parquet": parquet(one)})
        for name, one in table.catalogues(9).items()
    ]
    for name, tensor in load(good["model.safetensors"]).items():
        broken = load(good["model.safetensors"])
        for kind, value in {
            "no numbers": tensor * torch.nan,
            "transposed": tensor[None],
            "empty": tensor[:0],
        }.items():
            files = {**good, "model.safetensors": save({**broken, name: value})}
            cases.append((f"{name}: {kind}", files))
    assert len(cases) > 120
    report(refused(name, lambda f=files: loaded(folder, f)) for name, files in cases)


def test_an_unknown_id_is_shown_in_part(good: dict[str, bytes], tmp_path: Path) -> None:
    recommender = loaded(tmp_path / "checkpoint", dict(good))
    (found,) = recommender.recommend([["9" * 5_000, "\x1b[31m", 3]])
    assert len(found.note) < 100
    assert "\x1b" not in found.note


def test_a_request_is_refused_in_a_sentence(good: dict[str, bytes], tmp_path: Path) -> None:
    recommender = loaded(tmp_path / "checkpoint", dict(good))
    for history in table.HISTORIES:
        name = f"history {type(history)!s}"
        report([refused(name, lambda h=history: recommender.recommend([h]))])
    for k in table.WRONG_K:
        report([refused(f"k {k!r:.20}", lambda k=k: recommender.recommend([[1]], k=k))])
