"""MLflow's pages, shown on this machine alone, and which of them show a study."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.track.experiment import STUDY
from seqtune.track.pages import DIMENSIONS, Links
from seqtune.track.store import asking, quiet, shown

HOST, PORT = "127.0.0.1", 5000
PATIENCE = 120.0  # seconds that the pages may take to start


@contextmanager
def served(uri: str, port: int = PORT) -> Iterator[tuple[str, subprocess.Popen[bytes] | None]]:
    """Yields where the pages of a store are, and the process that shows them.

    A server shows its pages itself.

    Raises:
        UserError: they cannot be shown.
    """
    if uri.startswith("http"):
        yield shown(uri), None
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"--port {port}: {reason}; give another one") from None
    quiet()
    mlflow = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    words = [mlflow, "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        page = f"http://{HOST}:{port}"
        _wait(page, process)
        yield page, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def _wait(page: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{page}/health", timeout=5):
            return
        time.sleep(0.2)
    raise UserError(f"{page}: MLflow's pages did not start")


def free_port() -> int:
    """Returns the first port from MLflow's usual one on that nobody listens on."""
    for port in range(PORT, PORT + 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise UserError(f"no port from {PORT} to {PORT + 99} is free")


def studies(uri: str, study: str = "") -> list[tuple[str, Links]]:
    """Returns the name of each study in a store and where it is shown, the newest first.

    With ``study``, its id, that one alone.

    Raises:
        UserError: MLflow cannot be asked.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []  # a client would make one, beside the study that makes one
    wanted = f"tags.`{STUDY}` = '{study}' AND " if study else ""
    with asking(uri) as client:
        experiments = {one.experiment_id: one.name for one in client.search_experiments()}
        found: list[Any] = client.search_runs(
            list(experiments),
            f"{wanted}tags.`{DIMENSIONS}` LIKE '[%'",
            order_by=["attributes.start_time DESC"],
        )
    return [
        (experiments[run.info.experiment_id], Links(uri, run.info.experiment_id, run.info.run_id))
        for run in found
        if run.data.tags[DIMENSIONS] != "[]"  # a training by itself has none
    ]
