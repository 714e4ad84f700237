"""One trial: the training loop at home in a Tune actor, in Ray Train workers, or alone.

A trial's folder holds ``state.pt``, from which training continues exactly from the best evaluation,
``ranks.parquet``, the validation rank of every user there, and ``history.json``, all that the trial
has told. Tune's own checkpoints are not used: the folder serves a retry after a crash and
``--resume`` after the driver's death alike.
"""

from __future__ import annotations

import gc
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seqtune import paramsfile
from seqtune.data import Dataset, Split, leave_one_out, load
from seqtune.errors import UserError
from seqtune.options import StudyOptions, TrainOptions
from seqtune.params import Params, build, declaration
from seqtune.report import Finalist, TrainResult
from seqtune.saver import Saver
from seqtune.storage import Folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seqtune.train import State, Trained
    from seqtune.view import TrainView

Row = dict[str, Any]
ALL_USERS = "all users"


@dataclass(frozen=True)
class Plan:
    """What the trials of a study share."""

    model: str
    metric: str
    mask_seen: bool
    folder: Folder  # of the study
    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    valid_users: int | None = None  # None: all
    seed: int = 0  # of the choice of these users

    def trial_folder(self, number: int) -> Folder:
        """Where a trial keeps its state."""
        return self.folder / "trials" / f"{number:04d}"

    def split(self, dataset: Dataset) -> Split:
        """Holds out the last two events of each user, for validation of ``valid_users`` alone."""
        split = leave_one_out(dataset)
        if self.valid_users is None:
            return split
        return replace(split, valid=split.valid.sample(self.valid_users, self.seed))


def run(config: Row, plan: Plan, data: list[Any]) -> None:
    """The trainable that Tune runs: ``config`` is {"number": ..., "params": {...}}.

    ``data`` holds a reference to the dataset, whose arrays are read where they lie.

    Whatever the trial reported before a crash is reported again first, so that the scheduler
    sees its whole curve; with ``config["replay"]`` that is all.
    """
    import ray
    from ray import tune

    fresh_start(plan.cpus)
    dataset: Dataset = ray.get(data)[0]
    folder = plan.trial_folder(config["number"])
    rows = history(folder)
    for row in rows:
        tune.report(row | {"replayed": True})
    if config.get("replay") or (rows and rows[-1]["finished"]):
        return
    try:
        params = trial_params(plan.model, config["params"])
        if plan.workers > 1:
            from ray.tune.integration.ray_train import TuneReportCallback

            train_in_workers(plan, params, folder, dataset, [TuneReportCallback()])
        else:
            train_here(plan, params, folder, dataset, tune.report)
    except Exception as error:
        reason = hopeless(error)
        if reason is None:
            raise  # Tune starts the trial again from its state
        tune.report({"failed": reason, "finished": True})


def fresh_start(cpus: float) -> None:
    """Gives a reused process the manners of a new one."""
    import torch

    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # torch's own objects live for good: to look at them takes 0.1 s each time
    torch.set_num_threads(max(1, int(cpus)))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def hopeless(error: BaseException) -> str | None:
    """Returns why trying again would fail in the same way, or None where it may help."""
    import torch

    from seqtune.errors import UserError
    from seqtune.train import DivergedError

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or getattr(chain[-1], "cause", None)) is not None:
        chain.append(cause)
    # Ray Train wraps what its workers raise: {rank: error}.
    chain += [e for one in chain for e in getattr(one, "worker_failures", {}).values()]
    for one in chain:
        if isinstance(one, DivergedError | UserError):
            return str(one)
        if isinstance(one, MemoryError | torch.cuda.OutOfMemoryError) or "allocate" in str(one):
            return "out of memory; a smaller batch_size, embedding_size or max_seq_len would fit"
    return None


def trial_params(model: str, values: Row) -> Params:
    """Builds the hyperparameters of a trial."""
    from seqtune.model import model_class

    return build(model_class(model).Params, values, model)


def train_here(
    plan: Plan,
    params: Params,
    folder: Folder,
    dataset: Dataset,
    report: Callable[[Row], None],
    rank: int = 0,
    world_size: int = 1,
) -> Trained:
    """Runs the loop in this process, from the folder's state where there is one.

    What was told before a crash is not told again, though the epochs may be trained again.
    """
    from seqtune.train import Home, train

    split, told = plan.split(dataset), history(folder)

    def tell(row: Row) -> None:
        if told and row["epoch"] <= told[-1]["epoch"]:
            return
        told.append(row)
        if rank == 0:
            folder.write("history.json", json.dumps(told).encode())
        report(row)

    def write(state: State) -> None:
        save_state(folder, state, split)

    with Saver(write, tell, wait=world_size > 1) as saver:
        home = Home(
            device=device(),
            rank=rank,
            world_size=world_size,
            load=lambda: load_state(folder),
            save=saver.save,
            report=saver.report,
            stepped=lambda _: saver.proceed(),
        )
        return train(plan.model, params, split, home, metric=plan.metric, mask_seen=plan.mask_seen)


def train_in_workers(
    plan: Plan,
    params: Params,
    folder: Folder,
    dataset: Dataset,
    callbacks: list[Any],
    rows: Any = None,
) -> None:
    """Runs the loop in Ray Train workers that share every batch (gloo on CPU, NCCL on GPU).

    What they report goes to the callbacks, and to the queue ``rows`` where there is one.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": plan.cpus} | ({"GPU": plan.gpus} if plan.gpus else {})
    TorchTrainer(
        _worker,
        train_loop_config={
            "plan": plan,
            "params": params.model_dump(),
            "folder": folder,
            "dataset": ray.put(dataset),
            "rows": rows,
        },
        scaling_config=ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="workers",
            storage_path=folder.uri,
            callbacks=callbacks,
            failure_config=FailureConfig(max_failures=0),  # Tune tries again, from the state
        ),
    ).fit()


def _worker(config: Row) -> None:
    import ray
    import ray.train

    plan: Plan = config["plan"]
    dataset: Dataset = ray.get([config["dataset"]])[0]
    fresh_start(plan.cpus)
    context = ray.train.get_context()

    def report(row: Row) -> None:
        ray.train.report(row)
        if config["rows"] is not None and context.get_world_rank() == 0:
            config["rows"].put(row)

    train_here(
        plan,
        trial_params(plan.model, config["params"]),
        config["folder"],
        dataset,
        report,
        context.get_world_rank(),
        context.get_world_size(),
    )


def device() -> Any:
    """Returns the device that this process was given."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_state(folder: Folder) -> State | None:
    """Reads a trial's state; None before its first evaluation."""
    import torch

    content = folder.read("state.pt")
    if content is None:
        return None
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state | {"ranks": state["ranks"].numpy()}


def save_state(folder: Folder, state: State, split: Split) -> None:
    """Writes a trial's state, and before it the validation ranks of its best evaluation."""
    import torch

    users = split.dataset.user_ids[split.valid.users]
    folder.write("ranks.parquet", ranks_file(users, state["ranks"]))
    out = io.BytesIO()
    torch.save(state | {"ranks": torch.from_numpy(state["ranks"])}, out)
    folder.write("state.pt", out.getvalue())


def history(folder: Folder) -> list[Row]:
    """Returns what a trial has told so far, and what it would have told if it had not crashed.

    The state is behind where evaluations since brought no improvement, and may be ahead by a row.
    """
    told: list[Row] = json.loads(folder.read("history.json") or b"[]")
    state = load_state(folder)
    known = told[-1]["epoch"] if told else -1
    return told + [row for row in (state or {}).get("history", []) if row["epoch"] > known]


def ranks_file(user_ids: NDArray[Any], ranks: NDArray[np.float32]) -> bytes:
    """Returns a parquet file of users and the ranks of their held-out items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"user": pa.array(user_ids), "rank": pa.array(ranks)}), out)
    return out.getvalue()


# After training


def test(
    plan: Plan, number: int, params: Row, dataset: Dataset, checkpoint_to: Folder | None
) -> Finalist:
    """Evaluates the best weights of a trial on the test items, and writes them as a checkpoint.

    Its hyperparameters come back with the ``eval_every`` that was used, so that they repeat it.
    """
    fresh_start(plan.cpus)
    state = load_state(plan.trial_folder(number))
    assert state is not None, f"trial {number} has a value and no state"
    if declaration(plan.model).is_trained:
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
    found |= metrics.of_lists(ranking.top, popularity(split), metrics.KS)
    return found, ranking.ranks


def popularity(split: Split) -> NDArray[np.int64]:
    """Returns the number of training events of each item: (I,)."""
    import numpy as np

    data = split.dataset
    event = np.arange(data.n_interactions)
    trained = event < np.repeat(split.train_end, np.diff(data.offsets))
    return np.bincount(data.items[trained], minlength=data.n_items + 1)[1:]


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
        popularity=popularity(leave_one_out(dataset)),
        mask_seen=plan.mask_seen,
        meta=about
        | {"data": dataset.name, "data_fingerprint": dataset.fingerprint}
        | {"git_commit": git_commit(), "versions": versions()},
    )


# Without a study


def train_once(options: TrainOptions, view: TrainView) -> TrainResult:
    """Trains one model and writes its checkpoint: the command ``seqtune train``."""
    began = time.monotonic()
    dataset = read(options)
    given = paramsfile.given_by(options)
    chosen = paramsfile.overrides(options, given)
    params = paramsfile.point(given, chosen)
    poor = paramsfile.poor_values(options.model, paramsfile.without(given, chosen), params)
    for note in (*dataset.notes, *given.notes, *poor):
        view.note(note)
    folder = Folder.at(options.folder)
    mask_seen = options.mask_seen
    plan = Plan(
        model=options.model,
        metric=options.metric,
        mask_seen=not dataset.has_repeats if mask_seen is None else mask_seen,
        folder=folder,
        workers=options.workers,
        valid_users=options.valid_users,
        seed=options.seed,
    )
    state_folder = _training_folder(folder, options, dataset, params)
    view.started(options.model, describe(dataset), folder.uri)
    for row in history(state_folder):
        view.evaluated(row)
    built = trial_params(plan.model, params)
    if plan.workers > 1:
        _train_in_own_workers(plan, built, state_folder, dataset, view)
    else:
        train_here(plan, built, state_folder, dataset, view.evaluated)
    state = load_state(state_folder)
    assert state is not None, "training ended without an evaluation"
    valid = {name: value for name, value in state["best"].items() if name != "epoch"}
    found, _ = evaluate_on_test(plan, params, state["best_model"], dataset)
    about = {"metric": plan.metric, "valid": valid, "test": found}
    write_checkpoint(folder, plan, params, state["best_model"], dataset, about)
    return TrainResult(
        model=plan.model,
        data_name=dataset.name,
        metric=plan.metric,
        epoch=state["best"]["epoch"],
        valid=valid,
        test=found,
        seconds=time.monotonic() - began,
        checkpoint=folder.uri,
        best_hit_10=dataset.best_hit_10,
    )


def _training_folder(
    folder: Folder, options: TrainOptions, dataset: Dataset, params: Row
) -> Folder:
    """Returns the folder of the training state, emptied unless the same training goes on."""
    now = {"model": options.model, "data": dataset.fingerprint, "params": params}
    now |= {"validation": validated(options)}
    saved = json.loads(folder.read("training.json") or b"{}")
    if options.resume and {"validation": ALL_USERS} | saved != now:
        raise UserError(
            f"--resume: {folder.uri} holds no training with these options; give the same model, "
            "data, --valid-users, --params and --set, or leave --resume out"
        )
    if not options.resume:
        folder.write("training.json", json.dumps(now, indent=2).encode())
        (folder / "training").delete()
    return folder / "training"


def _train_in_own_workers(
    plan: Plan, params: Params, folder: Folder, dataset: Dataset, view: TrainView
) -> None:
    from ray.util.queue import Queue

    from seqtune import cluster

    with cluster.connected():
        rows = Queue(actor_options={"num_cpus": 0})
        follower = threading.Thread(target=_follow, args=(rows, view), daemon=True)
        follower.start()
        train_in_workers(plan, params, folder, dataset, [], rows)
        rows.put(None)
        follower.join()


def _follow(rows: Any, view: TrainView) -> None:
    while (row := rows.get()) is not None:
        view.evaluated(row)


def read(options: StudyOptions | TrainOptions) -> Dataset:
    """Reads the interactions that the options name."""
    return load(
        options.data,
        user_col=options.user_col,
        item_col=options.item_col,
        time_col=options.time_col,
        min_user=options.min_user,
        min_item=options.min_item,
    )


def validated(options: StudyOptions | TrainOptions) -> str:
    """Says who validates: ``all users``, or ``1000 users of seed 0``."""
    n = options.valid_users
    return ALL_USERS if n is None else f"{n} user{'' if n == 1 else 's'} of seed {options.seed}"


def describe(dataset: Dataset) -> str:
    """Returns the data in a line: ``demo: 1,000 users, 600 items, 30,000 interactions``."""
    return (
        f"{dataset.name}: {dataset.n_users:,} users, {dataset.n_items:,} items, "
        f"{dataset.n_interactions:,} interactions"
    )
