"""Search spaces: dimensions that an Optuna trial can sample, and the point that runs first."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from seqtune.catalogue import declaration
from seqtune.errors import UserError
from seqtune.params import Params, build, training
from seqtune.words import written

if typing.TYPE_CHECKING:
    from optuna.trial import BaseTrial


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

    def suggest(self, trial: BaseTrial, prefix: str = "") -> Any:
        """Draws a value; Optuna knows it by the name with the ``prefix``."""
        name = prefix + self.name
        if self.choice:
            return trial.suggest_categorical(name, self.choice)
        if self.integer:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(name, low, high, step=step, log=self.log)
        value = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return round(value, 10) if self.step else value  # 0.1 + 2 * 0.1 is not 0.3

    def at(self, share: float) -> Any:
        """Returns the value at a share from 0 to 1 of the dimension: each is as likely as drawn."""
        if self.choice:
            return self.choice[min(int(share * len(self.choice)), len(self.choice) - 1)]
        if self.log:
            return self.nearest(self.low * (self.high / self.low) ** share)
        half = (self.step or (1 if self.integer else 0)) / 2
        low, high = self.low - half, self.high + half
        return self.nearest(low + share * (high - low))

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

    def capped(self, most: float) -> Dimension:
        """Returns the dimension without numbers above ``most``, which takes their place."""
        if self.choice:
            lowered = tuple(dict.fromkeys(min(value, most) for value in self.choice))
            return dataclasses.replace(self, choice=lowered)
        if self.high <= most:
            return self
        if self.low >= most:
            return Dimension(self.name, (most,), when=self.when)
        high = most
        if self.step:
            high = self.low + (most - self.low) // self.step * self.step
        return dataclasses.replace(self, high=high)

    @property
    def corners(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range."""
        return self.choice or (self.nearest(self.low), self.nearest(self.high))

    @property
    def text(self) -> str:
        """The values as a person reads them: ``0.0001 to 0.005, log``."""
        if self.choice:
            return ", ".join(map(written, self.choice))
        steps = f" in steps of {written(self.step)}" if self.step else ""
        return f"{written(self.low)} to {written(self.high)}{steps}{', log' if self.log else ''}"

    @property
    def condition(self) -> str:
        """The condition as a person reads it: ``ssl_type is un or us``; empty without one."""
        return " and ".join(f"{name} is {' or '.join(map(written, v))}" for name, v in self.when)


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
    stand in for defaults of what is sampled: ``start`` has them as they are. Optuna knows the
    dimensions by their names behind ``prefix``: ``sasrec.`` in a study of several models.
    """

    model: str
    fixed: Mapping[str, Any]
    dimensions: tuple[Dimension, ...]
    place: str
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    declared: type[Params] | None = None  # None: the model's own file says
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    portfolio: tuple[Mapping[str, Any], ...] = ()  # points that run right after trial 0
    said: frozenset[str] = frozenset()  # what --set, --seed or --params say

    @property
    def params(self) -> type[Params]:
        """The declaration of the hyperparameters."""
        # Looked up, not stored: a class that was read without torch cannot be pickled.
        return self.declared or declaration(self.model).params

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Draws a point: the fixed values and those sampled, define-by-run."""
        values = dict(self.fixed)
        effective = declared_defaults(self.params) | dict(self.given) | values
        for dimension in self.dimensions:
            if dimension.holds(effective):
                value = dimension.suggest(trial, self.prefix)
                values[dimension.name] = effective[dimension.name] = value
            elif dimension.name in self.given:
                values[dimension.name] = self.given[dimension.name]
        return values

    def defaults(self) -> dict[str, Any]:
        """Returns the point that trial 0 runs; see ``notes`` for what it changes."""
        return dict(self.start)

    def first(self) -> dict[str, Any]:
        """Returns the same as Optuna knows it."""
        return {f"{self.prefix}{name}": value for name, value in self.start.items()}

    def started(self, number: int) -> dict[str, Any] | None:
        """Returns where trial ``number`` starts, as Optuna knows it; None where it is drawn.

        Trial 0 has the defaults, and the next ones the points of the portfolio. These have values
        that are fixed now, moved to the nearest in the space, and those of trial 0 for the rest.
        """
        if number == 0:
            return self.first()
        if number > len(self.portfolio):
            return None
        return self.point(self.portfolio[number - 1])

    def point(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the point of the space that is next to wanted values, as Optuna knows it.

        A value that is not wanted is that of trial 0.
        """
        wanted = declared_defaults(self.params) | dict(self.start) | dict(wanted)
        values = declared_defaults(self.params) | dict(self.given) | dict(self.fixed)
        sampled = {}
        for dimension in self.dimensions:
            if dimension.holds(values):
                values[dimension.name] = dimension.nearest(wanted[dimension.name])
                sampled[f"{self.prefix}{dimension.name}"] = values[dimension.name]
        return sampled

    @property
    def epochs(self) -> int:
        """The most epochs that trial 0 may train; 0 for a model that is not trained."""
        return training(self.build(self.start)).epochs

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
            "start": [dict(point) for point in self.portfolio],
            "space": {
                d.name: (
                    {"choice": list(d.choice)} if d.choice else {k: getattr(d, k) for k in RANGE}
                )
                | ({"when": {name: list(values) for name, values in d.when}} if d.when else {})
                | ({"start": self.given[d.name]} if d.name in self.given else {})
                for d in sorted(self.dimensions, key=lambda d: d.name)
            },
        }


def declared_defaults(params: type[Params]) -> dict[str, Any]:
    """Returns the default of every hyperparameter."""
    return {name: field.default for name, field in params.model_fields.items()}


def in_order(dimensions: list[Dimension], place: str) -> list[Dimension]:
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


def live(
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
                    f"{' or '.join(map(written, values))}"
                )
                break
        else:
            live[dimension.name] = dimension
    return tuple(live.values()), notes


def with_start(space: Space, place: str) -> Space:
    """Adds the point of trial 0: the defaults, or the nearest point that obeys all rules.

    Values that were given are not moved: where they break a rule, that is a UserError.
    """
    defaults = declared_defaults(space.params) | dict(space.given)

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
        f"trial 0 runs {d.name} {written(start[d.name])}: the default {written(defaults[d.name])} "
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
