"""Ways to write a value for people: hyperparameters, changes, probabilities, times."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

MANY = 6  # models, beyond which their names are too many to read


def written(value: object) -> str:
    """Writes a hyperparameter's value exactly, as YAML and ``--set`` read it: null, true, 0.001."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def brief(value: object) -> str:
    """Writes a hyperparameter's value for a table: four digits, and a dash for one not in use."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else written(value)


def models_text(names: Sequence[str]) -> str:
    """Names the models of a study: ``sasrec, gru4rec``, or of many their number."""
    return ", ".join(names) if len(names) <= MANY else f"{len(names)} models"


def counted(n: int, what: str) -> str:
    """Writes a number of things: ``1 user``, ``1,200 users``."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def both(names: Sequence[str]) -> str:
    """Writes a list in a sentence: ``sasrec, gru4rec and stan``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def percent(relative: float) -> str:
    """Writes a relative change: ``+18 %``, ``+0.4 %``."""
    if not math.isfinite(relative):
        return "from zero"
    return f"{relative * 100:+.{0 if abs(relative) >= 0.0995 else 1}f} %"


def p_text(p_value: float) -> str:
    """Writes a p-value: ``p = 0.012``, ``p < 0.0001``."""
    if p_value < 1e-4:
        return "p < 0.0001"
    return f"p = {p_value:.{2 if p_value >= 0.1 else 3 if p_value >= 0.01 else 4}f}"


def share_text(share: float, low: float, high: float) -> str:
    """Writes a share with its interval, all between 0 and 1: ``42 % (20 to 61)``."""
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def bar(share: float, width: int) -> str:
    """Draws a share between 0 and 1 as a bar of eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def duration(seconds: float) -> str:
    """Writes seconds for people: ``0.4s``, ``42s``, ``3m 05s``, ``2h 07m``, ``3d 04h``."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for (big, size), (small, unit) in (
        (("d", 86400), ("h", 3600)),
        (("h", 3600), ("m", 60)),
        (("m", 60), ("s", 1)),
    ):
        if whole >= size:
            return f"{whole // size}{big} {whole % size // unit:02d}{small}"
    return f"{whole}s"
