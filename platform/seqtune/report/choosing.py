"""What is said of how the best trial was chosen: noise, and several objectives."""

from __future__ import annotations

from seqtune.results import StudyResult
from seqtune.significance import SURE
from seqtune.words import both, brief, p_text


def of_choice(result: StudyResult) -> str:
    """Says how far the value of the best trial on validation is due to its being chosen."""
    choice = result.choice
    if choice is None or result.best is None:
        return ""
    said, name = "", result.metric
    if choice.number != choice.highest:
        said = (
            f"Trial {choice.highest} is {choice.behind:.4f} {name} higher on validation, less than "
            f"half the error of the difference ({choice.error:.4f}), so the earlier one is chosen."
        )
    if not result.tuned or result.default is None:
        return said
    gain = result.best.valid[name] - result.default.valid[name]
    if gain <= 0:
        return said
    part = f"{min(choice.selection / gain, 1):.0%} of it"
    return (
        f"{said} On validation it is {gain:.4f} above the {result.baseline}; about {part} is "
        "selection, since the best of many noisy values looks better than it is."
    ).strip()


def of_front(result: StudyResult) -> str:
    """Says how many trials are best in several objectives, and which was chosen for what."""
    if not result.front or result.best is None:
        return ""
    judge, n = result.judge, len(result.front)
    by = both([f"{name} x {weight:g}" for name, weight in judge.weights.items() if weight])
    chosen = f"by {by}" if judge.weights else f"by {result.metric}, since no --prefer was given"
    ways = both(list(judge.objectives))
    if n == 1:
        return f"Trial {result.front[0].number} alone is best in {ways}."
    which = f"trial {result.best.number} is chosen {chosen}"
    return f"{n} trials are each best in some way, of {ways}; {which}."


def of_race(result: StudyResult) -> str:
    """Says what more seeds have said of the best trials."""
    raced = result.raced
    if raced is None:
        return ""
    if raced.seeds < 2:
        return "There was no time to train the best trials with another seed."
    first = raced.runners[0]
    level = [one for one in raced.runners[1:] if one.p_holm is not None and one.p_holm >= SURE]
    told = f"Of {len(raced.runners)} trials that were trained with {raced.seeds} seeds each, "
    told += f"trial {first.number} is the best with probability {first.p_best:.0%}"
    if not level:
        return f"{told}, surely above the others (Holm)."
    numbers = both([str(one.number) for one in level])
    return f"{told}; it cannot be told from {'trial' if len(level) == 1 else 'trials'} {numbers}."


def schedule_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: which trials the weights of the best one went through."""
    lineage = result.lineage
    if len(lineage) < 2:
        return [], []
    began = [0, *(one.epoch or 0 for one in lineage)]
    rows = [
        [
            f"**{one.number}**" if one is lineage[-1] else f"{one.number}",
            f"{start} to {one.epoch or start}",
            *(brief(one.params.get(name)) for name in result.searched),
        ]
        for start, one in zip(began, lineage, strict=False)
    ]
    return ["trial", "epochs", *(f"`{name}`" for name in result.searched)], rows


def seeds_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: the trials that were trained with several seeds."""
    raced = result.raced
    if raced is None or raced.seeds < 2:
        return [], []
    rows = [
        [
            f"**{one.number}**" if one.number == raced.winner else str(one.number),
            f"{one.mean:.4f}",
            f"{one.spread:.4f}",
            f"{one.p_best:.0%}",
            "" if one.p_holm is None else p_text(one.p_holm).removeprefix("p ").removeprefix("= "),
        ]
        for one in raced.runners
    ]
    header = ["trial", f"mean {result.metric}", "standard deviation", "P(best)", "p (Holm)"]
    return header, rows
