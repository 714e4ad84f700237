"""What a person asks for, read and checked once: nobody after this parses an option again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from seqtune.catalogue import declaration
from seqtune.errors import UserError
from seqtune.options import DEFAULTS, ModelOptions, StudyOptions, bounds
from seqtune.params import build, check, check_name, fitted, parse_assignment
from seqtune.space.advice import poor_values
from seqtune.space.read import load_space
from seqtune.space.space import Given, Space, declared_defaults
from seqtune.space.warprec import read
from seqtune.words import duration, written

# A first look should not take long: these hold on the demo set where nothing else is asked for.
DEMO, DEMO_BUDGET, DEMO_EPOCHS = "demo", 180.0, 30

Options = TypeVar("Options", bound=ModelOptions)


@dataclass(frozen=True)
class Asked(Generic[Options]):
    """Options, and what they say about hyperparameters.

    One order of precedence holds everywhere: ``--set``, ``--seed``, the file of ``--params``, what
    the search space fixes, the declared default.
    """

    options: Options
    values: Mapping[str, Any]  # of hyperparameters that are given; the rest have their defaults
    notes: tuple[str, ...]
    given: frozenset[str]  # names that --set, --seed or --params say

    @property
    def seed(self) -> int:
        """The seed of the search, of the order of trials and of drawn users."""
        return int(self.values.get("seed", 0))


@dataclass(frozen=True)
class AskedStudy(Asked[StudyOptions]):
    """What a study shall be: ``values`` are those that all trials share."""

    space: Space
    baseline: str  # what trial 0 runs, in words
    time_budget: float | None  # seconds; that of a first look where none is given


def ask_training(options: Options) -> Asked[Options]:
    """Reads and checks the hyperparameters of one training.

    Raises:
        UserError: one sentence for the first mistake in ``--set``, in the file of ``--params``, or
            in how they fit together.
    """
    given, chosen = _given(options), _chosen(options)
    values = {**_single(given, chosen), **chosen}
    sources = ["--set"] if chosen or not given.place else []
    sources += [given.place] if given.place else []
    build(declaration(options.model).params, values, " with ".join(sources))
    poor = poor_values(options.model, _without(given, chosen), values)
    return Asked(options, values, (*given.notes, *poor), frozenset(values))


def ask_study(options: StudyOptions) -> AskedStudy:
    """Reads and checks the search space and whatever fixes or replaces a part of it.

    Raises:
        UserError: one sentence for the first mistake, with the place and the nearest fix.
    """
    given, chosen = _given(options), _chosen(options)
    space = load_space(options.space, options.model, chosen, given=given)
    searched = [dimension.name for dimension in space.dimensions]
    poor = poor_values(options.model, _without(given, chosen), space.defaults(), searched)
    from_file = bool(given.values) and not given.dimensions
    baseline = f"values of {Path(given.place).name}" if from_file else DEFAULTS
    fixed = _fixed_notes(space, baseline, {*chosen, *given.values})
    notes = (*given.notes, *space.notes, *fixed, *poor)
    budget = options.time_budget
    if options.data == DEMO:
        budget = budget or DEMO_BUDGET
        if not {"epochs"} & {*given.lines, *chosen}:
            space = _first_look(space)
        notes = (_first_look_note(space, budget), *notes)
    said = frozenset([*given.lines, *chosen])
    return AskedStudy(options, space.fixed, notes, said, space, baseline, budget)


def fit_training(asked: Asked[Options], n_items: int) -> Asked[Options]:
    """Lowers defaults to what data of ``n_items`` items allow, and says so.

    Raises:
        UserError: a value that was given cannot work with these data.
    """
    params = declaration(asked.options.model).params
    _check_batch(asked.values, getattr(asked.options, "workers", 1))
    values, notes = fitted(params, asked.values, n_items, "--set or --params", asked.given)
    return replace(asked, values=values, notes=(*asked.notes, *notes))


def fit_study(asked: AskedStudy, n_items: int) -> AskedStudy:
    """Lowers the whole space to what data of ``n_items`` items allow, and says so.

    Raises:
        UserError: a value that was given cannot work with these data.
    """
    space, name, most = asked.space, "neg_samples", n_items - 1
    _check_batch(space.fixed, bounds(asked.options.workers_per_trial)[1])
    start, notes = fitted(space.params, space.start, n_items, space.place, asked.given)
    dimensions = tuple(d.capped(most) if d.name == name else d for d in space.dimensions)
    fixed = dict(space.fixed)
    if name in start and name not in {d.name for d in dimensions}:
        fixed[name] = start[name]
    space = replace(space, fixed=fixed, dimensions=dimensions, start=start)
    return replace(asked, space=space, values=fixed, notes=(*asked.notes, *notes))


def _check_batch(values: Mapping[str, Any], workers: int) -> None:
    size = values.get("batch_size")
    if size is not None and size < 2 * workers and not values.get("tokens_per_batch"):
        raise UserError(
            f"--set or --params: batch_size must be at least {2 * workers}, 2 for each worker, "
            f"not {size}"
        )


def _fixed_notes(space: Space, baseline: str, asked: Collection[str]) -> list[str]:
    """Says what the search space fixes elsewhere than the model declares, unasked."""
    usual = declared_defaults(space.params)
    other = [
        f"{name} {written(value)}"
        for name, value in space.fixed.items()
        if name not in asked and value != usual[name]
    ]
    if not other:
        return []
    return [f"trial 0 runs the {baseline} with {', '.join(other)}, which the search space fixes"]


def _given(options: ModelOptions) -> Given:
    if options.params is None:
        return Given()
    return read(options.params, options.model, declaration(options.model).params)


def _chosen(options: ModelOptions) -> dict[str, Any]:
    """Returns the values of ``--set``, and that of ``--seed``."""
    params, values = declaration(options.model).params, {}
    for text in options.set:
        name, value = parse_assignment(text)
        name = check_name(params, name, "--set")
        if name in values:
            raise UserError(f"--set {text}: {name} is set twice; keep one")
        values[name] = check(params, name, value, "--set")
    return values if options.seed is None else {"seed": options.seed, **values}


def _without(given: Given, chosen: Collection[str]) -> Given:
    """Returns what a file says about hyperparameters that ``--set`` leaves to it."""
    values = {name: value for name, value in given.values.items() if name not in chosen}
    dimensions = tuple(d for d in given.dimensions if d.name not in chosen)
    return replace(given, values=values, dimensions=dimensions)


def _single(given: Given, chosen: Collection[str]) -> Mapping[str, Any]:
    for dimension in _without(given, chosen).dimensions:
        raise UserError(
            f"{given.lines[dimension.name]}: {dimension.name} is a list, and train needs one "
            f"value; give --set {dimension.name}={written(dimension.corners[0])}, or use tune"
        )
    return given.values


def _first_look(space: Space) -> Space:
    """Keeps the trials of the demo set short."""
    if space.epochs <= DEMO_EPOCHS:
        return space
    short = {"epochs": DEMO_EPOCHS}
    dimensions = tuple(d for d in space.dimensions if d.name != "epochs")
    return replace(
        space, fixed={**space.fixed, **short}, dimensions=dimensions, start={**space.start, **short}
    )


def _first_look_note(space: Space, budget: float) -> str:
    limit, ways = f"{duration(budget)} in all", "--time-budget"
    if space.epochs:  # STAN has none
        limit, ways = f"{space.epochs} epochs a trial and {limit}", f"--set epochs=, {ways}"
    return f"the demo set is generated; a first look takes at most {limit} ({ways})"
