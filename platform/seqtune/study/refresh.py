"""A champion that is trained on with newer data, and whether it is better: ``seqtune refresh``.

The champion serves while a challenger is made from it. Both are asked for the users whose newest
interaction is newer than all that the champion knows, and the challenger takes over where it is
better beyond chance. What was decided is written down before anything changes, so that a refresh
that dies is finished by the next one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from seqtune.checkpoint import Recommender, load
from seqtune.data import Dataset, Held, Split, protocol_of, read
from seqtune.errors import DamagedError, UserError
from seqtune.metrics import of_held, per_user
from seqtune.schema import FORMAT, checked
from seqtune.significance import SURE, paired_t
from seqtune.state import Row, best_of, curves, flat, load_state, told
from seqtune.storage import Folder
from seqtune.study.afterwards import REPORT, amend, check_tested, copy_checkpoint, held, keep_best
from seqtune.study.final import evaluate_on_test, write_checkpoint
from seqtune.study.identity import About, asked_options, tags
from seqtune.study.loop import device, train_here
from seqtune.study.plan import Plan
from seqtune.study.shelf import Known, find, whole
from seqtune.study.tracked import tracked
from seqtune.track import REFRESHED, REFRESHES, store_uri
from seqtune.warm import first_weights, numbers
from seqtune.words import p_text, percent

NAME = "refresh.json"
FOLDER = "refreshes"  # of a study


@dataclass(frozen=True)
class Refresh:
    """What a refresh has decided."""

    number: int  # 1, 2, ...
    at: float  # seconds since 1970
    data: str
    fingerprint: str
    model: str
    metric: str
    champion: float  # what the metric is for them
    challenger: float
    unknown: int  # of their items that the champion does not know
    n: int  # users with newer interactions
    p_value: float  # of the difference, paired
    moved: bool  # whether the challenger takes over
    tags: dict[str, str]  # of its run in MLflow
    checkpoint: str = ""  # the champion's, once all is done
    registered: str = ""  # the challenger in MLflow, where it took over
    done: bool = False
    format: int = FORMAT

    @property
    def sentence(self) -> str:
        """Says what was decided, and why."""
        gain = self.challenger - self.champion
        relative = gain / self.champion if self.champion else math.inf
        values = (
            f"On the {self.n:,} users with newer interactions its {self.metric} is "
            f"{self.challenger:.4f}, and the champion's {self.champion:.4f} "
            f"({percent(relative)}, {p_text(self.p_value)})"
        )
        new = ""
        if self.unknown:
            new = f"; {self.unknown:,} of them took an item that the champion does not know"
        if self.moved:
            return f"The challenger, trained with {self.data}, takes over. {values}{new}."
        why = "which may be chance" if gain > 0 else "which is no gain"
        made = f"the challenger was trained with {self.data}"
        return f"The champion stays; {made}. {values}, {why}{new}."


def refresh(
    name: str,
    storage: str,
    data: str,
    *,
    warm: bool = True,
    tracking_uri: str | None = None,
    say: Callable[[str], None] = print,
    report: Callable[[Row, str], None] = lambda row, metric: None,
) -> Refresh | None:
    """Trains a challenger with newer data, and lets it take over where it is better beyond chance.

    It has the champion's hyperparameters, and with ``warm`` begins with its weights. None comes
    back where no user has an interaction that is newer than those which the champion was chosen
    with.

    Args:
        name: of the study, which must have ended.
        storage: the folder where it lies.
        data: all interactions, the newer ones among them.
        warm: begin with the champion's weights, and not with random ones.
        tracking_uri: of MLflow; None: the SQLite file in ``storage``.
        say: gets what a person should know.
        report: gets each evaluation, and the metric that says which is best.

    Raises:
        UserError: the study runs or has no champion, or the data cannot be used.
    """
    known = find(name, storage)
    about = whole(known)
    check_tested(known, "could be refreshed")
    uri = store_uri(tracking_uri, Folder.at(storage))
    with held(known):
        last = _last(known.folder)
        if last is not None and not last.done:
            say(f"refresh {last.number} had not been finished, and is now: {last.sentence}")
            _carry_out(last, known, about, uri, say)
            known = find(name, storage)
        found = _decide(known, about, data, last, say, report, warm=warm)
        return None if found is None else _carry_out(found, known, about, uri, say)


def _last(study: Folder) -> Refresh | None:
    """Returns the last refresh that has decided."""
    for number in sorted((study / FOLDER).names(), reverse=True):
        place = study / FOLDER / number
        content = place.read(NAME)
        if content is not None:
            try:
                last: Refresh = checked(f"{place / NAME}", Refresh, content)
            except DamagedError as error:
                raise UserError(f"{error}; remove it to refresh again") from None
            return last
    return None


def _decide(
    known: Known,
    about: About,
    data: str,
    last: Refresh | None,
    say: Callable[[str], None],
    report: Callable[[Row, str], None],
    *,
    warm: bool,
) -> Refresh | None:
    """Trains the challenger and compares; the decision is written down."""
    champion = load(known.folder / "champion", device())
    model = type(champion.model).__name__.lower()
    asked = asked_options(about)
    options = replace(asked, model=model, data=data, mask_seen=champion.mask_seen)
    dataset = read(options)
    for note in dataset.notes:
        say(note)
    protocol = protocol_of(options, dataset, options.seed or 0)
    split = protocol.split(dataset)
    users = _newer(split, champion)
    if not len(users.users):
        return None
    catalogue = numbers(champion, dataset.item_ids.tolist())
    if not catalogue.any():
        raise UserError(
            f"--data {data}: the champion knows none of its {dataset.n_items:,} items; is it of "
            "another catalogue?"
        )
    say(_beginning(users, catalogue, model, warm=warm))
    number = last.number + 1 if last else 1
    folder = known.folder / FOLDER / f"{number:04d}"
    whose = f"{about.id} {dataset.fingerprint} {_digest(known.folder)} {warm}"
    plan = Plan(model, options.metric, protocol, folder, study=whose)
    begin = first_weights(champion, catalogue) if warm else lambda model: None
    challenger = _train(plan, champion, dataset, report, begin)
    before = _values(champion, catalogue, dataset, users, plan.metric)
    own = np.arange(dataset.n_items + 1)  # its catalogue is that of the data
    now = _values(challenger, own, dataset, users, plan.metric)
    found = paired_t(now, before)
    decided = Refresh(
        number=number,
        at=time.time(),
        data=data,
        fingerprint=dataset.fingerprint,
        model=model,
        metric=options.metric,
        champion=float(before.mean()),
        challenger=float(now.mean()),
        unknown=int(np.count_nonzero(catalogue[dataset.items[users.events]] == 0)),
        n=found.n,
        p_value=found.p_value,
        moved=found.difference > 0 and found.p_value < SURE,
        tags=tags(options, dataset, protocol) | _own_tags(known, about, number, data),
    )
    _keep(folder, decided)
    return decided


def _beginning(users: Held, catalogue: NDArray[np.int64], model: str, *, warm: bool) -> str:
    """Says what is new, and what is about to be trained."""
    items = catalogue[1:]
    return (
        f"{len(users.users):,} users have interactions that are newer than the champion's, and "
        f"{np.count_nonzero(items == 0):,} of {len(items):,} items are new; a challenger ({model}) "
        f"is trained from {'its weights' if warm else 'random weights'}"
    )


def _own_tags(known: Known, about: About, number: int, data: str) -> dict[str, str]:
    return {
        REFRESHES: about.id,
        "mlflow.runName": f"refresh {number}",
        "seqtune.command": shlex.join(["seqtune", "refresh", known.name, "--data", data]),
    }


def _newer(split: Split, champion: Recommender) -> Held:
    """Returns the test targets that are newer than all that the champion was chosen with."""
    newest = champion.meta.get("newest")
    if newest is None:
        raise UserError("the champion's model.json does not say how new its data are")
    return split.test.take(split.dataset.times[split.test.events] > newest)


def _digest(study: Folder) -> str:
    weights = (study / "champion").read("model.safetensors") or b""
    return hashlib.sha256(weights).hexdigest()[:16]


def _train(
    plan: Plan,
    champion: Recommender,
    dataset: Dataset,
    report: Callable[[Row, str], None],
    begin: Callable[[nn.Module], None],
) -> Recommender:
    """Trains the challenger, from where an earlier try had got, and writes its checkpoint."""
    params, training = champion.model.params, plan.folder / "training"
    try:
        load_state(training, plan.owner(params))
        told(training, plan.owner(params))
    except DamagedError:
        training.delete()  # of other data, or of another champion
    train_here(plan, params, training, dataset, lambda row: report(row, plan.metric), begin=begin)
    state = load_state(training, plan.owner(params))
    assert state is not None, "a training that has ended has a state"
    best, values = best_of(state), params.model_dump()
    tested, _ = evaluate_on_test(plan, values, best["weights"], dataset)
    about = {"metric": plan.metric, "valid": best["metrics"], "test": tested, "chosen": REFRESHED}
    write_checkpoint(plan, values, best["weights"], dataset, about, to=plan.folder)
    return load(plan.folder, device())


def _values(
    recommender: Recommender,
    own: NDArray[np.int64],
    dataset: Dataset,
    users: Held,
    metric: str,
) -> NDArray[np.floating]:
    """Returns the metric of each user for what a checkpoint recommends, as it would be served.

    ``own`` are its numbers of the items of the data.
    """
    histories, times = [], []
    for user, end in zip(users.users, users.ends, strict=True):
        span = slice(dataset.offsets[user], end)
        past = own[dataset.items[span]]
        histories.append(past[past > 0])
        times.append(dataset.times[span][past > 0])
    places = recommender.places(histories, own[dataset.items[users.events]], times)
    return per_user(metric, of_held(places, users))


def _keep(folder: Folder, decided: Refresh) -> None:
    folder.write(NAME, json.dumps(asdict(decided), indent=2).encode())


def _carry_out(
    decided: Refresh, known: Known, about: About, uri: str, say: Callable[[str], None]
) -> Refresh:
    """Does what was decided; every step may be repeated."""
    folder = known.folder / FOLDER / f"{decided.number:04d}"
    champion = known.folder / "champion"
    if decided.moved:
        keep_best(known)
        copy_checkpoint(folder, champion)
    _report(decided, known)
    registered, sent = _track(decided, folder, known, uri, say)
    with tracked(uri, known.name, about.id, known.folder, say) as tracker:
        tracker.upload(known.folder / "report", REPORT, to="report")
        tracker.settle(60)
        tracker.close(timeout=60 if tracker.answers else 5)
    (folder / "training").remove("state.pt")
    done = sent and bool(registered) == decided.moved
    decided = replace(decided, checkpoint=champion.uri, registered=registered, done=done)
    _keep(folder, decided)
    return decided


def _report(decided: Refresh, known: Known) -> None:
    assert known.report is not None
    own = {n: v for n, v in asdict(decided).items() if n not in ("tags", "format", "done")}
    others = [one for one in known.report.get("refreshes", []) if one["number"] != decided.number]
    every = [*others, own | {"sentence": decided.sentence}]
    sentences = [f"{one['number']}. {one['sentence']}" for one in every]
    amend(known.folder / "report", {"refreshes": every}, "Refreshed", sentences)


def _track(
    decided: Refresh, folder: Folder, known: Known, uri: str, say: Callable[[str], None]
) -> tuple[str, bool]:
    """Gives the refresh a run in MLflow, and its model.

    Returns what the champion is there, and whether MLflow has got all of it.
    """
    card = json.loads(folder.read("model.json") or b"{}")
    meta, study = card["meta"], decided.tags[REFRESHES]
    id_ = f"{study}.refresh{decided.number}"
    with tracked(uri, known.name, id_, folder, say) as tracker:
        params = card["params"] | {"metric": decided.metric}
        tracker.start_study(params, decided.tags, metric=decided.metric, dimensions=[])
        for row in told(folder / "training"):
            tracker.trial_result(None, row["epoch"], curves(flat(row)), time=row["time"])
        tracker.finalist(folder, None, meta["valid"], meta["test"])
        if decided.moved:
            tracker.champion(folder, known.name, None, decided.sentence, chosen=REFRESHED)
        values = {
            f"refresh/champion/{decided.metric}": decided.champion,
            f"refresh/challenger/{decided.metric}": decided.challenger,
            "refresh/p_value": decided.p_value,
        }
        tracker.study_ended("finished", values, decided.sentence)
        tracker.settle(60)
        sent = tracker.close(timeout=60 if tracker.answers else 5)
        return tracker.registered.uri if tracker.registered else "", sent
