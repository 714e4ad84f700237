"""The champions of several studies beside each other, where they can be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from seqtune.errors import UserError
from seqtune.metrics import Ranks
from seqtune.significance import SURE, Comparison, compare, holm
from seqtune.state import ranks_in
from seqtune.study.shelf import Known, find, whole
from seqtune.words import p_text

HOW = " (paired t-tests over test users, corrected by Holm)"
NOT_THE_DATA = ("model",)  # what studies that are compared may differ in, of what makes a study


@dataclass(frozen=True)
class Compared:
    """Studies, best first, and each of the others against the best."""

    metric: str
    studies: tuple[Known, ...]
    tested: tuple[dict[str, float], ...]  # of each: metric -> value on test
    against: tuple[Comparison, ...]  # of each but the first: it minus the first
    p_holm: tuple[float, ...]

    @property
    def header(self) -> list[str]:
        """The titles of the columns."""
        return ["study", "model", *self._names, "difference", "p (Holm)"]

    @property
    def rows(self) -> list[list[str]]:
        """A row for each study."""
        rows = []
        for n, (study, tested) in enumerate(zip(self.studies, self.tested, strict=True)):
            found = [f"{tested[name]:.4f}" for name in self._names]
            difference = f"{self.against[n - 1].difference:+.4f}" if n else "-"
            p_value = p_text(self.p_holm[n - 1]).removeprefix("p ").removeprefix("= ") if n else "-"
            rows.append([study.name, study.model, *found, difference, p_value])
        return rows

    @property
    def verdict(self) -> str:
        """Says which study is best, and whether it is surely so."""
        first = self.studies[0].name
        equal = [s.name for s, p in zip(self.studies[1:], self.p_holm, strict=True) if p >= SURE]
        if not equal:
            return f"{first} is best: every other is surely below it on {self.metric}{HOW}."
        others = " and ".join(equal)
        return f"{first} has the highest {self.metric}, and cannot be told from {others}{HOW}."

    @property
    def _names(self) -> list[str]:
        """The study's metric, and two that everybody knows: what fits a line."""
        known = [name for name in ("hr@10", "mrr@10", "ndcg@10") if name in self.tested[0]]
        return list(dict.fromkeys([self.metric, *known]))[:3]

    def plain(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {
            "metric": self.metric,
            "verdict": self.verdict,
            "studies": [
                {"name": study.name, "model": study.model, "test": tested}
                | (asdict(self.against[n - 1]) | {"p_holm": self.p_holm[n - 1]} if n else {})
                for n, (study, tested) in enumerate(zip(self.studies, self.tested, strict=True))
            ],
        }


def compared(names: list[str], storage: str) -> Compared:
    """Compares the champions of studies.

    Raises:
        UserError: one has no report, or they differ in data, protocol or metric.
    """
    studies = [find(name, storage) for name in names]
    facts = [whole(one).same for one in studies]
    for study, own in zip(studies[1:], facts[1:], strict=True):
        differ = [
            f"{what} ({facts[0].get(what)} and {own.get(what)})"
            for what in sorted({*facts[0], *own} - {*NOT_THE_DATA})
            if facts[0].get(what) != own.get(what)
        ]
        if differ:
            raise UserError(
                f"{studies[0].name} and {study.name} cannot be compared: they differ in "
                f"{' and '.join(differ)}"
            )
    metric = studies[0].metric
    found = [(_tested(one), _ranks(one), one) for one in studies]
    found.sort(key=lambda one: -one[0][metric])
    best = found[0][1]
    against = tuple(compare(metric, ranks, best) for _, ranks, _ in found[1:])
    p_values = tuple(holm([one.p_value for one in against]))
    ordered = tuple(one for *_, one in found)
    return Compared(metric, ordered, tuple(tested for tested, *_ in found), against, p_values)


def _tested(known: Known) -> dict[str, float]:
    best = (known.report or {}).get("best")
    if not best:
        raise UserError(
            f"{known.name}: has no tested champion ({known.state}); seqtune status {known.name} "
            "says how it does"
        )
    found: dict[str, float] = best["test"]
    return found


def _ranks(known: Known) -> Ranks:
    content = (known.folder / "report").read("ranks-best.parquet")
    if content is None:
        raise UserError(f"{known.folder.uri}/report: ranks-best.parquet is missing")
    return ranks_in(content, by_user=True)
