"""Faults: what each test may use, and the page that they make (docs/reliability.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Study, whole


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """A study that has not begun."""
    one = Study(tmp_path)
    yield one
    one.close()


@pytest.fixture(scope="session")
def values(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, float]]:
    """What the trials are worth where nothing goes wrong."""
    one = Study(tmp_path_factory.mktemp("undisturbed"))
    one.tune().ends(0)
    found = {number: trial.value for number, trial in one.trials().items()}
    whole(one, found, {})
    yield found
    one.close()
