"""What the runners have in common. Runs in the peers' environments: numpy and nothing else."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WARM_UP = 1  # steps that are not counted
AT_LEAST = 2  # steps that are counted, however long they take
K = 10


class TimeIsUpError(Exception):
    """The time of the measurement is over."""


def arguments(doc: str | None) -> argparse.Namespace:
    """Reads the flags that all runners know."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="interactions, users together, in order")
    parser.add_argument("--model", required=True, help="the model, as it is called there")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training")
    parser.add_argument("--epochs", type=int, help="whole epochs, and then metrics, not timings")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkout", help="of a peer that is a repository")
    return parser.parse_args()


def settings(pairs: list[str]) -> dict[str, Any]:
    """Reads NAME=VALUE pairs; a value is a Python literal or else a string."""
    found = {}
    for name, value in (pair.split("=", 1) for pair in pairs):
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def histories(csv: str) -> dict[int, list[int]]:
    """Returns the items of each user in the order of the file: columns user_id, item_id."""
    table = np.loadtxt(csv, delimiter=",", skiprows=1, usecols=(0, 1), dtype=np.int64)
    order = np.argsort(table[:, 0], kind="stable")
    users, first = np.unique(table[order, 0], return_index=True)
    parts = np.split(table[order, 1], first[1:])
    return {int(user): items.tolist() for user, items in zip(users, parts, strict=True)}


class Clock:
    """Times the steps of a training loop that tells it where each one begins."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.sizes = seconds, []  # no seconds: the time is never up
        self.began = self.elapsed = 0.0

    def tick(self, targets: int) -> bool:
        """A step with so many ``targets`` begins now, unless the time is up: True."""
        now = time.perf_counter()
        if len(self.sizes) == WARM_UP:
            self.began = now
        self.elapsed = now - self.began
        over = self.seconds is not None and self.elapsed >= self.seconds
        if over and len(self.sizes) >= WARM_UP + AT_LEAST:
            return True
        self.sizes.append(targets)
        return False

    def result(self) -> dict[str, float]:
        """Returns the speed of training."""
        timed = self.sizes[WARM_UP:]
        return {
            "targets_per_second": sum(timed) / self.elapsed,
            "steps": len(timed),
            "step_seconds": self.elapsed / len(timed),
        }


def users_per_second(users: int, evaluate: Callable[[], object]) -> dict[str, float]:
    """Times an evaluation of so many users."""
    began = time.perf_counter()
    evaluate()
    rate = users / (time.perf_counter() - began)
    return {"eval_users_per_second": rate, "eval_users": users}


def metrics(ranks: np.ndarray) -> dict[str, float]:
    """Returns HR@10 and NDCG@10 of ranks, 1 the best; inf where an item was not found."""
    hit = ranks <= K
    return {
        f"hr@{K}": float(hit.mean()),
        f"ndcg@{K}": float((hit / np.log2(ranks + 1)).mean()),
    }


def run(
    package: str, asked: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, Any]]
) -> None:
    """Prints what ``measure`` finds as one line of JSON; what the peer prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    versions = {"python": platform.python_version()}
    for name in (package, "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    about = {
        "peak_rss_mb": peak / (1024**2 if sys.platform == "darwin" else 1024),
        "threads": asked.threads,
        "versions": versions,
    }
    print(json.dumps(found | about))
