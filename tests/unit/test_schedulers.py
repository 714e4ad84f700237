"""Which trials are stopped early: the real scheduler, fed with results as Ray Tune feeds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from seqtune.study.schedulers import KEPT, Race, make_scheduler

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
DRAWN_ONE = {"model": "sasrec", "origin": "drawn"}
RISING = [0.1 + 0.02 * step for step in range(1, 31)]  # to .7 at step 30


class Fed:
    """A scheduler and what it has been told."""

    def __init__(self, rule: str, models: tuple[str, ...] = ("sasrec",)) -> None:
        race = make_scheduler(rule, models)
        assert isinstance(race, Race)
        self.race = race

    def tell(
        self, number: int, step: int, best: float, *, finished: bool = False, model: str = "sasrec"
    ) -> str:
        config = {"number": number, "model": model, "origin": "drawn"}
        trial: Any = SimpleNamespace(config=config)
        row = {"epoch": step, "step": step, "best": best, "finished": finished}
        return self.race.on_trial_result(None, trial, row)

    def run(self, number: int, values: list[float], **more: Any) -> int | None:
        """Tells a curve, a step each; returns the step at which the trial is stopped."""
        for n, value in enumerate(values, start=1):
            if self.tell(number, n, value, finished=n == len(values), **more) == STOP:
                return n
        return None


def with_defaults(rule: str, **more: Any) -> Fed:
    fed = Fed(rule, **more)
    assert fed.run(0, RISING) is None
    return fed


def test_a_trial_that_keeps_within_reach_of_the_best_goes_on() -> None:
    fed = with_defaults("reach")
    assert fed.run(1, [value - 0.05 for value in RISING]) == 21  # misses .23; gained .18
    assert fed.run(2, [value + 0.05 for value in RISING]) is None
    assert fed.run(3, [0.15] * 30) == 7  # it misses .6, and others gained .46


def test_nobody_is_judged_before_the_first_ninth_of_the_best_ones_steps() -> None:
    fed = with_defaults("reach")
    assert fed.run(1, [-9.0] * 30) == 4  # 30 / 9 = 3.3


def test_a_curve_on_the_plateau_where_the_best_one_stood_goes_on() -> None:
    plateau = [0.02] * 60 + [0.02 + 0.001 * n for n in range(1, 31)]
    fed = Fed("reach")
    assert fed.run(0, plateau) is None
    assert fed.run(1, [0.019] * 90) == 66  # when the best one had risen by a fifth
    early = [fed.tell(2, step, 0.019) for step in (10, 20, 30, 60)]
    assert set(early) == {CONTINUE}


def test_nobody_is_stopped_before_a_trial_has_ended_by_itself() -> None:
    fed = Fed("reach")
    for step, value in enumerate(RISING, start=1):
        assert fed.tell(0, step, value) == fed.tell(1, step, 0.0) == CONTINUE
    assert fed.tell(0, 31, 0.7, finished=True) == CONTINUE
    assert fed.tell(1, 31, 0.0) == CONTINUE  # nobody was further yet
    assert fed.run(2, [0.0] * 30) == 4


def test_the_best_third_goes_on_at_each_rung() -> None:
    fed = with_defaults("asha")  # which have learnt at 21 steps
    for number in range(1, 7):
        assert fed.run(number, [value - 0.01 * number for value in RISING]) == 21
    assert fed.run(7, [value - 0.001 for value in RISING]) is None  # second of eight
    assert fed.run(8, [value - 0.05 for value in RISING]) == 21


def test_hyperband_gives_a_third_of_the_trials_more_time() -> None:
    long = [0.1 + 0.5 * (step > 5) + 0.001 * step for step in range(1, 101)]
    fed = Fed("hyperband")
    fed.run(0, long)  # rungs at 11, 33 and 99
    stops = [fed.run(n, [value - 0.01 * n for value in long]) for n in (1, 2, 3, 4)]
    assert stops == [33, 99, 11, 33]


def test_the_better_half_goes_on_by_the_median_rule() -> None:
    fed = with_defaults("median")
    assert fed.run(1, [value + 0.1 for value in RISING]) is None
    assert fed.run(2, [value + 0.06 for value in RISING]) is None
    assert fed.run(3, [value + 0.01 for value in RISING]) == 21


@pytest.mark.parametrize("rule", ["reach", "asha", "hyperband", "median"])
def test_the_defaults_of_each_model_are_never_stopped(rule: str) -> None:
    fed = Fed(rule, models=("sasrec", "gru4rec"))
    assert fed.run(0, RISING) is None
    assert fed.run(2, [value + 0.2 for value in RISING]) is None
    assert fed.run(1, [0.0] * 30, model="gru4rec") is None
    assert fed.run(3, [0.0] * 30) is not None


def test_a_trial_is_compared_with_those_of_its_own_model() -> None:
    fed = Fed("reach", models=("sasrec", "gru4rec"))
    fed.run(0, RISING)
    fed.run(1, [value / 10 for value in RISING], model="gru4rec")
    assert fed.run(2, [value / 10 for value in RISING], model="gru4rec") is None


@pytest.mark.parametrize("rule", ["reach", "asha", "hyperband", "median"])
def test_what_was_before_a_resume_counts_as_if_it_were_told_now(rule: str) -> None:
    poor = [value - 0.05 for value in RISING]
    told = with_defaults(rule)
    remembered = Fed(rule)
    rows = [{"epoch": n, "step": n, "best": v} for n, v in enumerate(RISING, start=1)]
    whole = [row | {"finished": row["step"] == len(RISING)} for row in rows]
    remembered.race.remember(DRAWN_ONE, 0, whole)
    assert told.run(5, poor) == remembered.run(5, poor) is not None


def test_a_curve_without_steps_is_not_compared() -> None:
    fed = Fed("reach")
    fed.race.remember(DRAWN_ONE, 0, [{"epoch": 1, "best": 9.0}])
    assert fed.run(1, [0.1] * 30) is None


def test_a_long_study_compares_with_the_best_and_the_newest() -> None:
    fed = with_defaults("reach")
    for number in range(1, 4 * KEPT):
        fed.run(number, [0.001 * number] * 3)
    kept = fed.race.courses["sasrec"]
    assert len(kept) <= 3 * KEPT + 1
    assert 0 in kept
    assert fed.run(999, [0.0] * 30) == 4


def test_notes_and_failures_are_no_evaluations() -> None:
    fed = Fed("reach")
    trial: Any = SimpleNamespace(config={"number": 1, "model": "sasrec"})
    assert fed.race.on_trial_result(None, trial, {"note": "its folder was damaged"}) == CONTINUE
    assert fed.race.on_trial_result(None, trial, {"failed": "it diverged"}) == CONTINUE


def test_with_none_there_is_nothing_to_stop() -> None:
    assert type(make_scheduler("none", ["sasrec"])) is FIFOScheduler


@pytest.mark.parametrize("rule", ["reach", "asha", "hyperband", "median"])
def test_nobody_is_judged_where_nobody_has_got_above_popularity(rule: str) -> None:
    fed = Fed(rule)
    fed.race.popularity = lambda: 0.04
    fed.run(0, [0.04] * 30)  # the defaults never rise
    assert fed.run(1, [0.03] * 60) is None
    assert fed.run(2, [0.03] * 40 + [0.03 + 0.01 * n for n in range(1, 21)]) is None


@pytest.mark.parametrize("rule", ["reach", "asha", "hyperband", "median"])
def test_a_trial_at_the_level_of_popularity_is_not_judged(rule: str) -> None:
    fed = Fed(rule)
    fed.race.popularity = lambda: 0.04
    fed.run(0, RISING)
    assert fed.run(3, [0.045] * 30) is None
    assert fed.run(6, [0.06] * 30) is not None  # it has learnt, and is far behind


def test_what_nobody_can_count_lets_everybody_be_judged() -> None:
    fed = with_defaults("reach")
    assert fed.race.popularity() is None
    assert fed.run(1, [0.0] * 30) == 4


def test_popularity_is_asked_for_when_somebody_is_judged_and_once() -> None:
    asked: list[int] = []
    fed = Fed("reach")
    fed.race.popularity = lambda: asked.append(1)
    fed.run(0, RISING)
    assert asked == []
    fed.run(1, RISING)
    fed.run(2, RISING)
    assert asked == [1]


# Those that go on from the weights of others


def heir(number: int, origin: str, parent: int) -> Any:
    config = {"number": number, "model": "sasrec", "origin": origin, "parent": parent}
    return SimpleNamespace(config=config)


def test_a_trial_that_goes_on_does_so_while_others_run_and_is_no_measure_for_them() -> None:
    fed = with_defaults("reach")
    one = heir(5, "continued", 1)
    live = [one, SimpleNamespace(config={"number": 4, "origin": "drawn"})]
    controller = SimpleNamespace(get_live_trials=lambda: live)
    row = {"epoch": 9, "step": 9, "best": 0.0, "finished": False}
    assert fed.race.on_trial_result(controller, one, row) == CONTINUE
    assert 5 not in fed.race.courses["sasrec"]
    del live[1]
    assert fed.race.on_trial_result(controller, one, row) == STOP
    fed.race.remember({"model": "sasrec", "origin": "continued"}, 5, [row])
    assert 5 not in fed.race.courses["sasrec"]


def generations() -> Any:
    return make_scheduler("pbt", ["sasrec"], trials=20)


def steps(scheduler: Any, trial: Any, *at: int, **last: Any) -> int | None:
    """Tells evaluations at some steps; returns the one after which the trial is stopped."""
    for n in at:
        row = {"epoch": n, "step": n, "best": 0.5, "best_epoch": min(at), "finished": False}
        row |= last if n == at[-1] else {}
        if scheduler.on_trial_result(None, trial, row) == STOP:
            return n
    return None


def test_a_generation_ends_after_a_fifth_of_the_first_whole_training() -> None:
    pbt = generations()
    first, second = (SimpleNamespace(config={"number": n, "model": "sasrec"}) for n in (0, 1))
    assert steps(pbt, second, 10, 40) is None  # nobody has ended
    assert steps(pbt, first, 10, 50, 70, best_epoch=50, finished=True) is None
    assert steps(pbt, second, 41) == 41
    fresh = SimpleNamespace(config={"number": 2, "model": "sasrec"})
    assert steps(pbt, fresh, 4, 8, 12) == 12
    assert steps(pbt, heir(5, "evolved", 2), 16, 20, 24, 28) == 28  # 10 more than 16
    assert steps(pbt, heir(16, "evolved", 5), 16, 20, 24, 28, 90) is None  # the last generation


def test_the_length_of_a_generation_is_known_after_a_resume() -> None:
    told, remembered = generations(), generations()
    trial = SimpleNamespace(config={"number": 0, "model": "sasrec"})
    steps(told, trial, 10, 50, 70, best_epoch=50, finished=True)
    row = {"best": 0.5, "best_epoch": 50}
    rows = [row | {"epoch": n, "step": n, "finished": n == 70} for n in (10, 50, 70)]
    remembered.remember(DRAWN_ONE, 0, rows)
    for pbt in (told, remembered):
        other = SimpleNamespace(config={"number": 1, "model": "sasrec"})
        assert steps(pbt, other, 5, 9, 10) == 10
