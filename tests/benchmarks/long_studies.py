"""What a trial costs the driver in a study that has many: CPU, without any training.

    python tests/benchmarks/long_studies.py 100 1000 10000

For each number of stored trials a study is made of random points of the space of ``sasrec``, opened
with ``--resume``, and then draws, reports and tells new trials as Ray Tune would have it do. The
draws of 20 trials are measured, in CPU seconds of this process, and their median is printed, with
its ratio to that of the first study. TPE sees at most 250 of the trials.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial
from sqlalchemy import Engine, event

from seqtune.space import Space, load_space
from seqtune.study.search import OptunaSearcher
from seqtune.study.store import keep_spaces, open_study, storage_url

EPOCHS, TRIALS = 10, 20  # reports of a trial; trials that are measured


def main() -> None:
    """Prints a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 1000, 10_000])
    first = None
    event.listen(Engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA synchronous = OFF"))
    for size in parser.parse_args().sizes:
        with tempfile.TemporaryDirectory() as folder:
            opened, each = measure(Path(folder), size)
        first = first or each
        print(f"{size:>7,} stored: {1000 * each:6.1f} ms of CPU a trial, {each / first:.2f} times")
        print(f"{'':>7}         {opened:6.2f} s of CPU to open", flush=True)


def measure(folder: Path, size: int) -> tuple[float, float]:
    """Returns the CPU seconds of opening a study of ``size`` trials, and of one new trial."""
    space = load_space(None, "sasrec")
    fill(folder, space, size)
    searcher = OptunaSearcher(
        [space], storage_url(folder), "long", metric="ndcg@10", trials=size + TRIALS, resume=True
    )
    began = time.process_time()
    searcher.open()
    opened = time.process_time() - began
    searcher._again = []  # the old ones are not handed out again here
    spent = []
    for n in range(TRIALS):
        began = time.process_time()
        config = searcher.suggest(f"new{n}")
        assert config["number"] == size + n
        for epoch in range(1, EPOCHS + 1):
            report = {"epoch": epoch, "ndcg@10": 0.001 * epoch, "best": 0.001 * epoch}
            report |= {"best_epoch": epoch, "finished": epoch == EPOCHS}
            searcher.on_trial_result(f"new{n}", report)
        searcher.on_trial_complete(f"new{n}", report)
        spent.append(time.process_time() - began)
    searcher.close()
    return opened, statistics.median(spent)


def fill(folder: Path, space: Space, size: int) -> None:
    """Stores ``size`` trials at random points."""
    opened = open_study(storage_url(folder), "long")
    keep_spaces(opened.study, {space.model: space}, begun=False)
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rng = np.random.default_rng(0)
    for n in range(size):
        asked = draws.ask()
        values = space.suggest(asked)
        draws.tell(asked, state=TrialState.FAIL)
        attributes = {"model": space.model, "params": values, "origin": "drawn", "seconds": 1.0}
        attributes["tune_trial_id"] = f"old{n}"
        value = float(rng.uniform(0, 0.1))
        opened.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=value,
                params=asked.params,
                distributions=asked.distributions,
                user_attrs=attributes,
                intermediate_values={1: value},
            )
        )
    opened.close()


if __name__ == "__main__":
    main()
