"""The comparison with other libraries, as far as it needs none of them."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seqtune.catalogue import declaration
from seqtune.params import build, parse_assignment

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds platform/
    module = loaded(FOLDER / "peers.py")
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
def shared() -> Iterator[ModuleType]:
    module = loaded(FOLDER / "peers" / "shared.py")
    yield module
    del sys.modules[module.__name__]


def a_run(case: str, side: str, repeat: int, speed: float, **more: Any) -> dict[str, Any]:
    return {
        "case": case,
        "side": side,
        "repeat": repeat,
        "mode": "5 s with 2 threads",
        "targets_per_second": speed,
        "eval_users_per_second": 100 * speed,
        "peak_rss_mb": 1234.5,
        "versions": {"recbole": "1.2.1"},
        "machine": "CPU, 2 cores, AVX2",
        "commit": "abc",
        "date": "2030-01-02",
    } | more


def test_every_case_is_of_a_peer_and_accepted_by_its_model(peers: ModuleType) -> None:
    names = [case.name for case in peers.CASES]
    assert len(set(names)) == len(names) > 10
    for case in peers.CASES:
        assert (FOLDER / "peers" / f"run_{case.peer}.py").exists()
        values = dict(map(parse_assignment, case.set))
        assert len(values) == len(case.set)
        params = build(declaration(case.model).params, values, case.name)
        assert params.max_seq_len in {int(one.partition("=")[2]) for one in case.peer_set[:1]}


def test_medians_extremes_and_ratios(peers: ModuleType) -> None:
    case = "sasrec-beauty-recbole"
    runs = [a_run(case, "peer", i, speed) for i, speed in enumerate((50, 40, 90))]
    runs += [a_run(case, "seqtune", i, speed) for i, speed in enumerate((500, 1000, 700))]
    runs += [a_run("another", "peer", 0, 1)]
    peer, ours = (peers.spread(runs, case, side, "targets_per_second") for side in peers.SIDES)
    assert peer == peers.Spread(50, 40, 90)
    assert ours == peers.Spread(700, 500, 1000)
    assert peers.ratio(ours, peer) == 14
    assert peers.ratio(ours, peers.spread(runs, "none", "peer", "targets_per_second")) is None


def test_the_page_has_a_line_for_each_case_that_ran(peers: ModuleType) -> None:
    case = "gru4rec-ml-100k"
    quality = {"test": {"ndcg@10": 0.25, "hr@10": 0.5}, "valid": {"ndcg@10": 0.125, "hr@10": 0.5}}
    runs = [
        a_run(case, "peer", 0, 50),
        a_run(case, "seqtune", 0, 625),
        a_run("caser-ml-100k", "seqtune", 0, 2000),
        a_run(case, "peer", 0, 0, mode="3 epochs") | quality,
    ]
    block = peers.written(runs, "python x.py")
    assert (
        f"| {case} | RecBole | 50 (50 to 50) | 625 (625 to 625) | 12.5 "
        "| 5,000 (5,000 to 5,000) | 62,500 (62,500 to 62,500) | 12.5 | 1,234 | 1,234 |" in block
    )
    assert "| caser-ml-100k | RecBole | - | 2,000 (2,000 to 2,000) | - |" in block
    assert f"| {case} | RecBole | 0.1250 | - | 0.2500 | - | 0.5000 | - |" in block
    assert "CPU, 2 cores, AVX2. seqtune at commit abc, 2030-01-02." in block
    for mark in peers.MARKS:
        assert mark not in block
    page = f"before\n{peers.MARKS[0]}\nold\n{peers.MARKS[1]}\nafter\n"
    once = peers.between_marks(page, block, "page.md")
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert peers.between_marks(once, block, "page.md") == once
    with pytest.raises(SystemExit, match="no block to rewrite"):
        peers.between_marks("no marks", block, "page.md")


def test_a_comparison_goes_on_where_it_stopped(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case, calls = peers.CASES[0], []

    def measured(asked: Any, case: Any, side: str, scratch: Path) -> dict[str, Any]:
        calls.append(side)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"targets_per_second": 1.0}

    monkeypatch.setattr(peers, "measured", measured)
    monkeypatch.setattr(peers, "about", dict)
    asked = argparse.Namespace(
        out=tmp_path / "out.json", repeat=3, epochs=None, seconds=5.0, threads=2
    )
    with pytest.raises(KeyboardInterrupt):
        peers.measure_all(asked, [case])
    assert calls == ["peer", "seqtune", "peer", "seqtune"]
    assert len(peers.read(asked.out)) == 3
    assert peers.measure_all(asked, [case]) == []
    assert calls[4:] == ["seqtune", "peer", "seqtune"]
    assert peers.measure_all(asked, [case]) == []
    assert len(calls) == 7
    asked.threads = 1
    peers.measure_all(asked, [case])
    assert len(calls) == 13, "another number of threads is another measurement"


def test_the_clock_leaves_out_the_first_step_and_times_two_at_least(
    shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 10.0, 13.0, 15.0, 99.0])
    monkeypatch.setattr(shared.time, "perf_counter", lambda: next(now))
    clock = shared.Clock(seconds=1.0)
    assert [clock.tick(n) for n in (1000, 20, 30, 7)] == [False, False, False, True]
    assert clock.result() == {"targets_per_second": 10.0, "steps": 2, "step_seconds": 2.5}


def test_histories_and_metrics_of_the_runners(shared: ModuleType, tmp_path: Path) -> None:
    csv = tmp_path / "x.csv"
    csv.write_text('"user_id","item_id"\n7,3\n7,1\n2,9\n7,2\n')
    assert shared.histories(str(csv)) == {7: [3, 1, 2], 2: [9]}
    found = shared.metrics(np.array([1.0, 3.0, 11.0, np.inf]))
    assert found == {"hr@10": 0.5, "ndcg@10": pytest.approx((1 + 0.5) / 4)}
    assert shared.settings(["a=1e-3", "b=softmax", "c=[0.25,0.5]"]) == {
        "a": 1e-3,
        "b": "softmax",
        "c": [0.25, 0.5],
    }
