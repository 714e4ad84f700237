"""What a model may cost and must reach: ``parameters<=2e6``, ``coverage@10>=0.2``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqtune.errors import UserError, nearest
from seqtune.metrics import COSTS, check_measure, direction
from seqtune.options import StudyOptions


@dataclass(frozen=True)
class Limit:
    """A bound on one of the measures of a trial: a metric on validation, or a cost."""

    name: str
    at_most: bool  # or at least
    bound: float

    def __str__(self) -> str:
        return f"{self.name}{'<=' if self.at_most else '>='}{self.bound:g}"

    def excess(self, value: float) -> float:
        """Returns by how much a value is beyond the bound; it keeps it where that is not above 0.

        This is a constraint as Optuna knows it.
        """
        return value - self.bound if self.at_most else self.bound - value

    def broken(self, value: float) -> str:
        """Says how a value is beyond the bound; empty where it is not."""
        if self.excess(value) <= 0:
            return ""
        return f"{self.name} {value:.4g} is {'above' if self.at_most else 'below'} {self.bound:g}"


def parse_limit(text: str, place: str = "--limit") -> Limit:
    """Reads ``parameters<=2e6`` or ``coverage@10>=0.2``.

    Raises:
        UserError: it is no such thing.
    """
    found = re.fullmatch(r"\s*([\w@]+)\s*(<=|>=)\s*(\S+)\s*", text)
    try:
        bound = float(found[3]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not math.isfinite(bound):
        raise UserError(
            f"{place} {text[:40]}: write a measure, <= or >=, and a number, as parameters<=2e6; "
            "quotes keep the shell from reading < and >"
        )
    return Limit(check_measure(found[1].lower(), place), found[2] == "<=", bound)


def parse_weights(text: str, objectives: Sequence[str]) -> dict[str, float]:
    """Reads ``ndcg@10=2,coverage@10=1``: objective -> its weight.

    Raises:
        UserError: a part is no such thing, or of none of the objectives.
    """
    weights = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in objectives:
            raise UserError(
                f"--prefer {text[:60]}: {name or 'nothing'} is none of the objectives"
                f"{nearest(name, objectives)}; they are {', '.join(objectives)}, one --metric each"
            )
        try:
            weights[name] = float(number or 1)
        except ValueError:
            weights[name] = math.nan
        if not 0 <= weights[name] < math.inf:
            raise UserError(f"--prefer {text[:60]}: the weight of {name} must be a number from 0")
    if not any(weights.values()):
        raise UserError(f"--prefer {text[:60]}: one weight must be above 0")
    return weights


@dataclass(frozen=True)
class Judge:
    """By what the trials of a study are judged: objectives, and limits."""

    objectives: tuple[str, ...] = ()  # the metric that is maximised, and those beside it
    limits: tuple[Limit, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)  # of objectives; empty: the first

    @classmethod
    def asked(cls, options: StudyOptions) -> Judge:
        """Reads what ``--metric``, ``--limit`` and ``--prefer`` say.

        Raises:
            UserError: one of them says nothing.
        """
        weights = parse_weights(options.prefer, options.objectives) if options.prefer else {}
        limits = tuple(parse_limit(text) for text in options.limit)
        return cls(options.objectives, limits, weights)

    @property
    def several(self) -> bool:
        """Whether what is best is a front, and no trial alone."""
        return len(self.objectives) > 1

    def better(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Returns the objectives of a trial so that larger is better."""
        return tuple(
            -values[name] if direction(name) == "lower" else values[name]
            for name in self.objectives
        )

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured of a trial beside the metric that is maximised."""
        names = (*self.objectives[1:], *(limit.name for limit in self.limits))
        return tuple(dict.fromkeys(names))

    def measured(self, result: Mapping[str, Any]) -> dict[str, float]:
        """Returns what a trial is judged by of what it has reported; nothing in a usual study."""
        names = (*self.objectives[:1], *self.measures) if self.measures else ()
        return {name: float(result[name]) for name in names if name in result}

    def over(self, values: Mapping[str, Any]) -> str:
        """Says which limits the values of a trial are beyond, as far as they are known."""
        found = (one.broken(values[one.name]) for one in self.limits if one.name in values)
        return " and ".join(filter(None, found))

    def hopeless(self, values: Mapping[str, Any]) -> bool:
        """Says whether a trial is beyond a limit that its training does not change."""
        costs = (limit for limit in self.limits if limit.name in COSTS and limit.name in values)
        return any(limit.broken(values[limit.name]) for limit in costs)

    def constraints(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns the limits as Optuna knows them: kept, where the value is not above 0."""
        known = (limit for limit in self.limits if limit.name in values)
        return {str(limit): limit.excess(values[limit.name]) for limit in known}
