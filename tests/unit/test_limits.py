"""What trials are judged by: limits, several objectives, and what is preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest

from seqtune.data import load
from seqtune.errors import UserError
from seqtune.limits import Judge, Limit, parse_limit, parse_weights
from seqtune.options import StudyOptions
from seqtune.results import TrialRow, best_trial, front
from seqtune.space import load_space
from seqtune.study.loop import train_here
from seqtune.study.points import Points
from seqtune.study.samplers import Draws
from seqtune.study.weigh import fits


def asked(**more: Any) -> Judge:
    return Judge.asked(StudyOptions("sasrec", **more))


def row(number: int, coverage: float, over: str = "", **more: Any) -> TrialRow:
    value = more.pop("value", 0.1 * number)
    measured = {"ndcg@10": value, "coverage@10": coverage}
    return TrialRow(
        number, "sasrec", "complete", {}, value, 1, 1.0, measured=measured, over=over, **more
    )


def test_a_limit_is_a_measure_and_a_bound() -> None:
    assert parse_limit("parameters<=2e6") == Limit("parameters", True, 2e6)
    assert parse_limit(" Coverage@10 >= 0.2") == Limit("coverage@10", False, 0.2)
    limit = parse_limit("ms_per_request<=5")
    assert limit.broken(7.25) == "ms_per_request 7.25 is above 5"
    assert limit.broken(5) == ""
    assert parse_limit("hr@10>=.1").broken(0.05) == "hr@10 0.05 is below 0.1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("parameters", "write a measure, <= or >=, and a number"),
        ("parameters<2", "write a measure, <= or >=, and a number"),
        ("parameters<=much", "write a measure, <= or >=, and a number"),
        ("parameters<=nan", "write a measure, <= or >=, and a number"),
        ("parametres<=5", "there is no such measure; did you mean 'parameters'?"),
        ("ndcg<=5", "write a cut-off after the name, for example ndcg@10"),
        ("parameters@10<=5", "there is no such measure"),
    ],
)
def test_what_is_no_limit(text: str, says: str) -> None:
    with pytest.raises(UserError, match="--limit") as raised:
        parse_limit(text)
    assert says in str(raised.value)


def test_a_preference_weighs_objectives() -> None:
    names = ("ndcg@10", "coverage@10")
    assert parse_weights("ndcg@10=2, coverage@10=1", names) == {"ndcg@10": 2, "coverage@10": 1}
    assert parse_weights("coverage@10", names) == {"coverage@10": 1}
    for text, says in (
        ("hr@10=1", "is none of the objectives"),
        ("ndcg@10=-1", "must be a number from 0"),
        ("ndcg@10=0", "one weight must be above 0"),
        ("ndcg@10=x", "must be a number from 0"),
    ):
        with pytest.raises(UserError, match="--prefer") as raised:
            parse_weights(text, names)
        assert says in str(raised.value)


def test_what_is_measured_beside_the_metric() -> None:
    judge = asked(also=("coverage@10", "parameters"), limit=("ms_per_request<=5", "parameters<=9"))
    assert judge.measures == ("coverage@10", "parameters", "ms_per_request")
    values = {"ndcg@10": 0.5, "coverage@10": 0.2, "parameters": 12, "ms_per_request": 1, "epoch": 3}
    measured = judge.measured(values)
    assert measured.keys() == {"ndcg@10", *judge.measures}
    assert judge.over(measured) == "parameters 12 is above 9"
    assert judge.constraints(measured) == {"ms_per_request<=5": -4, "parameters<=9": 3}
    assert judge.better(measured) == (0.5, 0.2, -12)
    assert asked().measured(values) == {}


def test_only_a_cost_is_beyond_hope() -> None:
    judge = asked(limit=("coverage@10>=0.5", "megabytes<=1"))
    assert not judge.hopeless({"coverage@10": 0.1, "megabytes": 1})
    assert judge.hopeless({"coverage@10": 0.9, "megabytes": 2})


def test_a_trial_beyond_a_limit_is_not_the_best() -> None:
    rows = [row(0, 0.5), row(1, 0.5), row(2, 0.5, over="megabytes 2 is above 1")]
    assert best_trial(rows) == rows[1]
    assert best_trial(rows[2:]) is None


def test_the_front_has_what_none_is_better_than() -> None:
    judge = asked(also=("coverage@10",))
    rows = [
        *(row(0, 0.9), row(1, 0.2), row(2, 0.5), row(3, 0.4)),
        row(4, 0.99, over="too large"),
        TrialRow(5, "sasrec", "failed", {}, None, None, None),
    ]
    assert [one.number for one in front(rows, judge)] == [3, 2, 0]
    assert best_trial(rows, judge) == rows[3]  # by the first, where nothing is preferred


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [("ndcg@10", 3), ("coverage@10", 0), ("ndcg@10=1,coverage@10=1", 2)],
)
def test_what_is_preferred_is_chosen_of_the_front(prefer: str, chosen: int) -> None:
    judge = asked(also=("coverage@10",), prefer=prefer)
    rows = [row(0, 0.9), row(1, 0.2), row(2, 0.8), row(3, 0.4)]
    found = best_trial(rows, judge)
    assert found is not None
    assert found.number == chosen


def test_a_front_of_one_point_has_a_best() -> None:
    judge = asked(also=("coverage@10",), prefer="coverage@10")
    assert best_trial([row(1, 0.9), row(0, 0.5)], judge) == row(1, 0.9)


def test_a_size_is_known_before_a_training() -> None:
    judge = asked(limit=("parameters<=40000",))
    within = fits(judge, n_items=500, n_users=100)
    assert within("sasrec", {"embedding_size": 16, "n_layers": 1})
    assert not within("sasrec", {"embedding_size": 128})
    assert fits(asked(limit=("coverage@10>=1",)), 500, 100)("sasrec", {"embedding_size": 512})


def about(model: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "params": values, "origin": "drawn"}


def test_no_trial_is_spent_on_what_does_not_fit() -> None:
    space = load_space(None, "sasrec", {})
    judge = asked(limit=("parameters<=60000",))
    within = fits(judge, n_items=500, n_users=100)
    points = Points({"sasrec": space}, 12, None, 0, print, "tpe", judge, within)
    drawn = [points.draw(0.0) for _ in range(1)]
    for _ in range(8):
        found = points.draw(0.0)
        assert found is not None
        points.begun(about("sasrec", found[1].values))
        drawn.append(found)
    assert all(within("sasrec", one[1].values) for one in drawn[2:] if one)


def test_a_limit_that_nothing_keeps_ends_the_study_with_a_sentence() -> None:
    said: list[str] = []
    judge = asked(limit=("parameters<=10",))
    space = load_space(None, "stan", {})
    points = Points({"stan": space}, 12, None, 0, said.append, "random", judge, lambda m, v: False)
    points.begun(about("stan", space.defaults()))
    assert points.draw(0.0) is None
    assert "that is new and obeys the model's rules and the limits" in said[0]


def told(draws: Draws, number: int, values: dict[str, float], **more: Any) -> None:
    draft = draws.draw(number, lambda values: True)
    assert draft is not None
    trial = optuna.create_trial(
        params=draft.params,
        distributions=draft.distributions,
        value=values["ndcg@10"],
        user_attrs={"measured": values},
        **more,
    )
    draws.learn(trial)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "qmc"])
def test_samplers_know_several_objectives(sampler: str) -> None:
    draws = Draws(load_space(None, "sasrec", {}), 0, sampler, ("ndcg@10", "parameters"))
    for number in range(13):
        told(draws, number, {"ndcg@10": 0.1 + number % 3, "parameters": 100.0 * number})
    seen = draws._scratch.get_trials(deepcopy=False)
    assert [d.name for d in draws._scratch.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [one.values for one in seen if one.values][3] == [0.1, 300.0]


def test_the_sampler_keeps_away_from_what_is_beyond_a_limit() -> None:
    space = load_space(None, "sasrec", {})
    draws = Draws(space, 0, "tpe", ("ndcg@10",))
    sizes = []
    for number in range(60):
        draft = draws.draw(number, lambda values: True)
        assert draft is not None
        size = draft.values["embedding_size"]
        sizes.append(size)
        trial = optuna.create_trial(
            params=draft.params,
            distributions=draft.distributions,
            value=float(size),  # larger is better, and too large is beyond the limit
            constraints={"embedding_size<=64": size - 64},
        )
        draws.learn(trial)
    late = sizes[30:]
    assert sum(size <= 64 for size in late) > 0.8 * len(late)


def test_costs_are_measured_with_the_first_evaluation(tmp_path: Any) -> None:
    from seqtune.data import Protocol
    from seqtune.storage import Folder
    from seqtune.study.plan import Plan, trial_params

    tiny = load("tiny")
    protocol = Protocol.of(tiny)
    measures = ("coverage@10", "parameters", "ms_per_request", "hr@7")
    plan = Plan("sasrec", "ndcg@10", protocol, Folder.at(tmp_path), measures=measures)
    params = trial_params("sasrec", {"epochs": 2, "embedding_size": 8, "n_layers": 1, "n_heads": 1})
    rows: list[Any] = []
    train_here(plan, params, Folder.at(tmp_path) / "t", tiny, rows.append)
    assert 0 < rows[0]["metrics"]["coverage@10"] <= 1
    assert 0 < rows[0]["metrics"]["hr@7"] <= 1
    assert rows[0]["costs"] == rows[-1]["costs"]
    assert rows[0]["costs"]["ms_per_request"] > 0
    assert rows[0]["costs"]["parameters"] > 8 * tiny.n_items
