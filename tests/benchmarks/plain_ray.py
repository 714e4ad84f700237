"""A study of seqtune against what one writes oneself with Ray Tune, OptunaSearch, ASHA and MLflow.

    python tests/benchmarks/plain_ray.py [--data demo] [--trials 20] [--epochs 20] [--seeds 0 1 2]
        [--settled] [--kill SECONDS]

Both search the same space of sasrec (search_spaces/sasrec.yaml) on the same data, in trials of at
most the same length, with one CPU each and as many at a time as there are CPUs; both run the
defaults first and stop trials with ASHA, which looks at none before its tenth epoch. The objective
is the same too: seqtune's own training loop, so that only what is around it differs. They run one
after the other, seed by seed. With ``--settled`` the study of seqtune ends as it does by itself
(``--until settled``), after so many trials at the latest; Ray Tune has no such end.

With ``--kill`` each is killed after so many seconds and goes on: seqtune with ``--resume``, Ray
Tune with ``Tuner.restore``. Then the table says what MLflow holds: one run for each trial and one
for the study, where nothing was lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "platform"))
CPUS = len(os.sched_getaffinity(0))
METRIC, GRACE = "ndcg@10", 10
NAME = "ndcg_10"  # as MLflow takes it
PAUSE = 60.0  # seconds in which Ray's own processes find out that their driver is dead
SEQTUNE, PLAIN = "seqtune", "Ray Tune + Optuna + MLflow"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="demo")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settled", action="store_true")
    parser.add_argument("--kill", type=float, metavar="SECONDS")
    parser.add_argument("--plain", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--restore", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain:
        plain(asked, Path(asked.plain))
        return
    print(f"sasrec on {asked.data}, {asked.trials} trials of {asked.epochs} epochs, {CPUS} CPUs")
    print("| seed | by | seconds | best on validation | runs in MLflow |\n|---|---|---|---|---|")
    found: dict[str, list[tuple[float, float]]] = {SEQTUNE: [], PLAIN: []}
    for seed in asked.seeds:
        for by in found:
            with tempfile.TemporaryDirectory() as scratch:
                seconds = run(by, asked, seed, Path(scratch))
                best, runs = tracked(by, Path(scratch))
                found[by].append((seconds, best))
                print(f"| {seed} | {by} | {seconds:.0f} | {best:.4f} | {runs} |", flush=True)
    for at, what in ((0, "seconds"), (1, "best on validation")):
        pairs = zip(found[SEQTUNE], found[PLAIN], strict=True)
        ratios = [ours[at] / theirs[at] for ours, theirs in pairs]
        low, high = min(ratios), max(ratios)
        print(f"{what}: {statistics.median(ratios):.2f}x ({low:.2f} to {high:.2f})")


def run(by: str, asked: argparse.Namespace, seed: int, folder: Path) -> float:
    """Runs a study of one of the two, and returns the seconds that it took."""
    words = [f"{ROOT}/tune.py", "--model", "sasrec", "--data", asked.data, "--name", "ours"]
    words += ["--trials", str(asked.trials), "--set", f"epochs={asked.epochs}"]
    words += ["--seed", str(seed), "--storage", str(folder)]
    words += ["--until", "settled"] if asked.settled else []
    again = "--resume"
    if by == PLAIN:
        words = [__file__, "--data", asked.data, "--trials", str(asked.trials)]
        words += ["--epochs", str(asked.epochs), "--seeds", str(seed), "--plain", str(folder)]
        again = "--restore"
    began = time.monotonic()
    code = call(words, folder, asked.kill)
    if code == -signal.SIGKILL:
        time.sleep(PAUSE)
        began += PAUSE
        code = call([*words, again], folder, None)
    if code:
        raise SystemExit(f"{by} ended with {code}:\n{(folder / 'log').read_text()}")
    return time.monotonic() - began


def call(words: list[str], folder: Path, kill: float | None) -> int:
    """Runs a program, and kills it after some time."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)
        try:
            return process.wait(kill)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return -signal.SIGKILL


def tracked(by: str, folder: Path) -> tuple[float, str]:
    """Returns the best value that MLflow has, and how its runs have ended."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    key = f"best/{NAME}" if by == SEQTUNE else NAME
    points = [(run, client.get_metric_history(run.info.run_id, key)) for run in runs]
    states = Counter(run.info.status for run in runs)
    best = max(point.value for _, curve in points for point in curve)
    return best, ", ".join(f"{n} {state}" for state, n in states.most_common())


# What one writes oneself.


def plain(asked: argparse.Namespace, folder: Path) -> None:
    """A study of the same space with Ray's own searcher, scheduler and logger."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from seqtune.data import load

    ray.init(log_to_driver=False)
    trainable = tune.with_resources(
        tune.with_parameters(objective, data=load(asked.data), epochs=asked.epochs), {"cpu": 1}
    )
    if asked.restore:
        tuner = tune.Tuner.restore(str(folder / "plain"), trainable, resume_unfinished=True)
        tuner.fit()
        return
    search = OptunaSearch(
        metric=NAME, mode="max", points_to_evaluate=[defaults()], seed=asked.seeds[0]
    )
    asha = ASHAScheduler(time_attr="epoch", max_t=asked.epochs, grace_period=GRACE)
    logger = MLflowLoggerCallback(
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name="plain"
    )
    tuner = tune.Tuner(
        trainable,
        param_space=space(),
        tune_config=tune.TuneConfig(
            metric=NAME,
            mode="max",
            search_alg=search,
            scheduler=asha,
            num_samples=asked.trials,
            max_concurrent_trials=CPUS,
        ),
        run_config=tune.RunConfig(name="plain", storage_path=str(folder), callbacks=[logger]),
    )
    tuner.fit()


def space() -> dict[str, Any]:
    """The space of search_spaces/sasrec.yaml in Ray's words."""
    from ray import tune

    return {
        "embedding_size": tune.choice([32, 64, 128]),
        "n_layers": tune.randint(1, 4),
        "n_heads": tune.choice([1, 2, 4]),
        "inner_size": tune.choice([64, 128, 256]),
        "dropout_prob": tune.quniform(0.1, 0.6, 0.1),
        "norm": tune.choice(["post", "pre"]),
        "learning_rate": tune.loguniform(3e-4, 5e-3),
        "weight_decay": tune.choice([0, 0.01, 0.1]),
        "batch_size": tune.choice([64, 128, 256]),
        "loss_type": tune.choice(["ce", "sampled_softmax"]),
        "neg_samples": tune.choice([64, 256, 1024]),
    }


def defaults() -> dict[str, Any]:
    """The defaults of sasrec, as far as they are searched; with ce nothing is sampled."""
    from seqtune.catalogue import declaration

    declared = declaration("sasrec").params().model_dump()
    return {name: declared[name] for name in space()} | {"neg_samples": 64}


def objective(config: dict[str, Any], data: Any, epochs: int) -> None:
    """Trains a model with seqtune's loop, and reports each evaluation."""
    from ray import tune

    from seqtune.data import leave_one_out
    from seqtune.model import model_class
    from seqtune.params import build
    from seqtune.state import Home, Row
    from seqtune.train import train

    def report(row: Row) -> None:
        tune.report({NAME: row["metrics"][METRIC], "epoch": row["epoch"]})

    params = build(model_class("sasrec").Params, config | {"epochs": epochs}, "sasrec")
    train("sasrec", params, leave_one_out(data), Home(report=report), metric=METRIC)


if __name__ == "__main__":
    main()
