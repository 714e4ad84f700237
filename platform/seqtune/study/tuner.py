"""The trials, run by Ray Tune."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.stopper import CombinedStopper

from seqtune.floors import POPULARITY
from seqtune.space.asked import AskedStudy
from seqtune.study import trial
from seqtune.study.counting import Counting
from seqtune.study.deaths import NODE_LOST, no_memory
from seqtune.study.events import Messenger
from seqtune.study.lease import LostError
from seqtune.study.past import curve
from seqtune.study.plan import Plan
from seqtune.study.points import ENDED
from seqtune.study.schedulers import Generations, Race, make_scheduler
from seqtune.study.search import OptunaSearcher
from seqtune.study.wishes import Wishes

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial


_failed = RayActorManager._actor_task_failed


def _know_deaths(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
    """Tells Tune of the deaths of trials that Ray Tune 2.60 does not know.

    At one by Ray's memory monitor it ends the whole study. It counts a machine that is lost as a
    failure of the trial, unless the machine was drained before. A process that dies while it takes
    over a trial from the one before counts twice, which fails the trial, or starts it never again.
    """
    if isinstance(exception, OutOfMemoryError):
        exception = RayActorError(error_msg=no_memory(str(exception)))
    if isinstance(exception, RayActorError) and NODE_LOST in str(exception):
        exception._preempted = True  # what Tune does not count
    actor = tracked_actor_task._tracked_actor
    controller = getattr(actor._on_error, "__self__", None)
    if isinstance(exception, RayActorError) and isinstance(controller, TuneController):
        trial = controller._actor_to_trial.get(actor)
        if trial in controller._resetting_trials:
            controller._resetting_trials.remove(trial)
            tracked_actor_task._on_error = None  # the actor's says the same
    _failed(manager, tracked_actor_task, exception)


# There is no public way.
RayActorManager._actor_task_failed = _know_deaths  # type: ignore[method-assign,assignment]


def keep_keys_private() -> None:
    """Keeps Tune from writing the keys of an object store into Ray's logs.

    Tune puts AWS's keys into the runtime environment of each trial. On this machine trials inherit
    them from the driver's environment anyway, and each machine of a cluster has its own.
    """
    keys = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE -= keys


def search_all(
    asked: AskedStudy,
    searcher: OptunaSearcher,
    plan: Plan,
    data: Any,
    messenger: Messenger,
) -> str:
    """Runs the trials that the searcher hands out, until it has no more or time is up.

    Returns why the search ended, where somebody asked for it.

    Those that had ended before are told first, from their curves, to the scheduler and all others.
    ``data`` is a reference to the dataset.
    """
    keep_keys_private()
    options, models = asked.options, [space.model for space in asked.spaces]
    scheduler = make_scheduler(options.scheduler, models, searcher.judge, options.most)
    if isinstance(scheduler, Race):
        scheduler.popularity = partial(_popularity, messenger.counting, plan.metric)
    for ended in searcher.past:
        rows, note = curve(plan, ended)
        if note:
            messenger.view.note(f"trial {ended.number}: {note}")
        if isinstance(scheduler, Race | Generations):
            scheduler.remember(ended.user_attrs, ended.number, rows)
        messenger.retell(ended, rows)
    wishes, ending = Wishes(plan.folder), messenger.ending
    searcher.enough = lambda: ending.enough
    anything = plan.grows or (searcher.share is not None and options.concurrency is None)
    tuner = tune.Tuner(
        _trainable(plan, data),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=-1,  # the searcher knows when to stop
            max_concurrent_trials=None if anything else plan.concurrency,
            time_budget_s=asked.time_budget,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=plan.folder.uri,
            stop=CombinedStopper(wishes, ending),
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            callbacks=[messenger],
            verbose=0,
        ),
    )
    lost = False
    try:
        tuner.fit()
    except LostError:
        lost = True
        raise
    finally:
        _leave(searcher, messenger, plan, lost=lost)
    return "it was asked to stop" if wishes.stopped else ending.reason


def _leave(searcher: OptunaSearcher, messenger: Messenger, plan: Plan, *, lost: bool) -> None:
    """Closes the searcher; if it is lost, another driver has its trials.

    Else it tells of those whose end Optuna has heard of and nobody else: a signal came in between.
    """
    for one in () if lost else searcher.open().study.get_trials(deepcopy=False):
        if one.state in ENDED and one.number not in messenger.told:
            messenger.retell(one, curve(plan, one)[0], replayed=False)
    searcher.close(rest=not lost)


def _popularity(counting: Counting | None, metric: str) -> float | None:
    """Returns what popularity reaches on validation, for which it waits; None if nobody knows.

    To go on without it would make a study's trials depend on how fast it is counted.
    """
    floors = counting.floors() if counting is not None else ()
    return next((one.valid[metric] for one in floors if one.name == POPULARITY), None)


def _trainable(plan: Plan, data: Any) -> Any:
    """Returns what Tune runs, with what each trial needs: its own share, or that of the plan."""
    # Ray Train's workers bring their own resources. The trial only waits for them, and Tune wants
    # it to ask for something: a byte.
    usual = {"memory": 1.0} if plan.together else {"CPU": plan.cpus, "GPU": plan.gpus}

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        share = config.get("share", usual)
        return tune.PlacementGroupFactory([{name: n for name, n in share.items() if n}])

    # In a list the data are still a reference.
    return tune.with_resources(tune.with_parameters(trial.run, plan=plan, data=[data]), resources)


def _trial_name(one: TuneTrial) -> str:
    return f"{one.config['number']:04d}"
