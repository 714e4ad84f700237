"""Records studies for the replay: random settings of our own spaces, on public data and made ones.

    python tests/benchmarks/replay/record.py --data FOLDER [--models sasrec gru4rec ...]
        [--only ml-100k tiny ...] [--starts N]
        [--settings 100] [--users 1000] [--processes 1] [--minutes N]
        [--ranks FOLDER]

Trains setting after setting to its end, with one thread and an evaluation each epoch, on a part of
each file of FOLDER (see ../../../docs/search.md) and on generated sets; every fifth with a second
seed. Seconds are those of the processor, so that other work beside does not count. The same
settings run on all data, so that a portfolio can be chosen without a model of them. Setting 0 is
the defaults. What is there already is not trained again, and the order is such that all tables
grow together. A table is a parquet file of metrics; it holds no interactions.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "platform"))

from tables import FLOORS  # noqa: E402

HERE = Path(__file__).parent / "recorded"
MODELS = ["sasrec", "gru4rec", "esasrec", "bert4rec", "duorec"]
MADE = ["tiny", "demo"]
METRICS = ["ndcg@10", "hr@10", "mrr@10"]
STARTS = 1000  # number of the first start point of a space
SEEDS, EVERY = 2, 5  # so many seeds for each fifth setting
MOST = 50_000  # interactions of a part
Job = tuple[str, str, int, int]  # model, data, setting, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--only", nargs="+", help="of the data sets, these")
    parser.add_argument("--starts", type=int, default=0, help="so many of the start points")
    parser.add_argument("--settings", type=int, default=100)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--ranks", type=Path, help="keep the ranks of each user's items here")
    asked = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    sources = {file.stem: str(file) for file in sorted(asked.data.glob("*.parquet"))}
    sources |= {name: name for name in MADE}
    sources = {name: place for name, place in sources.items() if name in (asked.only or sources)}
    keep_floors(sources, asked.users)
    jobs = [job for job in all_jobs(asked, list(sources)) if not known(job)]
    print(f"{len(jobs)} trainings to go", flush=True)
    until = time.monotonic() + 60 * asked.minutes
    if asked.ranks is not None:
        asked.ranks.mkdir(exist_ok=True)
    work = [(job, sources[job[1]], asked.users, until, asked.ranks) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(asked.processes, maxtasksperchild=50) as pool:
        for job, rows in pool.imap_unordered(record, work):
            if rows:
                keep(job, pd.DataFrame(rows))
                print(*job, f"{max(row['valid'] for row in rows):.4f}", len(rows), flush=True)


def keep_floors(sources: dict[str, str], users: int) -> None:
    """Writes what popularity reaches on validation, where it is not known yet."""
    from seqtune.data import Protocol
    from seqtune.floors import POPULARITY, floors

    place = HERE / FLOORS
    known = json.loads(place.read_text()) if place.exists() else {}
    for name in sources.keys() - known.keys():
        dataset = part(sources[name], users)
        protocol = Protocol.of(dataset)
        found = floors(protocol.split(dataset), mask_seen=protocol.mask_seen)
        known[name] = next(one.valid["ndcg@10"] for one in found if one.name == POPULARITY)
    place.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def all_jobs(asked: argparse.Namespace, data: list[str]) -> Iterator[Job]:
    for number in range(STARTS, STARTS + asked.starts):
        for model in asked.models:
            for name in data:
                yield model, name, number, 0
    for seed in range(SEEDS):
        for setting in range(0, asked.settings, EVERY if seed else 1):
            for model in asked.models:
                for name in data:
                    yield model, name, setting, seed


def table(model: str, data: str) -> Path:
    return HERE / f"{model}-{data}.parquet"


def known(job: Job) -> bool:
    """Says whether a training was recorded."""
    model, data, setting, seed = job
    place = table(model, data)
    if place not in _known:
        rows = pd.read_parquet(place, columns=["config", "seed"]) if place.exists() else None
        pairs = () if rows is None else zip(rows["config"], rows["seed"], strict=True)
        _known[place] = set(pairs)
    return (setting, seed) in _known[place]


_known: dict[Path, set[tuple[int, int]]] = {}


def keep(job: Job, rows: pd.DataFrame) -> None:
    """Adds a training to its table."""
    place = table(job[0], job[1])
    if place.exists():
        rows = pd.concat([pd.read_parquet(place), rows], ignore_index=True)
    part = place.with_suffix(".part")
    rows.to_parquet(part, index=False, compression="zstd")
    part.rename(place)


def record(work: tuple[Job, str, int, float, Path | None]) -> tuple[Job, list[dict[str, Any]]]:
    """Trains a setting; returns a row for each evaluation, and none where time is up."""
    job, source, users, until, keep_ranks = work
    if time.monotonic() > until:
        return job, []
    import torch

    from seqtune import batches, metrics
    from seqtune.data import Protocol
    from seqtune.errors import UserError
    from seqtune.evaluate import evaluate
    from seqtune.model import model_class
    from seqtune.params import build
    from seqtune.state import Home, Row
    from seqtune.train import train

    torch.set_num_threads(1)
    model, _, setting, seed = job
    dataset = part(source, users)
    protocol = Protocol.of(dataset)
    split = protocol.split(dataset)
    values = point(model, setting)
    kind = model_class(model)
    data = batches.sequences(split, torch.device("cpu"), times=kind.uses_times)
    rows: list[dict[str, Any]] = []
    trained: list[Any] = []
    of_test: list[Any] = []  # the ranks of the best evaluation
    apart = time.process_time()  # seconds that are not the training's

    def report(row: Row) -> None:
        nonlocal apart
        now = time.process_time()
        test = dict.fromkeys(METRICS, math.nan)  # but where validation is best
        if row["best_epoch"] == row["epoch"]:
            seen = protocol.mask_seen
            ranks = evaluate(trained[0], data, split, split.test, mask_seen=seen).ranks
            test, of_test[:] = metrics.compute(ranks), [ranks]
        own = {"config": setting, "seed": seed, "epoch": row["epoch"], "step": row["step"]}
        own |= {"seconds": round(now - apart, 3)}
        own |= {"valid": row["metrics"]["ndcg@10"], "test": test["ndcg@10"]}
        own |= {f"valid {m}": row["metrics"][m] for m in METRICS[1:]}
        rows.append(own | {f"test {m}": test[m] for m in METRICS[1:]} | values)
        apart = time.process_time()

    params = build(kind.Params, values | {"eval_every": 1, "seed": seed}, model)
    try:
        home = Home(begin=trained.append, report=report)
        outcome = train(model, params, split, home, mask_seen=protocol.mask_seen)
        if keep_ranks is not None:
            name = "-".join(map(str, job))
            both = {"valid": outcome.best["ranks"], "test": of_test[0]}
            np.savez_compressed(keep_ranks / f"{name}.npz", **both)
    except UserError as error:  # it diverged: what there is until then counts
        print(*job, error, flush=True)
    return job, rows


def point(model: str, setting: int) -> dict[str, Any]:
    """Returns a setting of a model: its number alone decides which.

    0 are the defaults, those from ``STARTS`` on the start points of the space, the others random.
    """
    from seqtune.space import load_space

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space(ROOT / "search_spaces" / f"{model}.yaml", model, {})
    if setting == 0:
        return space.defaults()
    if setting >= STARTS:
        wanted = space.point(space.portfolio[setting - STARTS])
        return space.suggest(optuna.trial.FixedTrial(wanted))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=setting))
    while True:
        values = space.suggest(study.ask())
        if space.allows(values):
            return values


def part(source: str, users: int) -> Any:
    """Returns the interactions of some users, drawn once and for all."""
    from seqtune.data import load
    from seqtune.data.dataset import Dataset

    whole = load(source)
    drawn = np.random.default_rng(0).permutation(whole.n_users)[:users]
    within = np.cumsum(np.diff(whole.offsets)[drawn]) <= MOST
    if within.all() and len(drawn) == whole.n_users:
        return whole
    some = np.sort(drawn[within])
    spans = [np.arange(whole.offsets[u], whole.offsets[u + 1]) for u in some]
    events = np.concatenate(spans)
    there = np.unique(whole.items[events])
    number = np.zeros(whole.n_items + 1, np.int32)
    number[there] = np.arange(1, len(there) + 1)
    return Dataset(
        name=whole.name,
        items=number[whole.items[events]],
        offsets=np.concatenate([[0], np.cumsum([len(span) for span in spans])]),
        times=whole.times[events],
        user_ids=whole.user_ids[some],
        item_ids=whole.item_ids[there - 1],
    )


if __name__ == "__main__":
    main()
