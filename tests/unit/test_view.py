"""The view of a running study, on a terminal and in a log."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from seqtune.floors import Floor
from seqtune.report.live import area, difference
from seqtune.report.view import StudyView, TrainView


class Terminal(io.StringIO):
    """A terminal that remembers what was written."""

    def isatty(self) -> bool:
        return True


def start(view: StudyView, n_trials: int = 4) -> None:
    view.study_started("duorec", "demo: 300 users", n_trials, "7 hyperparameters", "/results/x")


def log_view() -> tuple[StudyView, io.StringIO]:
    out = io.StringIO()
    return StudyView("ndcg@10", console=Console(file=out, width=40)), out


def live_view(
    budget: float | None = None, width: int = 80, height: int = 24
) -> tuple[StudyView, Terminal]:
    out = Terminal()
    console = Console(
        file=out, width=width, height=height, force_terminal=True, color_system=None, _environ={}
    )
    return StudyView("ndcg@10", budget, console), out


def frame(view: StudyView) -> str:
    out = io.StringIO()
    Console(file=out, width=max(80, view.console.width)).print(view._draw())
    return out.getvalue()


def floors(*valid: float) -> list[Floor]:
    names = ("popularity", "markov", "decayed markov")
    values = [{"ndcg@10": value} for value in valid]
    ranks = np.ones(1, np.float32)
    return [Floor(n, v, v, ranks, 0.4) for n, v in zip(names, values, strict=True)]


def test_a_log_has_one_line_for_each_trial_that_ends() -> None:
    view, out = log_view()
    view.preparing("reading data")
    view.note("dropped 12 users")
    start(view)
    view.trial_started(0, {"n_heads": 2}, origin="default")
    view.trial_started(1, {"n_heads": 4})
    for epoch in range(1, 30):
        view.trial_result(0, epoch, 0.04, 0.05)
    view.trial_ended(0, "complete", 0.05)
    view.trial_result(1, 1, 0.06, 0.06)
    view.trial_ended(1, "pruned", 0.06)
    view.trial_started(2, {})
    view.trial_ended(2, "failed", None, "the loss is not finite at step 12; try a smaller rate")
    view.study_ended()
    lines = out.getvalue().splitlines()
    assert lines[:4] == [
        "dropped 12 users",
        "duorec on demo: 300 users",
        "7 hyperparameters",
        "results in /results/x",
    ]
    assert lines[4:] == [
        "[1/4] trial 0 (defaults): complete, ndcg@10 0.0500, 29 epochs, 0.0s",
        "[2/4] trial 1: pruned, ndcg@10 0.0600, 1 epoch, 0.0s, new best",
        "[3/4] trial 2: failed, 0.0s, the loss is not finite at step 12; try a smaller rate",
    ]
    assert "\x1b" not in out.getvalue()


def test_trials_from_before_a_resume_count_and_are_not_told_again() -> None:
    view, out = log_view()
    start(view)
    view.trial_started(0, {}, origin="default")
    view.trial_ended(0, "complete", 0.07, replayed=True)
    view.trial_started(1, {})
    view.trial_ended(1, "complete", 0.06)
    assert out.getvalue().splitlines()[3:] == ["[2/4] trial 1: complete, ndcg@10 0.0600, 0.0s"]


def test_the_live_view_shows_the_state_of_the_study() -> None:
    view, out = live_view()
    view.preparing("starting Ray")
    start(view, n_trials=10)
    for number, status, value in ((0, "complete", 0.05), (1, "pruned", 0.04), (2, "failed", None)):
        view.trial_started(number, {}, origin="drawn" if number else "default")
        view.trial_ended(number, status, value, "out of memory" if status == "failed" else "")
    view.trial_started(3, {"learning_rate": 0.00123456, "n_heads": 2})
    view.trial_result(3, epoch=12, value=0.0581, best=0.06)
    text = frame(view)
    assert "3 of 10  1 complete  1 running  1 pruned  1 failed" in text
    assert "best    ndcg@10 0.0600 in trial 3, defaults 0.0500 (+20.0 %)" in text
    assert "trial 3    epoch 12   0.0581   learning_rate 0.001235, n_heads 2" in text
    assert "left" in text
    assert len(text.splitlines()) <= 12
    view.study_ended()
    view.study_ended()  # twice does no harm
    written = out.getvalue()
    assert "out of memory" in written  # a failure stays on the screen
    assert "trial 3 " not in frame(view)  # the final state has no running trials
    assert "left" not in frame(view)
    assert written.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_the_live_view_stays_within_a_dozen_lines() -> None:
    view, _ = live_view()
    start(view, n_trials=100)
    for number in range(16):
        view.trial_started(number, {"x": "y" * 200})
    text = frame(view)
    assert len(text.splitlines()) <= 12
    assert "and 12 more" in text
    assert max(map(len, text.splitlines())) <= 76
    view.study_ended()


def test_before_the_first_result() -> None:
    view, _ = live_view()
    start(view)
    assert "none yet" in frame(view)
    view.trial_started(0, {}, origin="default")
    assert "starting            the defaults" in frame(view)
    view.trial_result(0, 1, 0.05, 0.05)
    assert "ndcg@10 0.0500 by the defaults (trial 0)" in frame(view)
    view.study_ended()


def test_time_left_is_the_budget_or_what_the_trials_need(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, noon = [1000.0], time.mktime((2026, 11, 27, 12, 0, 0, 0, 0, -1))
    monkeypatch.setattr("seqtune.report.live.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("seqtune.report.live.time.time", lambda: noon + clock[0] - 1000)
    view, _ = live_view(budget=600)
    start(view, n_trials=8)
    clock[0] += 30
    assert "30s, at most 9m 30s left, until 12:10\n" in frame(view)
    for number in range(4):  # four trials of 20 s, two at a time
        view.trial_started(number, {})
        if number % 2:
            clock[0] += 20
            view.trial_ended(number - 1, "complete", 0.1)
            view.trial_ended(number, "complete", 0.1)
    # Four more trials of 20 s, two at a time.
    assert "1m 10s, about 40s left\n" in frame(view)
    clock[0] += 520  # the budget is nearer now
    assert "at most 10s left" in frame(view)
    view.trial_started(4, {})
    clock[0] += 15
    assert " time    10m 05s, time is up; the running trials stop\n" in frame(view)
    view.trial_ended(4, "complete", 0.1)
    assert " time    10m 05s, time is up\n" in frame(view)
    view.study_ended()


def test_the_strongest_floor_stands_beside_the_best() -> None:
    view, _ = live_view()
    start(view)
    view.floors_counted([])  # they could not be counted
    assert "counted" not in frame(view)
    view.floors_counted(floors(0.01, 0.05, 0.04))
    assert " counted ndcg@10 0.0500 by a Markov chain\n" in frame(view)
    view.trial_started(0, {}, origin="default")
    view.trial_result(0, 1, 0.04, 0.04)
    assert "0.0500 by a Markov chain, above the best so far\n" in frame(view)
    view.trial_result(0, 2, 0.06, 0.06)
    assert "0.0500 by a Markov chain, below the best\n" in frame(view)
    view.study_ended()


def test_a_log_tells_the_strongest_floor_once() -> None:
    view, out = log_view()
    start(view)
    view.floors_counted(floors(0.01, 0.05, 0.07))
    assert out.getvalue().splitlines()[3:] == [
        "counting reaches ndcg@10 0.0700 on validation (a decayed Markov chain, 0.4s)"
    ]


def test_what_differs_from_the_defaults_comes_first() -> None:
    usual = {"n_heads": 2, "dropout_prob": 0.2, "learning_rate": 0.001, "ssl_lambda": 0.1}
    params = {"n_heads": 2, "dropout_prob": 0.5, "learning_rate": 0.003, "tau": 0.7}
    text = difference(params, usual)
    assert text == "learning_rate 0.003, dropout_prob 0.5, tau 0.7, n_heads 2"
    # The learning rate is seen in 80 columns, whatever its place in the search space.
    many = {f"name_of_number_{n}": n for n in range(9)}
    view, _ = live_view()
    start(view)
    view.trial_started(0, many | {"learning_rate": 0.1}, origin="default")
    view.trial_ended(0, "complete", 0.1)
    view.trial_started(1, many | {"learning_rate": 0.2})
    assert "starting            learning_rate 0.2, name_of_number_0 0" in frame(view)
    view.study_ended()


def test_the_curve_ends_at_the_best_line() -> None:
    view, _ = live_view()
    start(view)
    for number, value in ((0, 0.05), (1, 0.06)):
        view.trial_started(number, {}, origin="drawn" if number else "default")
        view.trial_ended(number, "complete", value)
    view.trial_started(2, {})
    view.trial_result(2, 1, 0.08, 0.08)
    text = frame(view)
    assert "best    ndcg@10 0.0800 in trial 2" in text
    assert f"  0.0800 {' ' * 20}{'█' * 10}\n" in text  # the third of four places
    assert f"  0.0500 {'▁' * 10}" in text
    view.study_ended()


def test_a_high_screen_shows_more_trials() -> None:
    view, _ = live_view(width=140, height=40)
    start(view, n_trials=100)
    for number in range(20):
        view.trial_started(number, {"x": number}, origin="drawn" if number else "default")
        if number < 15:
            status = "pruned" if number % 2 else "complete"
            view.trial_ended(number, status, number / 100 if number != 3 else None)
    lines = frame(view).splitlines()
    assert [line.split()[:4] for line in lines[6:11]] == [
        ["trial", str(number), "starting", "x"] for number in range(15, 20)
    ]
    assert lines[11] == " trial 14   complete   0.1400   x 14"  # the best of those that have ended
    assert lines[12] == " trial 13   pruned     0.1300   x 13"
    assert len(lines) == 6 + 19  # a screen has 40: head, notes and prompt have room
    view.study_ended()
    assert len(frame(view).splitlines()) == 6  # what stays on the screen is brief


def test_events_may_come_from_many_threads() -> None:
    view, out = log_view()
    start(view, n_trials=200)

    def trials(first: int) -> None:
        for number in range(first, first + 50):
            view.trial_started(number, {})
            view.trial_result(number, 1, number / 1000, number / 1000)
            view.trial_ended(number, "complete", number / 1000)

    threads = [threading.Thread(target=trials, args=(50 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = out.getvalue().splitlines()[3:]
    assert sorted(int(line[1:].split("/")[0]) for line in lines) == list(range(1, 201))
    assert "200 of 200  200 complete" in frame(view)
    assert "0.1990 in trial 199" in frame(view)


def test_area() -> None:
    # Two of four places are filled; the first value is the lowest step, the last the highest.
    assert area([1.0, 2.0], 4, width=4, height=2) == [" █", "▁█"]
    assert area([1.0, 1.5, 2.0], 3, width=6, height=1) == ["▁▁▅▅██"]
    assert area([], 4, width=4, height=2) == ["", ""]
    assert area([3.0, 3.0], 2, width=2, height=1) == ["▁▁"]  # no improvement
    assert len(area([float(n) for n in range(1000)], 1000, width=40, height=3)[0]) == 40


def test_one_training_has_a_line_for_each_evaluation() -> None:
    out = io.StringIO()
    view = TrainView("ndcg@10", Console(file=out, width=200))
    view.started("sasrec", "demo", "/results/x")
    row = {"losses": {"ce": 5.25}, "train_seconds": 0.75, "eval_seconds": 0.5, "epoch": 3}
    view.evaluated(row | {"metrics": {"ndcg@10": 0.0312}, "best_epoch": 3})
    view.evaluated(row | {"metrics": {"ndcg@10": 0.0311}, "best_epoch": 2})
    assert out.getvalue().splitlines() == [
        "sasrec on demo",
        "checkpoint in /results/x",
        "epoch   3  ce 5.2500  ndcg@10 0.0312   1.2s  best",
        "epoch   3  ce 5.2500  ndcg@10 0.0311   1.2s",
    ]


def test_a_file_of_params_is_named_where_the_defaults_would_be() -> None:
    out = io.StringIO()
    view = StudyView("ndcg@10", console=Console(file=out), baseline="values of my.yaml")
    start(view)
    view.trial_started(0, {"n_heads": 2}, origin="default")
    assert "starting            the values of my.yaml" in frame(view)
    view.trial_ended(0, "complete", 0.05)
    assert "ndcg@10 0.0500 by the values of my.yaml (trial 0)" in frame(view)
    view.trial_started(1, {"n_heads": 4})
    view.trial_ended(1, "complete", 0.06)
    assert "ndcg@10 0.0600 in trial 1, file 0.0500 (+20.0 %)" in frame(view)
    assert "[1/4] trial 0 (file): complete" in out.getvalue()


def test_a_trial_that_begins_before_the_defaults_shows_what_differs_from_them() -> None:
    view = StudyView("ndcg@10", console=Console(file=io.StringIO()))
    view.trial_started(1, {"n_layers": 2, "dropout_prob": 0.3}, "portfolio")
    view.trial_started(0, {"n_layers": 2, "dropout_prob": 0.5}, "default")
    assert view._state.running[1].params == "portfolio: dropout_prob 0.3, n_layers 2"
    assert view._state.running[0].params == "the defaults"
