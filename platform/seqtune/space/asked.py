"""What a person asks for, read and checked once: nobody after this parses an option again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from seqtune.catalogue import declaration
from seqtune.errors import UserError, nearest
from seqtune.options import DEFAULTS, ModelOptions, StudyOptions, bounds
from seqtune.params import (
    Params,
    aliases,
    build,
    check,
    check_name,
    fitted,
    parse_assignment,
)
from seqtune.space.advice import poor_values
from seqtune.space.read import load_space
from seqtune.space.space import Given, Space, declared_defaults
from seqtune.space.warprec import models_of, read
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
    """What a study shall be: ``values`` are those that all trials of its first model share."""

    spaces: tuple[Space, ...]  # one for each model
    baseline: str  # what the first trial of each model runs, in words
    time_budget: float | None  # seconds; that of a first look where none is given

    @property
    def space(self) -> Space:
        """The space of the first model, which is the only one of most studies."""
        return self.spaces[0]

    @property
    def several(self) -> bool:
        """Whether the study compares models."""
        return len(self.spaces) > 1

    @property
    def trained(self) -> Space:
        """The space of the first model that is trained; of a study of none, the first."""
        return next((one for one in self.spaces if one.epochs), self.space)

    @property
    def searched(self) -> tuple[str, ...]:
        """The names of the hyperparameters that are searched, of all models."""
        return tuple(dict.fromkeys(d.name for space in self.spaces for d in space.dimensions))


def ask_training(options: Options) -> Asked[Options]:
    """Reads and checks the hyperparameters of one training.

    Raises:
        UserError: one sentence for the first mistake in ``--set``, in the file of ``--params``, or
            in how they fit together.
    """
    model = options.model
    given, chosen = _given(options, model, [model]), _chosen(options, model, [model])
    values = {**_single(given, chosen), **chosen}
    sources = ["--set"] if chosen or not given.place else []
    sources += [given.place] if given.place else []
    build(declaration(options.model).params, values, " with ".join(sources))
    poor = poor_values(options.model, _without(given, chosen), values)
    return Asked(options, values, (*given.notes, *poor), frozenset(values))


def ask_study(options: StudyOptions) -> AskedStudy:
    """Reads and checks the search space of each model and whatever fixes or replaces a part of it.

    Raises:
        UserError: one sentence for the first mistake, with the place and the nearest fix.
    """
    several = len(options.models) > 1
    found = [_ask_space(options, model) for model in options.models]
    spaces, baselines = [space for space, *_ in found], [baseline for _, baseline, _ in found]
    notes = [
        f"{space.model}: {note}" if several else note for space, _, own in found for note in own
    ]
    if several:
        spaces = [replace(space, prefix=f"{space.model}.") for space in spaces]
    budget = options.time_budget
    if options.data == DEMO:
        budget = budget or DEMO_BUDGET
        spaces = [one if "epochs" in one.said else _first_look(one) for one in spaces]
        longest = max(spaces, key=lambda space: space.epochs)
        notes.insert(0, _first_look_note(longest, budget))
    baseline = next((one for one in baselines if one != DEFAULTS), DEFAULTS)
    first = spaces[0]
    return AskedStudy(
        options, first.fixed, tuple(notes), first.said, tuple(spaces), baseline, budget
    )


def _ask_space(options: StudyOptions, model: str) -> tuple[Space, str, tuple[str, ...]]:
    """Returns the space of a model, what its first trial runs, and what there is to note."""
    given = _given(options, model, options.models)
    chosen = _chosen(options, model, options.models)
    space = load_space(_space_file(options, model), model, chosen, given=given)
    if not options.portfolio:
        space = replace(space, portfolio=())
    searched = [dimension.name for dimension in space.dimensions]
    poor = poor_values(model, _without(given, chosen), space.defaults(), searched)
    from_file = bool(given.values) and not given.dimensions
    baseline = f"values of {Path(given.place).name}" if from_file else DEFAULTS
    fixed = _fixed_notes(space, baseline, {*chosen, *given.values})
    return space, baseline, (*given.notes, *space.notes, *fixed, *poor)


def _space_file(options: StudyOptions, model: str) -> str | None:
    """Returns the file of a model's space: that of ``--space``, or in it where it is a folder.

    Raises:
        UserError: the folder has a space of none of the models.
    """
    if not options.space:
        return options.space
    place = Path(options.space).expanduser()
    try:
        if not place.is_dir():
            return options.space
    except OSError:  # no file can have that name, and to read it says so
        return options.space
    there = {one: place / f"{one}.yaml" for one in options.models}
    if not any(file.is_file() for file in there.values()):
        names = " nor ".join(file.name for file in there.values())
        raise UserError(f"--space {options.space}: the folder has no {names}; give another")
    return str(there[model]) if there[model].is_file() else None


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
    found = [_fit_space(space, n_items, asked.options) for space in asked.spaces]
    spaces = tuple(space for space, _ in found)
    notes = [
        f"{space.model}: {note}" if asked.several else note for space, own in found for note in own
    ]
    values = spaces[0].fixed
    return replace(asked, spaces=spaces, values=values, notes=(*asked.notes, *notes))


def _fit_space(space: Space, n_items: int, options: StudyOptions) -> tuple[Space, tuple[str, ...]]:
    name, most = "neg_samples", n_items - 1
    _check_batch(space.fixed, bounds(options.workers_per_trial)[1])
    start, notes = fitted(space.params, space.start, n_items, space.place, space.said)
    dimensions = tuple(d.capped(most) if d.name == name else d for d in space.dimensions)
    fixed = dict(space.fixed)
    if name in start and name not in {d.name for d in dimensions}:
        fixed[name] = start[name]
    return replace(space, fixed=fixed, dimensions=dimensions, start=start), notes


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


def _given(options: ModelOptions, model: str, models: Sequence[str]) -> Given:
    """Returns what the file of ``--params`` says of a model; it may leave out some of several."""
    if options.params is None:
        return Given()
    named = models_of(options.params)
    if model not in named and named & {*models}:
        return Given()
    return read(options.params, model, declaration(model).params)


def _chosen(options: ModelOptions, model: str, models: Sequence[str]) -> dict[str, Any]:
    """Returns the values of ``--set`` that are for a model, and that of ``--seed``.

    ``n_layers=2`` is for each of the ``models`` that has it, ``sasrec.n_layers=2`` for one.
    """
    params, values = declaration(model).params, dict[str, Any]()
    for text in options.set:
        name, value = parse_assignment(text)
        whose, dot, own = name.rpartition(".")
        if dot and whose.lower() not in models:
            raise UserError(f"--set {text}: there is no model {whose} here{nearest(whose, models)}")
        if dot and whose.lower() != model:
            continue
        name = own
        others = [declaration(one).params for one in models if one != model]
        if not dot and not _knows(params, name) and any(_knows(one, name) for one in others):
            continue
        name = check_name(params, name, "--set")
        if name in values:
            raise UserError(f"--set {text}: {name} is set twice; keep one")
        values[name] = check(params, name, value, "--set")
    return values if options.seed is None else {"seed": options.seed, **values}


def _knows(params: type[Params], name: str) -> bool:
    return name in params.model_fields or name in aliases(params)


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
