"""What a model costs, measured."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import seqtune
from seqtune import bench, cli
from seqtune.errors import UserError
from seqtune.options import BenchOptions
from seqtune.space.asked import ask_training


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(Path(seqtune.__file__).parents[1]))  # of processes apart
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def cost(model: str, *set_: str) -> bench.Cost:
    options = BenchOptions(model, "tiny", set=set_, seconds=0.3, threads=1)
    return bench.run(ask_training(options), started=0.0)


def test_a_cost_has_all_its_parts() -> None:
    found = cost("sasrec", "batch_size=32")
    assert found.steps >= 1
    assert found.targets_per_second == pytest.approx(found.tokens_per_second)
    assert 0 < found.share_of_peak < 1
    assert found.step_ms < 300
    assert found.eval_users == 200
    assert min(found.eval_users_per_second, found.startup_seconds, found.peak_rss_mb) > 0
    assert found.gpu_memory_mb is None or found.device != "cpu"


def test_targets_are_what_carries_loss() -> None:
    """BERT4Rec predicts masked items alone."""
    found = cost("bert4rec", "mask_prob=0.2", "last_mask_prob=0")
    assert found.tokens_per_second / found.targets_per_second == pytest.approx(5, rel=0.2)


def test_a_model_without_training_is_evaluated() -> None:
    found = cost("stan")
    assert found.targets_per_second is found.step_ms is found.share_of_peak is None
    assert found.eval_users_per_second > 0


def test_json_is_one_object(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    words = ["bench", "--model", "stan", "--data", "tiny", "--seconds", "0.2", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["seqtune", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert bench.Cost(**found).model == "stan"


@pytest.mark.slow
def test_all_models_are_measured_apart(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "tiny", "--seconds", "0.2", "--threads", "1"]
    costs = list(bench.run_apart(words, ["stan", "fossil"]))
    assert [one.model for one in costs] == ["stan", "fossil"]
    bench.show(costs)
    shown = capsys.readouterr().out
    assert "tiny, cpu, threads: 1" in shown
    assert f"{costs[1].targets_per_second:,.0f}" in shown


def test_a_measurement_that_fails_says_which(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--model stan: not measured"):
        list(bench.run_apart(["--data", "tiny", "--set", "n_layers=2"], ["stan"]))
    assert "n_layers" in capfd.readouterr().err


def test_a_cost_survives_json() -> None:
    found = cost("stan")
    assert bench.Cost(**json.loads(json.dumps(asdict(found)))) == found
