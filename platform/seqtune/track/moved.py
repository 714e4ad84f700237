"""MLflow's SQLite file in a folder that was moved: it holds the places of artifacts.

Its tables are not documented either; they were seen in the release that ``undocumented.py`` names.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

ARTIFACTS = "mlartifacts"  # the folder beside the file
PLACES = (  # table and column
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow(store: Path) -> None:
    """Has a store find its artifacts beside it again, where they are no longer where they were."""
    here = store.parent / ARTIFACTS
    if not here.is_dir() or not store.is_file():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(store, timeout=30)) as database:
        # What is wrong with the file MLflow will say.
        asked = "SELECT DISTINCT artifact_location FROM experiments"
        places = [place for (place,) in database.execute(asked) if place]
        for place in places:
            was = Path(url2pathname(urlsplit(place).path))
            if place.startswith("file:") and was.name == ARTIFACTS and not was.exists():
                _move(database, place, here.as_uri())


def _move(database: sqlite3.Connection, before: str, now: str) -> None:
    with database:
        for table, column in PLACES:
            database.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
            )
