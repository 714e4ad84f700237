"""The best weights of a trial: evaluated on test, and written as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from seqtune.catalogue import declaration
from seqtune.data import Dataset
from seqtune.errors import DamagedError, UserError
from seqtune.meter import TimeIsUp
from seqtune.metrics import Ranks
from seqtune.results import Finalist
from seqtune.state import Row, State, all_told, best_of, load_state, told
from seqtune.storage import Folder
from seqtune.study import lock
from seqtune.study.loop import device, fresh_start, threads, train_here
from seqtune.study.plan import Plan, trial_params


def examine(
    plan: Plan,
    number: int,
    params: dict[str, Any],
    dataset: Dataset,
    to: Sequence[Folder],
    epochs: Sequence[int],
    chosen: str = "on validation",
) -> Finalist:
    """Evaluates the best weights of a trial on the test items, and writes them as checkpoints.

    These say how the trial was ``chosen``, and one of them is asked for recommendations, to see how
    long an answer takes.

    Its hyperparameters come back with the ``eval_every`` that was used, so that they repeat it.
    Weights that are lost are trained again, through ``epochs``: those with an evaluation, up to the
    best one.
    """
    from seqtune.checkpoint import load
    from seqtune.study.weigh import megabytes, request_ms

    fresh_start(threads(plan))
    folder, note = plan.trial_folder(number), ""
    try:
        state = load_state(folder, plan.owner(trial_params(plan.model, params)))
        lost = "" if state else f"{folder / 'state.pt'} is missing"
    except DamagedError as error:
        state, lost = None, str(error)
    if state is None:
        _check_alone(folder, number)
        state = train_again(plan, params, folder, dataset, epochs)
        note = f"trial {number}: {lost}; its best weights have been trained again"
    best = best_of(state)
    if state["eval_every"] and declaration(plan.model).is_trained:
        params = params | {"eval_every": state["eval_every"]}
    found, ranks = evaluate_on_test(plan, params, best["weights"], dataset)
    valid = best["metrics"]
    about = {"trial": number, "metric": plan.metric, "valid": valid, "test": found}
    about["chosen"] = chosen
    for one in to:
        write_checkpoint(plan, params, best["weights"], dataset, about, to=one)
    rows = all_told(told(folder), state)
    held, used = _taken(rows, "memory_peak_megabytes"), _taken(rows, "energy_joules")
    return Finalist(
        number,
        plan.model,
        params,
        valid,
        found,
        ranks,
        note,
        train_seconds=sum(row["train_seconds"] for row in rows),
        request_ms=request_ms(load(to[0], device()), dataset) if to else None,
        megabytes=megabytes(best["weights"]),
        peak_megabytes=max(held, default=None),
        joules=sum(used) if used else None,
    )


def _taken(rows: Sequence[Row], name: str) -> list[float]:
    """Returns what a process took until each evaluation, where that is known."""
    found = (row.get("system", {}).get(f"system/{name}") for row in rows)
    return [one for one in found if one is not None]


def _check_alone(folder: Folder, number: int) -> None:
    """Raises UserError where a trial began with the weights of another."""
    with suppress(DamagedError):
        content = folder.read(lock.NAME)
        parent = lock.read(f"{folder / lock.NAME}", content).parent if content else None
        if parent is not None:
            raise UserError(
                f"trial {number}: its weights are lost, and cannot be trained again by themselves: "
                f"it began with those of trial {parent}"
            )


def train_again(
    plan: Plan, params: dict[str, Any], folder: Folder, dataset: Dataset, epochs: Sequence[int]
) -> State:
    """Sets the folder aside, and trains up to the last of the epochs that were evaluated."""
    if folder.names():
        folder.set_aside()
    every = {"eval_every": epochs[1]} if len(epochs) > 1 else {}  # the first is always evaluated
    reached = 0

    def report(row: Row) -> None:
        nonlocal reached
        reached = row["epoch"]

    def stop(targets: int) -> None:
        if reached >= epochs[-1]:
            raise TimeIsUp

    built = trial_params(plan.model, params | every)
    with suppress(TimeIsUp):
        train_here(plan, built, folder, dataset, report, stepped=stop)
    state = load_state(folder)
    assert state is not None, "a training that has ended has a state"
    return state


def evaluate_on_test(
    plan: Plan, params: dict[str, Any], weights: dict[str, Any], dataset: Dataset
) -> tuple[dict[str, float], Ranks]:
    """Returns all metrics on the test items, those of lists included, and their ranks."""
    from seqtune import batches, lists, metrics
    from seqtune.evaluate import evaluate
    from seqtune.model import model_class

    split, kind = plan.protocol.split(dataset), model_class(plan.model)
    data = batches.sequences(split, device(), times=kind.uses_times)
    model = kind(trial_params(plan.model, params), data.n_items, data.n_users).to(device())
    model.prepare(data)
    model.load_state_dict(weights)
    seen, held = plan.protocol.mask_seen, split.test
    usual = [f"{name}@{k}" for name in lists.LIST_METRICS for k in metrics.KS]
    names = dict.fromkeys((*usual, *lists.of_these(plan.measures)))
    ranking = evaluate(model, data, split, held, mask_seen=seen, top_k=lists.longest(names))
    assert ranking.top is not None
    ranks = metrics.of_held(ranking.ranks, held)
    found = metrics.compute(ranks, also=(plan.metric, *plan.measures))
    found |= lists.of_lists(ranking.top, lists.Known(split, held.take(held.lists)), names)
    among = split.competing(held, mask_seen=seen)
    found |= metrics.whole(ranks, among)
    if n := plan.protocol.sampled:
        found |= metrics.sampled(ranks, among, n, plan.protocol.seed)
    return found, ranks


def write_checkpoint(
    plan: Plan,
    params: dict[str, Any],
    weights: dict[str, Any],
    dataset: Dataset,
    about: dict[str, Any],
    *,
    to: Folder,
) -> None:
    """Writes what serving needs."""
    from seqtune import checkpoint
    from seqtune.versions import git_commit, versions

    card = checkpoint.Card(
        model=plan.model,
        params=trial_params(plan.model, params),
        n_users=dataset.n_users,
        item_ids=dataset.item_ids,
        popularity=plan.protocol.split(dataset).counts(),
        mask_seen=plan.protocol.mask_seen,
        meta=about
        | {"data": dataset.name, "data_fingerprint": dataset.fingerprint}
        | {"newest": int(dataset.times.max())}
        | {"columns": dict(dataset.columns), "protocol": plan.protocol.sentence(dataset)}
        | {"git_commit": git_commit(), "versions": versions()},
    )
    checkpoint.save(to, weights, card)
