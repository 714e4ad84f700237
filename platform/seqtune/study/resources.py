"""Who gets what: how many trials run at a time, with how many CPUs and GPUs each."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from optuna.trial import FixedTrial

from seqtune.catalogue import declaration
from seqtune.cluster import Joined
from seqtune.data import Dataset, Protocol
from seqtune.data.prepared import Prepared, open_prepared
from seqtune.errors import UserError
from seqtune.limits import Judge
from seqtune.machines import Machine, busy, everywhere, machines, memory_here, needs
from seqtune.options import StudyOptions, Workers, bounds
from seqtune.params import build
from seqtune.space import Space
from seqtune.space.asked import AskedStudy
from seqtune.storage import Folder
from seqtune.study.deaths import last_line
from seqtune.study.identity import Identity
from seqtune.study.plan import Plan, trial_params
from seqtune.study.probe import Share, choose, pays, ways

FEWEST_COPIES = 3  # of each weight: itself, its gradient, and what an optimizer keeps


def cpus_wanted(options: StudyOptions) -> float | None:
    """Returns the CPUs that Ray shall believe in, where the user asks for more than there are."""
    if options.concurrency is None:
        return None
    least, _ = team(options.models, options.workers_per_trial)
    wanted = options.concurrency * least * (options.cpus_per_trial or 1)
    return max(math.ceil(wanted), len(os.sched_getaffinity(0)))


def make_plan(
    options: StudyOptions, protocol: Protocol, folder: Folder, joined: Joined, study: str = ""
) -> Plan:
    """Decides what a trial gets, and how many run at a time.

    One CPU a trial, unless it is measured (``share_cpus``): two trials of one thread mostly get
    more done than one of two. With a GPU, a trial gets the CPUs that come with it. ``study`` is the
    study's id.

    Raises:
        UserError: not even one trial fits, nor will.
    """
    workers, most = team(options.models, options.workers_per_trial)
    cpus, gpus = shape(options.cpus_per_trial, options.gpus_per_trial, joined)
    flags = "--workers-per-trial, --cpus-per-trial or --gpus-per-trial"
    fitting = fit(workers, cpus, gpus, joined, flags) // workers
    concurrency = max(1, min(options.concurrency or fitting, fitting))
    if joined.grows and options.concurrency is not None:
        concurrency = options.concurrency
    return Plan(
        model=options.model,
        metric=options.metric,
        protocol=protocol,
        folder=folder,
        workers=workers,
        most=most,
        cpus=cpus,
        gpus=gpus,
        concurrency=concurrency,
        grows=joined.grows and options.concurrency is None,
        study=study,
        measures=Judge.asked(options).measures,
    )


def team(models: Sequence[str], workers: Workers) -> tuple[int, int]:
    """Returns the least and the most workers of a trial: one, where there is nothing to train."""
    trained = any(declaration(model).is_trained for model in models)
    return bounds(workers) if trained else (1, 1)


def check_memory(model: str, values: dict[str, Any], dataset: Dataset) -> None:
    """Refuses a model whose weights this machine cannot hold, if no GPU of it shall.

    Raises:
        UserError: it says what would fit.
    """
    room, rows = memory_here(), dataset.n_items + dataset.n_users
    width = getattr(build(declaration(model).params, values, model), "embedding_size", 0)
    if FEWEST_COPIES * 4 * rows * width < room / 2:
        return  # it fits, and torch need not be asked
    from seqtune.memory import check_fits

    check_fits(model, trial_params(model, values), dataset, room, "this machine")


def bearable(space: Space, dataset: Dataset) -> Space:
    """Gives start points that this machine's memory cannot hold the sizes of trial 0.

    That must fit: ``check_memory`` has looked at it.
    """
    points = []
    for point in space.portfolio:
        wanted = dict(point)
        try:
            check_memory(space.model, space.suggest(FixedTrial(space.point(wanted))), dataset)
        except UserError:
            usual = space.defaults()
            sizes = [n for n, v in wanted.items() if isinstance(v, int) and v > usual.get(n, v)]
            wanted |= {name: usual[name] for name in sizes}
        points.append(wanted)
    return replace(space, portfolio=tuple(points))


def check_data(dataset: Dataset) -> None:
    """Refuses a prepared data set that a machine of the cluster cannot map.

    Raises:
        UserError: it names the machine.
    """
    if not isinstance(dataset, Prepared):
        return
    for why in everywhere(_why_not, dataset.folder, dataset.fingerprint):
        if why:
            raise UserError(
                f"--data {dataset.folder}: the machine {why}; put the folder where every machine "
                "of the cluster sees it under this path"
            )


def _why_not(folder: str, fingerprint: str) -> str:
    """Says on which machine this is, and why data cannot be mapped here; empty where they can."""
    try:
        open_prepared(folder, fingerprint)
    except UserError as error:
        return f"{socket.gethostname()} cannot use it ({str(error).removeprefix(f'{folder}: ')})"
    return ""


def alone(plan: Plan, asked: Workers) -> list[str]:
    """Says, in a line, where one process does what several were asked for."""
    if plan.together or bounds(asked)[1] == 1:
        return []
    return [f"{plan.model} has no parameters to train: one process does it, not several workers"]


def shape(cpus: float | None, gpus: float | None, joined: Joined) -> tuple[float, float]:
    """Returns the CPUs and GPUs of one process: what is asked for, or what suits the machines.

    A GPU where there is one, and the CPUs that come with it on the machine that has the fewest.
    """
    owners = [one for one in (*joined.machines, *joined.kinds) if one.gpus]
    if gpus is None:
        gpus = min(1, max((one.gpus for one in owners), default=0))
    if cpus is None:
        each = [one.cpus * min(1, gpus / one.gpus) for one in owners if gpus]
        cpus = min(each, default=1)
        cpus = float(int(cpus)) if cpus >= 1 else cpus or 1
    return cpus, gpus


def fit(workers: int, cpus: float, gpus: float, joined: Joined, flags: str) -> int:
    """Returns how many processes of that shape the machines hold at a time.

    On a cluster that has no machine for work yet, or starts machines by itself, that may be 0.

    Raises:
        UserError: there are too few, and there will be no more; ``flags`` says what to lower.
    """
    every = [*joined.machines, *joined.kinds]
    fits = sum(one.holds(cpus, gpus) for one in joined.machines)
    wanted = f"a trial needs {workers} x ({needs(cpus, gpus)})"
    if fits < workers and not joined.grows:
        total = Machine(sum(one.cpus for one in every), sum(one.gpus for one in every))
        raise UserError(f"{wanted}, more than the {total} there are; lower {flags}")
    work = [one for one in every if one.cpus]
    if work and not any(one.holds(cpus, gpus) for one in work):
        largest = max(work, key=lambda one: (one.gpus if gpus else 0, one.cpus))
        raise UserError(f"{wanted}, and the largest machine has {largest}; lower {flags}")
    return fits


def at_a_time(plan: Plan, joined: Joined) -> int:
    """Returns how many trials of several workers the machines that are there now can run.

    One more waits where an autoscaler can start machines for it.
    """
    fits = sum(one.holds(plan.cpus, plan.gpus) for one in machines())
    return max(1, fits // plan.workers + bool(joined.kinds))


def share_cpus(
    asked: AskedStudy,
    dataset: Dataset,
    plan: Plan,
    data: Any,
    identity: Identity,
    note: Callable[[str], None],
) -> Share | None:
    """Measures how trials share the CPUs best; None where one CPU each is not in question.

    A study that is resumed keeps what it began with, where the machine is the same.
    """
    options = asked.options
    cpus = [int(one.cpus) for one in machines() if one.cpus >= 1]
    possible = ways(cpus, options.most)
    said = options.concurrency is not None or options.cpus_per_trial is not None
    if said or plan.gpus or plan.together or len(possible) < 2 or busy():
        return None
    if options.resume:
        kept = Share(**identity.about.share) if identity.about.share else None
        return kept if kept and (kept.concurrency, kept.cpus) in possible else None
    space = asked.trained
    values, epochs = space.defaults(), space.epochs
    if not pays(dataset.n_interactions, epochs, options.most, asked.time_budget):
        return None
    try:
        return choose(plan.of(space.model), values, data, possible)
    except Exception as error:
        note(f"not measured how many trials at a time get most done: {last_line(error)}")
        return None


def shared(plan: Plan, identity: Identity, share: Share | None) -> tuple[Plan, Identity]:
    """Returns the plan with what was measured, and the identity that keeps it."""
    if share is None:
        return plan, identity
    about = replace(identity.about, share=asdict(share))
    plan = replace(plan, cpus=share.cpus, concurrency=share.concurrency)
    return plan, replace(identity, about=about)
