"""Search spaces: a YAML file becomes checked dimensions that an Optuna trial can sample.

    model: duorec
    fixed: {max_seq_len: 50}
    space:
      embedding_size: {choice: [32, 64, 128]}
      learning_rate: {low: 1e-4, high: 5e-3, log: true}
      ssl_lambda: {low: 0.01, high: 0.5, log: true, when: {ssl_type: [un, us]}}

``load_space`` checks everything that the file can produce against the model's declaration, before
anything starts and without importing torch, Ray or Optuna. search_spaces/README.md is the user's
description of the format.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from seqtune.params import (
    TrainParams,
    UserError,
    build,
    check,
    check_model,
    check_name,
    declaration,
    nearest,
)

if typing.TYPE_CHECKING:
    from optuna.trial import BaseTrial

ROOT = Path(__file__).parents[2]
SECTIONS = ("model", "fixed", "space")
RANGE = ("low", "high", "step", "log")
REPAIRS = 20_000  # points tried when the defaults break a rule of the model; ~20 us each


@dataclass(frozen=True)
class Dimension:
    """One sampled hyperparameter: some choices, or a range of numbers.

    It is sampled only while every condition of ``when`` holds: the hyperparameter named there has
    one of the values given.
    """

    name: str
    choice: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    integer: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def holds(self, value_of: Mapping[str, Any]) -> bool:
        """Tells whether the dimension is sampled, given the values of the other ones."""
        return all(value_of[name] in values for name, values in self.when)

    def suggest(self, trial: BaseTrial) -> Any:
        """Draws a value."""
        if self.choice:
            return trial.suggest_categorical(self.name, self.choice)
        if self.integer:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        return round(value, 10) if self.step else value  # 0.1 + 2 * 0.1 is not 0.3

    def contains(self, value: Any) -> bool:
        """Tells whether the dimension can produce ``value``."""
        return bool(self.nearest(value) == value)

    def nearest(self, value: Any) -> Any:
        """Returns the value of the dimension next to ``value``: the first choice for a name."""
        if self.choice:
            if value in self.choice:
                return value
            if _is_number(value) and all(map(_is_number, self.choice)):
                return min(self.choice, key=lambda choice: abs(choice - value))
            return self.choice[0]
        if not _is_number(value):
            return self.low
        inside = min(max(value, self.low), self.high)
        if self.step:
            inside = round(self.low + round((inside - self.low) / self.step) * self.step, 10)
        return int(inside) if self.integer else inside

    @property
    def corners(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range."""
        return self.choice or (self.nearest(self.low), self.nearest(self.high))

    @property
    def text(self) -> str:
        """The values as a person reads them: ``0.0001 to 0.005, log``."""
        if self.choice:
            return ", ".join(map(_text, self.choice))
        steps = f" in steps of {_text(self.step)}" if self.step else ""
        return f"{_text(self.low)} to {_text(self.high)}{steps}{', log' if self.log else ''}"

    @property
    def condition(self) -> str:
        """The condition as a person reads it: ``ssl_type is un or us``; empty without one."""
        return " and ".join(f"{name} is {' or '.join(map(_text, v))}" for name, v in self.when)


@dataclass(frozen=True)
class Space:
    """What a study searches: some hyperparameters fixed, some sampled, the rest at their defaults.

    ``dimensions`` stand in an order in which conditions come before what depends on them.
    ``start`` is the point of trial 0: the model's published defaults, moved into the space where
    they are outside; ``notes`` says what was moved or dropped.
    """

    model: str
    fixed: Mapping[str, Any]
    dimensions: tuple[Dimension, ...]
    place: str
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    declared: type[TrainParams] | None = None  # None: the model's own file says

    @property
    def params(self) -> type[TrainParams]:
        """The declaration of the hyperparameters."""
        # Looked up, not stored: a class that was read without torch cannot be pickled.
        return self.declared or declaration(self.model).params

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Draws a point: the fixed values and those sampled, define-by-run."""
        values = dict(self.fixed)
        effective = _defaults(self.params) | values
        for dimension in self.dimensions:
            if dimension.holds(effective):
                value = dimension.suggest(trial)
                values[dimension.name] = effective[dimension.name] = value
        return values

    def defaults(self) -> dict[str, Any]:
        """Returns the point that trial 0 runs; see ``notes`` for what it changes."""
        return dict(self.start)

    def build(self, values: Mapping[str, Any]) -> TrainParams:
        """Returns the hyperparameters of a point; UserError where it breaks a rule."""
        return build(self.params, values, self.place)

    def allows(self, values: Mapping[str, Any]) -> bool:
        """Tells whether a point obeys the model's rules (``n_heads`` divides the size, ...)."""
        try:
            self.build(values)
        except UserError:
            return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """Returns what defines the space, as JSON-like data: equal spaces, equal data."""
        return {
            "model": self.model,
            "fixed": dict(self.fixed),
            "space": {
                d.name: (
                    {"choice": list(d.choice)} if d.choice else {k: getattr(d, k) for k in RANGE}
                )
                | ({"when": {name: list(values) for name, values in d.when}} if d.when else {})
                for d in sorted(self.dimensions, key=lambda d: d.name)
            },
        }


def shipped(model: str) -> Path:
    """Returns the path of the model's own search space."""
    inside = Path(__file__).parent / "search_spaces"  # where a wheel keeps the folder
    folder = inside if inside.is_dir() else ROOT / "search_spaces"
    return folder / f"{model}.yaml"


def load_space(
    path: str | Path | None,
    model: str,
    overrides: Mapping[str, Any] | None = None,
    declared: type[TrainParams] | None = None,
) -> Space:
    """Reads a search space and checks every value that it can produce.

    Args:
        path: a YAML file; None takes the one that comes with the model.
        model: the model's name.
        overrides: values of ``--set``: they are fixed, and their dimensions are not sampled.
        declared: the hyperparameters, where the model is not one of ours.

    Raises:
        UserError: one sentence for the first mistake, with the place and the nearest fix.
    """
    if declared is None:
        model = check_model(model)
    params = declared or declaration(model).params
    file = Path(path) if path is not None else shipped(model)
    place = str(path) if path is not None else f"search_spaces/{file.name}"
    try:
        content = _read(file.read_text(encoding="utf-8"), place)
    except OSError:
        if path is None:
            raise UserError(f"{place} does not exist; write one, or give --space FILE") from None
        raise UserError(f"--space {place}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"--space {place}: not a text file in UTF-8") from None

    _check_keys(content, SECTIONS)
    _check_file_is_for(model, content, place)
    given = {name: check(params, name, value, "--set") for name, value in (overrides or {}).items()}
    section = _section(content, "fixed", place)
    fixed = {name: check(params, name, value, section.at(name)) for name, value in section.items()}
    section = _section(content, "space", place)
    dimensions = []
    for name in section:
        check_name(params, name, section.at(name))
        if name in fixed:
            raise UserError(f"{section.at(name)}: {name} also stands under fixed; remove one")
        dimensions.append(_dimension(params, name, section))
    fixed |= given
    defaults = _defaults(params) | fixed
    searched = [d for d in dimensions if d.name not in given]
    ordered, notes = _live(_in_order(searched, place), defaults)
    space = Space(model, fixed, ordered, place, {}, tuple(notes), declared)
    return _with_start(space, f"--set {', '.join(given)} with {place}" if given else place)


def _defaults(params: type[TrainParams]) -> dict[str, Any]:
    return {name: field.default for name, field in params.model_fields.items()}


# Reading YAML: like yaml.safe_load, but a key that stands twice is an error, and every key knows
# its line.


class _Keys(dict[str, Any]):
    """A mapping of the file; ``at`` names the place of a key."""

    def __init__(self, place: str = "", line: int = 0) -> None:
        super().__init__()
        self.place, self.line = place, line
        self.lines: dict[str, int] = {}

    def at(self, key: str | None = None) -> str:
        """Returns ``file:line`` of a key, or of the mapping itself."""
        return f"{self.place}:{self.line if key is None else self.lines.get(key, self.line)}"


class _Loader(yaml.SafeLoader):
    """Builds ``_Keys`` for mappings."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> _Keys:
    written = [key.value for key, _ in node.value]
    keys = _Keys(loader.name, node.start_mark.line + 1)
    for key, _ in node.value:
        if written.count(key.value) > 1 and key.value != "<<":
            raise yaml.MarkedYAMLError(
                problem=f"{key.value} stands twice; remove one", problem_mark=key.start_mark
            )
    loader.flatten_mapping(node)
    for key, value in node.value:
        name = str(loader.construct_object(key, deep=True))
        keys[name] = loader.construct_object(value, deep=True)
        keys.lines[name] = key.start_mark.line + 1
    return keys


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _read(text: str, place: str) -> _Keys:
    try:
        loader = _Loader(text)
        loader.name = place
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{place}:{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from None
    if isinstance(content, _Keys):
        return content
    raise UserError(f"{place}: write the keys model, fixed and space, not {_kind(content)}")


def _section(content: _Keys, name: str, place: str) -> _Keys:
    section = content.get(name)
    if section is None:
        return _Keys(place)
    if not isinstance(section, _Keys):
        raise UserError(
            f"{content.at(name)}: {name} must be a mapping of hyperparameters, not {_kind(section)}"
        )
    return section


def _check_keys(keys: _Keys, known: tuple[str, ...], owner: str = "") -> None:
    for key in keys:
        if key not in known:
            raise UserError(f"{keys.at(key)}: {owner}unknown key {key!r}{nearest(key, known)}")


def _check_file_is_for(model: str, content: _Keys, place: str) -> None:
    if "model" not in content:
        raise UserError(f"{place}: the key model is missing; add 'model: {model}'")
    named = str(content["model"])
    if named.lower() != model.lower():
        raise UserError(
            f"{content.at('model')}: this space is for model {named}, not {model}; "
            f"give --model {named.lower()}, or another --space"
        )


# One dimension


def _dimension(params: type[TrainParams], name: str, section: _Keys) -> Dimension:
    spec, place = section[name], section.at(name)
    if not isinstance(spec, _Keys):
        example = (
            f"{{choice: [{', '.join(map(_text, spec))}]}}"
            if isinstance(spec, list)
            else f"{{choice: [...]}}, or {name}: {_text(spec)} under fixed"
        )
        raise UserError(f"{place}: write {name}: {example}, not {_kind(spec)}")
    _check_keys(spec, ("choice", *RANGE, "when"), f"{name} has the ")
    when = _conditions(params, name, spec)
    ranged = [key for key in RANGE if key in spec]
    if "choice" in spec:
        if ranged:
            raise UserError(f"{place}: {name} has both choice and {ranged[0]}; remove one")
        return Dimension(name, _choices(params, name, spec), when=when)
    if "low" not in spec or "high" not in spec:
        raise UserError(f"{place}: {name} needs choice: [...], or low and high")
    return dataclasses.replace(_range(params, name, spec), when=when)


def _choices(params: type[TrainParams], name: str, spec: _Keys) -> tuple[Any, ...]:
    place, values = spec.at("choice"), spec["choice"]
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{place}: {name}.choice must be a list of one or more values, such as [1, 2], "
            f"not {_kind(values)}"
        )
    choices: list[Any] = []
    for value in values:
        choice = check(params, name, value, place)
        if choice in choices:
            raise UserError(f"{place}: {name}.choice has {_text(value)} twice; remove one")
        choices.append(choice)
    return tuple(choices)


def _range(params: type[TrainParams], name: str, spec: _Keys) -> Dimension:
    place = spec.at("low")
    number = _number_type(params, name)
    if number is None:
        raise UserError(f"{place}: {name} is not a number; write choice: [...] in place of low")
    low = check(params, name, spec["low"], place)
    high = check(params, name, spec["high"], spec.at("high"))
    log = spec.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{spec.at('log')}: {name}.log must be true or false, not {log!r}")
    if low == high:
        raise UserError(
            f"{place}: {name}.low and high are both {_text(low)}; "
            f"write {name}: {_text(low)} under fixed"
        )
    if low > high:
        raise UserError(
            f"{place}: {name}.low {_text(low)} must be below high {_text(high)}; swap them"
        )
    if log and low <= 0:
        raise UserError(
            f"{place}: {name}.low must be above 0 on a log scale, not {_text(low)}; "
            f"raise it, or remove log"
        )
    step = None
    if spec.get("step") is not None:
        if log:
            raise UserError(f"{spec.at('step')}: {name} has both step and log; remove one")
        step = _step(name, spec, low, high, number)
    return Dimension(name, low=low, high=high, step=step, log=log, integer=number is int)


def _step(name: str, spec: _Keys, low: float, high: float, number: type) -> float:
    place = spec.at("step")
    try:
        step = 0.0 if isinstance(spec["step"], bool) else float(spec["step"])
    except (TypeError, ValueError):
        step = 0.0
    if not 0 < step < float("inf") or (number is int and step != int(step)):
        kind = "a whole number" if number is int else "a number"
        raise UserError(f"{place}: {name}.step must be {kind} above 0, not {spec['step']!r}")
    # In decimals, since 0.6 - 0.1 is not a multiple of 0.1 in floats.
    start, width, pace = (Decimal(str(value)) for value in (low, high, step))
    over = (width - start) % pace
    if over:
        below, above = width - over, width - over + pace
        fixes = [_text(float(fix)) for fix in (below, above) if fix > start]
        raise UserError(
            f"{spec.at('high')}: {name}.high must be low plus a multiple of step {_text(step)}, "
            f"not {_text(high)}; use {' or '.join(fixes)}"
        )
    return step


def _conditions(
    params: type[TrainParams], name: str, spec: _Keys
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    when = spec.get("when")
    if when is None:
        return ()
    if not isinstance(when, _Keys):
        raise UserError(
            f"{spec.at('when')}: {name}.when must name a hyperparameter and its values, such as "
            f"{{loss_type: [bce, bpr]}}, not {_kind(when)}"
        )
    conditions = []
    for other, values in when.items():
        place = when.at(other)
        check_name(params, other, f"{place}: {name}.when")
        values = values if isinstance(values, list) else [values]
        if not values:
            raise UserError(f"{place}: {name}.when.{other} must list one or more values")
        checked = (check(params, other, value, f"{place}: {name}.when") for value in values)
        conditions.append((other, tuple(checked)))
    return tuple(conditions)


def _number_type(params: type[TrainParams], name: str) -> type | None:
    annotation = params.model_fields[name].annotation
    options = typing.get_args(annotation) or (annotation,)  # the parts of int | None
    return next((kind for kind in (int, float) if kind in options), None)


# Conditions and the starting point


def _in_order(dimensions: list[Dimension], place: str) -> list[Dimension]:
    """Puts every dimension after those that its conditions name, else keeps the file's order."""
    ordered: list[Dimension] = []
    waiting = list(dimensions)
    while waiting:
        names = {d.name for d in waiting}
        free = next((d for d in waiting if not names & {name for name, _ in d.when}), None)
        if free is None:
            circle = ", ".join(d.name for d in waiting)
            raise UserError(
                f"{place}: the conditions of {circle} depend on each other; remove one when"
            )
        waiting.remove(free)
        ordered.append(free)
    return ordered


def _live(
    dimensions: list[Dimension], defaults: Mapping[str, Any]
) -> tuple[tuple[Dimension, ...], list[str]]:
    """Drops the dimensions whose condition can never hold, with a note for each."""
    live: dict[str, Dimension] = {}
    notes = []
    for dimension in dimensions:
        for name, values in dimension.when:
            possible = [defaults[name]]
            if name in live:  # a conditional one has its default while it is not sampled
                possible = [v for v in values if live[name].contains(v)]
                possible += [defaults[name]] if live[name].when else []
            if not set(possible) & set(values):
                notes.append(
                    f"{dimension.name} is not searched: {name} is never "
                    f"{' or '.join(map(_text, values))}"
                )
                break
        else:
            live[dimension.name] = dimension
    return tuple(live.values()), notes


def _with_start(space: Space, place: str) -> Space:
    """Adds the point of trial 0: the defaults, or the nearest point that obeys all rules."""
    defaults = _defaults(space.params)

    def point(preferred: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(space.fixed)
        for dimension in space.dimensions:
            if dimension.holds(defaults | values):
                values[dimension.name] = dimension.nearest(preferred[dimension.name])
        return values

    start = point(defaults)
    if not space.allows(start):
        found = (point(defaults | change) for change in _changes(space.dimensions))
        start = next((p for p in itertools.islice(found, REPAIRS) if space.allows(p)), start)
        build(space.params, start, place)  # raises, with the rule that no point obeys
    moved = tuple(
        f"trial 0 runs {d.name} {_text(start[d.name])}: the default {_text(defaults[d.name])} "
        + ("breaks a rule of the model here" if d.contains(defaults[d.name]) else "is outside")
        for d in space.dimensions
        if d.name in start and start[d.name] != defaults[d.name]
    )
    return dataclasses.replace(space, start=start, notes=space.notes + moved)


def _changes(dimensions: tuple[Dimension, ...]) -> Iterator[dict[str, Any]]:
    """Yields changes of one dimension, then of two, ...: to every choice and end of a range."""
    for count in range(1, len(dimensions) + 1):
        for changed in itertools.combinations(dimensions, count):
            for values in itertools.product(*(d.corners for d in changed)):
                yield {d.name: v for d, v in zip(changed, values, strict=True)}


# Words


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    """Writes a value as YAML would: true, null, 0.001."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a mapping" if isinstance(value, dict) else f"{value!r}"
