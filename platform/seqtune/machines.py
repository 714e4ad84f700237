"""The machines of a Ray: what each has, what may join, and whether all see the same folder."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from seqtune.errors import UserError
from seqtune.storage import Folder

SEEN = "seen"  # a file that each machine is asked for
LOOKS = 60.0  # seconds, the longest wait for an answer

T = TypeVar("T")


def needs(cpus: float, gpus: float) -> str:
    """Says how many there are: ``8 CPUs and 1 GPU``."""
    return f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"


@dataclass(frozen=True)
class Machine:
    """What a machine has for trials."""

    cpus: float
    gpus: float = 0

    def holds(self, cpus: float, gpus: float) -> int:
        """Returns how many processes of so many CPUs and GPUs fit on it at a time."""
        fits = [self.cpus / cpus] if cpus else []
        fits += [self.gpus / gpus] if gpus else []
        return int(min(fits, default=1) + 1e-9)  # 1 / 0.1 shall be 10

    def __str__(self) -> str:
        return needs(self.cpus, self.gpus)


def machines() -> list[Machine]:
    """Returns what each machine that has joined has, the head included."""
    import ray

    return [_machine(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def here() -> Machine:
    """Returns what the machine of this process has."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return next(_machine(node["Resources"]) for node in ray.nodes() if node["NodeID"] == own)


def _machine(resources: Mapping[str, float]) -> Machine:
    return Machine(resources.get("CPU", 0), resources.get("GPU", 0))


def kinds() -> list[Machine]:
    """Returns what the machines have that an autoscaler can start; none where there is none.

    An autoscaler tells Ray so. There is no public way to ask for each kind (Ray 2.60.0).
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [_machine(group.resources) for group in groups if group.max_count]


def memory_here() -> float:
    """Returns the bytes of memory that this machine, or this container, has."""
    there = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max"
            there = min(there, float((Path("/sys/fs/cgroup") / name).read_text()))
    return there


@dataclass(frozen=True)
class Card:
    """A GPU, as NVIDIA's driver tells of it."""

    name: str
    memory: float  # bytes
    generation: float  # its compute capability; from 8.0 on it computes in tf32 and bf16 too
    mps: bool  # whether kernels of several processes can run on it at once


def cards() -> list[Card]:
    """Returns the smallest GPU of each machine that has some and whose driver tells of them."""
    return [min(some, key=lambda card: card.memory) for some in everywhere(_cards) if some]


def everywhere(look: Callable[..., T], *words: Any) -> list[T]:
    """Calls a function on every machine that answers within a minute; returns what it returns."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    job = ray.remote(num_cpus=0, max_retries=1)(look)
    jobs = [
        job.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(*words)
        for node in ray.nodes()
        if node["Alive"]
    ]
    ready, _ = ray.wait(jobs, num_returns=len(jobs), timeout=LOOKS)
    found = []
    for one in ready:
        with suppress(ray.exceptions.RayError):  # the machine has left again
            found.append(ray.get(one))
    return found


def _cards() -> list[Card]:
    """Returns the GPUs of this machine."""
    asked = "--query-gpu=memory.total,compute_cap,name"
    ask = ["nvidia-smi", asked, "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    mps = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")).is_dir()
    found = []
    for line in said.splitlines():
        with suppress(ValueError):  # a card that is broken
            memory, generation, name = line.split(",", 2)
            found.append(Card(name.strip(), float(memory) * 2**20, float(generation), mps))
    return found


def described(some: list[Machine]) -> str:
    """Counts machines by their kind: ``2 machines: 2 of 8 CPUs and 1 GPU``."""
    counts = Counter(some)
    parts = [f"{n} of {one}" for one, n in counts.most_common(4)]
    more = ["others"] * (len(counts) > 4)
    number = f"{len(some)} machine{'s' * (len(some) != 1)}"
    return f"{number}: {', '.join(parts + more)}" if some else number


def check_seen(folder: Folder, option: str) -> None:
    """Refuses a folder that a machine of the cluster does not see, or cannot read.

    Raises:
        UserError: it names the machine, and what to give in place of the folder.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    gone = (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)
    word = secrets.token_hex(8)
    folder.write(SEEN, word.encode())
    look = ray.remote(num_cpus=0, max_retries=1)(_sees)
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    looks = {
        look.options(scheduling_strategy=On(node, soft=False)).remote(folder, word): address
        for node, address in nodes.items()
    }
    for job, address in looks.items():
        try:
            why = ray.get(job, timeout=LOOKS)
        except ray.exceptions.RayError as error:  # it has left again, or takes no work
            why = "" if isinstance(error, gone) else str(error).strip().splitlines()[-1]
        if why:
            raise UserError(
                f"{option} {folder.uri}: the machine {address} does not see what is written there "
                f"({why[:120]}); give a folder that every machine of the cluster sees, or "
                "s3://BUCKET/PATH"
            )
    folder.remove(SEEN)


def _sees(folder: Folder, word: str) -> str:
    """Says why this process does not see what another has written; empty where it does."""
    try:
        found = folder.read(SEEN)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return "" if found == word.encode() else "nothing is there"


def busy() -> list[str]:
    """Says, in a line, that trials will have to wait where others use the cluster now."""
    import ray

    if not os.environ.get("RAY_ADDRESS"):
        return []
    total, free = ray.cluster_resources(), ray.available_resources()
    used = {name: total.get(name, 0) - free.get(name, 0) for name in ("CPU", "GPU")}
    parts = [f"{n:g} of {total[name]:g} {name}s" for name, n in used.items() if n > 0]
    if not parts:
        return []
    return [f"others use {' and '.join(parts)} of the cluster: trials start as these become free"]
