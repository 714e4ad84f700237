"""What is said about a study before it begins."""

from __future__ import annotations

from pathlib import Path

from seqtune.options import StudyOptions
from seqtune.space.asked import ask_study

SPACE = """
model: duorec
fixed: {train_mode: rows, n_layers: 3, n_heads: 2}
space:
  learning_rate: {low: 0.0001, high: 0.01, log: true}
"""


def notes(tmp_path: Path, *chosen: str) -> list[str]:
    (tmp_path / "space.yaml").write_text(SPACE)
    options = StudyOptions("duorec", data="tiny", space=f"{tmp_path}/space.yaml", set=chosen)
    return [note for note in ask_study(options).notes if "fixes" in note]


def test_what_the_space_fixes_elsewhere_than_the_model_declares_is_said(tmp_path: Path) -> None:
    assert notes(tmp_path) == [
        "trial 0 runs the defaults with train_mode rows, n_layers 3, which the search space fixes"
    ]  # 2 heads are the default
    # What was asked for is no news.
    assert notes(tmp_path, "n_layers=4") == [
        "trial 0 runs the defaults with train_mode rows, which the search space fixes"
    ]
    assert notes(tmp_path, "n_layers=4", "train_mode=prefixes") == []


def test_beside_a_file_of_params_too(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("models: {DuoRec: {learning_rate: 0.002, n_layers: 3}}")
    (tmp_path / "space.yaml").write_text(SPACE)
    options = StudyOptions(
        "duorec", data="tiny", space=f"{tmp_path}/space.yaml", params=f"{tmp_path}/my.yaml"
    )
    assert (
        "trial 0 runs the values of my.yaml with train_mode rows, which the search space fixes"
        in ask_study(options).notes
    )
