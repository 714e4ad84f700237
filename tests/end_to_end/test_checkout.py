"""A checkout beside an installed seqtune: what was started is what trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_trials_run_the_code_of_the_checkout_and_not_what_is_installed(tmp_path: Path) -> None:
    installed = tmp_path / "site" / "seqtune"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("raise ImportError('the installed seqtune runs')\n")
    about = tmp_path / "site" / "seqtune-0.0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: seqtune\nVersion: 0.0.1\n")
    words = ["--model", "sasrec", "--data", "tiny", "--trials", "1", "--set", "epochs=1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tune.py"), *words, "--storage", str(tmp_path / "results")],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = tmp_path / "results" / "sasrec-tiny" / "report" / "report.json"
    assert [t["status"] for t in json.loads(report.read_text())["trials"]] == ["complete"]
