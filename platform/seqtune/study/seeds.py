"""The best trials and the defaults trained with more seeds, until it is clear which is best.

A seed decides first weights, the order of batches and what is drawn, and so a part of what a trial
reaches. What is compared is validation; the test is for the winner alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from seqtune.data import Dataset
from seqtune.metrics import Ranks, of_held, per_user
from seqtune.results import Raced, Runner, TrialRow
from seqtune.significance import SURE, holm
from seqtune.state import best_of, load_state
from seqtune.study.choice import error_between, read_gains
from seqtune.study.loop import fresh_start, threads, train_here
from seqtune.study.plan import Plan, trial_params

BEST = 3  # trials that race, beside the defaults
DRAWS = 4000
LOOK = 1.0  # seconds between looks whether the study shall end

Floats = NDArray[np.float64]


@dataclass
class SeedRace:
    """A race among the best trials of a study.

    Args:
        plan: of the study.
        data: a reference to the dataset.
        most: seeds that each is trained with, at most; that of its trial counts.
        watch: is called each second, and may raise.
        say: gets a line for each round.
        over: says whether time is up.
    """

    plan: Plan
    data: Any
    most: int
    watch: Callable[[], None]
    say: Callable[[str], None]
    over: Callable[[], bool] = lambda: False

    def run(self, rows: Sequence[TrialRow], chosen: TrialRow) -> Raced | None:
        """Trains round after round; None where there are no two trials to race.

        ``rows`` are those of the chosen trial's model, in their order.
        """
        places = {r.number: self.plan.trial_folder(r.number) for r in contestants(rows, chosen)}
        own = {n: read_gains(folder, self.plan.metric) for n, folder in places.items()}
        gains = {n: [known] for n, known in own.items() if known is not None}
        runners = [row for row in rows if row.number in gains]
        if len(runners) < 2:
            return None
        for k in range(1, self.most):
            if (k > 1 and standing(gains).settled) or self.over():
                break
            numbers = ", ".join(str(row.number) for row in runners)
            self.say(f"trials {numbers} are trained with seed {k + 1} of at most {self.most}")
            for row, found in zip(runners, self._round(runners, k), strict=True):
                gains[row.number].append(np.asarray(per_user(self.plan.metric, found), np.float64))
        return standing(gains)

    def _round(self, runners: Sequence[TrialRow], k: int) -> list[Any]:
        task = ray.remote(num_cpus=self.plan.cpus, num_gpus=self.plan.gpus, max_retries=2)(ranks_of)
        own = self.plan.of(runners[0].model)
        jobs = [task.remote(own, row.number, dict(row.params), self.data, k) for row in runners]
        waiting = jobs
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK)
            self.watch()
        return list(ray.get(jobs))


def contestants(rows: Sequence[TrialRow], chosen: TrialRow) -> list[TrialRow]:
    """Returns the chosen trial, the best others and the defaults, each once."""
    known = [row for row in rows if row.eligible]
    ranked = sorted(known, key=lambda row: (row != chosen, -(row.value or 0), row.number))
    first = {rows[0].number} if rows[0].value is not None else set()
    wanted = {row.number for row in ranked[:BEST]} | first
    return [row for row in rows if row.number in wanted]


def ranks_of(plan: Plan, number: int, params: dict[str, Any], dataset: Dataset, k: int) -> Ranks:
    """Trains a trial with its k-th further seed; returns the ranks of the validation items.

    The training goes on from where it was left, in a folder of the trial's own.
    """
    fresh_start(threads(plan))
    seed = int(np.random.SeedSequence([params.get("seed", 0), k]).generate_state(1)[0] >> 1)
    built = trial_params(plan.model, params | {"seed": seed})
    folder = plan.trial_folder(number) / "seeds" / str(k)
    saved = load_state(folder, plan.owner(built))
    if saved is None or not saved["history"][-1]["finished"]:
        train_here(plan, built, folder, dataset, lambda row: None)
        saved = load_state(folder, plan.owner(built))
    assert saved is not None, "a training that has ended has a state"
    held = plan.protocol.split(dataset).valid
    return of_held(best_of(saved)["ranks"], held)


def standing(gains: Mapping[int, Sequence[Floats]]) -> Raced:
    """Returns who is best, and how surely.

    The error of a mean has two parts: other users, paired among all who race, and other seeds,
    whose variance is that within each, pooled. Differences from the best are tested by Student's t
    with the degrees of freedom of the pooled variance, and corrected by Holm.

    Args:
        gains: trial -> for each seed what every user contributes to the metric, (U,).
    """
    from scipy import stats

    numbers, seeds = list(gains), len(next(iter(gains.values())))
    each = np.stack([np.stack(gains[number]) for number in numbers])  # (N, S, U)
    by_seed, by_user = each.mean(axis=2), each.mean(axis=1)
    means = by_seed.mean(axis=1)
    spread = by_seed.std(axis=1, ddof=1) if seeds > 1 else np.zeros(len(numbers))
    noise = np.cov(by_user) / by_user.shape[1]
    noise += np.eye(len(numbers)) * (spread**2).mean() / seeds
    best = int(np.argmax(means))
    freedom = max(len(numbers) * (seeds - 1), 1)
    p_values = []
    for n in range(len(numbers)):
        error = max(error_between(noise, n, best), 1e-150)
        p_values.append(float(2 * stats.t.sf((means[best] - means[n]) / error, freedom)))
    others = [n for n in range(len(numbers)) if n != best]
    corrected = dict(zip(others, holm([p_values[n] for n in others]), strict=True))
    drawn = np.random.default_rng(0).multivariate_normal(means, noise, DRAWS, method="eigh")
    wins = np.bincount(drawn.argmax(axis=1), minlength=len(numbers)) / DRAWS
    runners = [
        Runner(
            number=number,
            mean=float(means[n]),
            spread=float(spread[n]),
            p_best=float(wins[n]),
            p_holm=corrected.get(n),
        )
        for n, number in enumerate(numbers)
    ]
    return Raced(
        runners=tuple(sorted(runners, key=lambda one: (-one.mean, one.number))),
        seeds=seeds,
        settled=seeds > 1 and all(p < SURE for p in corrected.values()),
    )
