"""Which trials ASHA stops: the real scheduler, fed with results as Ray Tune feeds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from seqtune.study.schedulers import Asha, make_scheduler


def decisions(epochs: int, results: list[tuple[int, int, float]]) -> list[str]:
    """What the scheduler decides on (trial, epoch, best value so far), one after another."""
    asha = make_scheduler("asha", {"sasrec": epochs})
    assert isinstance(asha, Asha)
    trials: dict[int, Any] = {}
    found = []
    for number, epoch, best in results:
        if number not in trials:
            trials[number] = SimpleNamespace(
                trial_id=f"t{number}", config={"number": number, "model": "sasrec"}
            )
            asha.on_trial_add(SimpleNamespace(), trials[number])
        result = {"epoch": epoch, "best": best, "training_iteration": epoch}
        found.append(asha.on_trial_result(SimpleNamespace(), trials[number], result))
    return found


CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def test_the_poor_are_stopped_after_their_grace_and_the_good_go_on() -> None:
    values = {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.6, 6: 0.1}
    found = decisions(90, [(number, 10, best) for number, best in values.items()])
    assert dict(zip(values, found, strict=True)) == {
        1: CONTINUE,  # nothing to compare it with
        2: STOP,
        3: STOP,
        4: STOP,
        5: CONTINUE,  # among the best third
        6: STOP,
    }


def test_the_best_third_goes_on_and_not_the_best_half() -> None:
    rising = [(number, 10, 0.1 * number) for number in range(1, 7)]
    assert decisions(90, [*rising, (7, 10, 0.38)])[-1] == STOP
    assert decisions(90, [*rising, (7, 10, 0.45)])[-1] == CONTINUE


def test_nobody_is_stopped_before_ten_epochs() -> None:
    results = [(1, epoch, 0.5) for epoch in range(1, 10)]
    results += [(2, epoch, 0.001 * epoch) for epoch in range(1, 10)]
    assert set(decisions(90, results)) == {CONTINUE}
    assert decisions(90, [*results, (1, 10, 0.5), (2, 10, 0.01)])[-2:] == [CONTINUE, STOP]


def test_short_trials_have_a_third_of_their_epochs_for_certain() -> None:
    assert decisions(12, [(1, 3, 0.5), (2, 3, 0.1)]) == [CONTINUE, CONTINUE]
    assert decisions(12, [(1, 4, 0.5), (2, 4, 0.1)]) == [CONTINUE, STOP]


def test_the_defaults_are_never_stopped() -> None:
    others = [(number, 10, 0.5 + 0.01 * number) for number in range(1, 8)]
    assert decisions(90, [*others, (0, 10, 0.001), (0, 30, 0.001)])[-2:] == [CONTINUE, CONTINUE]
    assert decisions(90, [*others, (9, 10, 0.001)])[-1] == STOP


def test_a_trial_ends_by_itself_at_its_last_epoch() -> None:
    assert decisions(20, [(1, 20, 0.5)]) == [CONTINUE]


@pytest.mark.parametrize(("name", "epochs"), [("none", 90), ("asha", 1), ("asha", 0)])
def test_there_is_nothing_to_stop(name: str, epochs: int) -> None:
    assert type(make_scheduler(name, {"sasrec": epochs})) is FIFOScheduler
