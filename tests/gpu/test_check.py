"""The check of a GPU, tried on a CPU: whoever has a card shall not find that it does not run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seqtune.nn import arithmetic
from seqtune.params import Precision

CHECK = Path(__file__).with_name("check.sh")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["agreement", "together"])
def test_the_check_runs_on_a_cpu(part: str) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [CHECK, "--cpu", part], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("0 wrong")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_arithmetic_is_what_is_asked_and_what_was_before(precision: Precision) -> None:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn

    def settings() -> tuple[bool, bool, bool]:
        return cuda.matmul.allow_tf32, cudnn.allow_tf32, cuda.cudnn_sdp_enabled()

    before = settings()
    with arithmetic(precision):
        assert settings() == (precision != "fp32", precision != "fp32", False)
        with contextlib.suppress(RuntimeError), arithmetic("fp32"):
            assert settings() == (False, False, False)
            raise RuntimeError
        assert settings() == (precision != "fp32", precision != "fp32", False)
    assert settings() == before
