"""What each fault's test may use, and the page that they make.

``pytest -n 0 -m slow tests/faults --reliability docs/reliability.md`` writes those of the tests
that passed into the table of the page; rows of tests that did not run stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Study, whole

COLUMNS = ("fault", "caused", "a person reads", "the study goes on", "lost")
TABLE = re.compile(r"(<!-- faults -->\n).*?(<!-- /faults -->)", re.DOTALL)
passed: dict[str, list[tuple[str, ...]]] = {}  # fault -> what its tests have told


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", metavar="PAGE", help="write the faults into this page")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = (yield).get_result()  # type: ignore[misc]
    if report.when == "call" and report.passed:
        for name, row in item.user_properties:
            if name == "fault":
                passed.setdefault(row[0], []).append(row[1:])


def pytest_sessionfinish(session: pytest.Session) -> None:
    page = session.config.getoption("--reliability", default=None)
    if not page or not passed:
        return
    text = Path(page).read_text()
    known = {
        cells[0]: cells
        for line in TABLE.search(text)[0].splitlines()  # type: ignore[index]
        if line.startswith("| ")
        and (cells := tuple(cell.strip() for cell in line.strip("| ").split(" | ")))[0] != "fault"
    }
    for fault, rows in passed.items():
        caused = rows[0][0] + (f", {len(rows)} times" if len(rows) > 1 else "")
        known[fault] = (fault, caused, *rows[0][1:])
    lines = ["| " + " | ".join(row) + " |" for row in (COLUMNS, *known.values())]
    lines.insert(1, "|" + "---|" * len(COLUMNS))
    Path(page).write_text(TABLE.sub(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], text))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Tells of a fault: its name, how it is caused, what is read, how it goes on, what is lost."""

    def tell(name: str, caused: str, seen: str, goes_on: str, lost: str = "nothing") -> None:
        request.node.user_properties.append(("fault", (name, caused, seen, goes_on, lost)))

    return tell


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
