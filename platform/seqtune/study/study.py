"""A study: a space, data, a searcher, a scheduler and tracking, put together on Ray Tune.

The study's folder holds ``study.json`` (what the study is), ``study.db`` (Optuna's trials),
``trials/`` (a folder each) and, in the end, ``champion/`` and ``report/``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from seqtune import cluster
from seqtune.data import Dataset, Protocol, protocol_of, read
from seqtune.interrupts import INTERRUPTS
from seqtune.limits import Judge
from seqtune.machines import busy, check_seen
from seqtune.options import DATA, SEARCH, WHAT, StudyOptions, declared
from seqtune.report.view import StudyView
from seqtune.results import StudyResult
from seqtune.room import Room
from seqtune.space.asked import AskedStudy, fit_study
from seqtune.storage import Folder
from seqtune.study.cards import Sharing, share_cards, with_share
from seqtune.study.choice import error_of, read_gains
from seqtune.study.counting import Counting
from seqtune.study.ending import Ending
from seqtune.study.events import Messenger
from seqtune.study.finals import find_finals, make_result, with_background
from seqtune.study.gauges import Gauges
from seqtune.study.identity import Identity, claimed, tags
from seqtune.study.lock import data_options
from seqtune.study.plan import Plan
from seqtune.study.portfolio import warm_started
from seqtune.study.publish import publish
from seqtune.study.refit import refitted
from seqtune.study.repair import fetch
from seqtune.study.resources import (
    alone,
    at_a_time,
    bearable,
    check_data,
    check_memory,
    cpus_wanted,
    make_plan,
    share_cpus,
    shared,
    team,
)
from seqtune.study.samplers import check_sampler
from seqtune.study.schedulers import REVIVES
from seqtune.study.search import OptunaSearcher
from seqtune.study.seeds import SeedRace
from seqtune.study.settling import Settling
from seqtune.study.store import optuna_storage
from seqtune.study.tracked import tracked
from seqtune.study.tuner import search_all
from seqtune.study.weigh import fits
from seqtune.study.weights import Weights
from seqtune.track import store_uri
from seqtune.words import models_text


def run(
    asked: AskedStudy, view: StudyView, abandon: Callable[[str], None] = lambda reason: None
) -> StudyResult:
    """Runs a study to its end, or from where it stopped with ``options.resume``.

    ``abandon`` is called with a reason where Ray has died and this does not return; it ends the
    process.

    Raises:
        UserError: for what the user can mend; nothing has started then.
        KeyboardInterrupt: on Ctrl-C, once the study can be resumed.
    """
    began = time.monotonic()
    INTERRUPTS.listen()
    INTERRUPTS.check()
    view.preparing("reading data")
    check_sampler(asked.options.sampler)
    asked = warm_started(asked)
    dataset = read(asked.options)
    asked = fit_study(asked, dataset.n_items)
    for space in asked.spaces:
        check_memory(space.model, space.defaults(), dataset)
    asked = replace(asked, spaces=tuple(bearable(space, dataset) for space in asked.spaces))
    protocol = protocol_of(asked.options, dataset, asked.seed)
    uri = store_uri(asked.options.tracking_uri, Folder.at(asked.options.storage))
    with claimed(asked.options, dataset, protocol, view.preparing) as identity:
        asked = replace(asked, options=replace(asked.options, name=identity.name))
        return _run(asked, dataset, protocol, identity, uri, view, began, abandon)


def _run(
    asked: AskedStudy,
    dataset: Dataset,
    protocol: Protocol,
    identity: Identity,
    uri: str,
    view: StudyView,
    began: float,
    abandon: Callable[[str], None],
) -> StudyResult:
    options = asked.options
    fetch(identity.folder, identity.name, identity.about if options.resume else None)
    searcher = _searcher(asked, dataset, identity, view.note)
    if options.resume:
        searcher.open()  # what is lost is said before Ray starts
    view.preparing("starting Ray")
    dashboard = team(options.models, options.workers_per_trial)[1] > 1
    with cluster.connected(cpus_wanted(options), dashboard, abandon) as joined:
        INTERRUPTS.listen()
        INTERRUPTS.check()
        data = ray.put(dataset)
        plan, identity, sharing, why = _planned(
            asked, dataset, protocol, identity, joined, data, view
        )
        if plan.grows and plan.together:  # else Tune looks whether there is room for a trial
            searcher.limit = partial(at_a_time, plan, joined)
        if sharing is not None:
            searcher.share = lambda: sharing.share
        identity = identity.keep(searcher.open().study)
        _introduce(view, asked, dataset, plan, why)
        INTERRUPTS.check()
        with (
            _room(plan, view.note),
            tracked(uri, identity.name, identity.about.id, identity.folder, view.note) as tracker,
        ):
            tracker.start_study(
                _study_params(asked),
                tags(asked.options, dataset, protocol),
                metric=options.metric,
                dimensions=[*(["model"] if asked.several else []), *asked.searched],
            )
            counting = Counting(plan, data)
            watches = (INTERRUPTS, identity.lease, joined.pulse)
            weights = Weights(plan, options.kept, len(asked.spaces))
            gauges = Gauges(plan, export=joined.grows)
            hear = (watches, counting, weights, gauges, Ending(options, _settling(options, plan)))
            messenger = Messenger(searcher, plan, view, tracker, *hear, sharing)
            why_ended = search_all(asked, searcher, plan, data, messenger)
            messenger.check()
            race = _race(asked, plan, data, messenger, began)
            how = (identity.name, tracker, counting, searcher.judge, race)
            finals = find_finals(plan, data, optuna_storage(plan.folder), *how)
            view.study_ended()
            for note in searcher.notes:
                view.note(note)
            ending = (why_ended, messenger.ending.settled)
            result = make_result(asked, dataset, plan, began, finals, *ending)
            result = refitted(with_background(result, options, dataset, plan), options, plan, data)
            view.preparing("writing the report and registering the champion in MLflow")
            return publish(result, dataset, plan, tracker, finals.study)


def _planned(
    asked: AskedStudy,
    dataset: Dataset,
    protocol: Protocol,
    identity: Identity,
    joined: cluster.Joined,
    data: Any,
    view: StudyView,
) -> tuple[Plan, Identity, Sharing | None, str]:
    """Decides who gets what; also returns how trials share a GPU, and why they share CPUs so."""
    options = asked.options
    plan = make_plan(options, protocol, identity.folder, joined, identity.about.id)
    plan = replace(plan, source=data_options(options), fingerprint=dataset.fingerprint)
    if joined.grows:
        check_seen(identity.folder, "--storage")
        check_data(dataset)
    view.preparing("deciding how many trials run at a time")
    share = share_cpus(asked, dataset, plan, data, identity, view.note)
    plan, identity = shared(plan, identity, share)
    sharing = share_cards(asked, plan, joined, dataset, view.note)
    plan = with_share(plan, sharing, options.concurrency)
    return plan, identity, sharing, share.why if share else ""


def _searcher(
    asked: AskedStudy, dataset: Dataset, identity: Identity, say: Callable[[str], None]
) -> OptunaSearcher:
    judge = Judge.asked(asked.options)
    return OptunaSearcher(
        asked.spaces,
        optuna_storage(identity.folder),
        asked.options.study,
        metric=asked.options.metric,
        trials=asked.options.most,
        budget=asked.time_budget,
        seed=asked.seed,
        sampler=asked.options.sampler,
        judge=judge,
        fits=fits(judge, dataset.n_items, dataset.n_users),
        evolves=asked.options.evolves,
        continues=asked.options.scheduler in REVIVES,
        resume=asked.options.resume,
        say=say,
        folder=identity.folder,
        owner=identity.about.id,
    )


def _race(
    asked: AskedStudy, plan: Plan, data: Any, messenger: Messenger, began: float
) -> SeedRace | None:
    """Returns the race of the best trials with more seeds, where it is asked for."""
    trained = any(space.epochs for space in asked.spaces)
    if asked.options.seeds < 2 or plan.together or not trained:
        return None

    def over() -> bool:
        return asked.time_budget is not None and time.monotonic() - began > asked.time_budget

    how = (messenger.check, messenger.view.note, over)
    return SeedRace(plan, data, asked.options.seeds, *how)


def _settling(options: StudyOptions, plan: Plan) -> Settling | None:
    if not options.settles:
        return None

    def error(one: int, other: int) -> float | None:
        found = [read_gains(plan.trial_folder(n), plan.metric) for n in (one, other)]
        first, second = found
        if first is None or second is None or len(first) != len(second):
            return None
        return error_of(first, second)

    return Settling(options.most, options.metric, error)


def _introduce(view: StudyView, asked: AskedStudy, dataset: Dataset, plan: Plan, why: str) -> None:
    """Says what is about to run: notes first, then model, data, protocol and resources."""
    options, names = asked.options, len(asked.searched)
    notes = [*asked.notes, *dataset.notes, *busy(), *alone(plan, options.workers_per_trial)]
    if options.also and options.scheduler != "none":
        notes.append("no trial is stopped early: they are judged by several measures")
    for note in notes:
        view.note(note)
    reason = f" ({why})" if why else ""
    view.study_started(
        models_text(options.models),
        f"{dataset.describe()}\n{plan.protocol.sentence(dataset)}",
        options.most,
        f"{names} hyperparameters searched, {'at most ' * options.settles}{options.most} trials, "
        f"{plan.describe()}{reason}",
        plan.folder.uri,
    )


def _room(plan: Plan, say: Callable[[str], None]) -> AbstractContextManager[object]:
    local = plan.folder.local
    return nullcontext() if local is None else Room(local, plan.concurrency, say)


def _study_params(asked: AskedStudy) -> dict[str, Any]:
    """Returns what MLflow shows as the parameters of the study: all that decides its result."""
    asked_for = {
        one.name: getattr(asked.options, one.name)
        for one in declared(StudyOptions)
        if one.flag.panel in (WHAT, DATA, SEARCH)
    }
    given = {name: value for name, value in asked_for.items() if value not in (None, ())}
    return given | {"seed": asked.seed, "space": ", ".join(one.place for one in asked.spaces)}
