"""The report of a study: every sentence it may say, and that the numbers in it are right."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs
from rich.console import Console

from seqtune import metrics
from seqtune.floors import Floor
from seqtune.limits import Judge, Limit
from seqtune.report.documents import to_json, to_markdown
from seqtune.report.page import to_html, with_banner
from seqtune.report.pictures import pictures
from seqtune.report.report import show, show_training
from seqtune.report.verdict import against_floors, counts, gains, verdict
from seqtune.results import Choice, Contender, Finalist, Share, StudyResult, TrainResult, TrialRow
from seqtune.words import bar, brief, percent

DEFAULTS = {"learning_rate": 1e-3, "n_heads": 2, "ssl_type": "us_x", "ssl_lambda": 0.1}


def finalist(number: int, params: dict[str, object], ranks: Any) -> Finalist:
    ranks = np.asarray(ranks, dtype=np.float32)
    return Finalist(number, "duorec", params, metrics.compute(ranks), metrics.compute(ranks), ranks)


def study(n: int = 12, winner: int = 7, better: float = 2.0, **changes: Any) -> StudyResult:
    """A made-up study whose best trial has ranks that are ``better`` times smaller."""
    rng = np.random.default_rng(0)
    trials = [TrialRow(0, "sasrec", "complete", DEFAULTS, 0.05, 9, 12.0)]
    for number in range(1, n):
        params: dict[str, object] = {
            "learning_rate": float(10 ** rng.uniform(-4, -2)),
            "n_heads": int(rng.choice([1, 2, 4])),
            "ssl_type": str(rng.choice(["us_x", "none"])),
        }
        if params["ssl_type"] != "none":
            params["ssl_lambda"] = float(rng.uniform(0.01, 0.5))
        value = 0.09 if number == winner else float(rng.uniform(0.02, 0.08))
        status = "pruned" if number % 3 == 1 and number != winner else "complete"
        trials.append(TrialRow(number, "sasrec", status, params, value, 5, 8.0))
    ranks = np.exp(rng.normal(3, 1.5, size=300)) + 1
    better_ranks = np.maximum(1, ranks * np.exp(rng.normal(0, 0.5, size=300)) / better)
    default = finalist(0, DEFAULTS, ranks)
    result = StudyResult(
        name="duorec-demo",
        models=("duorec",),
        data_name="demo: 300 users",
        metric="ndcg@10",
        protocol="Leave-one-out: the last item of 300 users is the test.",
        trials=tuple(trials),
        default=default,
        best=finalist(winner, trials[winner].params, better_ranks) if winner else default,
        importances=(Share("learning_rate", 0.75, 0.61, 0.9), Share("n_heads", 0.25, 0.08, 0.4)),
        searched=tuple(DEFAULTS),
        planned=len(trials),
        seconds=252,
        checkpoint="/results/duorec-demo/best",
        train_command="seqtune train --model duorec --set learning_rate=0.002",
        ui_command="mlflow ui --backend-store-uri sqlite:////results/mlflow.db",
        view_link="http://127.0.0.1:5000/#/experiments/1?viewStateShareKey=k",
        plain_link="http://127.0.0.1:5000/#/experiments/1?searchFilter=x",
        serve_command="mlflow models serve -m models:/duorec-demo@champion --env-manager local",
        dashboard_command="optuna-dashboard sqlite:////results/duorec-demo/study.db",
        report="/results/duorec-demo/report",
        champion="duorec-demo",
    )
    return replace(result, **changes)


def floors(ranks: Any, better: float = 1.5, seconds: float = 0.42) -> tuple[Floor, ...]:
    """Floors of which the last one is the strongest: its ranks are ``better`` times smaller."""
    found = []
    for name, size in (("popularity", 0.5), ("markov", 0.9), ("decayed markov", better)):
        own = np.maximum(1, np.asarray(ranks) / size).astype(np.float32)
        values = metrics.compute(own)
        found.append(Floor(name, values, values, own, seconds))
    return tuple(found)


def failed_study() -> StudyResult:
    """A study of one trial, which failed."""
    row = TrialRow(
        0, "sasrec", "failed", DEFAULTS, None, None, 3.0, "out of memory at batch_size 4096"
    )
    return study(trials=(row,), planned=1, default=None, best=None, importances=())


def shown(result: StudyResult, width: int = 80) -> str:
    out = io.StringIO()
    show(result, Console(file=out, width=width))
    return out.getvalue()


def cells(text: str, name: str) -> list[str]:
    return next(line.split()[1:] for line in text.splitlines() if line.split()[:1] == [name])


def test_a_gain_is_told_with_its_test() -> None:
    result = study()
    assert result.default is not None
    assert result.best is not None
    found = gains(result)["ndcg@10"]
    difference = result.best.test["ndcg@10"] - result.default.test["ndcg@10"]
    assert found.difference == pytest.approx(difference)
    assert found.p_value < 1e-4
    sentence = verdict(result)
    assert sentence.startswith(f"Tuning gained {difference:+.4f} ndcg@10 (")
    assert "p < 0.0001, paired t-test over 300 users" in sentence
    assert "chance" not in sentence


def test_a_gain_that_may_be_chance_says_so() -> None:
    result = study()
    ranks = np.array([1.0, 2, 30, 4, 50])
    luckier = np.array([1.0, 2, 30, 4, 5])  # one user of five: p = 0.37
    result = replace(
        result,
        default=finalist(0, DEFAULTS, ranks),
        best=finalist(7, DEFAULTS, luckier),
    )
    assert ", which may be chance: 95 % CI [-" in verdict(result)
    assert "p = 0.37" in verdict(result)


def test_no_gain_is_told_honestly() -> None:
    assert verdict(study(better=0.5)).startswith("Tuning lost: better on validation, but -0.")
    same = study(better=1.0)
    assert same.default is not None
    same = replace(same, best=replace(same.default, number=3))
    assert verdict(same).startswith("Tuning changed nothing: +0.0000 ndcg@10 (+0.0 %) on test")
    ranks = same.default.test_ranks
    worse_for_one = np.where(ranks == ranks.min(), 500, ranks)
    slightly_worse = replace(same, best=finalist(3, DEFAULTS, worse_for_one))
    assert verdict(slightly_worse).startswith("Tuning gained nothing: -0.00")


def test_the_defaults_may_win() -> None:
    result = study(winner=0)
    assert not result.tuned
    assert gains(result) == {}
    none = "on validation none of the 11 other trials did better than the defaults (trial 0)."
    assert verdict(result) == f"Tuning gained nothing: {none}"
    two = replace(result, trials=result.trials[:2], planned=2)
    other = "on validation the other trial did not do better than the defaults (trial 0)."
    assert verdict(two) == f"Tuning gained nothing: {other}"
    one = replace(result, trials=result.trials[:1], planned=1)
    assert "the defaults (trial 0) are all that was evaluated" in verdict(one)
    text = shown(result)
    assert "default = best (trial 0)" in text
    assert "changed" not in text


def test_a_file_of_params_is_named_where_the_defaults_would_be() -> None:
    result = study(winner=0, baseline="values of my.yaml")
    assert "did better than the values of my.yaml (trial 0)" in verdict(result)
    assert "file = best (trial 0)" in shown(result)
    result = study(baseline="values of my.yaml")
    assert "default" not in shown(result)
    assert "| validation, file | validation, best |" in to_markdown(result)
    assert "default" not in to_markdown(result)
    failed = study(baseline="values of my.yaml", default=None)
    assert "the values of my.yaml (trial 0) did not finish" in verdict(failed)


def test_defaults_that_failed_leave_the_gain_unknown() -> None:
    result = study(default=None)
    assert "unknown" in verdict(result)
    text = shown(result)
    assert "best (trial 7)" in text
    assert "default" not in text.split("Accuracy")[0]


def test_a_study_without_a_result_says_why() -> None:
    text = shown(failed_study())
    assert "Trial 0 failed: out of memory at batch_size 4096" in text
    assert "1 trial in 4m 12s: 1 failed" in text
    assert "No trial got as far as an evaluation" in text
    assert "Next" not in text


def test_the_screen_shows_both_sides_and_marks_changes() -> None:
    result = study()
    assert result.default is not None
    assert result.best is not None
    text = shown(result)
    best = result.best.params
    assert cells(text, "learning_rate") == ["0.001", brief(best["learning_rate"]), "changed"]
    unchanged = replace(result, best=replace(result.best, params=best | {"n_heads": 2}))
    assert cells(shown(unchanged), "n_heads") == ["2", "2"]
    names = ["ndcg@5", "ndcg@10", "ndcg@20", "hr@5", "hr@10", "hr@20", "mrr@10"]
    table = text.split("Accuracy")[1]
    assert table.splitlines()[1].split() == ["validation", "test"]
    assert table.splitlines()[2].split() == ["ndcg@10", *names]  # at 80 columns there is room
    for who, one in (("default", result.default), ("best", result.best)):
        values = [one.valid["ndcg@10"], *(one.test[name] for name in names)]
        assert cells(table, who) == [f"{value:.4f}" for value in values]
    change = [result.best.test[name] / result.default.test[name] - 1 for name in names]
    assert cells(table, "change")[::2] == [f"{100 * one:+.0f}" for one in change]


def test_what_mattered_is_shown_with_its_interval() -> None:
    result = study()
    text = shown(result).split("What mattered")[1]
    assert cells(text, "learning_rate")[-5:] == ["75", "%", "(61", "to", "90)"]
    assert "| `n_heads` | 25 % (8 to 40) |" in to_markdown(result)
    first = json.loads(json.dumps(to_json(result)))["importances"][0]
    assert first == {"name": "learning_rate", "share": 0.75, "low": 0.61, "high": 0.9}
    early = "It is too early to say what mattered: 12 trials have ended with a value."
    result = replace(result, importances=(), unimportant=early)
    for text in (shown(result, width=100), to_markdown(result)):
        assert early in text
        assert "(61 to 90)" not in text
    assert "What mattered" not in shown(result)


def ended(result: StudyResult, *numbers: int) -> StudyResult:
    """The study when time was up before the other trials had ended."""
    trials = tuple(
        row if row.number in numbers else replace(row, status="unfinished", seconds=None)
        for row in result.trials
    )
    return replace(result, trials=trials)


def test_two_unfinished_trials_are_no_verdict() -> None:
    result = ended(study(n=2, winner=0))
    sentence = verdict(replace(result, planned=20))
    assert sentence.startswith(
        "It is too early to say what tuning gains: 0 of 20 trials have ended"
    )
    assert "and the defaults (trial 0) not yet. The best so far are the defaults" in sentence
    assert "p =" not in sentence


def test_few_ended_trials_are_too_few_for_a_verdict() -> None:
    result = replace(ended(study(), 0, 7), planned=20)
    assert result.best is not None
    assert result.default is not None
    best, default = result.best.valid["ndcg@10"], result.default.valid["ndcg@10"]
    assert verdict(result) == (
        "It is too early to say what tuning gains: 2 of 20 trials have ended. The best so far is "
        f"trial 7, with ndcg@10 {best:.4f} on validation, where the defaults (trial 0) have "
        f"{default:.4f}."
    )
    assert verdict(replace(result, planned=12)) == verdict(result).replace("of 20", "of 12")
    assert "p (paired t-test, Holm)" not in to_markdown(result)
    assert to_json(result)["too_early"]
    assert not to_json(study())["too_early"]
    assert "p (paired t-test, Holm)" in to_markdown(study())


def test_a_study_that_was_cut_short_says_that_the_best_may_change() -> None:
    result = replace(ended(study(), 0, 1, 2, 3, 7), planned=20)
    assert verdict(result).startswith("Tuning gained +0.")
    end = "users. 5 of 20 trials have ended, so the best one may still change."
    assert verdict(result).endswith(end)
    sentence = verdict(ended(study(), *range(1, 12)))  # all but the defaults
    assert "11 of 12 trials have ended, and the defaults (trial 0) not yet. The best" in sentence
    assert "may still change" not in verdict(study())


def test_a_narrow_screen_shows_fewer_metrics() -> None:
    table = shown(study(), width=50).split("Accuracy")[1].split("Tuning")[0]
    assert cells(table, "ndcg@10") == ["ndcg@5", "ndcg@10", "ndcg@20", "hr@5"]
    assert "…" not in table


def test_the_protocol_is_told() -> None:
    result = study()
    for text in (shown(result), to_markdown(result), to_json(result)["protocol"]):
        assert "Leave-one-out: the last item of 300 users is the test." in text


def test_the_floors_stand_beside_best_and_default() -> None:
    result = study()
    assert result.default is not None
    assert result.best is not None
    result = replace(result, floors=floors(result.default.test_ranks))
    table = shown(result).split("Accuracy")[1]
    rows = [line.split()[0] for line in table.splitlines()[3:9]]
    assert rows == ["popularity", "markov", "decayed", "default", "best", "change"]
    popularity = result.floors[0].test
    values = [f"{popularity[name]:.4f}" for name in ("ndcg@5", "ndcg@10")]
    assert cells(table, "popularity")[1:3] == values
    header = next(line for line in to_markdown(result).splitlines() if "test, markov" in line)
    row = next(line for line in to_markdown(result).splitlines() if line.startswith("| hr@10 |"))
    at = header.split("|").index(" test, markov ")
    assert row.split("|")[at].strip() == f"{result.floors[1].test['hr@10']:.4f}"
    data = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert [one["name"] for one in data["floors"]] == ["popularity", "markov", "decayed markov"]
    assert data["floors"][2]["test"] == result.floors[2].test
    assert "test_ranks" not in data["floors"][0]
    assert data["against_floors"]["floor"] == "decayed markov"
    difference = result.best.test["ndcg@10"] - result.floors[2].test["ndcg@10"]
    assert data["against_floors"]["difference"] == pytest.approx(difference)
    assert data["against_floors"]["sentence"] in " ".join(shown(result).split())
    assert data["against_floors"]["sentence"] in to_markdown(result)


def test_a_champion_above_the_floors() -> None:
    result = study()
    assert result.default is not None
    result = replace(result, floors=floors(result.default.test_ranks, better=1.1))
    counted = against_floors(result)
    assert counted is not None
    assert not counted.beaten
    assert counted.sentence == (
        "The best trial is above the strongest floor, a decayed Markov chain (counted in 0.4s): "
        f"{counted.found.difference:+.4f} ndcg@10 on test, p < 0.0001."
    )


def test_counting_that_is_better_is_told() -> None:
    result = study()
    assert result.best is not None
    result = replace(result, floors=floors(result.best.test_ranks, better=2.0))
    counted = against_floors(result)
    assert counted is not None
    assert counted.beaten
    assert counted.found.difference < 0
    assert counted.sentence == (
        "Counting beats the best trial, which is below a decayed Markov chain (counted in 0.4s): "
        f"{counted.found.difference:+.4f} ndcg@10 on test, p < 0.0001; try another model, more "
        "trials or longer training."
    )


def test_a_champion_level_with_the_floors() -> None:
    result = study()
    assert result.best is not None
    result = replace(result, floors=floors(result.best.test_ranks, better=1.0))
    counted = against_floors(result)
    assert counted is not None
    assert "The best trial cannot be told from the strongest floor, a decayed" in counted.sentence
    assert "p = 1.00; try another model" in counted.sentence


def test_nothing_is_said_about_floors_that_are_missing() -> None:
    assert against_floors(study()) is None
    assert against_floors(replace(failed_study(), floors=floors(np.ones(300)))) is None
    assert "floor" not in shown(study())
    assert "against_floors" not in to_json(study())


def test_a_hyperparameter_that_is_not_in_use_is_a_dash() -> None:
    result = study()
    assert result.best is not None
    params = {"ssl_type": "none", "learning_rate": 1e-3, "n_heads": 2}
    text = shown(replace(result, best=replace(result.best, params=params)))
    assert cells(text, "ssl_lambda") == ["0.1", "-", "changed"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_commands_are_never_broken(width: int) -> None:
    result = study(train_command="seqtune train " + "--set tau=0.5 " * 20 + "--set [x]=1")
    lines = [line.strip() for line in shown(result, width).splitlines()]
    for command in (
        f"{result.report}/report.html",
        result.checkpoint,
        result.train_command,
        result.serve_command,
        result.ui_command,
        result.view_link,
        result.plain_link,
        result.dashboard_command,
    ):
        assert command in lines
    assert "# the best checkpoint, registered as" in " ".join(lines)
    said = " ".join(" ".join(lines).split())
    assert "# study.db is an Optuna storage, which optuna-dashboard opens" in said
    elsewhere = replace(result, dashboard_command='optuna-dashboard "$SEQTUNE_OPTUNA_STORAGE"')
    assert "study.db" not in shown(elsewhere, width)


def test_the_limit_of_generated_data_is_told() -> None:
    result = study(best_hit_10=0.8)
    assert result.best is not None
    reached = result.best.test["hr@10"]
    assert f"is {reached:.4f} of at most 0.8000 ({reached / 0.8:.0%})" in " ".join(
        shown(result).split()
    )
    assert "at most" not in shown(study())


def test_own_metric_is_shown_where_it_is_an_unusual_one() -> None:
    result = study(metric="ndcg@7")
    assert result.default is not None
    assert result.best is not None
    sides = [
        replace(side, valid=values, test=values)
        for side in (result.default, result.best)
        for values in [metrics.compute(side.test_ranks, also=["ndcg@7"])]
    ]
    result = replace(result, default=sides[0], best=sides[1])
    table = shown(result, width=90).split("Accuracy")[1]
    assert cells(table, "ndcg@7")[:2] == ["ndcg@7", "ndcg@5"]
    best = sides[1]
    assert cells(table, "best")[:2] == [f"{best.valid['ndcg@7']:.4f}", f"{best.test['ndcg@7']:.4f}"]


def test_json_is_complete_and_plain() -> None:
    result = study()
    data = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert data["best"]["test"]["recall@20"] == result.best.test["recall@20"]  # type: ignore[union-attr]
    assert "test_ranks" not in data["best"]
    assert len(data["trials"]) == 12
    assert data["verdict"] == verdict(result)
    gain = data["gains"]["ndcg@10"]
    assert gain["n"] == 300
    assert gain["p_value"] <= gain["p_benjamini_hochberg"] <= gain["p_holm"]
    assert 0 < gain["p_wilcoxon"] < 0.01
    hopeless = finalist(0, DEFAULTS, [90.0, 90.0])  # a mean of 0: the relative gain is infinite
    lucky = finalist(7, DEFAULTS, [1.0, 90.0])
    data = to_json(replace(result, default=hopeless, best=lucky))
    assert data["gains"]["hr@10"]["relative"] is None
    assert data["gains"]["hr@10"]["difference"] == 0.5


def test_markdown_has_every_metric_and_every_trial() -> None:
    result = study()
    assert result.best is not None
    text = to_markdown(result)
    for name, value in result.best.test.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{value:.4f}" in row
    table = text.split("## Trials")[1]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == 1 + 12
    assert rows[1].startswith("| 7 | complete | 0.0900 | 5 | 8.0s |")  # the best comes first
    assert to_markdown(study(winner=0))
    assert "No trial" in to_markdown(replace(result, best=None, default=None))


def test_counts_in_words() -> None:
    assert counts(study()) == "12 trials in 4m 12s: 9 complete, 3 pruned"


def test_the_report_of_one_training() -> None:
    ranks = np.array([1.0, 3, 12], dtype=np.float32)
    values = metrics.compute(ranks)
    out = io.StringIO()
    result = TrainResult("sasrec", "demo", "ndcg@10", 4, values, values, 3, "/my results/x", 0.9)
    result = replace(result, floors=floors(ranks, better=0.95), test_ranks=ranks)
    show_training(result, Console(file=out, width=80))
    said = " ".join(out.getvalue().split())
    (row,) = (line.split() for line in out.getvalue().splitlines() if "sasrec (epoch 4)" in line)
    assert row[3:6] == ["0.5000"] * 3  # (1 + 1/2 + 0) / 3: validation, test at 5 and at 10
    assert row[8:] == ["0.6667", "1.0000", "0.4444"]  # hr@10, hr@20, mrr@10
    assert "This model cannot be told from the strongest floor, a decayed Markov chain" in said
    assert "popularity" in said
    assert "0.6667 of at most 0.9000 (74%)" in " ".join(out.getvalue().split())
    assert "seqtune recommend --checkpoint '/my results/x' --data FILE" in out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "true"),
        (0.00123456, "0.001235"),
        (1e-5, "1e-05"),
        (64, "64"),
        ("a", "a"),
    ],
)
def test_value_text(value: object, text: str) -> None:
    assert brief(value) == text


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        (0.184, "+18 %"),
        (-0.021, "-2.1 %"),
        (0.0, "+0.0 %"),
        (0.0996, "+10 %"),
        (math.inf, "from zero"),
    ],
)
def test_percent(relative: float, text: str) -> None:
    assert percent(relative) == text


def test_bar() -> None:
    assert bar(1, 4) == "████"
    assert bar(0.5, 4) == "██"
    assert bar(3 / 32, 4) == "▍"  # 3 of 32 eighths
    assert bar(0, 4) == ""


SAMPLED: dict[str, optuna.distributions.BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "n_heads": CategoricalDistribution([1, 2, 4]),
    "ssl_type": CategoricalDistribution(["us_x", "none"]),
    "ssl_lambda": FloatDistribution(0.01, 0.5),
}


def drawn(result: StudyResult) -> optuna.Study:
    """The study as Optuna has it."""
    shown = optuna.create_study(direction="maximize")
    for trial in result.trials:
        value = trial.value or 0.0
        shown.add_trial(
            create_trial(
                state=TrialState.COMPLETE if trial.value is not None else TrialState.FAIL,
                value=trial.value,
                params=trial.params,
                distributions={name: SAMPLED[name] for name in trial.params},
                intermediate_values={epoch: value * epoch / 5 for epoch in range(1, 6)},
            )
        )
    return shown


def names(result: StudyResult) -> list[str]:
    return [one.name for one in pictures(result, drawn(result))]


ALL = ["history", "learning_curves", "parallel_coordinates", "slices", "contour", "timeline"]


def test_every_picture_is_drawn() -> None:
    assert sorted(names(study())) == sorted([*ALL, "importances"])


def test_best_and_defaults_are_marked_where_they_are() -> None:
    result = study()
    shown = {one.name: one.figure for one in pictures(result, drawn(result))}
    marks = {line.name: (line.x[0], line.y[0]) for line in shown["history"].data if len(line.x)}
    assert marks["defaults (trial 0)"] == (0, 0.05)
    assert marks["best (trial 7)"] == (7, 0.09)
    pruned = next(line for line in shown["history"].data if line.name == "pruned")
    assert list(pruned.x) == [t.number for t in result.trials if t.status == "pruned"]
    named = [line.name for line in shown["learning_curves"].data if line.showlegend]
    assert named == ["defaults (trial 0)", "best (trial 7)"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, {"learning_curves", "timeline"}),
        (2, {"learning_curves", "history", "timeline"}),
        (3, {*ALL}),
    ],
)
def test_pictures_that_make_no_sense_are_skipped(n: int, expected: set[str]) -> None:
    assert {*names(study(n=n, winner=n - 1, importances=()))} == expected


def test_odd_studies_are_drawn() -> None:
    same = study()
    same = replace(same, trials=tuple(replace(row, value=0.05) for row in same.trials))
    one = {"n_heads": 2}  # a single hyperparameter that never varies
    alone = tuple(replace(row, params=one) for row in study().trials)
    failed = tuple(replace(row, value=row.value if row.number < 9 else None) for row in same.trials)
    for result in (
        same,
        replace(same, trials=failed),
        study(default=None),
        study(best=None, default=None),
    ):
        assert {*names(result)} == {*ALL, "importances"}
    for trials in (alone, tuple(replace(row, params={}) for row in alone)):
        nothing = study(trials=trials, importances=())
        assert {*names(nothing)} == {"history", "learning_curves", "timeline"}


def test_a_study_where_all_failed_has_no_pictures() -> None:
    assert names(failed_study()) == []


def test_the_page_needs_no_network_and_shows_what_was_found() -> None:
    result = study(notes=("a note with <tags>",), facts={"seqtune.version.torch": "2.13.0"})
    page = to_html(result, drawn(result))
    assert len(page.encode()) < 6_000_000
    outside = page.replace(get_plotlyjs(), "")  # plotly's code names places that it may fetch from
    assert "http" not in outside.replace("http://127.0.0.1", "")
    assert "a note with &lt;tags&gt;" in page
    assert "<dt>torch</dt><dd>2.13.0</dd>" in page
    ids = re.findall(r'id="([^"]+)"', outside)
    assert len(ids) == len({*ids})
    for one in pictures(result, drawn(result)):
        assert f'id="plot-{one.name}"' in page
    assert set(re.findall(r'href="#([^"]+)"', outside)) <= {*ids}


def test_a_page_has_one_banner_at_most() -> None:
    page = to_html(failed_study(), drawn(failed_study()))
    first = with_banner(page, "Trial 3 <was> promoted.")
    assert first.count("<main>") == 1
    assert "Trial 3 &lt;was&gt; promoted." in first.partition("<h1>")[0]
    second = with_banner(first, "Trial 4 was promoted.")
    assert "Trial 3" not in second.partition("<h1>")[0].partition("<main>")[2]
    assert with_banner(second, "Trial 3 <was> promoted.") == first


def test_a_page_of_a_study_without_a_result_says_why() -> None:
    assert "No trial got as far as an evaluation" in to_html(failed_study(), drawn(failed_study()))


def several() -> StudyResult:
    """A study of two models, of which the first to be named is second."""
    one = study()
    assert one.best is not None
    assert one.default is not None
    worse = replace(one.default, number=1, model="stan", request_ms=2.0, megabytes=1.5)
    best = replace(one.best, train_seconds=61.0)
    rows = tuple(replace(row, model="stan" if row.number == 1 else "duorec") for row in one.trials)
    both = (Contender(best, one.default, 11), Contender(worse, None, 1))
    return replace(one, best=best, models=("stan", "duorec"), trials=rows, contenders=both)


def test_several_models_are_a_leaderboard() -> None:
    result = replace(several(), floors=floors(several().best.test_ranks, 0.8))
    text = shown(result, 140)
    lines = [line.split() for line in text.splitlines()]
    first = [line[0] for line in lines if line and line[0] in ("duorec", "stan", "popularity")]
    assert first[-3:] != []
    assert "Leaderboard" in text
    assert "duorec is the best of 2 models on validation" in " ".join(text.split())
    assert "surely below it stan" not in text
    assert "1m 01s" in text
    board = to_json(result)["standings"]
    assert [one["model"] for one in board] == ["stan"]
    assert board[0]["difference"] < 0
    markdown = to_markdown(result)
    assert "| **duorec (trial 7)** |" in markdown
    assert "## Hyperparameters of duorec" in markdown
    assert "Leaderboard" in to_html(result, drawn_several(result))


def drawn_several(result: StudyResult) -> optuna.Study:
    """The study as Optuna has it, whose hyperparameters say whose they are."""
    plain, found = drawn(result), optuna.create_study(direction="maximize")
    for row, trial in zip(result.trials, plain.trials, strict=True):
        trial.params = {f"{row.model}.{name}": value for name, value in trial.params.items()}
        trial.distributions = {f"{row.model}.{n}": d for n, d in trial.distributions.items()}
        found.add_trial(trial)
    return found


def test_what_the_test_says_of_the_other_models() -> None:
    result = several()
    second = result.contenders[1].best
    level = replace(
        result, contenders=(result.contenders[0], Contender(result.contenders[0].best, None, 1))
    )
    assert "on test it is surely above stan" in verdict(result)
    assert "it cannot be told from duorec" in verdict(level)
    assert result.best is not None
    upset = Contender(replace(second, test_ranks=np.ones_like(second.test_ranks)), None, 1)
    assert "it is surely below stan" in verdict(
        replace(result, contenders=(result.contenders[0], upset))
    )
    nothing = replace(result, contenders=result.contenders[:1])
    assert "stan got to no evaluation" in verdict(nothing)


def test_the_report_says_what_selection_adds() -> None:
    result = replace(study(), choice=Choice(7, 9, 0.001, 0.002, 0.01))
    said = verdict(result)
    assert "Trial 9 is 0.0010 ndcg@10 higher on validation, less than half" in said
    assert "% of it is selection, since the best of many noisy values" in said
    plain = replace(study(), choice=Choice(7, 7, 0.0, 0.0, 0.01))
    assert "so the earlier one is chosen" not in verdict(plain)


def test_a_front_is_told_and_drawn() -> None:
    judge = Judge(("ndcg@10", "coverage@10"), weights={"coverage@10": 1.0})
    rows = tuple(
        replace(one, measured={"ndcg@10": one.value, "coverage@10": 1 - one.value})
        if one.value is not None
        else one
        for one in study().trials
    )
    result = replace(study(), trials=rows, judge=judge)
    n = len(result.front)
    assert n > 1
    assert f"{n} trials are each best in some way, of ndcg@10 and coverage@10" in verdict(result)
    assert "is chosen by coverage@10 x 1" in verdict(result)
    assert "## The front" in to_markdown(result)
    assert f"front/{result.front[0].number:04d}" in shown(result, width=120)
    assert names(result)[0] == "front"


def test_trials_beyond_a_limit_are_counted_and_said() -> None:
    judge = Judge(limits=(Limit("parameters", True, 9.0),))
    over = tuple(replace(one, over="parameters 12 is above 9") for one in study().trials)
    none = replace(failed_study(), trials=over, judge=judge)
    assert verdict(none).startswith("No trial keeps parameters<=9, so there is no best one")
    assert f"{len(over)} of them beyond a limit" in counts(none)
    assert "complete: parameters 12 is above 9" in to_markdown(replace(study(), trials=over))
