"""Who gets what: how many trials run at a time, with how many CPUs and GPUs each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from seqtune import cluster
from seqtune.data import Dataset, Protocol
from seqtune.errors import UserError
from seqtune.options import StudyOptions
from seqtune.space.asked import AskedStudy
from seqtune.storage import Folder
from seqtune.study.deaths import last_line
from seqtune.study.identity import Identity
from seqtune.study.plan import Plan
from seqtune.study.probe import Share, choose, pays, ways


def cpus_wanted(options: StudyOptions) -> float | None:
    """Returns the CPUs that Ray shall believe in, where the user asks for more than there are."""
    if options.concurrency is None:
        return None
    wanted = options.concurrency * options.workers_per_trial * (options.cpus_per_trial or 1)
    return max(math.ceil(wanted), len(os.sched_getaffinity(0)))


def make_plan(
    options: StudyOptions,
    protocol: Protocol,
    folder: Folder,
    resources: Mapping[str, float],
    study: str = "",
) -> Plan:
    """Decides what a trial gets, and how many run at a time.

    One CPU a trial, unless it is measured (``share_cpus``): two trials of one thread mostly get
    more done than one of two. ``study`` is the study's id.

    Raises:
        UserError: not even one trial fits.
    """
    cpus, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
    plan = Plan(
        model=options.model,
        metric=options.metric,
        protocol=protocol,
        folder=folder,
        workers=options.workers_per_trial,
        cpus=1 if options.cpus_per_trial is None else options.cpus_per_trial,
        gpus=min(gpus, 1) if options.gpus_per_trial is None else options.gpus_per_trial,
        study=study,
    )
    fits = [cpus / (plan.cpus * plan.workers)] if plan.cpus else []
    fits += [gpus / (plan.gpus * plan.workers)] if plan.gpus else []
    fitting = int(min(fits, default=1))
    if fitting < 1:
        raise UserError(
            f"a trial needs {plan.workers} x ({plan.cpus:g} CPUs, {plan.gpus:g} GPUs), more than "
            f"the {cpus:g} CPUs and {gpus:g} GPUs there are; lower --workers-per-trial, "
            "--cpus-per-trial or --gpus-per-trial"
        )
    return replace(plan, concurrency=min(options.concurrency or fitting, fitting))


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
    possible = ways(cluster.nodes(), options.trials)
    said = options.concurrency is not None or options.cpus_per_trial is not None
    if said or plan.gpus or plan.workers > 1 or len(possible) < 2 or cluster.busy():
        return None
    if options.resume:
        kept = Share(**identity.about.share) if identity.about.share else None
        return kept if kept and (kept.concurrency, kept.cpus) in possible else None
    values = asked.space.defaults()
    epochs = asked.space.epochs
    if not pays(dataset.n_interactions, epochs, options.trials, asked.time_budget):
        return None
    try:
        return choose(plan, values, data, possible)
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
