"""Values that are known to be poor, with the reason, for whoever brings a file of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from seqtune.catalogue import declaration
from seqtune.space.space import Given
from seqtune.words import written


def _ranks_all(p: Mapping[str, Any]) -> bool:
    return bool(p.get("loss_type", "ce") == "ce")


def _by_rows(p: Mapping[str, Any]) -> bool:
    return bool(p.get("train_mode", "rows") == "rows")


Condition = Callable[[Any, Mapping[str, Any]], bool]
# Model (* is every one), hyperparameter, when its value is poor, why and what is better. The value
# is v, and p are all hyperparameters. The first line that fits is shown.
POOR: tuple[tuple[str, str, Condition, str], ...] = (
    (
        "gsasrec",
        "neg_samples",
        lambda v, p: v < 16 and not _ranks_all(p),
        "the method rests on many negatives, and corrects for their number; 256 is the paper's",
    ),
    (
        "esasrec",
        "neg_samples",
        lambda v, p: v < 16 and not _ranks_all(p),
        "the softmax is as good as its sample, and with one negative it is BPR; 256 is better",
    ),
    (
        "*",
        "neg_samples",
        lambda v, p: _ranks_all(p),
        "no effect, since the loss ce compares a target with all items; leave it out",
    ),
    (
        "duorec",
        "dropout_prob",
        lambda v, p: v < 0.2,
        "dropout makes the second view, and so little of it leaves both alike; 0.5 is the paper's",
    ),
    (
        "duorec",
        "sim_type",
        lambda v, p: v == "dot" and _by_rows(p) and p["tau"] > 0.5,
        "with train_mode rows the contrast drowns the main loss for long; cos does not",
    ),
    (
        "cl4srec",
        "dropout_prob",
        lambda v, p: v < 0.2,
        "too little against overfitting on sparse data; 0.5 is the paper's",
    ),
    (
        "duorec cl4srec",
        "batch_size",
        lambda v, p: v >= 1024,
        "all others of a batch are negatives of the contrast, tuned for fewer; 256 is the papers'",
    ),
    (
        "*",
        "batch_size",
        lambda v, p: v >= 1024 and _by_rows(p),
        "counted in rows, each with all targets of a history, so an epoch has few steps; try 128",
    ),
    (
        "fossil",
        "alpha",
        lambda v, p: v < 0.1,
        "long histories are not normalised, and drown the last items; 0.5 is better",
    ),
    (
        "stan",
        "lambda_2",
        lambda v, p: v <= 10,
        "the unit is days here, so that neighbours of last month count for little; 365 is better",
    ),
    (
        "bsarec",
        "c",
        lambda v, p: v % 2 == 0,
        "an even c keeps the frequencies of the odd one after it; the paper has odd ones, 1 to 9",
    ),
    (
        "bsarec",
        "n_heads",
        lambda v, p: v > 4,
        "the paper has 1 to 4 heads, with embedding_size 64; 1 is a good start",
    ),
    (
        "narm",
        "decoder_dropout_prob",
        lambda v, p: v < 0.25,
        "this is the dropout before the decoder, not one of attention; 0.5 is the authors'",
    ),
    (
        "sasrec gsasrec",
        "inner_size",
        lambda v, p: v > p["embedding_size"],
        "wider than in the official code, which has inner_size equal to embedding_size",
    ),
    (
        "*",
        "reg_weight",
        lambda v, p: v >= 1e-3 and "order_len" not in p,  # FOSSIL was published with it
        "it pulls item vectors to zero, more so with long histories, and papers have 0; try 0",
    ),
)


def poor_values(
    model: str, given: Given, values: Mapping[str, Any], searched: Collection[str] = ()
) -> tuple[str, ...]:
    """Returns a line for each value of the file that is known to be poor.

    A list is poor where all of its choices are, or both of its ends.

    Args:
        model: the model's name.
        given: the file, without what ``--set`` replaces.
        values: all that holds beside it.
        searched: hyperparameters that vary: what depends on the loss is not said where that does.
    """
    candidates: dict[str, tuple[str, tuple[Any, ...]]] = {
        **{name: (written(value), (value,)) for name, value in given.values.items()},
        **{dimension.name: (dimension.text, dimension.corners) for dimension in given.dimensions},
    }
    params = declaration(model).params
    effective = {name: field.default for name, field in params.model_fields.items()} | dict(values)
    effective |= {name: None for name in ("loss_type", "train_mode") if name in searched}
    told: dict[str, str] = {}
    for models, name, is_poor, why in POOR:
        if name in told or name not in candidates or not (models == "*" or model in models.split()):
            continue
        shown, ends = candidates[name]
        if all(is_poor(value, effective) for value in ends):
            told[name] = f"{given.lines[name]}: {name} {shown}: {why}"
    return tuple(told[name] for name in candidates if name in told)
