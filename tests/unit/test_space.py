from __future__ import annotations

import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import optuna
import pytest
from pydantic import Field, model_validator

from seqtune.catalogue import model_names
from seqtune.errors import UserError
from seqtune.options import StudyOptions
from seqtune.params import Depth, Dropout, Heads, Trained, training
from seqtune.space import Dimension, Space, load_space, shipped
from seqtune.space.asked import ask_study, fit_study
from seqtune.space.read import ROOT

SHIPPED = sorted((ROOT / "search_spaces").glob("*.yaml"))


class Toy:
    class Params(Trained):
        n_layers: Depth = 2
        n_heads: Heads = 2
        dropout_prob: Dropout = 0.2
        loss_type: Literal["ce", "bce", "bpr"] = "ce"
        ssl_type: Literal["none", "un", "us"] = "none"
        ssl_lambda: float = Field(0.1, ge=0, le=100, description="Weight of the contrast.")
        tied: bool = True
        bias: float | None = Field(None, ge=0, le=1)

        @model_validator(mode="after")
        def _heads_divide_size(self) -> Self:
            if self.embedding_size % self.n_heads:
                raise ValueError(f"n_heads must divide embedding_size {self.embedding_size}")
            return self


Load = Callable[..., Space]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Writes a file toy.yaml of the given text and loads it."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text: str, **overrides: object) -> Space:
        Path("toy.yaml").write_text(textwrap.dedent(text))
        return load_space("toy.yaml", "toy", overrides, Toy.Params)

    return write_and_load


def fixed_trial(**values: Any) -> optuna.trial.FixedTrial:
    return optuna.trial.FixedTrial(values)


def draws(space: Space, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(count)]


# What a file means


def test_every_kind_of_dimension_is_read_in_its_declared_type(load: Load) -> None:
    space = load(
        """
        model: toy
        fixed: {max_seq_len: "20", weight_decay: 1e-4}
        space:
          embedding_size: {choice: [32, 64.0]}
          n_layers: {low: 1, high: 5, step: 2}
          dropout_prob: {low: 0, high: 0.6, step: 0.2}
          learning_rate: {low: 1e-4, high: 5e-3, log: true}
          tied: {choice: [true, false]}
        """
    )
    assert space.fixed == {"max_seq_len": 20, "weight_decay": 1e-4}
    assert isinstance(space.fixed["max_seq_len"], int)
    assert space.dimensions == (
        Dimension("embedding_size", choice=(32, 64)),
        Dimension("n_layers", low=1, high=5, step=2, integer=True),
        Dimension("dropout_prob", low=0.0, high=0.6, step=0.2),
        Dimension("learning_rate", low=1e-4, high=5e-3, log=True),
        Dimension("tied", choice=(True, False)),
    )
    assert [type(choice) for choice in space.dimensions[0].choice] == [int, int]
    assert isinstance(space.dimensions[2].low, float)


def test_draws_stay_in_their_ranges_and_reach_every_value(load: Load) -> None:
    space = load(
        """
        model: toy
        space:
          embedding_size: {choice: [32, 64]}
          n_layers: {low: 1, high: 5, step: 2}
          dropout_prob: {low: 0.1, high: 0.4, step: 0.1}
          learning_rate: {low: 1e-4, high: 1e-2, log: true}
          batch_size: {low: 10, high: 12}
        """
    )
    points = draws(space, 300)
    assert {p["embedding_size"] for p in points} == {32, 64}
    assert {p["n_layers"] for p in points} == {1, 3, 5}
    assert {p["dropout_prob"] for p in points} == {0.1, 0.2, 0.3, 0.4}  # not .30000000000000004
    assert {p["batch_size"] for p in points} == {10, 11, 12}
    assert all(1e-4 <= p["learning_rate"] <= 1e-2 for p in points)
    below = sum(p["learning_rate"] < 1e-3 for p in points)
    assert 120 < below < 180  # half of them: the middle of a log scale


def test_a_conditional_dimension_is_sampled_only_while_its_condition_holds(load: Load) -> None:
    space = load(
        """
        model: toy
        space:
          ssl_lambda: {low: 0.01, high: 0.5, log: true, when: {ssl_type: [un, us]}}
          ssl_type: {choice: [none, un, us]}
        """
    )
    assert [d.name for d in space.dimensions] == ["ssl_type", "ssl_lambda"]
    assert space.suggest(fixed_trial(ssl_type="none")) == {"ssl_type": "none"}
    assert space.suggest(fixed_trial(ssl_type="us", ssl_lambda=0.3)) == {
        "ssl_type": "us",
        "ssl_lambda": 0.3,
    }
    for point in draws(space, 50):
        assert ("ssl_lambda" in point) == (point["ssl_type"] != "none")


def test_conditions_see_sampled_fixed_and_default_values(load: Load) -> None:
    space = load(
        """
        model: toy
        fixed: {loss_type: bce}
        space:
          n_heads: {choice: [1, 2], when: {n_layers: 2, loss_type: [bce, bpr]}}
          batch_size: {choice: [64, 128], when: {tied: [true]}}
          dropout_prob: {low: 0.1, high: 0.2, when: {n_heads: [1]}}
          n_layers: {choice: [1, 2]}
        """
    )
    names = [d.name for d in space.dimensions]
    assert names == ["batch_size", "n_layers", "n_heads", "dropout_prob"]
    one = fixed_trial(n_layers=1, batch_size=64)
    assert space.suggest(one) == {"loss_type": "bce", "n_layers": 1, "batch_size": 64}
    # n_heads is not sampled above, and its default 2 does not fulfil the condition [1] either.
    two = fixed_trial(n_layers=2, batch_size=64, n_heads=1, dropout_prob=0.15)
    assert space.suggest(two)["dropout_prob"] == 0.15


def test_a_condition_may_rest_on_the_default_of_what_is_not_sampled(load: Load) -> None:
    space = load(
        """
        model: toy
        space:
          loss_type: {choice: [ce, bce]}
          n_heads: {choice: [4, 8], when: {loss_type: [bce]}}
          dropout_prob: {low: 0.1, high: 0.2, when: {n_heads: [2]}}
        """
    )
    assert space.notes == ()
    assert space.suggest(fixed_trial(loss_type="ce", dropout_prob=0.15))["dropout_prob"] == 0.15
    assert "dropout_prob" not in space.suggest(fixed_trial(loss_type="bce", n_heads=4))


def test_overrides_fix_a_hyperparameter_and_drop_its_dimension(load: Load) -> None:
    text = """
        model: toy
        fixed: {n_heads: 1}
        space:
          n_layers: {low: 1, high: 4}
          ssl_type: {choice: [none, un]}
          ssl_lambda: {low: 0.01, high: 0.5, when: {ssl_type: [un]}}
        """
    space = load(text, n_layers="3", n_heads=4, ssl_type="none")
    assert space.fixed == {"n_heads": 4, "n_layers": 3, "ssl_type": "none"}
    assert space.dimensions == ()
    assert space.notes == ("ssl_lambda is not searched: ssl_type is never un",)
    assert [d.name for d in load(text, ssl_type="un").dimensions] == ["n_layers", "ssl_lambda"]


@pytest.mark.parametrize("text", ["model: toy", "model: toy\nspace:\nfixed:\n", "model: TOY"])
def test_an_empty_space_has_one_point(load: Load, text: str) -> None:
    space = load(text)
    assert space.dimensions == ()
    assert space.suggest(fixed_trial()) == space.defaults() == {}


def test_anchors_and_merges_of_yaml_work(load: Load) -> None:
    space = load(
        """
        model: toy
        space:
          n_layers: &small {low: 1, high: 4}
          n_heads: {<<: *small, high: 2}
        """
    )
    assert space.dimensions[1] == Dimension("n_heads", low=1, high=2, integer=True)


# The point of trial 0


def test_trial_0_runs_the_defaults_and_the_fixed_values(load: Load) -> None:
    space = load(
        """
        model: toy
        fixed: {max_seq_len: 20}
        space:
          n_layers: {low: 1, high: 4}
          learning_rate: {low: 1e-4, high: 1e-2, log: true}
          ssl_lambda: {low: 0.01, high: 0.5, when: {ssl_type: [un]}}
          ssl_type: {choice: [un, none]}
        """
    )
    assert space.defaults() == {
        "max_seq_len": 20,
        "n_layers": 2,
        "learning_rate": 1e-3,
        "ssl_type": "none",
    }
    assert space.notes == ()


def test_defaults_outside_of_the_space_move_to_the_nearest_value_with_a_note(load: Load) -> None:
    space = load(
        """
        model: toy
        space:
          embedding_size: {choice: [16, 50, 128]}
          n_layers: {low: 4, high: 8, step: 2}
          dropout_prob: {low: 0.25, high: 0.45, step: 0.1}
          learning_rate: {low: 1e-2, high: 1e-1, log: true}
          loss_type: {choice: [bpr, bce]}
          bias: {low: 0.5, high: 1}
        """
    )
    assert space.defaults() == {
        "embedding_size": 50,
        "n_layers": 4,
        "dropout_prob": 0.25,
        "learning_rate": 1e-2,
        "loss_type": "bpr",
        "bias": 0.5,
    }
    assert space.notes == (
        "trial 0 runs embedding_size 50: the default 64 is outside",
        "trial 0 runs n_layers 4: the default 2 is outside",
        "trial 0 runs dropout_prob 0.25: the default 0.2 is outside",
        "trial 0 runs learning_rate 0.01: the default 0.001 is outside",
        "trial 0 runs loss_type bpr: the default ce is outside",
        "trial 0 runs bias 0.5: the default null is outside",
    )


def test_defaults_that_break_a_rule_are_repaired_with_as_few_changes_as_possible(
    load: Load,
) -> None:
    space = load(
        """
        model: toy
        fixed: {embedding_size: 45}
        space:
          n_layers: {low: 1, high: 4}
          n_heads: {choice: [1, 2, 3]}
        """
    )
    assert space.defaults() == {"embedding_size": 45, "n_layers": 2, "n_heads": 1}
    assert space.notes == ("trial 0 runs n_heads 1: the default 2 breaks a rule of the model here",)


def test_a_point_is_allowed_where_the_models_rules_hold(load: Load) -> None:
    space = load("model: toy")
    assert space.allows({"embedding_size": 64, "n_heads": 4})
    assert not space.allows({"embedding_size": 64, "n_heads": 3})


@pytest.mark.parametrize(
    ("dimension", "value", "nearest"),
    [
        (Dimension("a", choice=(1, 4, 9)), 6, 4),
        (Dimension("a", choice=("x", "y")), "y", "y"),
        (Dimension("a", choice=("x", "y")), "z", "x"),
        (Dimension("a", choice=(True, False)), False, False),
        (Dimension("a", low=1, high=9, step=4, integer=True), 4, 5),
        (Dimension("a", low=1, high=9, integer=True), 12, 9),
        (Dimension("a", low=0.1, high=0.5, step=0.2), 0.39, 0.3),
        (Dimension("a", low=0.1, high=0.5), 0.39, 0.39),
        (Dimension("a", low=0.1, high=0.5), None, 0.1),
    ],
)
def test_nearest_value(dimension: Dimension, value: object, nearest: object) -> None:
    assert dimension.nearest(value) == nearest
    assert dimension.contains(nearest)
    assert dimension.contains(value) == (value == nearest)


# Mistakes: one sentence each, with the place and the fix

MISTAKES = {
    "unknown key of a dimension": (
        "space: {n_layers: {chioce: [1, 2]}}",
        "toy.yaml:2: n_layers has the unknown key 'chioce'; did you mean 'choice'?",
    ),
    "unknown section": (
        "spaces: {n_layers: {low: 1, high: 2}}",
        "toy.yaml:2: unknown key 'spaces'; did you mean 'space'?",
    ),
    "unknown hyperparameter": (
        "space:\n  n_layers: {low: 1, high: 2}\n  n_head: {choice: [1, 2]}",
        "toy.yaml:4: toy has no hyperparameter 'n_head'; did you mean 'n_heads'?",
    ),
    "unknown fixed hyperparameter": (
        "fixed: {n_layer: 1}",
        "toy.yaml:2: toy has no hyperparameter 'n_layer'; did you mean 'n_layers'?",
    ),
    "fixed value": (
        "fixed:\n  n_layers: 2.5",
        (
            "toy.yaml:3: n_layers must be a valid integer, got a number with a fractional part, "
            "not 2.5"
        ),
    ),
    "choice value": (
        "space:\n  loss_type:\n    choice: [ce, bec]",
        "toy.yaml:4: loss_type must be 'ce', 'bce' or 'bpr', not 'bec'",
    ),
    "yes is a boolean in YAML": (
        "space: {n_layers: {choice: [1, yes]}}",
        "toy.yaml:2: n_layers must be a number or a name, not true/false, not True",
    ),
    "lower end": (
        "space: {dropout_prob: {low: -0.1, high: 0.5}}",
        "toy.yaml:2: dropout_prob must be greater than or equal to 0, not -0.1",
    ),
    "upper end": (
        "space:\n  dropout_prob:\n    low: 0\n    high: 1.0",
        "toy.yaml:5: dropout_prob must be less than 1, not 1.0",
    ),
    "both given": (
        "space: {n_layers: {choice: [1], low: 1, high: 2}}",
        "toy.yaml:2: n_layers has both choice and low; remove one",
    ),
    "half a range": (
        "space: {n_layers: {low: 1}}",
        "toy.yaml:2: n_layers needs choice: [...], or low and high",
    ),
    "list without choice": (
        "space: {n_layers: [1, 2]}",
        "toy.yaml:2: write n_layers: {choice: [1, 2]}, not a list",
    ),
    "one value": (
        "space: {n_layers: 3}",
        "toy.yaml:2: write n_layers: {choice: [...]}, or n_layers: 3 under fixed, not 3",
    ),
    "empty choice": (
        "space: {n_layers: {choice: []}}",
        (
            "toy.yaml:2: n_layers.choice must be a list of one or more values, such as [1, 2], "
            "not an empty list"
        ),
    ),
    "choice twice": (
        "space: {learning_rate: {choice: [1e-3, 0.001]}}",
        "toy.yaml:2: learning_rate.choice has 0.001 twice; remove one",
    ),
    "range of names": (
        "space: {loss_type: {low: ce, high: bpr}}",
        "toy.yaml:2: loss_type is not a number; write choice: [...] in place of low",
    ),
    "range upside down": (
        "space: {n_layers: {low: 4, high: 1}}",
        "toy.yaml:2: n_layers.low 4 must be below high 1; swap them",
    ),
    "range of one value": (
        "space: {n_layers: {low: 4, high: 4}}",
        "toy.yaml:2: n_layers.low and high are both 4; write n_layers: 4 under fixed",
    ),
    "log from 0": (
        "space: {ssl_lambda: {low: 0, high: 1, log: true}}",
        "toy.yaml:2: ssl_lambda.low must be above 0 on a log scale, not 0; raise it, or remove log",
    ),
    "log is a switch": (
        "space: {ssl_lambda: {low: 1, high: 2, log: 10}}",
        "toy.yaml:2: ssl_lambda.log must be true or false, not 10",
    ),
    "log with step": (
        "space: {ssl_lambda: {low: 1, high: 2, log: true, step: 1}}",
        "toy.yaml:2: ssl_lambda has both step and log; remove one",
    ),
    "step past the end": (
        "space:\n  dropout_prob:\n    {low: 0.1,\n     high: 0.55,\n     step: 0.1}",
        (
            "toy.yaml:5: dropout_prob.high must be low plus a multiple of step 0.1, not 0.55; "
            "use 0.5 or 0.6"
        ),
    ),
    "step longer than the range": (
        "space: {n_layers: {low: 1, high: 3, step: 5}}",
        "toy.yaml:2: n_layers.high must be low plus a multiple of step 5, not 3; use 6",
    ),
    "step of a whole number": (
        "space: {n_layers: {low: 1, high: 3, step: 0.5}}",
        "toy.yaml:2: n_layers.step must be a whole number above 0, not 0.5",
    ),
    "step backwards": (
        "space: {dropout_prob: {low: 0, high: 0.5, step: -0.1}}",
        "toy.yaml:2: dropout_prob.step must be a number above 0, not -0.1",
    ),
    "condition on nothing": (
        "space: {ssl_lambda: {low: 0, high: 1, when: {ssl_typ: [un]}}}",
        (
            "toy.yaml:2: ssl_lambda.when: toy has no hyperparameter 'ssl_typ'; "
            "did you mean 'ssl_type'?"
        ),
    ),
    "condition on an impossible value": (
        "space: {ssl_lambda: {low: 0, high: 1, when: {ssl_type: [um]}}}",
        "toy.yaml:2: ssl_lambda.when: ssl_type must be 'none', 'un' or 'us', not 'um'",
    ),
    "condition without values": (
        "space: {ssl_lambda: {low: 0, high: 1, when: {ssl_type: []}}}",
        "toy.yaml:2: ssl_lambda.when.ssl_type must list one or more values",
    ),
    "condition without a mapping": (
        "space: {ssl_lambda: {low: 0, high: 1, when: un}}",
        (
            "toy.yaml:2: ssl_lambda.when must name a hyperparameter and its values, such as "
            "{loss_type: [bce, bpr]}, not 'un'"
        ),
    ),
    "conditions in a circle": (
        (
            "space:\n  n_layers: {choice: [1, 2], when: {n_heads: [1]}}\n"
            "  n_heads: {choice: [1, 2], when: {n_layers: [1]}}"
        ),
        "toy.yaml: the conditions of n_layers, n_heads depend on each other; remove one when",
    ),
    "condition on itself": (
        "space: {n_layers: {choice: [1, 2], when: {n_layers: [1]}}}",
        "toy.yaml: the conditions of n_layers depend on each other; remove one when",
    ),
    "fixed and sampled": (
        "fixed: {n_layers: 1}\nspace: {n_layers: {choice: [1, 2]}}",
        "toy.yaml:3: n_layers also stands under fixed; remove one",
    ),
    "twice the same": (
        (
            "space:\n  n_layers: {choice: [1, 2]}\n  n_heads: {choice: [1, 2]}\n"
            "  n_layers: {choice: [3]}"
        ),
        "toy.yaml:3: n_layers stands twice; remove one",
    ),
    "section of the wrong kind": (
        "space: [n_layers]",
        "toy.yaml:2: space must be a mapping of hyperparameters, not a list",
    ),
    "syntax": (
        "space:\n  n_layers: {choice: [1, 2}",
        "toy.yaml:3: expected ',' or ']', but got '}'",
    ),
    "tab": (
        "space:\n\tn_layers: {choice: [1, 2]}",
        "toy.yaml:3: found character '\\t' that cannot start any token",
    ),
    "no point obeys the rules": (
        "fixed: {embedding_size: 64}\nspace: {n_heads: {choice: [3, 5]}}",
        "toy.yaml: n_heads must divide embedding_size 64",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(load: Load, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        load(f"model: toy\n{text}")
    assert str(mistake.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "model: duorec\n",
            ("toy.yaml:1: this space is for model duorec, not toy; give --model duorec, "
            "or another --space"),
        ),
        ("space: {}\n", "toy.yaml: the key model is missing; add 'model: toy'"),
        ("", "toy.yaml: write the keys model, fixed and space, not nothing"),
        ("- toy\n", "toy.yaml: write the keys model, fixed and space, not a list"),
        ("model: \x00", ("toy.yaml: unacceptable character #x0000: special characters are not "
         "allowed")),
    ],
)  # fmt: skip
def test_mistakes_of_a_whole_file(load: Load, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        load(text)
    assert str(mistake.value) == sentence


def test_mistakes_of_overrides(load: Load) -> None:
    with pytest.raises(UserError) as mistake:
        load("model: toy", n_head=3)
    assert str(mistake.value) == (
        "--set: toy has no hyperparameter 'n_head'; did you mean 'n_heads'?"
    )
    with pytest.raises(UserError) as mistake:
        load("model: toy", n_heads="many")
    assert str(mistake.value).startswith("--set: n_heads must be a valid integer")
    with pytest.raises(UserError) as mistake:
        load("model: toy", n_heads=3)
    assert str(mistake.value) == (
        "--set n_heads with toy.yaml: n_heads must divide embedding_size 64"
    )


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as mistake:
        load_space(tmp_path, "toy", {}, Toy.Params)
    assert str(mistake.value) == f"--space {tmp_path}: no such file"
    with pytest.raises(UserError) as mistake:
        load_space(None, "toy", {}, Toy.Params)
    assert str(mistake.value) == (
        "search_spaces/toy.yaml does not exist; write one, or give --space FILE"
    )
    with pytest.raises(UserError) as mistake:
        load_space(None, "sasrc")
    assert str(mistake.value) == "--model sasrc: no such model; did you mean 'sasrec'?"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file in UTF-8"):
        load_space(tmp_path / "binary.yaml", "toy", {}, Toy.Params)


# What others read


def test_a_dimension_reads_well(load: Load) -> None:
    space = load(
        """
        model: toy
        fixed: {tied: false}
        space:
          ssl_type: {choice: [none, un]}
          n_layers: {low: 1, high: 5, step: 2}
          ssl_lambda: {low: 1e-2, high: 0.5, log: true, when: {ssl_type: [un, us], tied: false}}
        """
    )
    assert [(d.name, d.text, d.condition) for d in space.dimensions] == [
        ("ssl_type", "none, un", ""),
        ("n_layers", "1 to 5 in steps of 2", ""),
        ("ssl_lambda", "0.01 to 0.5, log", "ssl_type is un or us and tied is false"),
    ]


def test_equal_spaces_have_equal_data(load: Load) -> None:
    first = load("model: toy\nspace: {n_layers: {low: 1, high: 4}, n_heads: {choice: [1, 2]}}")
    again = load("space: {n_heads: {choice: [1, 2]}, n_layers: {high: 4, low: 1}}\nmodel: toy")
    other = load("model: toy\nspace: {n_layers: {low: 1, high: 3}, n_heads: {choice: [1, 2]}}")
    assert first.as_dict() == again.as_dict() != other.as_dict()


@pytest.mark.parametrize("model", ["sasrec", "toy"])
def test_loading_needs_no_heavy_import(model: str, tmp_path: Path) -> None:
    # In a process of its own: here, other tests have imported everything.
    heavy = ("torch", "ray", "optuna", "mlflow", "pandas", "scipy", "plotly", "numpy")
    program = (
        "import sys; from seqtune.space import load_space; from seqtune.errors import UserError\n"
        f"try: load_space(None, {model!r}).defaults()\n"
        "except UserError: pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "platform")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


# What is shipped


@pytest.mark.parametrize("model", model_names())
def test_every_model_has_a_space_with_its_defaults_inside(model: str) -> None:
    space = load_space(None, model)
    assert shipped(model).is_file()
    assert pickle.loads(pickle.dumps(space)) == space  # Tune pickles the searcher that holds it
    assert space.dimensions
    assert space.notes == ()  # no default was moved, no dimension is dead
    assert space.build(space.defaults()) == space.params(**space.fixed)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_space_gives_valid_points(path: Path) -> None:
    space = load_space(path, path.stem)
    points = draws(space, 200)
    for point in points:
        params = space.build(point)  # raises where a rule is broken
        assert training(params).embedding_size <= 128  # cheap enough for a laptop
    for dimension in space.dimensions:
        seen = {p[dimension.name] for p in points if dimension.name in p}
        assert len(seen) >= min(2, len(dimension.choice) or 2)


def test_every_example_of_the_readme_loads(tmp_path: Path) -> None:
    examples = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "search_spaces" / "README.md").read_text(), re.DOTALL
    )
    assert len(examples) == 3
    for text in examples:
        file = tmp_path / "example.yaml"
        file.write_text(text)
        model = re.match(r"model: (\w+)", text)
        assert model is not None
        load_space(file, model[1])


# Points that run right after the defaults.

STARTS = """
model: sasrec
fixed: {max_seq_len: 20}
space:
  embedding_size: {choice: [32, 64]}
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
  loss_type: {choice: [ce, sampled_softmax]}
  neg_samples: {choice: [16, 64], when: {loss_type: [sampled_softmax]}}
start:
  - {learning_rate: 0.002, embedding_size: 32}
  - {loss_type: sampled_softmax, neg_samples: 16}
"""


def starts(tmp_path: Path, text: str = STARTS, **chosen: Any) -> Space:
    file = tmp_path / "starts.yaml"
    file.write_text(text)
    return load_space(file, "sasrec", chosen)


def test_a_space_starts_at_its_points(tmp_path: Path) -> None:
    space = starts(tmp_path)
    usual = {"embedding_size": 64, "learning_rate": 0.001, "loss_type": "ce"}
    assert space.started(0) == usual | {"max_seq_len": 20}
    assert space.started(1) == usual | {"learning_rate": 0.002, "embedding_size": 32}
    assert space.started(2) == usual | {"loss_type": "sampled_softmax", "neg_samples": 16}
    assert space.started(3) is None
    fixed = starts(tmp_path, embedding_size=64, loss_type="ce")
    assert fixed.started(1) == {"learning_rate": 0.002}
    assert fixed.started(2) == {"learning_rate": 0.001}
    assert space.as_dict()["start"][0] == {"learning_rate": 0.002, "embedding_size": 32}


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        ("start: 3", "start must be a list of points"),
        ("start: [3]", "a point of start must be {name: value}, not 3"),
        ("start: [{dropout_prob: 0.2}]", "starts.yaml:9: dropout_prob is not searched here"),
        ("start: [{learning_rte: 0.2}]", "did you mean 'learning_rate'?"),
        ("start: [{learning_rate: 0.2}]", "learning_rate 0.2 is not in 0.0001 to 0.01, log"),
        ("start: [{learning_rate: fast}]", "starts.yaml:9: learning_rate must be"),
    ],
)
def test_points_that_cannot_be(points: str, sentence: str, tmp_path: Path) -> None:
    text = STARTS.partition("start:")[0] + points
    with pytest.raises(UserError) as caught:
        starts(tmp_path, text)
    assert sentence in str(caught.value)


def test_the_data_and_the_options_move_points_or_leave_them_out(tmp_path: Path) -> None:
    file = tmp_path / "starts.yaml"
    file.write_text(STARTS)
    asked = ask_study(StudyOptions("sasrec", space=str(file)))
    fitted = fit_study(asked, n_items=10).space
    assert fitted.started(2)["neg_samples"] == 9  # type: ignore[index]
    without = ask_study(StudyOptions("sasrec", space=str(file), portfolio=False)).space
    assert without.started(1) is None
