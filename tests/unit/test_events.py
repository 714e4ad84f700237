"""What happens when a trial starts, is evaluated and ends: who is told what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from seqtune.data import Protocol
from seqtune.limits import Judge
from seqtune.machines import Card
from seqtune.options import StudyOptions
from seqtune.space import load_space
from seqtune.storage import Folder
from seqtune.study.cards import Sharing
from seqtune.study.deaths import NO_MEMORY
from seqtune.study.ending import Ending
from seqtune.study.events import Messenger
from seqtune.study.gauges import Gauges
from seqtune.study.plan import Plan


class Ears:
    """Remembers what it is told, whatever that is called."""

    def __init__(self, name: str, said: list[tuple[Any, ...]]) -> None:
        self._name, self._said = name, said

    def __getattr__(self, method: str) -> Any:
        def told(*given: Any, **more: Any) -> None:
            self._said.append((self._name, method, *given, *more.items()))

        return told


@pytest.fixture
def said() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def messenger(said: list[tuple[Any, ...]], tmp_path: Path) -> Messenger:
    searcher: Any = Ears("searcher", said)
    searcher.spaces = {"sasrec": load_space(None, "sasrec")}
    searcher.judge, searcher.over = Judge(), lambda number, epoch: ""
    plan = Plan("sasrec", "hr@5", Protocol(mask_seen=True), Folder.at(tmp_path))
    counting = SimpleNamespace(
        done=lambda: True, floors=lambda: ("FLOORS",), remarks=lambda: ("order says little",)
    )
    ears: Any = [Ears(name, said) for name in ("view", "tracker")]
    weights: Any = Ears("weights", said)
    gauges: Any = Ears("gauges", said)
    hear: Any = ([SimpleNamespace(check=lambda: None)], counting, weights, gauges)
    return Messenger(searcher, plan, *ears, *hear, Ending(StudyOptions("sasrec")))


def a_trial(number: int = 3, **last: Any) -> Any:
    params = {"learning_rate": 0.01, "max_seq_len": 50}
    config = {"number": number, "model": "sasrec", "params": params}
    config["origin"] = "drawn" if number else "default"
    last = {"best": 0.5, "best_epoch": 4} | last
    kept = SimpleNamespace(metric_analysis={"hr@5": {}}, metric_n_steps={"hr@5": {}})
    return SimpleNamespace(
        config=config, last_result=last, trial_id=f"t{number}", run_metadata=kept
    )


def told(said: list[tuple[Any, ...]], who: str) -> list[tuple[Any, ...]]:
    return [words[1:] for words in said if words[0] == who]


def test_a_start_shows_what_is_searched_and_tracks_everything(
    messenger: Messenger, said: list[tuple[Any, ...]]
) -> None:
    messenger.on_trial_start(1, [], a_trial())
    messenger.on_trial_start(1, [], a_trial(number=0))
    both = ((3, "drawn"), (0, "default"))
    shown = [("trial_started", n, {"learning_rate": 0.01}, origin, "", None) for n, origin in both]
    assert told(said, "view") == shown
    everything = {"learning_rate": 0.01, "max_seq_len": 50, "model": "sasrec"}
    assert told(said, "tracker") == [
        ("trial_started", n, everything, {"seqtune.model": "sasrec", "seqtune.origin": origin})
        for n, origin in both
    ]


def test_a_result_is_shown_with_the_studys_metric_and_tracked_with_all(
    messenger: Messenger, said: list[tuple[Any, ...]]
) -> None:
    result = {"epoch": 7, "hr@5": 0.3, "ndcg@10": 0.2, "train_ce": 1.5, "eval_seconds": 0.1}
    result |= {"best": 0.4, "best_epoch": 5, "time": 99.0, "finished": False}
    messenger.on_trial_result(1, [], a_trial(), result)
    assert told(said, "view") == [("trial_result", 3, 7, 0.3, 0.4)]
    points = {"hr@5": 0.3, "ndcg@10": 0.2, "train_ce": 1.5, "eval_seconds": 0.1}
    assert told(said, "tracker") == [("trial_result", 3, 7, points, ("time", 99.0))]
    said.clear()
    messenger.on_trial_result(1, [], a_trial(), {"failed": "out of memory", "finished": True})
    assert said == []
    messenger.on_trial_result(1, [], a_trial(), {"note": "state.pt is torn"})
    assert said == [("view", "note", "trial 3: state.pt is torn")]
    said.clear()
    stored = {"epoch": 7, "ndcg@10": 0.2, "best": 0.4, "best_epoch": 5}  # Optuna's, told before
    messenger.on_trial_result(1, [], a_trial(), stored | {"hr@5": 0.3})
    assert [words[0] for words in said] == ["view", "gauges"]


@pytest.mark.parametrize(
    ("trial", "status", "tracked", "value"),
    [
        (a_trial(finished=True), "complete", "finished", 0.5),
        (a_trial(finished=False), "pruned", "pruned", 0.5),
        (a_trial(finished=True, failed="out of memory"), "failed", "failed", None),
    ],
)
def test_an_end_is_what_it_is(
    messenger: Messenger,
    said: list[tuple[Any, ...]],
    trial: Any,
    status: str,
    tracked: str,
    value: float | None,
) -> None:
    messenger.plan.trial_folder(3).write("ranks.parquet", b"")
    messenger.on_trial_complete(1, [], trial)
    reason = trial.last_result.get("failed", "")
    assert told(said, "view") == [("trial_ended", 3, status, value, reason, ("replayed", False))]
    assert told(said, "weights") == [("ended", 3, "sasrec", value)]
    assert told(said, "gauges") == [("ended", 3, status)]
    assert not trial.run_metadata.metric_analysis
    assert not trial.run_metadata.metric_n_steps
    *uploads, end = told(said, "tracker")
    found = {} if value is None else {"hr@5": 0.5, "epoch": 4}
    assert end == ("trial_ended", 3, tracked, found, reason or None)
    folder = messenger.plan.trial_folder(3)
    kept = [("upload", folder, ["ranks.parquet"], ("trial", 3))]
    assert uploads == ([] if value is None else kept)


def test_a_trial_that_had_ended_is_told_again_with_its_curve(
    messenger: Messenger, said: list[tuple[Any, ...]]
) -> None:
    ended: Any = SimpleNamespace(
        number=3,
        state=TrialState.PRUNED,
        user_attrs={
            "model": "sasrec",
            "params": {"learning_rate": 0.01},
            "origin": "portfolio",
        },
    )
    row = {"epoch": 7, "hr@5": 0.3, "best": 0.4, "best_epoch": 5, "time": 99.0}
    messenger.retell(ended, [row])
    tags = {"seqtune.model": "sasrec", "seqtune.origin": "portfolio"}
    assert told(said, "view") == [
        ("trial_started", 3, {"learning_rate": 0.01}, "portfolio", "", None),
        ("trial_result", 3, 7, 0.3, 0.4),
        ("trial_ended", 3, "pruned", 0.4, "", ("replayed", True)),
    ]
    assert told(said, "tracker") == [
        ("trial_started", 3, {"learning_rate": 0.01, "model": "sasrec"}, tags),
        ("trial_result", 3, 7, {"hr@5": 0.3}, ("time", 99.0)),
        ("trial_ended", 3, "pruned", {"hr@5": 0.4, "epoch": 5}, None),
    ]
    said.clear()
    messenger.retell(ended, [])  # nothing is left of its curve
    assert [words[1] for words in told(said, "view")] == [3, 3]


def test_the_reason_of_an_error_reaches_the_searcher_the_screen_and_mlflow(
    messenger: Messenger, said: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    trial = a_trial()
    trial.error_file = str(tmp_path / "error.txt")  # where Tune has it when it calls
    (tmp_path / "error.txt").write_text("Traceback\n  in a file\nOSError: no route to host\n")
    messenger.on_trial_error(1, [], trial)
    reason = "OSError: no route to host"
    assert told(said, "searcher") == [("give_reason", "t3", reason)]
    assert told(said, "view") == [("trial_ended", 3, "failed", None, reason, ("replayed", False))]
    assert told(said, "tracker") == [("trial_ended", 3, "failed", {}, reason)]


@pytest.mark.parametrize(
    ("error", "reason", "most"),
    [
        ("ValueError: no", "ValueError: no", 5),
        ("killed due to the node running low on memory", NO_MEMORY, 2),
    ],
)
def test_a_retry_is_told_and_what_took_all_memory_has_one(
    messenger: Messenger,
    said: list[tuple[Any, ...]],
    tmp_path: Path,
    error: str,
    reason: str,
    most: int,
) -> None:
    trial = a_trial()
    trial.error_file, trial.num_failures, trial.max_failures = str(tmp_path / "error.txt"), 2, 5
    (tmp_path / "error.txt").write_text(f"Failure # 2 (occurred at noon)\n{error}\n")
    messenger.on_trial_recover(1, [], trial)
    note = f"trial 3: {reason}; it goes on from its last state"
    assert told(said, "view") == [("note", note)]
    assert trial.max_failures == most
    assert told(said, "searcher") == ([("hold_back",)] if most == 2 else [])


def test_a_gpu_that_was_full_is_shared_by_fewer(
    messenger: Messenger, said: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    messenger.sharing = Sharing(Card("H100", 80e9, 9.0, mps=True), 60e9, cpus=16, most=20)
    row = {"epoch": 1, "hr@5": 0.3, "best": 0.3, "train_targets": 1, "time": 1.0}
    messenger.on_trial_result(1, [], a_trial(), row | {"gpu_bytes": 2 * 10**9})
    assert messenger.sharing.trials == 8
    trial = a_trial()
    trial.error_file, trial.num_failures, trial.max_failures = str(tmp_path / "error.txt"), 1, 5
    (tmp_path / "error.txt").write_text(
        "Failure # 1 (occurred at noon)\ntorch.OutOfMemoryError: CUDA out of memory. Tried to ...\n"
    )
    messenger.on_trial_recover(1, [], trial)
    assert trial.max_failures == 1  # once more
    assert ("searcher", "hold_back") in said
    why = "torch.OutOfMemoryError: CUDA out of memory. Tried to ..."
    assert [words[1] for words in told(said, "view") if words[0] == "note"] == [
        "the first trial took 2.0 GB of its GPU: 8 trials share a GPU from now on",
        "4 trials share a GPU from now on",
        f"trial 3: {why}; it goes on from its last state",
    ]


def test_floors_are_told_once(messenger: Messenger, said: list[tuple[Any, ...]]) -> None:
    messenger.on_step_end(1, [])
    messenger.on_step_end(2, [])
    assert told(said, "view") == [("floors_counted", ("FLOORS",)), ("note", "order says little.")]


def test_tune_saves_nothing_of_it(messenger: Messenger) -> None:
    assert messenger.__getstate__() == {}


def test_ray_hears_of_what_is_new_and_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[tuple[str, str], float] = {}

    class Figure:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name = name

        def set_default_tags(self, tags: dict[str, str]) -> None:
            assert tags == {"study": "shop", "metric": "hr@5"}

        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            heard[self.name, (tags or {}).get("state", "")] = value

        def inc(self, value: float) -> None:
            assert value > 0, "Ray refuses to add nothing"
            self.set(heard.get((self.name, ""), 0) + value)

    monkeypatch.setattr("ray.util.metrics.Gauge", Figure)
    monkeypatch.setattr("ray.util.metrics.Counter", Figure)
    plan = Plan("sasrec", "hr@5", Protocol(mask_seen=True), Folder.at("/results/shop"))
    gauges = Gauges(plan, export=True)
    for number, status in enumerate(["complete", "pruned", "failed", ""]):
        gauges.started(number)
        gauges.evaluated({"train_targets": 100 * number, "best": 0.1 * number})
        if status:
            gauges.ended(number, status)
    gauges.evaluated({"best": 0.2, "replayed": True})
    states = {state: n for (name, state), n in heard.items() if name == "seqtune_trials"}
    assert states == {"running": 1, "complete": 1, "pruned": 1, "failed": 1}
    assert heard["seqtune_targets_total", ""] == 600
    assert heard["seqtune_best", ""] == pytest.approx(0.3)

    heard.clear()
    alone = Gauges(plan, export=False)
    alone.started(0)
    alone.evaluated({"train_targets": 1, "best": 0.1})
    assert not heard
