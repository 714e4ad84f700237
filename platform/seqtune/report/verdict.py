"""What a study says in sentences and numbers, the same on screen, in Markdown and in JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from seqtune.metrics import MAIN
from seqtune.options import DEFAULTS
from seqtune.report.choosing import of_choice, of_front, of_race
from seqtune.results import Contender, Finalist, StudyResult, TrainResult
from seqtune.significance import SURE, Comparison, compare, holm
from seqtune.words import both, brief, duration, p_text, percent

if TYPE_CHECKING:
    from seqtune.floors import Floor

ENOUGH = 5  # trials that have ended, for a word about a study that was cut short
FLOOR_WORDS = {
    "markov": "a Markov chain",
    "decayed markov": "a decayed Markov chain",
    "item-knn": "neighbours of items",
}


def main_metrics(metric: str, measured: Mapping[str, float]) -> list[str]:
    """Returns the metrics to show: ndcg, hr and mrr, and the study's own where it is another.

    With one held-out item per user the others are copies: recall is hr, MAP is MRR.
    """
    shown = [name for name in MAIN if name in measured]
    return shown if metric in shown else [metric, *shown]


def gains(result: StudyResult) -> dict[str, Comparison]:
    """Compares best and default on test, metric by metric; empty where that makes no sense."""
    if not result.tuned or result.best is None or result.default is None:
        return {}
    best, default = result.best.test_ranks, result.default.test_ranks
    names = main_metrics(result.metric, result.best.test)
    return {name: compare(name, best, default) for name in names}


class Standing(NamedTuple):
    """A model of a study, and how it does on test against the best on validation."""

    contender: Contender
    against: Comparison | None  # it minus the best; None for the best
    p_holm: float | None


def standings(result: StudyResult) -> list[Standing]:
    """Returns the models, the best on validation first, with paired tests corrected by Holm."""
    if not result.contenders:
        return []
    first, *others = result.contenders
    found = [compare(result.metric, one.best.test_ranks, first.best.test_ranks) for one in others]
    corrected = holm([one.p_value for one in found])
    beside = zip(others, found, corrected, strict=True)
    return [Standing(first, None, None), *(Standing(*one) for one in beside)]


def best_model(result: StudyResult) -> str:
    """Says which model is best, and of which others the test can tell it; empty of one model."""
    if not result.several or result.best is None:
        return ""
    _, *others = standings(result)
    missing = [m for m in result.models if m not in {one.model for one in result.contenders}]
    groups: dict[str, list[str]] = {"above": [], "level": [], "below": []}
    for one in others:
        assert one.against is not None
        assert one.p_holm is not None
        sure = one.p_holm < SURE
        where = ("above" if one.against.difference < 0 else "below") if sure else "level"
        groups[where].append(one.contender.model)
    said = [
        f"{words} {both(groups[where])}"
        for where, words in (
            ("above", "it is surely above"),
            ("level", "it cannot be told from"),
            ("below", "it is surely below"),
        )
        if groups[where]
    ]
    found = f"{result.best.model} is the best of {len(result.models)} models on validation"
    if said:
        found += f"; on test {', '.join(said)} ({result.metric}, paired t-tests, Holm)"
    if missing:
        found += f"; {both(missing)} got to no evaluation"
    return f"{found}."


def verdict(result: StudyResult) -> str:
    """Says which model is best and whether tuning was worth it, as far as ended trials tell."""
    if result.best is None:
        over = next((row.over for row in result.trials if row.over), "")
        if over:
            limits = " and ".join(map(str, result.judge.limits))
            return f"No trial keeps {limits}, so there is no best one: of the first, {over}."
        return "No trial got as far as an evaluation, so there is no best one."
    said = [
        best_model(result),
        _worth(result),
        "" if is_early(result) else of_choice(result),
        of_race(result),
        of_front(result),
    ]
    return " ".join(filter(None, said))


def _worth(result: StudyResult) -> str:
    assert result.best is not None
    if result.default is None:
        own = [row.number for row in result.trials if row.model == result.model]
        which = f"the {result.baseline} (trial {min(own, default=0)})"
        return f"What tuning gained is unknown: {which} did not finish."
    ended = _ended(result)
    so_far = f"{len(ended)} of {result.planned} trials {'has' if len(ended) == 1 else 'have'} ended"
    if is_early(result):
        if result.default.number not in ended:
            so_far += f", and the {result.baseline} (trial {result.default.number}) not yet"
        return f"It is too early to say what tuning gains: {so_far}. {_best_so_far(result)}"
    if len(ended) < result.planned:
        return f"{_gain(result)} {so_far}, so the best one may still change."
    return _gain(result)


def is_early(result: StudyResult) -> bool:
    """Whether a study was cut short so early that a test of what tuning gained means nothing."""
    ended = _ended(result)
    first = result.default.number if result.default else 0
    return len(ended) < result.planned and (len(ended) < ENOUGH or first not in ended)


def _ended(result: StudyResult) -> set[int]:
    """Returns the numbers of the trials that have ended."""
    return {t.number for t in result.trials if t.status in ("complete", "pruned", "failed")}


def _best_so_far(result: StudyResult) -> str:
    assert result.best is not None
    assert result.default is not None
    name, best, default = result.metric, result.best, result.default
    reached = f"{name} {best.valid[name]:.4f} on validation"
    if not result.tuned:
        return f"The best so far are the {result.baseline} (trial {best.number}), with {reached}."
    return (
        f"The best so far is trial {best.number}, with {reached}, where the {result.baseline} "
        f"(trial {default.number}) have {default.valid[name]:.4f}."
    )


def _gain(result: StudyResult) -> str:
    """Says what tuning gained on test, with the paired test."""
    assert result.default is not None
    first = f"the {result.baseline} (trial {result.default.number})"
    if not result.tuned:
        others = sum(trial.value is not None for trial in result.trials) - 1
        if others < 1:
            return f"Tuning changed nothing: {first} are all that was evaluated."
        if result.choice is not None and result.choice.number != result.choice.highest:
            return f"Tuning gained nothing that could not be chance: {first} are chosen."
        none = f"none of the {others} other trials" if others > 1 else "the other trial did not do"
        done = f"{none} did better" if others > 1 else f"{none} better"
        return f"Tuning gained nothing: on validation {done} than {first}."
    found = gains(result)[result.metric]
    size = f"{found.difference:+.4f} {result.metric} ({percent(found.relative)}) on test"
    evidence = (
        f"95 % CI [{found.low:+.4f}, {found.high:+.4f}], {p_text(found.p_value)}, "
        f"paired t-test over {found.n:,} users"
    )
    surely = found.p_value < SURE
    if found.difference > 0:
        return f"Tuning gained {size}{', ' if surely else ', which may be chance: '}{evidence}."
    if found.difference == 0:
        return f"Tuning changed nothing: {size}, {evidence}."
    if surely:
        return f"Tuning lost: better on validation, but {size}, {evidence}."
    return f"Tuning gained nothing: {size}, {evidence}."


class Counted(NamedTuple):
    """A trained model beside the strongest floor."""

    floor: Floor
    found: Comparison
    sentence: str

    @property
    def beaten(self) -> bool:
        """Whether counting is surely better."""
        return self.found.difference < 0 and self.found.p_value < SURE


def against_floors(result: StudyResult | TrainResult) -> Counted | None:
    """Compares the champion with the floor that is strongest on test; None where one is missing.

    The test chooses the floor, so counting has every advantage.
    """
    if isinstance(result, StudyResult):
        ranks = result.best.test_ranks if result.best else None
        who, more = "the best trial", "more trials or longer training"
    else:
        ranks = result.test_ranks
        who, more = "this model", "a search with seqtune tune, or longer training"
    if ranks is None or not result.floors:
        return None
    metric = result.metric
    floor = strongest(result.floors, metric, "test")
    found = compare(metric, ranks, floor.test_ranks)
    words = f"{floor_words(floor.name)} (counted in {duration(floor.seconds)})"
    evidence = f"{found.difference:+.4f} {metric} on test, {p_text(found.p_value)}"
    if found.p_value >= SURE:
        sentence = (
            f"{who.capitalize()} cannot be told from the strongest floor, {words}: {evidence}; try "
            f"another model, {more}."
        )
    elif found.difference > 0:
        sentence = f"{who.capitalize()} is above the strongest floor, {words}: {evidence}."
    else:
        sentence = (
            f"Counting beats {who}, which is below {words}: {evidence}; try another model, {more}."
        )
    return Counted(floor, found, sentence)


def strongest(floors: Sequence[Floor], metric: str, on: str) -> Floor:
    """Returns the floor with the largest value on ``valid`` or ``test``, the first of equals."""
    return max(floors, key=lambda floor: float(getattr(floor, on)[metric]))


def floor_words(name: str) -> str:
    """Names a floor in a sentence: ``a decayed Markov chain``."""
    return FLOOR_WORDS.get(name, name)


def limit_sentence(best_hit_10: float | None, test: Mapping[str, float]) -> str:
    """Says how near a model is to what generated data allow; empty for real data."""
    if best_hit_10 is None or "hr@10" not in test:
        return ""
    reached = test["hr@10"]
    return (
        f"These data are generated, so the limit is known: test hr@10 is {reached:.4f} of at most "
        f"{best_hit_10:.4f} ({reached / max(best_hit_10, 1e-12):.0%})."
    )


def counts(result: StudyResult) -> str:
    """Returns ``20 trials in 4m 12s: 11 complete, 8 pruned, 1 failed``."""
    by_status = Counter(trial.status for trial in result.trials)
    parts = [
        f"{by_status[status]} {status}"
        for status in ("complete", "pruned", "failed", "running", "unfinished")
        if by_status[status]
    ]
    n = len(result.trials)
    trials = f"{n} trial{'' if n == 1 else 's'} in {duration(result.seconds)}"
    if over := sum(bool(trial.over) for trial in result.trials):
        parts.append(f"{over} of them beyond a limit")
    return f"{trials}: {', '.join(parts)}" if parts else trials


def changes(result: StudyResult) -> Iterator[tuple[str, str, str, bool]]:
    """Yields each searched hyperparameter: name, default, best, and whether they differ."""
    default = result.default.params if result.default else {}
    best = result.best.params if result.best else {}
    for name in result.searched:
        before, after = (brief(params.get(name)) for params in (default, best))
        yield name, before, after, bool(result.tuned and default and before != after)


def of_model(result: StudyResult, word: str = "of") -> str:
    """Ends the title of what is said of one model of several: `` of sasrec``."""
    return f" {word} {result.model}" if result.several else ""


def short(baseline: str) -> str:
    """Names what trial 0 runs in a word, for labels: ``defaults``, or ``file``."""
    return "defaults" if baseline == DEFAULTS else "file"


def label(baseline: str) -> str:
    """Names the column or the row of trial 0: ``default``, or ``file``."""
    return short(baseline).removesuffix("s")


# What a model costs, under the titles of two lines.
COSTS = ("train\ntime", "request\nms", "weights\nMB", "cover-\nage@10")


class Place(NamedTuple):
    """A row of the leaderboard, its numbers ready to read but for the metrics."""

    who: str
    valid: Mapping[str, float]
    test: Mapping[str, float]
    difference: str
    p_value: str
    costs: Mapping[str, str]
    is_best: bool = False


def board(result: StudyResult) -> list[Place]:
    """Returns the rows of the leaderboard: models and floors, the best on validation first."""
    rows = [
        Place(
            f"{one.contender.model} (trial {one.contender.best.number})",
            one.contender.best.valid,
            one.contender.best.test,
            "" if one.against is None else f"{one.against.difference:+.4f}",
            "" if one.p_holm is None else p_text(one.p_holm).removeprefix("p ").removeprefix("= "),
            dict(zip(COSTS, _costs(one.contender.best), strict=True)),
            one.against is None,
        )
        for one in standings(result)
    ]
    for floor in result.floors:
        costs = dict.fromkeys(COSTS, "") | {COSTS[0]: duration(floor.seconds)}
        rows.append(Place(floor.name, floor.valid, floor.test, "", "", costs))
    return sorted(rows, key=lambda row: -row.valid.get(result.metric, 0.0))


def _costs(finalist: Finalist) -> list[str]:
    seconds, ms, size = finalist.train_seconds, finalist.request_ms, finalist.megabytes
    coverage = finalist.test.get("coverage@10")
    return [
        "" if seconds is None else duration(seconds),
        "" if ms is None else f"{ms:.1f}",
        "" if size is None else f"{size:.1f}",
        "" if coverage is None else f"{coverage:.2f}",
    ]
