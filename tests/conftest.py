"""What every test gets: an environment of its own, one thread, and Ray where a test asks for it."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

# What would reach the tests from the person's shell, and change what they measure.
FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI")


def pytest_configure(config: pytest.Config) -> None:
    """Sets the environment of the tests and of all that they start; puts it back at the end.

    Ray keeps its sessions and, since 2.60, an access token under the home folder and /tmp: here
    both go to a folder of this run. Its path is short, because Ray's sockets lie in it and a
    socket's path has at most 107 bytes.
    """
    home = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    (home / "auth_token").write_text(secrets.token_hex(32))
    (home / "auth_token").chmod(0o600)

    environment = pytest.MonkeyPatch()
    config.add_cleanup(environment.undo)
    for name in FOREIGN:
        environment.delenv(name, raising=False)
    environment.setenv("RAY_AUTH_TOKEN_PATH", str(home / "auth_token"))
    environment.setenv("RAY_TMPDIR", str(home))
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    environment.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    environment.setenv("MPLBACKEND", "Agg")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips the slow tests for which .ci/run has no time left."""
    until = float(os.environ.get("SLOW_TESTS_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip("no time left for slow tests (SLOW_TESTS_UNTIL)")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keeps torch, where a test has loaded it, on one thread: same sums on every machine."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ray_local() -> Iterator[dict[str, float]]:
    """A Ray of two CPUs in this process, for the tests of one module; gives its resources."""
    from seqtune.cluster import connected

    # Ray leaves its choices in the environment, where the next tests would inherit them.
    with mock.patch.dict(os.environ), connected(cpus=2) as resources:
        yield resources


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
