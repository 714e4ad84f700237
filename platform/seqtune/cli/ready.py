"""Checks of options that need no heavy import."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from seqtune.catalogue import check_model, model_names
from seqtune.cluster import check_lasting, in_job
from seqtune.errors import UserError, nearest
from seqtune.options import RESULTS, JudgedOptions, ModelOptions, StudyOptions, TrainOptions

Options = TypeVar("Options", bound=ModelOptions)


def ready(options: Options) -> Options:
    """Checks what can be checked in a moment; the model's name comes back in lower case.

    Raises:
        UserError: no model, or one that there is not; no such data; a metric, a name or a place
            that cannot be.
    """
    options = replace(options, model=_named(options.model))
    check_data(options.data)
    if isinstance(options, JudgedOptions):
        from seqtune.metrics import parse_metric

        parse_metric(options.metric)
        options = replace(options, storage=lasting(options.storage))
    if isinstance(options, TrainOptions):
        check_lasting("--out", options.folder)
    if isinstance(options, StudyOptions):
        check_lasting("--storage", options.storage)
        check_lasting("--tracking-uri", options.tracking_uri)
        if not re.fullmatch(r"[\w][\w.-]*", options.study):
            raise UserError(f"--name {options.study}: use letters, digits, '.', '_' and '-' only")
    return options


def lasting(storage: str) -> str:
    """Moves the default out of the temporary folder of a Ray job, into the home folder."""
    return str(Path.home() / RESULTS) if storage == RESULTS and in_job() else storage


def _named(model: str | None) -> str:
    if model is None:
        names = model_names()
        raise UserError(
            f"--model: name the model, for example --model {names[0]}; "
            f"there are: {', '.join(names)}"
        )
    return check_model(model)


def check_data(source: str) -> None:
    """Refuses a file that is not there, with the nearest name."""
    from seqtune.data.generate import PRESETS

    path = Path(source).expanduser()
    if source in PRESETS or "://" in source or path.is_file():
        return
    if path.is_dir():
        raise UserError(f"--data {source}: is a folder; name the file with the interactions")
    if path.parent == Path() and not path.suffix:
        raise UserError(f"--data {source}: no such file or generated set{nearest(source, PRESETS)}")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
    raise UserError(f"--data {source}: no such file{hint}")
