"""A study as tables: its trials, their curves, its leaderboard, for programs and papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtune.errors import UserError, nearest
from seqtune.state import flat, told
from seqtune.storage import refusing
from seqtune.study.shelf import Known, find, whole

if TYPE_CHECKING:
    import pandas as pd

WHAT = ("trials", "curves", "leaderboard")
COSTS = ("train_seconds", "request_ms", "megabytes")
PAPER = ("ndcg", "hr", "mrr", "coverage")  # metrics of a table in a paper
FORMATS = {"csv": ".csv", "parquet": ".parquet", "latex": ".tex"}


def write(name: str, storage: str, what: str, out: str | None, kind: str | None) -> tuple[int, str]:
    """Writes a table of a study, and returns the number of its rows and the file.

    Without ``out`` that is ``NAME-WHAT.csv`` in the working folder, or as the format has it.

    Raises:
        UserError: there is no such study, table or format, or no report yet.
    """
    if what not in WHAT:
        raise UserError(f"--what {what}: there is no such table{nearest(what, WHAT)}")
    if out is None:
        kind = kind or "csv"
        out = f"{name}-{what}{FORMATS.get(kind, '')}"
    if kind is None:
        kind = next((one for one, end in FORMATS.items() if out.endswith(end)), None)
        if kind is None:
            raise UserError(f"--out {out}: end it with .csv, .parquet or .tex, or give --format")
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: there is no such format{nearest(kind, FORMATS)}")
    known = find(name, storage)
    whole(known)
    frame = {"trials": trials, "curves": curves, "leaderboard": leaderboard}[what](known)
    with refusing(f"--out {out}"):
        path = Path(out).expanduser()
        if kind == "csv":
            frame.to_csv(path, index=False)
        elif kind == "parquet":
            frame.to_parquet(path, index=False)
        else:
            paper = for_paper(frame, known.metric) if what == "leaderboard" else frame
            path.write_text(latex(paper), encoding="utf-8")
    return len(frame), out


def trials(known: Known) -> pd.DataFrame:
    """Returns a row for each trial: how it ended, its best value, its hyperparameters."""
    import pandas as pd

    rows = [
        {
            "trial": row.number,
            "model": row.model,
            "status": row.status,
            known.metric: row.value,
            "epoch": row.epoch,
            "seconds": row.seconds,
            "reason": row.reason,
            **{f"param:{name}": value for name, value in row.params.items()},
        }
        for row in known.trials
    ]
    return pd.DataFrame(rows)


def curves(known: Known) -> pd.DataFrame:
    """Returns a row for each evaluation of each trial.

    It has losses, metrics on validation, seconds, and the trial's model and hyperparameters, so
    that a study can be replayed (docs/search.md).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = [
        {"trial": trial.number, "model": trial.model, "origin": trial.origin}
        | flat(row)
        | {f"param:{name}": value for name, value in trial.params.items()}
        for trial in known.trials
        for row in told(known.folder / "trials" / f"{trial.number:04d}")
    ]
    return pd.DataFrame(rows)


def leaderboard(known: Known) -> pd.DataFrame:
    """Returns what was tested: floors, and each model's defaults and best, the winner last.

    Beside the metrics on test stand the value on validation, what a model costs, and for models
    that are not the winner the difference to it, with its p-value corrected by Holm.

    Raises:
        UserError: the study has no report yet.
    """
    import pandas as pd

    if not known.report or not known.report.get("best"):
        raise UserError(f"{known.name}: nothing was tested yet ({known.state})")
    against = {one["model"]: one for one in known.report.get("standings", [])}

    def row(system: str, tested: dict[str, Any], **more: Any) -> dict[str, Any]:
        valid = tested["valid"].get(known.metric)
        costs = {name: tested.get(name) for name in COSTS}
        return {"system": system, f"valid {known.metric}": valid, **tested["test"], **more, **costs}

    rows = [row(one["name"], one) for one in known.report["floors"]]
    for contender in reversed(known.report["contenders"]):
        best, default = contender["best"], contender["default"]
        if default and default["number"] != best["number"]:
            rows.append(row(f"{best['model']} (defaults)", default))
        other = against.get(best["model"], {})
        test = {"difference": other.get("difference"), "p_holm": other.get("p_holm")}
        rows.append(row(f"{best['model']} (trial {best['number']})", best, **test))
    frame = pd.DataFrame(rows)
    last = ["difference", "p_holm", *COSTS]
    return frame[[*(name for name in frame if name not in last), *last]].dropna(axis=1, how="all")


def for_paper(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Returns the columns of a leaderboard that a page has room for."""
    k = metric.rpartition("@")[2]
    few = dict.fromkeys([f"valid {metric}", metric, *(f"{m}@{k}" for m in PAPER)])
    names = ["system", *few, "difference", "p_holm", *COSTS]
    return frame[[name for name in names if name in frame]]


def latex(frame: pd.DataFrame) -> str:
    """Returns a table of booktabs, the best value of each metric in bold."""
    shown = frame.astype(object).where(frame.notna(), "--")
    for name in frame.select_dtypes("number").columns:
        best = frame[name].max() if "@" in str(name) else None
        shown[name] = [
            "--" if value != value else rf"\textbf{{{text}}}" if value == best else text
            for value in frame[name]
            for text in [_number(value)]
        ]
    lines = [r"\begin{tabular}{l" + "r" * (shown.shape[1] - 1) + "}", r"\toprule"]
    lines.append(" & ".join(_escaped(str(name)) for name in shown.columns) + r" \\")
    lines.append(r"\midrule")
    text = set(shown.columns) - set(frame.select_dtypes("number").columns)
    for row in shown.to_dict("records"):
        cells = [_escaped(str(v)) if name in text else str(v) for name, v in row.items()]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _number(value: float) -> str:
    return f"{value:.4f}" if value % 1 and abs(value) < 10 else f"{value:.0f}"


def _escaped(text: str) -> str:
    for mark in r"\&%$#_{}":
        text = text.replace(mark, "\\" + mark if mark != "\\" else r"\textbackslash ")
    return text
