"""The report of a study as files: JSON for programs, Markdown for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from seqtune.errors import visible
from seqtune.metrics import METRICS, parse_metric, per_user
from seqtune.report.choosing import schedule_table, seeds_table
from seqtune.report.verdict import (
    COSTS,
    against_floors,
    board,
    changes,
    counts,
    gains,
    is_early,
    label,
    limit_sentence,
    of_model,
    standings,
    verdict,
)
from seqtune.results import FRONT, StudyResult, TrialRow
from seqtune.significance import benjamini_hochberg, holm, wilcoxon
from seqtune.words import brief, duration, models_text, p_text, share_text


def to_json(result: StudyResult) -> dict[str, Any]:
    """Returns the result as plain data; ranks per user are left out, they have a file."""
    data = {name: _plain(value) for name, value in vars(result).items()}
    data["model"] = result.model
    data["standings"] = [
        {"model": one.contender.model, "p_holm": one.p_holm} | asdict(one.against)
        for one in standings(result)
        if one.against is not None
    ]
    data["verdict"] = verdict(result)
    data["too_early"] = is_early(result)  # for what the tests below say
    data["gains"] = _gains(result)
    if counted := against_floors(result):
        data["against_floors"] = {
            "floor": counted.floor.name,
            "sentence": counted.sentence,
            **asdict(counted.found),
        }
    return _finite(data)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """Returns a record as a dictionary, without the ranks of users, which are not copied."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if is_dataclass(value):
        own = vars(value).items()
        return {name: _plain(one) for name, one in own if name != "test_ranks"}
    return value


def _gains(result: StudyResult) -> dict[str, dict[str, Any]]:
    """Returns the paired tests, metric by metric, alone and corrected for their number."""
    found = gains(result)
    if not found or result.best is None or result.default is None:
        return {}
    best, default = result.best.test_ranks, result.default.test_ranks
    p_values = [comparison.p_value for comparison in found.values()]
    corrected = zip(holm(p_values), benjamini_hochberg(p_values), strict=True)
    return {
        name: asdict(comparison)
        | {"p_holm": p_holm, "p_benjamini_hochberg": p_bh}
        | {"p_wilcoxon": wilcoxon(per_user(name, best), per_user(name, default))}
        for (name, comparison), (p_holm, p_bh) in zip(found.items(), corrected, strict=True)
    }


def _finite(value: Any) -> Any:
    # JSON knows no NaN and no infinity: they become null.
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(result: StudyResult) -> str:
    """Returns the report as Markdown, with every metric and every trial."""
    lines = [f"# {models_text(result.models)} on {result.data_name}", "", result.protocol, ""]
    lines += [f"{counts(result)}.", "", verdict(result), ""]
    if counted := against_floors(result):
        lines += [counted.sentence, ""]
    if result.best is not None:
        if limit := limit_sentence(result.best_hit_10, result.best.test):
            lines += [limit, ""]
        if result.several:
            lines += ["## Leaderboard", "", *_table(*board_table(result))]
        if (seeds := seeds_table(result))[0]:
            lines += ["## With more seeds, on validation", "", *_table(*seeds)]
        if result.front:
            lines += ["## The front", "", *_table(*front_table(result))]
        if (schedule := schedule_table(result))[0]:
            lines += ["## From trial to trial", "", *_table(*schedule)]
        lines += [f"## Hyperparameters{of_model(result)}", ""]
        rows = [
            [f"`{name}`", before, f"**{after}**" if changed else after]
            for name, before, after, changed in changes(result)
        ]
        lines += _table(["", label(result.baseline), f"best (trial {result.best.number})"], rows)
        lines += [f"## Accuracy{of_model(result)}", "", *_table(*metrics_table(result))]
        lines += ["## What it costs", "", *_table(*costs_table(result))]
    if result.groups:
        lines += ["## For whom", "", groups_sentence(result), "", *_table(*groups_table(result))]
    if result.importances:
        shares = [
            [f"`{one.name}`", share_text(one.share, one.low, one.high)]
            for one in result.importances
        ]
        header = ["hyperparameter", "share of the variance (90 % interval)"]
        lines += [f"## What mattered{of_model(result, 'in')}", "", *_table(header, shares)]
    elif result.unimportant:
        lines += ["## What mattered", "", result.unimportant]
    lines += ["", "## Trials", "", *_table(*trials_table(result))]
    lines += [f"- {visible(note)}" for note in result.notes]
    browse = (result.ui_command, result.dashboard_command)
    steps = (result.train_command, result.serve_command, *browse)
    commands = "\n".join(line for line in steps if line)
    lines += ["", f"Best checkpoint: `{result.checkpoint}`", "", "```sh", commands, "```", ""]
    return "\n".join(lines)


def board_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the leaderboard."""
    assert result.best is not None
    known = [name for name in ("hr@10", "mrr@10", "ndcg@10") if name in result.best.test]
    names = list(dict.fromkeys([result.metric, *known]))[:3]
    costs = [cost.replace("-\n", "").replace("\n", " ") for cost in COSTS]
    header = ["", f"validation {result.metric}", *(f"test {name}" for name in names)]
    rows = []
    for row in board(result):
        who = f"**{row.who}**" if row.is_best else row.who
        values = [_cell(result.metric, row.valid), *(_cell(name, row.test) for name in names)]
        rows.append([who, *values, row.difference, row.p_value, *row.costs.values()])
    return [*header, "against the best", "p (Holm)", *costs], rows


def costs_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: what the best of each model, or the defaults and the best, took."""
    rows = []
    shown = {one.model: one.best for one in result.contenders}
    if not result.several:
        both = {label(result.baseline): result.default, "best": result.best}
        shown = {name: one for name, one in both.items() if one is not None}
    for name, one in shown.items():
        costs = [
            (one.train_seconds, duration),
            (one.peak_megabytes, "{:,.0f}".format),
            (one.joules, "{:,.0f}".format),
            (one.request_ms, "{:.1f}".format),
            (one.megabytes, "{:.1f}".format),
        ]
        rows.append([name, *("-" if cost is None else words(cost) for cost, words in costs)])
    header = ["training", "peak MB", "joules", "ms a request", "MB of weights"]
    return ["", *header], rows


def groups_sentence(result: StudyResult) -> str:
    """Says what the table of groups has."""
    return (
        f"{result.metric} on test for groups of users. The difference is that of "
        f"{next(iter(result.groups[0].values))} from all users outside the group (Welch's t-test, "
        "corrected for the number of groups by Holm)."
    )


def groups_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: for whom the best of each model and the strongest floor are good."""
    names = list(result.groups[0].values)
    rows = [
        [
            one.name,
            f"{one.n:,}",
            *(f"{one.values[name]:.4f}" for name in names),
            f"{one.difference:+.4f}",
            "-" if one.p_holm is None else p_text(one.p_holm).removeprefix("p ").removeprefix("= "),
        ]
        for one in result.groups
    ]
    return ["test users with", "lists", *names, "difference", "p (Holm)"], rows


def front_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: the trials that are best in several objectives, on validation."""
    assert result.best is not None
    several = ["model"] if result.several else []
    rows = [
        [
            f"**{row.number}**" if row.number == result.best.number else str(row.number),
            *([row.model] if several else []),
            *(f"{row.measured[name]:.5g}" for name in result.judge.objectives),
            f"{FRONT}/{row.number:04d}",
        ]
        for row in result.front
    ]
    return ["trial", *several, *result.judge.objectives, "checkpoint"], rows


def trials_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: a row for each trial, the best first."""
    names = list(dict.fromkeys(name for row in result.trials for name in row.params))
    if not result.several:
        names = list(result.searched)
    measures = [name for name in result.judge.measures if name != result.metric]
    rows = [
        [
            _whence(trial),
            *([trial.model] if result.several else []),
            ": ".join(filter(None, [trial.status, trial.reason, trial.over])),
            "-" if trial.value is None else f"{trial.value:.4f}",
            "-" if trial.epoch is None else str(trial.epoch),
            *(f"{trial.measured[m]:.5g}" if m in trial.measured else "-" for m in measures),
            "-" if trial.seconds is None else duration(trial.seconds),
            *(brief(trial.params.get(name)) for name in names),
        ]
        for trial in sorted(result.trials, key=lambda t: (t.value is None, -(t.value or 0)))
    ]
    columns = ["trial", *(["model"] if result.several else []), "status"]
    columns += [result.metric, "epoch", *measures, "time"]
    return [*columns, *(f"`{name}`" for name in names)], rows


def _whence(trial: TrialRow) -> str:
    """Returns the number of a trial, and where it comes from if it was not drawn."""
    if trial.parent is not None:
        return f"{trial.number} (from {trial.parent})"
    return f"{trial.number} (portfolio)" if trial.origin == "portfolio" else f"{trial.number}"


def metrics_table(result: StudyResult) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: a row for each metric, the floors' test beside the champion's."""
    assert result.best is not None
    best, default = result.best, result.default if result.tuned else None
    first = label(result.baseline)
    columns = {f"test, {floor.name}": floor.test for floor in result.floors}
    if default is not None:
        columns |= {f"validation, {first}": default.valid, "validation, best": best.valid}
        columns |= {f"test, {first}": default.test, "test, best": best.test}
    else:
        columns |= {"validation": best.valid, "test": best.test}
    if result.refitted is not None:
        columns["test, refitted"] = result.refitted.test
    found = {} if is_early(result) else gains(result)
    p_holm = dict(zip(found, holm([one.p_value for one in found.values()]), strict=True))
    rows = []
    for name in sorted(best.test, key=_metric_order):
        row = [name, *(_cell(name, values) for values in columns.values())]
        if p_holm:
            p_value = p_text(p_holm[name]).removeprefix("p ") if name in found else ""
            row.append(p_value.removeprefix("= "))
        rows.append(row)
    return ["", *columns, *(["p (paired t-test, Holm)"] if p_holm else [])], rows


def _cell(name: str, values: Mapping[str, float]) -> str:
    return f"{values[name]:.4f}" if name in values else "-"


def _metric_order(name: str) -> tuple[int, str, int]:
    family, _, k = name.partition("@")
    place = list(METRICS).index(family) if family in METRICS else len(METRICS)
    return place, family, parse_metric(name)[1] if family in METRICS else int(k or 0)


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *([c.replace("|", "\\|") for c in row] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]
