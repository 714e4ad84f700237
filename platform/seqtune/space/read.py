"""Reading a search space from its YAML file.

    model: duorec
    fixed: {max_seq_len: 50}
    space:
      embedding_size: {choice: [32, 64, 128]}
      learning_rate: {low: 1e-4, high: 5e-3, log: true}
      ssl_lambda: {low: 0.01, high: 0.5, log: true, when: {ssl_type: [un, us]}}
    start:
      - {embedding_size: 128, learning_rate: 0.002}

``load_space`` checks everything that the file can produce against the model's declaration, before
anything starts and without importing torch, Ray or Optuna. search_spaces/README.md is the user's
description of the format.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from seqtune.catalogue import check_model, declaration
from seqtune.errors import UserError, nearest
from seqtune.params import Params, aliases, check, check_name
from seqtune.space.space import (
    RANGE,
    Dimension,
    Given,
    Space,
    declared_defaults,
    in_order,
    live,
    with_start,
)
from seqtune.space.yamlfile import Keys, kind, parse
from seqtune.words import written

ROOT = Path(__file__).parents[3]
SECTIONS = ("model", "fixed", "space", "start")


def shipped(model: str) -> Path:
    """Returns the path of the model's own search space."""
    inside = Path(__file__).parents[1] / "search_spaces"  # where a wheel keeps the folder
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
        portfolio: tuple[Mapping[str, Any], ...] = ()
    else:
        place, fixed, dimensions, portfolio = _read_space(path, model, params)
        fixed = {name: value for name, value in fixed.items() if name not in chosen}
        dimensions, notes = _led_by(values, given.place, dimensions, fixed, place)
        fixed |= {n: v for n, v in values.items() if n not in {d.name for d in dimensions}}
    fixed |= chosen
    searched = in_order([d for d in dimensions if d.name not in chosen], place)
    ordered, dropped = live(searched, declared_defaults(params) | values | fixed)
    sampled = {d.name for d in ordered}
    fixed |= {name: value for name, value in values.items() if name not in sampled}
    start = {name: value for name, value in values.items() if name in sampled}
    said = frozenset([*given.lines, *chosen])
    told = (*notes, *dropped)
    space = Space(
        model, fixed, ordered, place, {}, told, declared, start, portfolio=portfolio, said=said
    )
    sources = [f"--set {', '.join(chosen)}"] if chosen else []
    sources += [given.place] if values and given.place != place else []
    return with_start(space, " with ".join([*sources, place]))


def _read_space(
    path: str | Path | None, model: str, params: type[Params]
) -> tuple[str, dict[str, Any], list[Dimension], tuple[Mapping[str, Any], ...]]:
    """Returns the name of the file, what it fixes, what it searches, and where it starts."""
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
    return place, fixed, dimensions, _portfolio(content, place, params, dimensions)


def _portfolio(
    content: Keys, place: str, params: type[Params], dimensions: list[Dimension]
) -> tuple[Mapping[str, Any], ...]:
    """Reads the points that run right after trial 0: a list of mappings."""
    points = content.get("start")
    if points is None:
        return ()
    at = content.at("start")
    if not isinstance(points, list):
        raise UserError(f"{at}: start must be a list of points, each {{name: value}}")
    by_name = {dimension.name: dimension for dimension in dimensions}
    found = []
    for point in points:
        if not isinstance(point, Keys):
            raise UserError(f"{at}: a point of start must be {{name: value}}, not {kind(point)}")
        own = {}
        for name, value in point.renamed(aliases(params)).items():
            if (dimension := by_name.get(name)) is None:
                raise UserError(
                    f"{point.at(name)}: {name} is not searched here{nearest(name, by_name)}"
                )
            own[name] = check(params, name, value, point.at(name))
            if not dimension.contains(own[name]):
                raise UserError(
                    f"{point.at(name)}: {name} {written(own[name])} is not in {dimension.text}"
                )
        found.append(own)
    return tuple(found)


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
            kept.append(f"{name} {written(values[name])}, not in {dimension.text}")
            continue
        held.append(wider)
        if wider != dimension:
            widened.append(f"{name} {written(values[name])}")
    kept += [
        f"{name} {written(values[name])}, not {written(value)}"
        for name, value in fixed.items()
        if name in values and values[name] != value
    ]
    notes = [f"fixed by {source} in place of {place}: {'; '.join(kept)}"] if kept else []
    notes += [f"searched wider than {place} for {source}: {', '.join(widened)}"] if widened else []
    return held, notes


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


def read_dimension(params: type[Params], name: str, section: Keys) -> Dimension:
    """Reads and checks ``section[name]``, the specification of a dimension."""
    spec, place = section[name], section.at(name)
    if not isinstance(spec, Keys):
        example = (
            f"{{choice: [{', '.join(map(written, spec))}]}}"
            if isinstance(spec, list)
            else f"{{choice: [...]}}, or {name}: {written(spec)} under fixed"
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
            raise UserError(f"{place}: {name}.choice has {written(value)} twice; remove one")
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
            f"{place}: {name}.low and high are both {written(low)}; "
            f"write {name}: {written(low)} under fixed"
        )
    if low > high:
        raise UserError(
            f"{place}: {name}.low {written(low)} must be below high {written(high)}; swap them"
        )
    if log and low <= 0:
        raise UserError(
            f"{place}: {name}.low must be above 0 on a log scale, not {written(low)}; "
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
        fixes = [written(float(fix)) for fix in (below, above) if fix > start]
        raise UserError(
            f"{spec.at('high')}: {name}.high must be low plus a multiple of step {written(step)}, "
            f"not {written(high)}; use {' or '.join(fixes)}"
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
