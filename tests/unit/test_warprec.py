"""Files of ``--params``: what they mean for a training and for a study, and how mistakes end."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from seqtune.catalogue import declaration
from seqtune.errors import UserError
from seqtune.options import StudyOptions, TrainOptions
from seqtune.space import Dimension, Given, Space, advice, load_space, warprec
from seqtune.space.advice import poor_values
from seqtune.space.asked import _without, ask_study, ask_training

Read = Callable[..., Given]
WARPREC = Path(__file__).parents[1] / "contract" / "warprec.yaml"


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Writes a file my.yaml and reads what it says about a model."""
    monkeypatch.chdir(tmp_path)

    def write_and_read(text: str, model: str = "sasrec") -> Given:
        Path("my.yaml").write_text(textwrap.dedent(text))
        return warprec.read("my.yaml", model, declaration(model).params)

    return write_and_read


def study_of(given: Given, model: str = "sasrec", **chosen: Any) -> Space:
    return load_space(None, model, chosen, given=given)


def dimensions(space: Space) -> dict[str, Dimension]:
    return {dimension.name: dimension for dimension in space.dimensions}


# What a file says.


def test_values_are_read_in_their_declared_type_and_know_their_line(read: Read) -> None:
    given = read(
        """
        models:
          SASRec:
            embedding_size: 128
            weight_decay: 1e-4
            tie_weights: False
        """
    )
    assert given.values == {"embedding_size": 128, "weight_decay": 1e-4, "tie_weights": False}
    assert given.dimensions == given.notes == ()
    assert given.lines["weight_decay"] == "my.yaml:5"


@pytest.mark.parametrize("written", ["DuoRec", "duorec", "DUOREC"])
def test_the_name_of_the_model_may_be_written_in_any_case(read: Read, written: str) -> None:
    given = read(f"models: {{SASRec: {{n_layers: 1}}, {written}: {{tau: 0.5}}}}", "duorec")
    assert given.values == {"tau": 0.5}


def test_the_machinery_of_warprec_is_left_with_one_note(read: Read) -> None:
    given = read(
        """
        reader: {loading_strategy: dataset}
        models:
          SASRec:
            optimization: {strategy: grid, cpu_per_trial: 5}
            meta: {save_model: True}
            early_stopping: {patience: 7, grace_period: 10}
            n_layers: 3
        evaluation: {top_k: [10]}
        """
    )
    assert given.values == {"n_layers": 3, "patience": 7}
    (note,) = given.notes
    assert note == (
        "not used of my.yaml: reader, evaluation, meta, optimization, early_stopping.grace_period "
        "(the options of seqtune say this)"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_heads: [1, 2, 4]", Dimension("n_heads", choice=(1, 2, 4))),
        ("n_heads: [choice, 1, 2]", Dimension("n_heads", choice=(1, 2))),
        ("n_heads: ['grid', 1, 2]", Dimension("n_heads", choice=(1, 2))),
        ("norm: [pre, post]", Dimension("norm", choice=("pre", "post"))),
        ("dropout_prob: [uniform, 0.1, 0.5]", Dimension("dropout_prob", low=0.1, high=0.5)),
        (
            "dropout_prob: [quniform, 0.1, 0.5, 0.2]",
            Dimension("dropout_prob", low=0.1, high=0.5, step=0.2),
        ),
        (
            "learning_rate: [loguniform, 1e-4, 1e-2]",
            Dimension("learning_rate", low=1e-4, high=1e-2, log=True),
        ),
        (
            "learning_rate: [loguniform, 1e-4, 1e-2, 10]",  # the base changes nothing
            Dimension("learning_rate", low=1e-4, high=1e-2, log=True),
        ),
        # The upper end of randint is excluded, that of qrandint is not.
        ("n_layers: [randint, 1, 4]", Dimension("n_layers", low=1, high=3, step=1, integer=True)),
        (
            "embedding_size: [qrandint, 64, 320, 64]",
            Dimension("embedding_size", low=64, high=320, step=64, integer=True),
        ),
        (
            "neg_samples: [lograndint, 1, 257]",
            Dimension("neg_samples", low=1, high=256, log=True, integer=True),
        ),
    ],
)
def test_lists_are_dimensions(read: Read, text: str, expected: Dimension) -> None:
    assert read(f"models: {{SASRec: {{{text}}}}}").dimensions == (expected,)


def test_a_step_on_a_log_scale_is_given_up_with_a_note(read: Read) -> None:
    given = read("models: {SASRec: {learning_rate: [qloguniform, 1e-4, 1e-2, 1e-4, 10]}}")
    assert given.dimensions == (Dimension("learning_rate", low=1e-4, high=1e-2, log=True),)
    assert given.notes == (
        "learning_rate is searched without its step 0.0001: it is on a log scale",
    )


@pytest.mark.parametrize("text", ["[3]", "[choice, 3]", "[uniform, 3, 3]", "[randint, 3, 4]"])
def test_a_list_of_one_value_is_a_value(read: Read, text: str) -> None:
    given = read(f"models: {{SASRec: {{n_layers: {text}}}}}")
    assert (given.values, given.dimensions) == ({"n_layers": 3}, ())


MISTAKES = {
    "models: {GRU4Rec: {}, FOSSIL: {}}": "my.yaml:1: no block of sasrec; there are: GRU4Rec, "
    "FOSSIL",
    "model: sasrec\nspace: {}": "my.yaml: the key models is missing; give it to --space",
    "SASRec: {n_layers: 1}": "my.yaml: the key models is missing; write models: {NAME: ",
    "models: [SASRec]": "my.yaml:1: models must be a mapping of models, not a list",
    "models:\n  SASRec: 3": "my.yaml:2: SASRec must be a mapping of hyperparameters, not 3",
    "models:\n  SASRec: {}\n  sasrec: {}": "my.yaml:3: sasrec is SASRec again; remove one",
    "models:\n  SASRec:\n    n_head: 2": "my.yaml:3: sasrec has no hyperparameter 'n_head'; did "
    "you mean 'n_heads'?",
    "models:\n  SASRec:\n    n_heads: 0": "my.yaml:3: n_heads must be greater than or equal to 1, "
    "not 0",
    "models:\n  SASRec:\n    n_heads: 1\n    n_heads: 2": "my.yaml:3: n_heads stands twice",
    "models:\n  SASRec:\n    n_heads: []": "my.yaml:3: n_heads is an empty list; write one",
    "models:\n  SASRec:\n    n_heads: [1, 0]": "my.yaml:3: n_heads must be greater than or equal "
    "to 1, not 0",
    "models:\n  SASRec:\n    dropout_prob: [uniform, 0.1]": "my.yaml:3: write dropout_prob: "
    "[uniform, low, high], not [uniform, 0.1]",
    "models:\n  SASRec:\n    dropout_prob: [quniform, 0, 1]": "my.yaml:3: write dropout_prob: "
    "[quniform, low, high, step], not [quniform, 0, 1]",
    "models:\n  SASRec:\n    dropout_prob: [randn, 0, 1]": "my.yaml:3: dropout_prob: randn has no "
    "bounds; write [uniform, low, high] in its place",
    "models:\n  SASRec:\n    dropout_prob: [uniform, 0.5, 0.1]": "my.yaml:3: dropout_prob.low 0.5 "
    "must be below high 0.1; swap them",
    "models:\n  SASRec:\n    norm: [unifrom, 0.5, 0.1]": "my.yaml:3: norm must be 'post', 'pre' or "
    "'sasrec', not 'unifrom'",
    "models:\n  SASRec:\n    early_stopping: {patience: 0}": "my.yaml:3: patience must be greater "
    "than or equal to 1, not 0",
    "models: {": "my.yaml:1: ",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes(read: Read, text: str) -> None:
    with pytest.raises(UserError) as mistake:
        read(text)
    assert str(mistake.value).startswith(MISTAKES[text])
    assert "\n" not in str(mistake.value)


def test_missing_files(tmp_path: Path) -> None:
    params = declaration("sasrec").params
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^--params nowhere\.yaml: no such file$"):
        warprec.read("nowhere.yaml", "sasrec", params)
    for path in (tmp_path, tmp_path / "binary"):
        with pytest.raises(UserError, match=r": not a text file in UTF-8$"):
            warprec.read(str(path), "sasrec", params)


# Train: one point.


def test_train_takes_the_file_before_defaults_and_set_before_the_file(read: Read) -> None:
    read("models: {SASRec: {n_layers: 3, n_heads: 4}}")
    options = TrainOptions("sasrec", params="my.yaml", set=("n_heads=8",), seed=5)
    assert ask_training(options).values == {"n_layers": 3, "n_heads": 8, "seed": 5}


@pytest.mark.parametrize(
    ("words", "used"),
    [
        ({}, 7),
        ({"seed": 0}, 0),
        ({"seed": 3}, 3),
        ({"set": ("seed=0",)}, 0),
        ({"set": ("seed=4",), "seed": 3}, 4),
    ],
)
def test_a_seed_in_the_file_gives_way_to_the_options(read: Read, words: Any, used: int) -> None:
    read("models: {SASRec: {seed: 7}}")
    trained = ask_training(TrainOptions("sasrec", params="my.yaml", **words))
    studied = ask_study(StudyOptions("sasrec", params="my.yaml", **words))
    assert trained.seed == trained.values["seed"] == used
    assert studied.seed == studied.space.defaults()["seed"] == used


def test_a_seed_that_a_space_fixes_gives_way_to_the_file(read: Read, tmp_path: Path) -> None:
    read("models: {SASRec: {seed: 7}}")
    Path("space.yaml").write_text("model: sasrec\nfixed: {seed: 5}")
    assert ask_study(StudyOptions("sasrec", space="space.yaml")).seed == 5
    both = StudyOptions("sasrec", space="space.yaml", params="my.yaml")
    assert ask_study(both).seed == 7


def test_nothing_is_given_without_a_file() -> None:
    asked = ask_study(StudyOptions("sasrec", set=("n_heads=4",)))
    assert (asked.space.fixed["n_heads"], asked.seed, asked.baseline) == (4, 0, "defaults")


def test_train_refuses_a_list_unless_set_chooses(read: Read) -> None:
    read("models:\n  SASRec:\n    n_heads: [1, 2]")
    options = TrainOptions("sasrec", params="my.yaml")
    with pytest.raises(UserError) as mistake:
        ask_training(options)
    assert str(mistake.value) == (
        "my.yaml:3: n_heads is a list, and train needs one value; give --set n_heads=1, or use tune"
    )
    assert ask_training(replace(options, set=("n_heads=2",))).values == {"n_heads": 2}


def test_rules_between_hyperparameters_name_their_sources(read: Read) -> None:
    read("models: {SASRec: {n_heads: 8}}")
    options = TrainOptions("sasrec", params="my.yaml")
    ask_training(options)
    with pytest.raises(UserError, match=r"^--set with my\.yaml: n_heads must divide .* 60, not 8"):
        ask_training(replace(options, set=("embedding_size=60",)))


def test_trial_0_is_named_after_the_file_only_where_it_runs_its_values(read: Read) -> None:
    read("models: {SASRec: {n_heads: 8}}")
    options = StudyOptions("sasrec", params="my.yaml")
    assert ask_study(options).baseline == "values of my.yaml"
    read("models: {SASRec: {n_heads: [1, 2]}}")
    assert ask_study(options).baseline == "defaults"


# Tune, one value for each: the space of the model, from the file's point.


def test_trial_0_runs_the_files_values_and_the_space_holds_them(read: Read) -> None:
    given = read(
        """
        models:
          SASRec:
            embedding_size: 96       # not among the choices
            n_layers: 4              # above the range
            dropout_prob: 0.25       # between the steps
            learning_rate: 0.02      # above, on a log scale
            n_heads: 2               # inside
            max_seq_len: 20          # not searched
        """
    )
    space = study_of(given)
    found = dimensions(space)
    assert found["embedding_size"].choice == (32, 64, 96, 128)
    assert (found["n_layers"].low, found["n_layers"].high) == (1, 4)
    dropout = found["dropout_prob"]
    assert (dropout.low, dropout.high, dropout.step) == (0.1, 0.6, None)
    assert (found["learning_rate"].low, found["learning_rate"].high) == (3e-4, 0.02)
    assert found["learning_rate"].log
    assert found["n_heads"].choice == (1, 2, 4)
    assert space.fixed == {"max_seq_len": 20}
    assert space.start.items() >= given.values.items()
    (note,) = space.notes
    assert note == (
        "searched wider than search_spaces/sasrec.yaml for my.yaml: embedding_size 96, n_layers 4, "
        "dropout_prob 0.25, learning_rate 0.02"
    )


def test_set_comes_before_the_file_in_a_study_too(read: Read) -> None:
    space = study_of(read("models: {SASRec: {n_heads: 16, n_layers: 9}}"), n_heads=2, n_layers=1)
    assert space.fixed == {"n_heads": 2, "n_layers": 1}
    assert space.notes == ()


def test_the_file_comes_before_what_the_space_fixes(read: Read) -> None:
    space = study_of(read("models: {DuoRec: {sim_type: dot, tau: 1.0}}", "duorec"), "duorec")
    assert space.fixed["sim_type"] == "dot"
    assert space.fixed["train_mode"] == "rows"
    assert space.notes == (
        "fixed by my.yaml in place of search_spaces/duorec.yaml: sim_type dot, not cos",
    )


def test_zero_has_no_place_on_a_log_scale_and_is_fixed(read: Read) -> None:
    given = read("models: {DuoRec: {ssl_type: us, ssl_lambda: 0}}", "duorec")
    space = study_of(given, "duorec")
    assert "ssl_lambda" not in dimensions(space)
    assert space.fixed["ssl_lambda"] == 0
    (note,) = space.notes
    assert note == (
        "fixed by my.yaml in place of search_spaces/duorec.yaml: ssl_lambda 0, not in 0.01 to 0.5, "
        "log"
    )


def test_the_file_also_holds_where_a_conditional_dimension_is_not_sampled(read: Read) -> None:
    given = read("models: {SASRec: {neg_samples: 64, loss_type: ce}}")
    space = study_of(given)
    assert space.start["neg_samples"] == 64
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    points = [space.suggest(study.ask()) for _ in range(40)]
    assert {p["neg_samples"] for p in points if p["loss_type"] == "ce"} == {64}
    assert {p["neg_samples"] for p in points if p["loss_type"] != "ce"} == {64, 256, 1024}


def test_a_value_of_the_file_is_never_moved_to_mend_a_rule(read: Read) -> None:
    given = read("models: {SASRec: {n_heads: 8, embedding_size: 60}}")
    with pytest.raises(UserError) as mistake:
        study_of(given)
    assert str(mistake.value) == (
        "my.yaml with search_spaces/sasrec.yaml: n_heads must divide embedding_size 60, not 8; 6 "
        "does"
    )


def test_other_values_make_another_study(read: Read) -> None:
    spaces = [study_of(read(f"models: {{SASRec: {{n_heads: {n}}}}}")) for n in (1, 2, 2)]
    assert spaces[0].dimensions == spaces[1].dimensions
    assert spaces[0].as_dict() != spaces[1].as_dict()
    assert spaces[1].as_dict() == spaces[2].as_dict()


# Tune, with lists: they are the space.


def test_lists_are_all_that_is_searched(read: Read) -> None:
    given = read(
        "models: {DuoRec: {tau: [0.1, 0.2], learning_rate: [loguniform, 1e-4, 1e-2], n_heads: 4}}",
        "duorec",
    )
    space = study_of(given, "duorec")
    assert set(dimensions(space)) == {"tau", "learning_rate"}
    assert space.fixed == {"n_heads": 4}  # nothing of search_spaces/duorec.yaml
    assert space.start == {"tau": 0.2, "learning_rate": 1e-3, "n_heads": 4}
    assert space.place == "my.yaml"
    assert study_of(given, "duorec", tau=3).fixed == {"n_heads": 4, "tau": 3}


def test_lists_and_a_space_exclude_each_other(read: Read) -> None:
    given = read("models:\n  SASRec:\n    n_heads: [1, 2]")
    with pytest.raises(UserError) as mistake:
        load_space("space.yaml", "sasrec", given=given)
    assert str(mistake.value) == (
        "my.yaml:3: a list makes this file the search space, and so is --space space.yaml; leave "
        "--space out, or write one value for each"
    )


# Values that are known to be poor.


def poor(given: Given, model: str, searched: tuple[str, ...] = (), **chosen: Any) -> list[str]:
    lines = poor_values(model, _without(given, chosen), given.values | chosen, searched)
    return [line.split(": ")[1] for line in lines]


def test_a_poor_value_gets_one_line_with_place_reason_and_a_better_one(read: Read) -> None:
    given = read("models:\n  DuoRec:\n    dropout_prob: 0.1\n    tau: 1", "duorec")
    (line,) = poor_values("duorec", given, given.values)
    assert line == (
        "my.yaml:3: dropout_prob 0.1: dropout makes the second view, and so little of it leaves "
        "both alike; 0.5 is the paper's"
    )


def test_what_set_replaces_is_not_judged(read: Read) -> None:
    given = read("models: {DuoRec: {dropout_prob: 0.1}}", "duorec")
    assert poor(given, "duorec", dropout_prob=0.5) == []


def test_no_effect_depends_on_the_loss(read: Read) -> None:
    given = read("models: {SASRec: {neg_samples: 1}}")
    assert poor(given, "sasrec") == ["neg_samples 1"]
    assert poor(given, "sasrec", loss_type="bpr") == []
    assert poor(given, "sasrec", searched=("loss_type",)) == []


def test_a_list_is_poor_where_all_of_it_is(read: Read) -> None:
    for values, found in {"[512, 1024]": [], "[1024, 2048]": ["batch_size 1024, 2048"]}.items():
        given = read(f"models: {{SASRec: {{batch_size: {values}}}}}")
        assert poor(given, "sasrec") == found


EXPECTED = {
    "bsarec": ["n_heads 8", "c 10", "reg_weight 0.001", "neg_samples 1"],
    "caser": ["reg_weight 0.001", "batch_size 2048"],
    "cl4srec": ["dropout_prob 0.1", "reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "duorec": ["dropout_prob 0.1", "reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "esasrec": ["reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "fossil": ["alpha 0.001", "batch_size 2048"],
    "gru4rec": ["reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "gsasrec": ["inner_size 512", "reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "lightsans": ["reg_weight 0.001", "neg_samples 1"],
    "narm": ["decoder_dropout_prob 0.1", "reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "sasrec": ["inner_size 512", "reg_weight 0.001", "batch_size 2048", "neg_samples 1"],
    "stan": ["lambda_2 10"],
}


@pytest.mark.parametrize("model", EXPECTED)
def test_the_poor_values_of_warprecs_blocks(model: str) -> None:
    given = warprec.read(str(WARPREC), model, declaration(model).params)
    assert poor(given, model) == EXPECTED[model]


def test_every_line_about_a_poor_value_names_hyperparameters_that_exist() -> None:
    for models, name, _, why in advice.POOR:
        for model in [] if models == "*" else models.split():
            assert name in declaration(model).params.model_fields
        assert "\n" not in why
        assert len(why) <= 90
