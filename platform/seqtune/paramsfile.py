"""Files of ``--params``: the hyperparameters of a model as WarpRec's configurations write them.

    models:
      DuoRec:
        embedding_size: 128
        dropout_prob: [0.1, 0.3, 0.5]
        learning_rate: [loguniform, 1e-4, 1e-2]

A value takes the place of our default. A list is a dimension of the search: values to try, or the
name of one of Ray Tune's distributions and its bounds. What such a file says beside that (data,
evaluation, resources) is not read, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.options import StudyOptions, TrainOptions
from seqtune.params import (
    Params,
    aliases,
    build,
    check,
    check_name,
    declaration,
    parse_assignment,
)
from seqtune.space import Dimension, Given, read_dimension
from seqtune.yamlfile import Keys, kind, parse, text_of

MACHINERY = ("meta", "optimization", "early_stopping")  # of a model's block, for WarpRec itself

# Distribution -> how many numbers it needs at least, and what it is here.
DISTRIBUTIONS = {
    "uniform": 2,
    "quniform": 3,
    "loguniform": 2,
    "qloguniform": 3,
    "randint": 2,
    "qrandint": 3,
    "lograndint": 2,
    "qlograndint": 3,
}
CHOICES = ("choice", "grid")
NORMAL = ("randn", "qrandn")


def given_by(options: StudyOptions | TrainOptions) -> Given:
    """Reads the file of ``--params``; without one, nothing is given."""
    if options.params is None:
        return Given()
    return read(options.params, options.model, declaration(options.model).params)


def overrides(options: StudyOptions | TrainOptions, given: Given) -> dict[str, Any]:
    """Returns what comes before the file: ``--seed`` and ``--set``."""
    in_file = "seed" in given.lines and options.seed == 0
    seed = {} if in_file else {"seed": options.seed}
    params, pairs = declaration(options.model).params, map(parse_assignment, options.set)
    return seed | {check_name(params, name, "--set"): value for name, value in pairs}


def without(given: Given, chosen: Collection[str]) -> Given:
    """Returns what a file says about hyperparameters that ``--set`` leaves to it."""
    values = {name: value for name, value in given.values.items() if name not in chosen}
    dimensions = tuple(d for d in given.dimensions if d.name not in chosen)
    return replace(given, values=values, dimensions=dimensions)


def point(given: Given, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the one point that is trained: the file's values, then those of ``--set``.

    Raises:
        UserError: the file has a list, of which one value would have to be chosen.
    """
    for dimension in without(given, chosen).dimensions:
        raise UserError(
            f"{given.lines[dimension.name]}: {dimension.name} is a list, and train needs one "
            f"value; give --set {dimension.name}={text_of(dimension.corners[0])}, or use tune"
        )
    return {**given.values, **chosen}


def check_point(params: type[Params], given: Given, chosen: Mapping[str, Any]) -> None:
    """Checks the point that is trained against the rules of the model."""
    sources = ["--set"] if chosen or not given.place else []
    sources += [given.place] if given.place else []
    build(params, point(given, chosen), " with ".join(sources))


def read(path: str, model: str, params: type[Params]) -> Given:
    """Reads what a file says about a model, and checks every value by its declaration.

    Raises:
        UserError: one sentence for the first mistake, with the place and the nearest fix.
    """
    content = _content(path)
    block = _block(content, path, model).renamed(aliases(params))
    values: dict[str, Any] = {}
    dimensions: list[Dimension] = []
    notes = _unused(content, block, path)
    for name, value in block.items():
        place = block.at(name)
        if name in MACHINERY:
            continue
        check_name(params, name, place)
        spec = _dimension(block, name, notes) if isinstance(value, list) else value
        if isinstance(spec, Keys):
            section = Keys(path, block.lines[name])
            section[name], section.lines = spec, block.lines
            dimensions.append(read_dimension(params, name, section))
        else:
            values[name] = check(params, name, spec, place)
    lines = {name: block.at(name) for name in block}
    patience = _patience(block, params)
    if patience is not None and "patience" not in block:
        values["patience"] = patience
        lines["patience"] = block.at("early_stopping")
    return Given(path, values, tuple(dimensions), tuple(notes), lines)


def _content(path: str) -> Keys:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--params {path}: no such file") from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--params {path}: not a text file in UTF-8") from None
    return parse(text, path, "models: {NAME: {...}}")


def _block(content: Keys, path: str, model: str) -> Keys:
    """Returns the model's own block; its name may be written in any case."""
    if "models" not in content:
        fix = "give it to --space" if "space" in content else "write models: {NAME: {...}}"
        raise UserError(f"{path}: the key models is missing; {fix}")
    blocks = content["models"]
    if not isinstance(blocks, Keys):
        raise UserError(
            f"{content.at('models')}: models must be a mapping of models, not {kind(blocks)}"
        )
    found = [name for name in blocks if name.lower() == model]
    if not found:
        raise UserError(
            f"{content.at('models')}: no block of {model}; there are: {', '.join(blocks)}"
        )
    if len(found) > 1:
        raise UserError(f"{blocks.at(found[1])}: {found[1]} is {found[0]} again; remove one")
    block = blocks[found[0]]
    if not isinstance(block, Keys):
        raise UserError(
            f"{blocks.at(found[0])}: {found[0]} must be a mapping of hyperparameters, "
            f"not {kind(block)}"
        )
    return block


def _unused(content: Keys, block: Keys, path: str) -> list[str]:
    """Says in one note what of the file is not used."""
    parts = [name for name in content if name != "models"]
    parts += [name for name in MACHINERY if name in block and name != "early_stopping"]
    stopping = block.get("early_stopping")
    if isinstance(stopping, Keys):
        parts += [f"early_stopping.{name}" for name in stopping if name != "patience"]
    if not parts:
        return []
    return [f"not used of {path}: {', '.join(parts)} (the options of seqtune say this)"]


def _patience(block: Keys, params: type[Params]) -> Any:
    stopping = block.get("early_stopping")
    if not isinstance(stopping, Keys) or "patience" not in stopping:
        return None
    return check(params, "patience", stopping["patience"], stopping.at("patience"))


# Lists


def _dimension(block: Keys, name: str, notes: list[str]) -> Any:
    """Turns a list into the specification of a dimension, as in a search space, or into a value.

    ``[64, 128]`` and ``[choice, 64, 128]`` are values to try, ``[quniform, 0.1, 0.5, 0.1]`` is a
    distribution of Ray Tune with its bounds. One value alone is no dimension.
    """
    place, items = block.at(name), block[name]
    if not items:
        raise UserError(f"{place}: {name} is an empty list; write one value, or several to search")
    word = items[0].lower() if isinstance(items[0], str) else ""
    if word in NORMAL:
        raise UserError(
            f"{place}: {name}: {word} has no bounds; write [uniform, low, high] in its place"
        )
    if word not in DISTRIBUTIONS:
        values = items[1:] if word in CHOICES else items
        if len(values) == 1:
            return values[0]
        return _keys(block, name, choice=values)
    numbers, needed = [_number(one) for one in items[1:]], DISTRIBUTIONS[word]
    if len(numbers) < needed or None in numbers[:needed]:
        wanted = ", ".join([word, "low", "high", *(["step"] if needed == 3 else [])])
        raise UserError(f"{place}: write {name}: [{wanted}], not {_written(items)}")
    low, high, step = numbers[0], numbers[1], numbers[2] if needed == 3 else None
    whole, is_log = "int" in word, "log" in word
    if whole and needed == 2:
        high -= 1  # Ray Tune leaves the upper end out where nothing is rounded
    if low == high:
        return low
    if is_log and step:
        notes.append(f"{name} is searched without its step {text_of(step)}: it is on a log scale")
    if is_log:
        return _keys(block, name, low=low, high=high, log=True)
    if step or whole:
        return _keys(block, name, low=low, high=high, step=step or 1)
    return _keys(block, name, low=low, high=high)


def _keys(block: Keys, name: str, **spec: Any) -> Keys:
    keys = Keys(block.place, block.lines[name])
    keys.update(spec)
    return keys


def _number(value: object) -> Any:
    """Reads a number; YAML takes ``1e-4`` for a word."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def _written(items: list[Any]) -> str:
    return f"[{', '.join(map(text_of, items))}]"


# Values that are known to be poor


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
        **{name: (text_of(value), (value,)) for name, value in given.values.items()},
        **{dimension.name: (dimension.text, dimension.corners) for dimension in given.dimensions},
    }
    params = declaration(model).params
    effective = {name: field.default for name, field in params.model_fields.items()} | dict(values)
    effective |= {name: None for name in ("loss_type", "train_mode") if name in searched}
    told: dict[str, str] = {}
    for models, name, is_poor, why in POOR:
        if name in told or name not in candidates or not (models == "*" or model in models.split()):
            continue
        written, ends = candidates[name]
        if all(is_poor(value, effective) for value in ends):
            told[name] = f"{given.lines[name]}: {name} {written}: {why}"
    return tuple(told[name] for name in candidates if name in told)
