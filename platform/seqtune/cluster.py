"""The only place that starts or joins Ray."""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has everything that they would write
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports why, and no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is answered by the study
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


@contextmanager
def connected(cpus: float | None = None, dashboard: bool = False) -> Iterator[dict[str, float]]:
    """Joins the cluster at ``RAY_ADDRESS``, or starts Ray on this machine; yields its resources.

    Ray Train needs the ``dashboard``: it asks its State API whether a trial was stopped, to give
    back what the workers hold.

    Without an address Ray would join whatever cluster it finds, hence "local". Workers get the
    package with them: by ``PYTHONPATH`` on this machine, uploaded to a cluster elsewhere, so that
    nothing needs to be installed there.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    address = os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    options |= {"logging_level": logging.ERROR, "configure_logging": True}
    if address == "local":
        options |= {"include_dashboard": dashboard, "num_cpus": cpus}
        if not installed():
            paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    else:
        options["runtime_env"] = {"py_modules": [str(PACKAGE)]}
    ray.init(**options)
    for name in ("ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def installed() -> bool:
    """Says whether the package that runs is one that Ray's workers on this machine will find."""
    try:
        importlib.metadata.distribution("seqtune")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
