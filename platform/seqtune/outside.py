"""What a person brings in a module of their own: ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqtune.errors import UserError


def is_own(name: str) -> bool:
    """Says whether a name is of something of one's own."""
    return ":" in name


def imported(name: str, place: str) -> Callable[..., Any]:
    """Returns a function of a module that Python finds, or that is in the working folder.

    Raises:
        UserError: there is none of that name.
    """
    module, _, function = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{place} {name}: cannot be imported ({error})") from None
    if not callable(found):
        raise UserError(f"{place} {name}: is not a function")
    return found  # type: ignore[no-any-return]


def lowered(name: str) -> str:
    """Returns a name in lower case, unless it is of something of one's own."""
    return name if is_own(name) else name.lower()
