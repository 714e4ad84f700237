"""Where the records of studies are: a database file, a database, or a server."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seqtune.errors import UserError
from seqtune.secrecy import redact
from seqtune.storage import Folder, check_place
from seqtune.track.moved import follow


def store_uri(given: str | None, storage: Folder) -> str:
    """Returns the URI of the MLflow store, independent of the working directory.

    Without one it is a SQLite file in the storage folder. MLflow itself would make one wherever
    the process happens to run. Where the folder was moved, the file is told first.
    """
    place = "--tracking-uri " if given is not None else "MLFLOW_TRACKING_URI="
    given = given if given is not None else os.environ.get("MLFLOW_TRACKING_URI")
    if given is None:
        if storage.local is None:
            raise UserError(
                f"--storage {storage.uri}: no place for MLflow's SQLite file; "
                "add --tracking-uri, for example http://localhost:5000"
            )
        follow(storage.local / "mlflow.db")
        return f"sqlite:///{storage.local / 'mlflow.db'}"
    if given.startswith("sqlite:///"):
        check_place(place.strip(), str(Path(given.removeprefix("sqlite:///")).parent))
        return f"sqlite:///{Path(given.removeprefix('sqlite:///')).expanduser().resolve()}"
    if re.match(r"(https?|postgresql|mysql|mssql)(\+\w+)?://", given):
        _check_form(place, given)
        return given.rstrip("/")
    raise UserError(
        f"{place}{given}: not a store that MLflow can search; write "
        "http://HOST:PORT, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
    )


def _check_form(place: str, given: str) -> None:
    """Raises where a server or a database cannot be at such an address."""
    said = f"{place}{shown(given)}"
    try:
        parts = urlsplit(given)
        reachable, _ = bool(parts.hostname), parts.port
    except ValueError as error:
        raise UserError(f"{said}: {error}") from None
    if not reachable:
        raise UserError(f"{said}: names no host; write http://HOST:PORT")
    if not given.startswith("http"):
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        try:
            make_url(given).get_dialect().import_dbapi()
        except (ArgumentError, NoSuchModuleError) as error:
            raise UserError(f"{said}: {error}") from None
        except ImportError as error:
            raise UserError(
                f"{said}: the driver is missing ({error}); pip install 'seqtune[postgres]'"
            ) from None


def quiet() -> None:
    """Keeps MLflow from talking: to the network about usage, and to the terminal about itself."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_CONFIGURE_LOGGING": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker tries again by itself
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    for chatty in ("mlflow", "alembic"):  # an error is raised, too, and said by the tracker
        logging.getLogger(chatty).setLevel(logging.CRITICAL)


@contextmanager
def asking(uri: str) -> Iterator[Any]:
    """Yields a client of a store whose pages and records are asked for.

    Raises:
        UserError: MLflow cannot be asked.
    """
    quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        yield MlflowClient(uri, registry_uri=uri)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {shown(uri)} cannot be asked: {brief(error)}") from None


CAUSES = (  # that stand somewhere in the sentence of a library
    r"Connection (refused|aborted|reset by peer)|timed out|Name or service not known"
    r"|too many \d+ error responses|disk is full|No space left on device|disk I/O error"
)


def brief(error: Exception) -> str:
    """Returns the last cause of an error, on one short line."""
    text = (str(error) or type(error).__name__).strip()
    cause = re.search(CAUSES, text)
    return cause[0] if cause else text.splitlines()[0][:200]


def shown(uri: str) -> str:
    """Returns a URI without a user's name and password."""
    uri = redact(uri)
    return re.sub(r"^(?!sqlite)([\w+]+://)[^/@]*@", r"\1", uri)
