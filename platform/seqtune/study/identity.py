"""Which study it is: its name, its folder, and whether a resumed one is the same."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from optuna import Study

from seqtune.data import Dataset, Protocol
from seqtune.errors import DamagedError, UserError
from seqtune.options import StudyOptions, TrainOptions, command, declared
from seqtune.schema import FORMAT, checked
from seqtune.storage import Folder
from seqtune.study.lease import HeldError, Lease
from seqtune.study.record import repair_command
from seqtune.versions import git_commit, versions

NAME = "study.json"
ABOUT = "about"  # the same, among Optuna's attributes of the study


@dataclass(frozen=True)
class About:
    """What ``study.json`` keeps."""

    id: str
    command: str  # without what may hold a password
    same: dict[str, str]  # what a resumed study must share with its beginning
    options: dict[str, Any] = field(default_factory=dict)  # of its last beginning, none private
    share: dict[str, Any] | None = None  # how trials share the CPUs, where that was measured
    spaces: dict[str, Any] = field(default_factory=dict)  # what is searched, by model
    format: int = FORMAT


@dataclass(frozen=True)
class Identity:
    """A study's name, its folder, and what it is; its lease is this driver's."""

    name: str
    folder: Folder
    about: About
    lease: Lease

    def keep(self, study: Study) -> Identity:
        """Writes ``study.json``, and the same into Optuna: from then on the study exists."""
        about = replace(self.about, spaces=study.user_attrs["spaces"])
        study.set_user_attr(ABOUT, asdict(about))
        write_about(self.folder, about)
        return replace(self, about=about)


@contextmanager
def claimed(
    options: StudyOptions,
    dataset: Dataset,
    protocol: Protocol,
    say: Callable[[str], None] = print,
) -> Iterator[Identity]:
    """Finds a study's name and folder, and yields what the study is; no other driver has it then.

    A name that was not given is made unique; one that was given must be new, or be resumed.

    Raises:
        UserError: the name is taken, or with ``resume`` is not, or belongs to another study;
            another driver runs the study; the folder cannot be written.
    """
    name, lease = _take(options, say)
    try:
        folder = Folder.at(options.storage) / name
        about = _begun(options, folder, _same(options, dataset, protocol))
        yield Identity(name, folder, about, lease)
    finally:
        lease.release()


def _begun(options: StudyOptions, folder: Folder, now: dict[str, str]) -> About:
    """Returns what a study is: a new one, or the one that is resumed."""
    saved, name = _about(folder), folder.name
    if not options.resume:
        if saved is not None:
            raise UserError(
                f"--name {name}: this study exists; go on with --resume, or give another --name"
            )
        asked = command(replace(options, name=name), private=False)
        return About(f"{name}-{uuid.uuid4().hex[:8]}", asked, now, open_options(options, name))
    if saved is None:
        raise _missing(name, options)
    if differs := _difference(saved, now):
        raise UserError(
            f"--resume: study {name!r} was started with another {differs}; give the same, or "
            "another --name without --resume"
        )
    report = (folder / "report").read("report.json")
    if refreshed := taken_over(json.loads(report) if report else None):
        raise UserError(
            f"--resume: the champion of {name!r} was trained on newer data ({refreshed['data']}), "
            "which its trials do not know; start a study on these with another --name"
        )
    return replace(saved, options=open_options(options, name))


def taken_over(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the last refresh whose challenger took over, of a study's report.json."""
    refreshes = (report or {}).get("refreshes", [])
    return next((one for one in reversed(refreshes) if one["moved"]), None)


def _difference(saved: About, now: dict[str, str]) -> str:
    """Says what of a study is not as it was; empty where all is."""
    for what, value in now.items():
        if (before := saved.same.get(what)) != value:
            return f"{what} ({before}, now {value})"
    return ""


def check_same(
    options: StudyOptions, dataset: Dataset, protocol: Protocol, about: About, place: str
) -> None:
    """Raises where data or protocol are not those of a study."""
    if differs := _difference(about, _same(options, dataset, protocol)):
        raise UserError(f"{place}: the study was made with another {differs}")


def asked_options(about: About) -> StudyOptions:
    """Returns the options that a study began with the last time."""
    kept: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in about.options.items()
    }
    return StudyOptions(**kept)


def open_options(options: StudyOptions, name: str) -> dict[str, Any]:
    """Returns the options without those that may hold a password, as JSON has them."""
    named = replace(options, name=name, resume=False)
    shown = {one.name: getattr(named, one.name) for one in declared(StudyOptions)}
    hidden = {one.name for one in declared(StudyOptions) if one.flag.private}
    plain: dict[str, Any] = json.loads(json.dumps(shown))
    return {option: value for option, value in plain.items() if option not in hidden}


def _missing(name: str, options: StudyOptions) -> UserError:
    root = Folder.at(options.storage)
    if (root / name).names():
        lost = f"--resume: {root / name / NAME} is missing"
        return UserError(f"{lost}; make it anew: {repair_command(root / name)}")
    return UserError(f"--resume: there is no study {name!r} in {root.uri}; leave --resume out")


def _take(options: StudyOptions, say: Callable[[str], None]) -> tuple[str, Lease]:
    """Takes the lease of the study that was named, or of the first name of its kind that is free.

    With ``resume`` that is the last that is not free. Names are taken by whose lease it is, so that
    two drivers that start in the same second get two.
    """
    root = Folder.at(options.storage)
    try:
        if options.name is None and not options.resume:
            return _take_free(options.study, root, say)
        name = options.name or _last(options.study, set(root.names()))
        if options.resume and _about(root / name) is None:
            raise _missing(name, options)
        return name, Lease(root / name, say)
    except HeldError as held:
        how = "--resume" if options.resume else f"--name {name}"
        raise UserError(
            f"{how}: study {name!r} is run by {held}; wait until it has ended, or stop it there"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--storage {options.storage}: nothing can be written there ({reason}); give a folder "
            "that you may write"
        ) from None


def _take_free(name: str, root: Folder, say: Callable[[str], None]) -> tuple[str, Lease]:
    taken = set(root.names())
    numbers = itertools.count(2)
    candidate = name
    while True:
        while candidate in taken:
            candidate = f"{name}-{next(numbers)}"
        with suppress(HeldError):
            lease = Lease(root / candidate, say)
            if _about(root / candidate) is None:  # else it was begun and ended in the meantime
                return candidate, lease
            lease.release()
        taken.add(candidate)


def _last(name: str, taken: set[str]) -> str:
    """Returns the last of the names of a kind that are there; the first where none is."""
    numbered = [f"{name}-{n}" for n in range(2, len(taken) + 3)]
    return ([name] + [one for one in numbered if one in taken])[-1]


def read_about(folder: Folder) -> About | None:
    """Reads ``study.json``; None where there is none.

    Raises:
        DamagedError: it is torn, or says something else than what a study is.
    """
    content = folder.read(NAME)
    if content is None:
        return None
    about: About = checked(f"{folder / NAME}", About, content)
    return about


def write_about(folder: Folder, about: About) -> None:
    """Writes ``study.json``."""
    folder.write(NAME, json.dumps(asdict(about), indent=2).encode())


def _about(folder: Folder) -> About | None:
    try:
        return read_about(folder)
    except DamagedError as error:
        raise UserError(f"{error}; make it anew: {repair_command(folder)}") from None


def _same(options: StudyOptions, dataset: Dataset, protocol: Protocol) -> dict[str, str]:
    asked = {
        one.name: _text(getattr(options, one.name))
        for one in declared(type(options))
        if one.flag.same
    }
    return asked | protocol.facts() | {"data": dataset.fingerprint}


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value or "")


def tags(
    options: StudyOptions | TrainOptions, dataset: Dataset, protocol: Protocol
) -> dict[str, str]:
    """Returns the tags of a study or a training in MLflow: what it was made of."""
    tags = {
        "seqtune.model": options.model,
        "seqtune.data": options.data,
        "seqtune.data_fingerprint": dataset.fingerprint,
        "seqtune.protocol": protocol.sentence(dataset),
        "seqtune.git_commit": git_commit(),
        "seqtune.command": command(options, private=False),
    }
    return tags | {f"seqtune.version.{name}": version for name, version in versions().items()}
