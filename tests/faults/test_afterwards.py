"""Studies of several models, and what is done with one that has ended, when it is interrupted."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from harness import ITSELF, RESUMED, Fault, Study, clean, nothing_runs
from mlflow import MlflowClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AGAIN = "the command is given again"
KILLS = 5  # spread over the time that a command takes
ITEMS, USERS = 30, 150


def events(first: int, shift: int = 0) -> pd.DataFrame:
    """Eight interactions of each user from a day on, with items that follow each other."""
    start = np.random.default_rng(first).integers(ITEMS, size=USERS)
    steps = np.arange(8)
    items = (start[:, None] + steps) % ITEMS + shift
    days = pd.to_datetime("2026-01-01") + pd.to_timedelta(first + steps, unit="D")
    users = np.repeat(np.arange(USERS), len(steps))
    return pd.DataFrame({"user": users, "item": items.ravel(), "time": np.tile(days, USERS)})


def asked(study: Study, trials: int) -> list[str]:
    """The words that run the study on older data."""
    words = ["tune", "--model", "sasrec", "--data", "old.csv", "--space", "space.yaml"]
    words += ["--set", "epochs=5", "--name", "mine", "--scheduler", "none"]
    return [*words, "--trials", str(trials), "--storage", str(study.storage)]


@pytest.fixture
def ended(study: Study) -> Study:
    """A study that has ended, and newer data whose items its champion does not know."""
    events(0).to_csv(study.home / "old.csv", index=False)
    newer = pd.concat([events(0), events(20, shift=ITEMS)])
    newer.to_csv(study.home / "new.csv", index=False)
    study.run(*asked(study, 3)).ends(0)
    return study


def card(study: Study) -> dict[str, Any]:
    """What the champion's checkpoint says of itself."""
    content: dict[str, Any] = json.loads((study.folder / "champion" / "model.json").read_text())
    return content


def report(study: Study) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((study.folder / "report" / "report.json").read_text())
    return content


def version(study: Study) -> Any:
    """What the alias in MLflow is on."""
    store = f"sqlite:///{study.storage / 'mlflow.db'}"
    client = MlflowClient(store, registry_uri=store)
    return client.get_model_version_by_alias("mine", "champion")


def killed_all_over(study: Study, words: list[str], seconds: float) -> None:
    """Kills a command at moments of its life; whoever asks about the study is always answered."""
    for k in range(1, KILLS + 1):
        driver = study.run(*words)
        time.sleep(seconds * k / (KILLS + 1))
        driver.signal(signal.SIGKILL)
        driver.process.wait()
        nothing_runs(study)
        for ask in ("status", "best", "report"):
            clean(study.run(ask, "mine", "--storage", str(study.storage)).ends(0))


def timed(command: Callable[[], Any]) -> float:
    began = time.monotonic()
    command()
    return time.monotonic() - began


def test_promote_is_killed(ended: Study, fault: Fault) -> None:
    where = ["--storage", str(ended.storage)]
    best = report(ended)["best"]["number"]
    one, other = [number for number in range(3) if number != best]
    promote = ["promote", "mine", *where, "--trial"]
    seconds = timed(lambda: ended.run(*promote, str(one)).ends(0))
    killed_all_over(ended, [*promote, str(other)], seconds)
    clean(ended.run(*promote, str(other)).ends(0))
    assert card(ended)["meta"]["trial"] == other
    assert report(ended)["promoted"]["number"] == other
    found = version(ended)
    assert (found.tags["seqtune.chosen"], found.tags["seqtune.trial"]) == ("by hand", str(other))
    text = (ended.folder / "report" / "report.md").read_text()
    assert text.count("## Promoted by hand") == 1
    nothing_runs(ended)
    fault("promote is killed", f"SIGKILL at {KILLS} moments", "nothing more", AGAIN)


def test_refresh_is_killed(ended: Study, fault: Fault) -> None:
    refresh = ["refresh", "mine", "--data", "new.csv", "--storage", str(ended.storage)]
    killed_all_over(ended, refresh, 12.0)
    clean(ended.run(*refresh).ends(0, 4))  # 4: one before had come as far as to decide
    assert card(ended)["n_items"] == 2 * ITEMS
    (last,) = [one for one in report(ended)["refreshes"] if one["moved"]]
    assert last["unknown"] == USERS
    assert version(ended).tags["seqtune.chosen"] == "on newer data"
    nothing_runs(ended)
    fault("refresh is killed", f"SIGKILL at {KILLS} moments", "nothing more", AGAIN)


def test_delete_is_killed(ended: Study, fault: Fault) -> None:
    delete = ["delete", "mine", "--yes", "--storage", str(ended.storage)]
    for pause in (1.0, 2.0, 3.0, 4.0):
        driver = ended.run(*delete)
        time.sleep(pause)
        driver.signal(signal.SIGKILL)
        driver.process.wait()
    if (ended.folder / "study.json").exists():
        clean(ended.run(*delete).ends(0))
    assert not ended.folder.exists()
    store = f"sqlite:///{ended.storage / 'mlflow.db'}"
    assert MlflowClient(store, registry_uri=store).search_registered_models() == []
    clean(ended.run(*asked(ended, 1)).ends(0))  # the name is free
    fault("delete is killed", "SIGKILL at 4 moments", "nothing more", AGAIN)


def test_the_driver_of_several_models_is_killed(study: Study, fault: Fault) -> None:
    words = ["tune", "--model", "sasrec,fossil,stan", "--data", "tiny", "--name", "mine"]
    words += ["--set", "epochs=12", "--trials", "9", "--storage", str(study.storage)]

    def states() -> dict[int, tuple[str, int]]:
        """How each trial that has ended did, and when its record was written last."""
        places = sorted((study.folder / "trials").glob("*/trial.json"))
        found = {int(p.parent.name): (json.loads(p.read_text())["state"], p) for p in places}
        over = {n: pair for n, pair in found.items() if pair[0] in ("COMPLETE", "PRUNED")}
        return {n: (state, place.stat().st_mtime_ns) for n, (state, place) in over.items()}

    for n in (2, 5):
        driver = study.run(*words, *study.going_on)
        driver.until(lambda n=n: len(states()) >= n)  # type: ignore[misc]
        driver.signal(signal.SIGKILL)
        driver.process.wait()
        nothing_runs(study)
    before = states()
    said = study.run(*words, "--resume").ends(0)
    clean(said)
    assert "Leaderboard" in said
    after = states()
    assert sorted(after) == list(range(9))
    assert before.items() <= after.items(), "a trial that had ended was run again"
    found = report(study)
    models = {one["best"]["model"] for one in found["contenders"]}
    assert models == {"sasrec", "fossil", "stan"}
    for model in models:
        place = study.folder / "best" / model
        assert json.loads((place / "model.json").read_text())["model"] == model
    assert card(study)["model"] == found["best"]["model"] == version(study).tags["seqtune.model"]
    assert {status for status, _ in study.runs().values()} == {"FINISHED"}
    nothing_runs(study)
    fault(
        "the driver of a study of several models is killed",
        "SIGKILL, after 2 and after 5 trials",
        "nothing more",
        RESUMED,
    )


def test_a_study_that_was_asked_to_stop_is_killed(study: Study, fault: Fault) -> None:
    driver = study.tune()
    driver.until(lambda: study.epochs(0) > 3)
    study.run("stop", "mine", "--no-wait", "--storage", str(study.storage)).ends(0)
    driver.signal(signal.SIGKILL)
    driver.process.wait()
    nothing_runs(study)
    clean(study.resume())  # what was asked of one driver is not asked of the next
    assert {one.state.name for one in study.trials().values()} == {"COMPLETE"}
    fault("a study that was asked to stop is killed", "SIGKILL", "nothing more", RESUMED)


def test_a_results_folder_is_moved(ended: Study, fault: Fault) -> None:
    moved = ended.home / "moved"
    ended.storage.rename(moved)
    ended.storage = moved
    said = ended.run("best", "mine", "--storage", str(moved)).ends(0)
    clean(said)
    assert str(moved / "mine" / "champion") in said
    clean(ended.run(*asked(ended, 4), "--resume").ends(0))
    assert sorted(ended.trials()) == [0, 1, 2, 3]
    assert Path(version(ended).source.removeprefix("file://")).is_relative_to(moved)
    fault("a results folder is moved", "mv", "nothing", f"{ITSELF}, and {RESUMED}")
