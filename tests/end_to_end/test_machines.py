"""Machines with made-up GPUs that join a cluster; one that sees other folders; none that fits."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TRAIN = ["-c", "from seqtune.cli import main; main()", "train", "--model", "sasrec"]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose head does no work, and which this process has joined to look at it."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """Notes how many GPUs of the cluster are in use while the block runs."""
    import ray

    found, over = list[float](), threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            there, free = ray.cluster_resources(), ray.available_resources()
            found.append(there.get("GPU", 0) - free.get("GPU", 0))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield found
    finally:
        over.set()
        looker.join()


def test_gpus_in_use_are_those_that_were_asked_for(
    machines: Any, tune: Callable[..., Any], start: Callable[..., Any], tmp_path: Path
) -> None:
    words = ["--trials", "4", "--set", "epochs=60", "--scheduler", "none"]
    words += ["--storage", str(tmp_path)]
    with watched() as used:
        first = tune(*words, "--name", "one", "--gpus-per-trial", "1")
        first.until(lambda: "at a time" in first.out)
        time.sleep(5)
        assert "[1/4]" not in first.out  # nobody is there to do it
        machines.add_node(num_cpus=2, num_gpus=2)
        said = first.ends(0).out
    assert "4 trials, 1 at a time, more as machines join, 1 CPU, 1 GPU each" in said
    assert "[4/4]" in said
    assert max(used) == 2
    assert set(used) <= {0, 1, 2}

    with watched() as used:
        said = tune(*words, "--name", "none", "--gpus-per-trial", "0").ends(0).out
    assert "4 trials, 2 at a time, more as machines join, 1 CPU each" in said
    assert max(used) == 0

    with watched() as used:
        out = ["--out", str(tmp_path / "out"), "--set", "epochs=20", "--set", "eval_every=5"]
        said = start(*TRAIN, "--data", "tiny", "--workers", "2", *out).ends(0).out
    assert re.search("2 workers, 1 CPU, 1 GPU each, exchange gradients by (gloo|NCCL)", said)
    assert max(used) == 2


def test_trials_share_a_gpu_by_its_memory(
    machines: Any, tune: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that tells of a GPU which is not there."""
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho '81559, 9.0, NVIDIA H100 80GB HBM3'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{driver.parent}:{os.environ['PATH']}")
    machines.add_node(num_cpus=2, num_gpus=1)
    words = ["--trials", "4", "--set", "epochs=60", "--scheduler", "none"]
    with watched() as used:
        said = tune(*words, "--storage", str(tmp_path / "results")).ends(0).out
    card = r"NVIDIA H100 80GB HBM3, 85.5 GB: a trial takes about \d+ MB \(weights .+\); "
    assert re.search(card + "2 trials share a GPU", said)
    assert "this card also has tf32 and bf16: --set precision=tf32" in said
    assert "with NVIDIA's MPS (nvidia-cuda-mps-control -d) they would run at once" in said
    assert "4 trials, 2 at a time, more as machines join, 1 CPU, 0.5 GPU each" in said
    assert {0, 0.5, 1} >= set(used)
    assert max(used) == 1


def test_a_process_sees_the_gpus_that_it_was_given(machines: Any) -> None:
    import ray

    from seqtune.cluster import NO_GPU

    machines.add_node(num_cpus=2, num_gpus=2)

    def seen() -> str | None:
        time.sleep(1)  # so that each has a process of its own
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def ask(n: int, gpus: float) -> list[str | None]:
        look = ray.remote(num_gpus=gpus, num_cpus=0, runtime_env={"env_vars": NO_GPU})(seen)
        found: list[str | None] = ray.get([look.remote() for _ in range(n)])
        return found

    assert sorted(map(str, ask(2, 1))) == ["0", "1"]
    assert ask(1, 0) == [""]


def test_a_folder_that_one_machine_does_not_see_is_refused(
    machines: Any, tune: Callable[..., Any], tmp_path: Path
) -> None:
    machines.add_node(num_cpus=1)
    here, shared = tmp_path / "here", tmp_path / "shared"
    here.mkdir()
    join = f"mount -t tmpfs none {here} && exec {sys.executable} -m ray.scripts.scripts start"
    line = f"{join} --address {machines.address} --num-cpus 1 --block"
    words = ["unshare", "--mount", "sh", "-c", line]
    if os.getuid() or subprocess.run([*words[:2], "true"], check=False).returncode:
        pytest.skip("another view of the disk needs a user who may mount one")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as blind:
        try:
            wait_for_cpus(2)
            short = ["--trials", "2", "--set", "epochs=2"]
            refused = tune(*short, "--storage", f"{here}/results").ends(2)
            assert "does not see what is written there (nothing is there); give" in refused.err
            assert f"error: --storage {here}/results/sasrec-tiny: the machine " in refused.err
            assert len(refused.err.splitlines()) == 1
            assert "[2/2]" in tune(*short, "--storage", str(shared)).ends(0).out
        finally:
            blind.terminate()


def test_a_shape_that_no_machine_has_is_refused(machines: Any, tune: Callable[..., Any]) -> None:
    machines.add_node(num_cpus=2, num_gpus=1)
    refused = tune("--gpus-per-trial", "2").ends(2).err
    assert refused == (
        "error: a trial needs 1 x (2 CPUs and 2 GPUs), and the largest machine has 2 CPUs and "
        "1 GPU; lower --workers-per-trial, --cpus-per-trial or --gpus-per-trial\n"
    )


def test_workers_follow_the_machines_and_outlive_one_of_them(
    machines: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    """One worker begins; a second joins with its machine; one is killed, and others go on."""
    machines.add_node(num_cpus=1)
    often = "import seqtune.study.workers as w; w.RESIZE = 3; from seqtune.cli import main; main()"
    words = ["-c", often, *TRAIN[2:], "--data", "tiny", "--workers", "1:2"]
    words += ["--out", str(tmp_path / "out"), "--storage", str(tmp_path / "results")]
    words += ["--set", "epochs=300", "--set", "patience=300", "--set", "eval_every=3"]
    train = start(*words)
    train.until(lambda: "epoch   6" in train.out)
    assert "1 to 2 workers, 1 CPU each, exchange gradients by gloo" in train.out
    assert "it has 1 worker now" in train.out
    machines.add_node(num_cpus=1)
    train.until(lambda: "it has 2 workers now" in train.out)
    before = train.out.count("epoch ")
    train.until(lambda: train.out.count("epoch ") > before + 2)
    os.kill(workers_of_train()[0], signal.SIGKILL)
    said = train.ends(0, 300).out
    killed = "was killed from outside (SIGKILL), or by the system for memory; others go on from the"
    assert killed in said
    epochs = [int(n) for n in re.findall(r"^epoch +(\d+)", said, re.MULTILINE)]
    assert epochs == sorted(set(epochs)), "nothing is told twice"
    assert epochs[-1] == 300


def workers_of_train() -> list[int]:
    """The processes of the workers that live."""
    from ray._private.state import actors

    return [
        one["Pid"]
        for one in actors().values()
        if "RayTrainWorker" in one["ActorClassName"] and one["State"] == "ALIVE"
    ]


def wait_for_cpus(n: int, timeout: float = 120) -> None:
    import ray

    until = time.monotonic() + timeout
    while ray.cluster_resources().get("CPU", 0) < n:
        assert time.monotonic() < until
        time.sleep(0.2)
