"""What machines hold, what is said while trials wait for one, and who else uses them."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest

from seqtune import machines
from seqtune.data import Protocol
from seqtune.machines import Machine, described
from seqtune.storage import Folder
from seqtune.study import events
from seqtune.study.events import Waiting
from seqtune.study.plan import Plan


@pytest.mark.parametrize(
    ("cpus", "gpus", "n"),
    [
        (1, 0, 8),
        (3, 0, 2),
        (1, 1, 2),
        (8, 0.5, 1),
        (1, 0.1, 8),
        (0.1, 0.1, 20),
        (0, 0, 1),
        (9, 0, 0),
    ],
)
def test_a_machine_holds_what_fits_its_cpus_and_its_gpus(cpus: float, gpus: float, n: int) -> None:
    assert Machine(8, 2).holds(cpus, gpus) == n


def test_machines_are_counted_by_their_kind() -> None:
    assert described([]) == "0 machines"
    assert described([Machine(0)]) == "1 machine: 1 of 0 CPUs and 0 GPUs"
    some = [Machine(4), Machine(8, 1), Machine(4)]
    assert described(some) == "3 machines: 2 of 4 CPUs and 0 GPUs, 1 of 8 CPUs and 1 GPU"
    assert described([Machine(n) for n in range(9)]).endswith(", others")


def trials(*states: str) -> list[Any]:
    return [SimpleNamespace(status=state) for state in states]


def test_a_study_that_nothing_runs_in_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, said = 100.0, list[str]()
    monkeypatch.setattr(events.time, "monotonic", lambda: now)
    monkeypatch.setattr(events, "machines", lambda: [Machine(0)])
    plan = Plan("sasrec", "ndcg@10", Protocol(mask_seen=True), Folder.at("/nowhere"), gpus=1)
    waiting = Waiting(plan, said.append)

    def after(seconds: float, *states: str) -> int:
        nonlocal now
        now += seconds
        waiting.look(trials(*states))
        return len(said)

    assert after(50, "PENDING") == 0
    assert after(50, "RUNNING", "PENDING") == 0
    assert after(59, "PENDING", "TERMINATED") == 0
    assert after(1, "PENDING") == 1
    assert said[0] == (
        "no trial runs: the next waits for 1 CPU and 1 GPU free on one machine "
        "(1 machine: 1 of 0 CPUs and 0 GPUs)"
    )
    assert after(299, "PENDING") == 1
    assert after(1, "PENDING") == 2
    assert after(500, "TERMINATED") == 2  # nothing waits


def test_who_shares_a_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"CPU": 8.0, "GPU": 2.0}
    ray = types.SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0, "memory": 1e9},
        available_resources=lambda: free,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert machines.busy() == []  # Ray is this study's own
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert machines.busy() == []
    free = {"CPU": 5.5}  # what is used up is left out
    (line,) = machines.busy()
    assert line.startswith("others use 2.5 of 8 CPUs and 2 of 2 GPUs of the cluster:")
