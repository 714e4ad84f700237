"""The best weights of a trial: evaluated on test, and written as a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seqtune.data import Dataset, leave_one_out
from seqtune.results import Finalist
from seqtune.storage import Folder
from seqtune.study.loop import device, fresh_start
from seqtune.study.plan import Plan, trial_params

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from seqtune.state import Row, load_state


def test(
    plan: Plan, number: int, params: Row, dataset: Dataset, checkpoint_to: Folder | None
) -> Finalist:
    """Evaluates the best weights of a trial on the test items, and writes them as a checkpoint.

    Its hyperparameters come back with the ``eval_every`` that was used, so that they repeat it.
    """
    fresh_start(plan.cpus)
    state = load_state(plan.trial_folder(number))
    assert state is not None, f"trial {number} has a value and no state"
    params = params | {"eval_every": state.get("eval_every") or params.get("eval_every", 1)}
    found, ranks = evaluate_on_test(plan, params, state["best_model"], dataset)
    valid = {name: value for name, value in state["best"].items() if name != "epoch"}
    if checkpoint_to is not None:
        about = {"trial": number, "metric": plan.metric, "valid": valid, "test": found}
        write_checkpoint(checkpoint_to, plan, params, state["best_model"], dataset, about)
    return Finalist(number, params, valid, found, ranks)


def evaluate_on_test(
    plan: Plan, params: Row, weights: dict[str, Any], dataset: Dataset
) -> tuple[dict[str, float], NDArray[np.float32]]:
    """Returns all metrics on the test items, those of lists included, and the rank per user."""
    from seqtune import batches, metrics
    from seqtune.evaluate import evaluate
    from seqtune.model import model_class

    split, kind = leave_one_out(dataset), model_class(plan.model)
    data = batches.sequences(split, device(), times=kind.uses_times)
    model = kind(trial_params(plan.model, params), data.n_items, data.n_users).to(device())
    model.prepare(data)
    model.load_state_dict(weights)
    ranking = evaluate(
        model, data, split, split.test, mask_seen=plan.mask_seen, top_k=max(metrics.KS)
    )
    assert ranking.top is not None
    found = metrics.compute(ranking.ranks, also=plan.metric)
    found |= metrics.of_lists(ranking.top, split.counts(), metrics.KS)
    return found, ranking.ranks


def write_checkpoint(
    folder: Folder,
    plan: Plan,
    params: Row,
    weights: dict[str, Any],
    dataset: Dataset,
    about: Row,
) -> None:
    """Writes what serving needs."""
    from seqtune import checkpoint
    from seqtune.versions import git_commit, versions

    checkpoint.save(
        folder,
        model=plan.model,
        params=trial_params(plan.model, params),
        state=weights,
        n_users=dataset.n_users,
        item_ids=dataset.item_ids,
        popularity=leave_one_out(dataset).counts(),
        mask_seen=plan.mask_seen,
        meta=about
        | {"data": dataset.name, "data_fingerprint": dataset.fingerprint}
        | {"git_commit": git_commit(), "versions": versions()},
    )
