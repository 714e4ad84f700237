"""The machines of a Ray: what each has, what may join, and whether all see the same folder."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from seqtune.errors import UserError
from seqtune.storage import Folder

SEEN = "seen"  # a file that each machine is asked for
LOOKS = 60.0  # seconds, the longest wait for an answer


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
