"""How trials share the CPUs: what is tried, what wins, and how a measurement is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from seqtune.data import Protocol
from seqtune.data.generate import make_preset
from seqtune.machines import Machine
from seqtune.meter import Meter, TimeIsUp
from seqtune.options import StudyOptions
from seqtune.space.asked import ask_study
from seqtune.storage import Folder
from seqtune.study import probe, resources
from seqtune.study.identity import About, Identity
from seqtune.study.plan import Plan
from seqtune.study.probe import CannotMeasureError, Share, rate

SMALL = {"embedding_size": 8, "n_layers": 1, "n_heads": 1, "inner_size": 16, "batch_size": 32}


@pytest.mark.parametrize(
    ("nodes", "trials", "ways"),
    [
        ([2], 20, [(2, 1), (1, 2)]),
        ([2], 1, [(1, 2)]),
        ([8], 20, [(8, 1), (4, 2), (2, 4), (1, 8)]),
        ([8], 5, [(4, 2), (2, 4), (1, 8)]),
        ([6], 20, [(6, 1), (3, 2), (2, 3), (1, 6)]),
        ([1], 20, [(1, 1)]),
        ([4, 8], 50, [(12, 1), (6, 2), (3, 4)]),  # a trial is on one machine: 4 is the most
        ([3, 5], 50, [(8, 1)]),  # with 2 each, one CPU of each would be left
        ([], 20, []),
    ],
)
def test_the_ways_use_all_cpus_and_no_more_than_there_are_trials(
    nodes: list[int], trials: int, ways: list[tuple[int, int]]
) -> None:
    assert probe.ways(nodes, trials) == ways


def test_a_probe_is_a_small_part_of_a_study() -> None:
    assert probe.pays(100_000, epochs=200, trials=20, time_budget=None)
    assert probe.pays(100_000, epochs=200, trials=20, time_budget=300)
    assert not probe.pays(100_000, epochs=200, trials=20, time_budget=180)  # the demo's
    assert not probe.pays(100_000, epochs=200, trials=5, time_budget=None)
    assert not probe.pays(100_000, epochs=2, trials=20, time_budget=None)
    assert not probe.pays(2_000, epochs=200, trials=20, time_budget=None)
    assert not probe.pays(10**9, epochs=0, trials=20, time_budget=None)  # STAN


@pytest.mark.parametrize(
    ("rates", "won"),
    [
        ({(2, 1): 21_000.0, (1, 2): 15_000.0}, (2, 1)),
        ({(2, 1): 15_000.0, (1, 2): 21_000.0}, (1, 2)),
        ({(2, 1): 20_001.0, (1, 2): 21_000.0}, (2, 1)),  # 4.8 % less is noise
        ({(2, 1): 19_900.0, (1, 2): 21_000.0}, (1, 2)),  # 5.2 % less is not
        ({(8, 1): 90.0, (4, 2): 100.0, (2, 4): 97.0}, (4, 2)),
        ({(8, 1): 96.0, (4, 2): 90.0, (2, 4): 100.0}, (8, 1)),
    ],
)
def test_of_equals_the_one_with_more_trials_at_a_time_wins(
    rates: dict[tuple[int, int], float], won: tuple[int, int]
) -> None:
    share = probe.best(rates)
    assert (share.concurrency, share.cpus) == won


def test_the_sentence_gives_all_rates() -> None:
    assert probe.best({(2, 1): 21_000.4, (1, 2): 15_000.0}) == Share(
        2, 1, "measured: 21,000 targets/s; 1 x 2 CPUs: 15,000"
    )
    assert probe.best({(4, 1): 10.0, (2, 2): 30.0, (1, 4): 20.0}) == Share(
        2, 2, "measured: 30 targets/s; 4 x 1 CPU: 10; 1 x 4 CPUs: 20"
    )


class Clock:
    """Advances by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def probing(clock: Clock) -> Meter:
    """The meter of a probe."""
    return Meter(clock, seconds=probe.SECONDS, warm_up=probe.WARM_UP, longest=probe.LONGEST)


def steps(meter: Meter, clock: Clock, seconds: list[float], targets: int = 100) -> int:
    """Makes steps of so many seconds each; returns after how many the time was up."""
    for number, one in enumerate(seconds, 1):
        clock.now += one
        try:
            meter(targets)
        except TimeIsUp:
            return number
    return 0


def test_the_first_steps_do_not_count() -> None:
    meter = probing(clock := Clock())
    assert steps(meter, clock, [1.5, 0.5] + [0.25] * 20) == 2 + 8
    assert rate(meter) == 100 / 0.25


def test_slow_steps_end_the_measurement_sooner_or_for_good() -> None:
    meter = probing(clock := Clock())
    assert steps(meter, clock, [1.8] * 9) == 3
    assert rate(meter) == pytest.approx(100 / 1.8)
    meter = probing(clock := Clock())
    assert steps(meter, clock, [6.0] * 9) == 1
    with pytest.raises(CannotMeasureError, match="a step takes too long"):
        rate(meter)


def test_a_training_that_ends_by_itself_counts_what_it_did() -> None:
    meter = probing(clock := Clock())
    assert steps(meter, clock, [0.25] * 6) == 0
    assert rate(meter) == 100 / 0.25


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., float]:
    """Measures the real loop in this process."""
    monkeypatch.setattr(ray, "get", lambda refs: refs)

    def run(start: float = 0.0, **values: Any) -> float:
        plan = Plan("sasrec", "ndcg@10", Protocol(mask_seen=True), Folder.at(tmp_path))
        return probe.measure(plan, SMALL | values, [make_preset("tiny")], 1, start)

    return run


def test_the_real_loop_is_measured_and_stopped(
    measured: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(Meter):
        def __call__(self, targets: int) -> None:
            made.append(targets)
            super().__call__(targets)

    monkeypatch.setattr(probe, "Meter", Counted)
    monkeypatch.setattr(probe, "SECONDS", 0.3)
    monkeypatch.setattr(probe.time, "time", lambda: 0.0)
    rate = measured()
    assert len(made) > probe.WARM_UP + 1
    total = sum(made[probe.WARM_UP :])
    assert total / 1.3 < rate <= total / 0.3  # the last step may end late


def test_processes_that_did_not_start_together_say_nothing(measured: Callable[..., float]) -> None:
    with pytest.raises(CannotMeasureError, match="did not start together"):
        measured(start=1.0)  # of 1970


@pytest.mark.parametrize(
    ("rates", "tried"),
    [
        ([80.0, 60.0, 90.0, 99.0], [(8, 1), (4, 2)]),  # it only gets worse
        ([80.0, 79.0, 99.0, 60.0], [(8, 1), (4, 2), (2, 4), (1, 8)]),
    ],
)
def test_it_ends_where_it_gets_worse(
    rates: list[float], tried: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def together(work: Callable[..., Any], n: int, cpus: int, *_: Any) -> list[float]:
        if work is not probe.measure:
            assert (n, cpus) == (8, 1)
            return []
        asked.append((n, cpus))
        return [rates[len(asked) - 1] / n] * n

    monkeypatch.setattr(probe, "_together", together)
    plan = Plan("sasrec", "ndcg@10", Protocol(mask_seen=True), Folder.at("/nowhere"))
    share = probe.choose(plan, {}, None, probe.ways([8], 20))
    assert asked == tried
    assert (share.concurrency, share.cpus) == tried[rates.index(max(rates[: len(tried)]))]


def test_measuring_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def together(work: Callable[..., Any], n: int, cpus: int, *_: Any) -> list[float]:
        clock.now += 4
        return [1.0]

    monkeypatch.setattr(probe, "_together", together)
    monkeypatch.setattr(probe.time, "monotonic", clock)
    plan = Plan("sasrec", "ndcg@10", Protocol(mask_seen=True), Folder.at("/nowhere"))
    assert probe.choose(plan, {}, None, probe.ways([8], 20)).why.count("CPU") == 1  # two of four


class Asked:
    """What a study of the demo set asks of the probe on a machine of two CPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: Share | Exception) -> None:
        self.calls, self.found, self.notes = 0, found, []
        monkeypatch.setattr(resources, "choose", self._choose)
        monkeypatch.setattr(resources, "machines", lambda: [Machine(2), Machine(0)])

    def _choose(self, *_: Any) -> Share:
        self.calls += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def __call__(self, about: dict[str, Any], **asked: Any) -> Share | None:
        options = StudyOptions(**({"model": "sasrec", "data": "my.csv", "trials": 60} | asked))
        plan = Plan(options.model, "ndcg@10", Protocol(mask_seen=True), Folder.at("/nowhere"))
        known = Identity(
            "study", plan.folder, About("study-1", "", {}, share=about.get("share")), lease=None
        )  # type: ignore[arg-type]
        demo = make_preset("demo", scale=3)  # larger, so that measuring pays
        return resources.share_cpus(ask_study(options), demo, plan, None, known, self.notes.append)


def test_a_study_is_measured_unless_something_else_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    one_each, two = Share(2, 1, "measured: 2"), Share(1, 2, "measured: 1")
    ask = Asked(monkeypatch, two)
    assert ask({}) == two
    assert ask.calls == 1
    assert ask({}, concurrency=2) is ask({}, cpus_per_trial=1.0) is ask({}, trials=1) is None
    assert ask({}, model="stan") is ask({}, time_budget=60.0) is ask({}, resume=True) is None
    assert ask({"share": vars(one_each)}, resume=True) == one_each
    assert ask({"share": vars(one_each) | {"concurrency": 8}}, resume=True) is None  # elsewhere
    assert ask.calls == 1
    assert not ask.notes


def test_a_failed_measurement_leaves_a_note_and_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asked(monkeypatch, RuntimeError("Traceback\n  of the worker\nMemoryError: 3 GB\n"))
    assert ask({}) is None
    sentence = "not measured how many trials at a time get most done: MemoryError: 3 GB"
    assert ask.notes == [sentence]
