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

from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.params import Params, aliases, check, check_name
from seqtune.space.read import read_dimension
from seqtune.space.space import Dimension, Given
from seqtune.space.yamlfile import Keys, kind, parse
from seqtune.words import written

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


def models_of(path: str) -> set[str]:
    """Returns the models that a file says something about, in lower case."""
    blocks = _content(path).get("models")
    return {name.lower() for name in blocks} if isinstance(blocks, Keys) else set()


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
    if step is not None and not step > 0:
        raise UserError(f"{place}: the step of {name} must be above 0, not {written(step)}")
    whole, is_log = "int" in word, "log" in word
    if whole and needed == 2:
        high -= 1  # Ray Tune leaves the upper end out where nothing is rounded
    if low == high:
        return low
    if is_log and step:
        notes.append(f"{name} is searched without its step {written(step)}: it is on a log scale")
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
    return f"[{', '.join(map(written, items))}]"
