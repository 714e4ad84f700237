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

from seqtune.errors import UserError, nearest
from seqtune.params import (
    Params,
    aliases,
    build,
    check,
    check_model,
    check_name,
    declaration,
)
from seqtune.yamlfile import Keys, kind, parse, text_of

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

    def holding(self, value: Any) -> Dimension | None:
        """Returns the dimension, widened to contain ``value``; None where no range can.

        A choice is added, a range is extended. Steps that would miss the value are given up, and a
        log scale has no place for 0.
        """
        if self.contains(value):
            return self
        if self.choice:
            choice = [*self.choice, value]
            numbers = all(map(_is_number, choice))
            return dataclasses.replace(self, choice=tuple(sorted(choice) if numbers else choice))
        if not _is_number(value) or (self.log and value <= 0):
            return None
        low, high, step = min(self.low, value), max(self.high, value), self.step
        if step and (Decimal(str(value)) - Decimal(str(self.low))) % Decimal(str(step)):
            step = None
        return dataclasses.replace(self, low=low, high=high, step=step)

    @property
    def corners(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range."""
        return self.choice or (self.nearest(self.low), self.nearest(self.high))

    @property
    def text(self) -> str:
        """The values as a person reads them: ``0.0001 to 0.005, log``."""
        if self.choice:
            return ", ".join(map(text_of, self.choice))
        steps = f" in steps of {text_of(self.step)}" if self.step else ""
        return f"{text_of(self.low)} to {text_of(self.high)}{steps}{', log' if self.log else ''}"

    @property
    def condition(self) -> str:
        """The condition as a person reads it: ``ssl_type is un or us``; empty without one."""
        return " and ".join(f"{name} is {' or '.join(map(text_of, v))}" for name, v in self.when)


@dataclass(frozen=True)
class Given:
    """What a file of ``--params`` says about a model: values, and a dimension for each list.

    ``notes`` says what of the file is not used; ``lines`` is the place of each name, as file:line.
    """

    place: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dimensions: tuple[Dimension, ...] = ()
    notes: tuple[str, ...] = ()
    lines: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """What a study searches: some hyperparameters fixed, some sampled, the rest at their defaults.

    ``dimensions`` stand in an order in which conditions come before what depends on them.
    ``start`` is the point of trial 0: the model's defaults, moved into the space where
    they are outside; ``notes`` says what was moved or dropped. ``given`` are values that
    stand in for defaults of what is sampled: ``start`` has them as they are.
    """

    model: str
    fixed: Mapping[str, Any]
    dimensions: tuple[Dimension, ...]
    place: str
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    declared: type[Params] | None = None  # None: the model's own file says
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def params(self) -> type[Params]:
        """The declaration of the hyperparameters."""
        # Looked up, not stored: a class that was read without torch cannot be pickled.
        return self.declared or declaration(self.model).params

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Draws a point: the fixed values and those sampled, define-by-run."""
        values = dict(self.fixed)
        effective = _defaults(self.params) | dict(self.given) | values
        for dimension in self.dimensions:
            if dimension.holds(effective):
                value = dimension.suggest(trial)
                values[dimension.name] = effective[dimension.name] = value
            elif dimension.name in self.given:
                values[dimension.name] = self.given[dimension.name]
        return values

    def defaults(self) -> dict[str, Any]:
        """Returns the point that trial 0 runs; see ``notes`` for what it changes."""
        return dict(self.start)

    def build(self, values: Mapping[str, Any]) -> Params:
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
                | ({"start": self.given[d.name]} if d.name in self.given else {})
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
    declared: type[Params] | None = None,
    given: Given | None = None,
) -> Space:
    """Reads a search space and checks every value that it can produce.

    Args:
        path: a YAML file; None takes the one that comes with the model.
        model: the model's name.
        overrides: values of ``--set``: they are fixed, and their dimensions are not sampled.
        declared: the hyperparameters, where the model is not one of ours.
        given: the file of ``--params``. Its values come before those of the space and after
            ``overrides``; if it has dimensions, they are the space and ``path`` is not read.

    Raises:
        UserError: one sentence for the first mistake, with the place and the nearest fix.
    """
    if declared is None:
        model = check_model(model)
    params = declared or declaration(model).params
    chosen = {
        check_name(params, name, "--set"): check(params, name, value, "--set")
        for name, value in (overrides or {}).items()
    }
    given = given or Given()
    values = {name: value for name, value in given.values.items() if name not in chosen}
    notes: list[str] = []
    if given.dimensions:
        if path is not None:
            raise UserError(
                f"{given.lines[given.dimensions[0].name]}: a list makes this file the search "
                f"space, and so is --space {path}; leave --space out, or write one value for each"
            )
        place, fixed, dimensions = given.place, dict(values), list(given.dimensions)
    else:
        place, fixed, dimensions = _read_space(path, model, params)
        fixed = {name: value for name, value in fixed.items() if name not in chosen}
        dimensions, notes = _led_by(values, given.place, dimensions, fixed, place)
        fixed |= {n: v for n, v in values.items() if n not in {d.name for d in dimensions}}
    fixed |= chosen
    searched = _in_order([d for d in dimensions if d.name not in chosen], place)
    ordered, dropped = _live(searched, _defaults(params) | values | fixed)
    sampled = {d.name for d in ordered}
    fixed |= {name: value for name, value in values.items() if name not in sampled}
    start = {name: value for name, value in values.items() if name in sampled}
    space = Space(model, fixed, ordered, place, {}, (*notes, *dropped), declared, start)
    sources = [f"--set {', '.join(chosen)}"] if chosen else []
    sources += [given.place] if values and given.place != place else []
    return _with_start(space, " with ".join([*sources, place]))


def _read_space(
    path: str | Path | None, model: str, params: type[Params]
) -> tuple[str, dict[str, Any], list[Dimension]]:
    """Returns the name of the file, what it fixes and what it searches."""
    file = Path(path) if path is not None else shipped(model)
    place = str(path) if path is not None else f"search_spaces/{file.name}"
    try:
        content = parse(file.read_text(encoding="utf-8"), place, "the keys model, fixed and space")
    except OSError:
        if path is None:
            raise UserError(f"{place} does not exist; write one, or give --space FILE") from None
        raise UserError(f"--space {place}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"--space {place}: not a text file in UTF-8") from None

    _check_keys(content, SECTIONS)
    _check_file_is_for(model, content, place)
    section = _section(content, "fixed", place).renamed(aliases(params))
    fixed = {name: check(params, name, value, section.at(name)) for name, value in section.items()}
    section = _section(content, "space", place).renamed(aliases(params))
    dimensions = []
    for name in section:
        check_name(params, name, section.at(name))
        if name in fixed:
            raise UserError(f"{section.at(name)}: {name} also stands under fixed; remove one")
        dimensions.append(read_dimension(params, name, section))
    return place, fixed, dimensions


def _led_by(
    values: Mapping[str, Any],
    source: str,
    dimensions: list[Dimension],
    fixed: Mapping[str, Any],
    place: str,
) -> tuple[list[Dimension], list[str]]:
    """Widens the dimensions that do not contain the values of ``source``, and says so.

    A dimension that cannot be widened is left out, which fixes its hyperparameter.
    """
    held, widened, kept = [], [], []
    for dimension in dimensions:
        name = dimension.name
        wider = dimension.holding(values[name]) if name in values else dimension
        if wider is None:
            kept.append(f"{name} {text_of(values[name])}, not in {dimension.text}")
            continue
        held.append(wider)
        if wider != dimension:
            widened.append(f"{name} {text_of(values[name])}")
    kept += [
        f"{name} {text_of(values[name])}, not {text_of(value)}"
        for name, value in fixed.items()
        if name in values and values[name] != value
    ]
    notes = [f"fixed by {source} in place of {place}: {'; '.join(kept)}"] if kept else []
    notes += [f"searched wider than {place} for {source}: {', '.join(widened)}"] if widened else []
    return held, notes


def _defaults(params: type[Params]) -> dict[str, Any]:
    return {name: field.default for name, field in params.model_fields.items()}


# Sections of the file


def _section(content: Keys, name: str, place: str) -> Keys:
    section = content.get(name)
    if section is None:
        return Keys(place)
    if not isinstance(section, Keys):
        raise UserError(
            f"{content.at(name)}: {name} must be a mapping of hyperparameters, not {kind(section)}"
        )
    return section


def _check_keys(keys: Keys, known: tuple[str, ...], owner: str = "") -> None:
    for key in keys:
        if key not in known:
            raise UserError(f"{keys.at(key)}: {owner}unknown key {key!r}{nearest(key, known)}")


def _check_file_is_for(model: str, content: Keys, place: str) -> None:
    if "model" not in content:
        raise UserError(f"{place}: the key model is missing; add 'model: {model}'")
    named = str(content["model"])
    if named.lower() != model.lower():
        raise UserError(
            f"{content.at('model')}: this space is for model {named}, not {model}; "
            f"give --model {named.lower()}, or another --space"
        )


# One dimension


def read_dimension(params: type[Params], name: str, section: Keys) -> Dimension:
    """Reads and checks ``section[name]``, the specification of a dimension."""
    spec, place = section[name], section.at(name)
    if not isinstance(spec, Keys):
        example = (
            f"{{choice: [{', '.join(map(text_of, spec))}]}}"
            if isinstance(spec, list)
            else f"{{choice: [...]}}, or {name}: {text_of(spec)} under fixed"
        )
        raise UserError(f"{place}: write {name}: {example}, not {kind(spec)}")
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


def _choices(params: type[Params], name: str, spec: Keys) -> tuple[Any, ...]:
    place, values = spec.at("choice"), spec["choice"]
    if not isinstance(values, list) or not values:
        raise UserError(
            f"{place}: {name}.choice must be a list of one or more values, such as [1, 2], "
            f"not {kind(values)}"
        )
    choices: list[Any] = []
    for value in values:
        choice = check(params, name, value, place)
        if choice in choices:
            raise UserError(f"{place}: {name}.choice has {text_of(value)} twice; remove one")
        choices.append(choice)
    return tuple(choices)


def _range(params: type[Params], name: str, spec: Keys) -> Dimension:
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
            f"{place}: {name}.low and high are both {text_of(low)}; "
            f"write {name}: {text_of(low)} under fixed"
        )
    if low > high:
        raise UserError(
            f"{place}: {name}.low {text_of(low)} must be below high {text_of(high)}; swap them"
        )
    if log and low <= 0:
        raise UserError(
            f"{place}: {name}.low must be above 0 on a log scale, not {text_of(low)}; "
            f"raise it, or remove log"
        )
    step = None
    if spec.get("step") is not None:
        if log:
            raise UserError(f"{spec.at('step')}: {name} has both step and log; remove one")
        step = _step(name, spec, low, high, number)
    return Dimension(name, low=low, high=high, step=step, log=log, integer=number is int)


def _step(name: str, spec: Keys, low: float, high: float, number: type) -> float:
    place = spec.at("step")
    try:
        step = 0.0 if isinstance(spec["step"], bool) else float(spec["step"])
    except (TypeError, ValueError):
        step = 0.0
    if not 0 < step < float("inf") or (number is int and step != int(step)):
        what = "a whole number" if number is int else "a number"
        raise UserError(f"{place}: {name}.step must be {what} above 0, not {spec['step']!r}")
    # In decimals, since 0.6 - 0.1 is not a multiple of 0.1 in floats.
    start, width, pace = (Decimal(str(value)) for value in (low, high, step))
    over = (width - start) % pace
    if over:
        below, above = width - over, width - over + pace
        fixes = [text_of(float(fix)) for fix in (below, above) if fix > start]
        raise UserError(
            f"{spec.at('high')}: {name}.high must be low plus a multiple of step {text_of(step)}, "
            f"not {text_of(high)}; use {' or '.join(fixes)}"
        )
    return step


def _conditions(
    params: type[Params], name: str, spec: Keys
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    when = spec.get("when")
    if when is None:
        return ()
    if not isinstance(when, Keys):
        raise UserError(
            f"{spec.at('when')}: {name}.when must name a hyperparameter and its values, such as "
            f"{{loss_type: [bce, bpr]}}, not {kind(when)}"
        )
    conditions = []
    for other, values in when.items():
        place = when.at(other)
        other = check_name(params, other, f"{place}: {name}.when")
        values = values if isinstance(values, list) else [values]
        if not values:
            raise UserError(f"{place}: {name}.when.{other} must list one or more values")
        checked = (check(params, other, value, f"{place}: {name}.when") for value in values)
        conditions.append((other, tuple(checked)))
    return tuple(conditions)


def _number_type(params: type[Params], name: str) -> type | None:
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
                    f"{' or '.join(map(text_of, values))}"
                )
                break
        else:
            live[dimension.name] = dimension
    return tuple(live.values()), notes


def _with_start(space: Space, place: str) -> Space:
    """Adds the point of trial 0: the defaults, or the nearest point that obeys all rules.

    Values that were given are not moved: where they break a rule, that is a UserError.
    """
    defaults = _defaults(space.params) | dict(space.given)

    def point(preferred: Mapping[str, Any]) -> dict[str, Any]:
        values = dict(space.fixed)
        for dimension in space.dimensions:
            if dimension.holds(defaults | values):
                values[dimension.name] = dimension.nearest(preferred[dimension.name])
            elif dimension.name in space.given:
                values[dimension.name] = space.given[dimension.name]
        return values

    start = point(defaults)
    if not space.allows(start):
        free = tuple(d for d in space.dimensions if d.name not in space.given)
        found = (point(defaults | change) for change in _changes(free))
        start = next((p for p in itertools.islice(found, REPAIRS) if space.allows(p)), start)
        build(space.params, start, place)  # raises, with the rule that no point obeys
    moved = tuple(
        f"trial 0 runs {d.name} {text_of(start[d.name])}: the default {text_of(defaults[d.name])} "
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
