"""What made a result: the versions of the libraries and the commit of the code."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from pathlib import Path

from seqtune import __version__

COMMIT = "SEQTUNE_GIT_COMMIT"  # set where code runs as a copy without its repository


def versions() -> dict[str, str]:
    """Returns the versions of what a result depends on."""
    names = ("torch", "ray", "optuna", "mlflow", "numpy")
    return {"seqtune": __version__} | {name: importlib.metadata.version(name) for name in names}


def git_commit() -> str:
    """Returns the commit of the code that runs, with ``+`` where it was changed; else ``""``."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    try:
        _git("ls-files", "--error-unmatch", __file__)  # not a repository that only holds the venv
        return _git("describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    said = subprocess.run(
        ["git", *words],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return said.stdout.strip()
