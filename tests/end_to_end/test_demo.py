"""The first command of the README, with the budget that it has: its champion beats counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from seqtune.data import leave_one_out
from seqtune.data.generate import make_preset
from seqtune.floors import floors
from seqtune.significance import compare

ROOT = Path(__file__).parents[2]
FIRST = "python tune.py --model duorec\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_champion_of_the_demo_beats_every_floor(
    start: Callable[..., Any], study_at: type[Any], tmp_path: Path
) -> None:
    readme = (ROOT / "README.md").read_text()
    first = next(block for block in readme.split("```bash\n")[1:] if "tune.py" in block)
    assert first.split("```")[0].endswith(FIRST)
    words = FIRST.split()[2:]
    start(str(ROOT / "tune.py"), *words, "--storage", str(tmp_path)).ends(0, timeout=480)
    study = study_at(tmp_path / "duorec-demo")
    table = pq.read_table(study.folder / "report" / "ranks-best.parquet")

    dataset = make_preset("demo")
    split = leave_one_out(dataset)
    assert table["user"].to_pylist() == dataset.user_ids[split.test.users].tolist()
    for floor in floors(split, mask_seen=True):
        for metric in ("hr@10", "ndcg@10"):
            found = compare(metric, table["rank"].to_numpy(), floor.test_ranks)
            assert found.difference > 0, (floor.name, metric, found)
            assert found.p_value < 0.05, (floor.name, metric, found)
