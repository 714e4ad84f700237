"""The best trial, trained once more on what it was not allowed to see: the option ``--refit``.

Until the test, to be tested as a model that is put to work would be; or on everything, for that
work itself, and then nothing is left to test it on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import ray

from seqtune.data import Dataset
from seqtune.options import StudyOptions
from seqtune.results import Finalist, StudyResult
from seqtune.significance import compare
from seqtune.state import best_of
from seqtune.study.final import evaluate_on_test, train_again, write_checkpoint
from seqtune.study.loop import fresh_start, threads
from seqtune.study.plan import Plan
from seqtune.words import p_text

FOLDER = "refit"  # in the study's folder: a folder each, with its training and its checkpoint


def refitted(result: StudyResult, options: StudyOptions, plan: Plan, data: Any) -> StudyResult:
    """Trains the best trial once more, for as many epochs as it took to its best one.

    ``data`` is a reference to the dataset.
    """
    best, how = result.best, options.refit
    if best is None or how is None:
        return result
    epoch = result.trials[best.number].epoch or 1
    task = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=2)(train_on)
    found = ray.get(task.remote(plan.of(best.model), best, data, epoch, how))
    if how == "all":
        place = (plan.folder / FOLDER / how).uri
        note = f"trained once more on everything ({epoch} epochs), and so without a test: {place}"
        return replace(result, production=place, notes=(*result.notes, note))
    against = compare(result.metric, found.test_ranks, best.test_ranks)
    note = (
        f"trained once more on all that is before the test ({epoch} epochs), the best has "
        f"{result.metric} {found.test[result.metric]:.4f} on test ({against.difference:+.4f}, "
        f"{p_text(against.p_value)})"
    )
    return replace(result, refitted=found, notes=(*result.notes, note))


def train_on(
    plan: Plan, best: Finalist, dataset: Dataset, epoch: int, how: Literal["test", "all"]
) -> Finalist:
    """Trains until the test, or on everything, and writes a checkpoint; tests the former."""
    fresh_start(threads(plan))
    plan = replace(plan, protocol=replace(plan.protocol, refit=how))
    folder, params = plan.folder / FOLDER / how, dict(best.params)
    params.pop("eval_every", None)
    training = folder / "training"
    training.delete()
    state = train_again(plan, params, training, dataset, sorted({1, epoch}))
    weights, found, ranks = best_of(state)["weights"], dict[str, float](), best.test_ranks
    if how == "test":
        found, ranks = evaluate_on_test(plan, params, weights, dataset)
    about = {"trial": best.number, "metric": plan.metric, "valid": {}, "test": found}
    about["chosen"] = f"on validation, then trained again ({how})"
    write_checkpoint(plan, params, weights, dataset, about, to=folder)
    training.delete()
    return replace(best, valid={}, test=found, test_ranks=ranks)
