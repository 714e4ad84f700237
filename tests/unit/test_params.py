"""What is derived from the declaration of a hyperparameter: names, mistakes, what data allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from seqtune.catalogue import declaration, model_names
from seqtune.errors import UserError
from seqtune.options import TrainOptions
from seqtune.params import (
    SAMPLING,
    BatchSize,
    Blocks,
    Dropout,
    OnPrefixes,
    Params,
    Sources,
    Trained,
    aliases,
    build,
    check,
    check_name,
    fitted,
    is_fixed,
    origins,
    training,
)
from seqtune.space import load_space, warprec
from seqtune.space.asked import ask_training


class Toy(Trained):
    """Hyperparameters of no model."""

    batch_size: BatchSize = 512
    rate: Dropout = Field(0.2, validation_alias="their_rate")
    weight_decay: Literal[0] = Field(0, description="It has no matrices.")

    sources: ClassVar[Sources] = {
        "batch_size rate": "paper",
        "weight_decay": "ours: there is nothing to decay",
    }


# Bases.


def test_a_default_alone_is_changed_and_all_else_is_the_names() -> None:
    ours, usual = Toy.model_fields["batch_size"], Trained.model_fields["batch_size"]
    assert (ours.default, usual.default) == (512, 128)
    assert (ours.description, ours.metadata) == (usual.description, usual.metadata)
    assert Trained.model_fields.keys() > Params.model_fields.keys() == {"max_seq_len", "seed"}


def test_prefixes_bring_nothing_of_transformers() -> None:
    assert OnPrefixes.model_fields.keys() == Trained.model_fields.keys()
    assert build(OnPrefixes, {"embedding_size": 45}, "test").embedding_size == 45  # no heads

    class Both(OnPrefixes, Blocks):
        pass

    assert Both().train_mode == "prefixes"
    assert {"n_heads", "dropout_prob"} <= Both.model_fields.keys()
    with pytest.raises(UserError, match="n_heads must divide embedding_size 45"):
        build(Both, {"embedding_size": 45}, "test")


def test_a_model_that_is_not_trained_has_no_epochs() -> None:
    assert training(Params(seed=3, max_seq_len=7)) == Trained(seed=3, max_seq_len=7, epochs=0)
    toy = Toy()
    assert training(toy) is toy


def test_what_has_one_value_alone_says_why() -> None:
    fields = Toy.model_fields
    assert is_fixed(fields["weight_decay"])
    assert not is_fixed(fields["loss_type"])
    assert build(Toy, {"weight_decay": 0}, "test").weight_decay == 0
    told = r"--set: weight_decay must be 0, not 0.1 \(It has no matrices.\)"
    with pytest.raises(UserError, match=told):
        check(Toy, "weight_decay", 0.1, "--set")


def test_where_defaults_come_from() -> None:
    found = origins(Toy)
    assert found["rate"] == found["batch_size"] == "the paper"
    assert found["weight_decay"].startswith("ours: ")
    sources: Sources = declaration("duorec").params.sources
    assert "official code" in origins(declaration("duorec").params).values()
    assert sources


# Names.


def test_an_alias_is_understood_wherever_a_name_is_checked() -> None:
    assert aliases(Toy) == {"their_rate": "rate"}
    assert check_name(Toy, "their_rate", "here") == check_name(Toy, "rate", "here") == "rate"
    assert check(Toy, "their_rate", "0.5", "here") == 0.5
    built = build(Toy, {"their_rate": 0.5}, "here")
    assert built == build(Toy, {"rate": 0.5}, "here")
    assert "their_rate" not in built.model_dump()
    with pytest.raises(UserError, match="here: rate must be less than 1, not 3"):
        build(Toy, {"their_rate": 3}, "here")


def test_two_names_for_one_hyperparameter_are_a_mistake() -> None:
    told = "here: their_rate and rate are one hyperparameter; give rate once"
    with pytest.raises(UserError, match=told):
        build(Toy, {"their_rate": 0.5, "rate": 0.5}, "here")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"here: toy has no hyperparameter 'their_rat'; .*rate'\?"):
        build(Toy, {"their_rat": 0.5}, "here")


def test_an_alias_in_set_and_files_is_stored_by_its_own_name(tmp_path: Path) -> None:
    options = TrainOptions(model="gsasrec", data="tiny", set=("reuse_item_embeddings=true",))
    assert ask_training(options).values["tie_weights"] is True
    kind = declaration("narm").params
    file = tmp_path / "narm.yaml"
    file.write_text("models: {NARM: {attn_dropout_prob: 0.1, hidden_dropout_prob: [0.1, 0.2]}}")
    read = warprec.read(str(file), "narm", kind)
    assert read.values == {"decoder_dropout_prob": 0.1}
    assert [d.name for d in read.dimensions] == ["dropout_prob"]
    assert read.lines.keys() == {"decoder_dropout_prob", "dropout_prob"}
    file.write_text("models: {NARM: {decoder_dropout_prob: 0.2, attn_dropout_prob: 0.1}}")
    with pytest.raises(
        UserError, match="attn_dropout_prob is decoder_dropout_prob, which stands here too"
    ):
        warprec.read(str(file), "narm", kind)


def test_an_alias_in_a_search_space_is_stored_by_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "gru.yaml"
    file.write_text(
        "model: gru4rec\n"
        "fixed: {hidden_size: 32}\n"
        "space:\n"
        "  num_layers: {low: 1, high: 2}\n"
        "  dropout_p_hidden: {choice: [0, 0.2], when: {num_layers: [2]}}\n"
    )
    space = load_space(file, "gru4rec", {})
    assert [d.name for d in space.dimensions] == ["n_layers", "dropout_p_hidden"]
    assert space.dimensions[1].when == (("n_layers", (2,)),)
    assert load_space(file, "gru4rec", {"num_layers": 2}).fixed["n_layers"] == 2


# What data allow.


def test_a_default_is_lowered_to_what_the_data_allow() -> None:
    kind = declaration("gsasrec").params
    values, notes = fitted(kind, {"n_layers": 1}, 100, "test")
    assert values == {"n_layers": 1, "neg_samples": 99}
    assert notes == ("neg_samples is 99 in place of 256, since the data have 100 items.",)
    assert fitted(kind, {"n_layers": 1}, 257, "test") == ({"n_layers": 1}, ())
    drawn: dict[str, Any] = {"neg_samples": 128}  # by the search, on which nobody insists
    assert fitted(kind, drawn, 100, "test", given=["n_layers"])[0] == {"neg_samples": 99}


def test_a_given_value_that_cannot_work_is_a_mistake() -> None:
    kind = declaration("gsasrec").params
    told = "--set: neg_samples must be at most 99 with loss_type gbce, .* 100 items .*, not 100"
    with pytest.raises(UserError, match=told):
        fitted(kind, {"neg_samples": 100}, 100, "--set")
    assert fitted(kind, {"neg_samples": 99}, 100, "--set")[1] == ()
    # With repetitions other losses can have more.
    free = {"neg_samples": 100, "loss_type": "bpr"}
    assert fitted(kind, free, 100, "--set") == (free, ())
    with pytest.raises(UserError, match="neg_samples must be at least 1 with loss_type bpr, not 0"):
        fitted(kind, free | {"neg_samples": 0}, 100, "--set")
    with pytest.raises(UserError, match="loss_type gbce needs 2 items or more, not 1"):
        fitted(kind, {}, 1, "test")


def test_what_draws_no_negatives_is_left_as_it_is() -> None:
    ce = {"loss_type": "ce", "neg_samples": 1000}
    assert fitted(declaration("sasrec").params, ce, 100, "test") == (ce, ())
    assert fitted(declaration("stan").params, {"k": 7}, 3, "test") == ({"k": 7}, ())


@pytest.mark.parametrize("name", model_names())
def test_the_losses_that_draw_negatives_are_known(name: str) -> None:
    field = declaration(name).params.model_fields.get("loss_type")
    offered = set(field.annotation.__args__) if field else set()  # type: ignore[union-attr]
    assert offered - set(SAMPLING) <= {"ce", "bpr_max"}
