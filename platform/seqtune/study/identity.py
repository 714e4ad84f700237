"""Which study it is: its name, its folder, and whether a resumed one is the same."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from seqtune.data import Dataset, Protocol
from seqtune.errors import UserError
from seqtune.options import StudyOptions, command, declared
from seqtune.storage import Folder
from seqtune.versions import git_commit, versions


@dataclass(frozen=True)
class About:
    """What ``study.json`` keeps."""

    id: str
    command: str  # without what may hold a password
    same: dict[str, str]  # what a resumed study must share with its beginning
    share: dict[str, Any] | None = None  # how trials share the CPUs, where that was measured


@dataclass(frozen=True)
class Identity:
    """A study's name, its folder, and what it is."""

    name: str
    folder: Folder
    about: About

    def keep(self) -> None:
        """Writes ``study.json``: from then on the study exists."""
        self.folder.write("study.json", json.dumps(asdict(self.about), indent=2).encode())


def find(options: StudyOptions, dataset: Dataset, protocol: Protocol) -> Identity:
    """Finds a study's name and folder, and says what the study is.

    A name that was not given is made unique; one that was given must be new, or be resumed.

    Raises:
        UserError: the name is taken, or with ``resume`` is not, or belongs to another study.
    """
    root = Folder.at(options.storage)
    name = options.name or _free_name(options.study, set(root.names()), options.resume)
    folder = root / name
    saved = _about(folder)
    now = _same(options, dataset, protocol)
    if not options.resume:
        if saved is not None:
            raise UserError(
                f"--name {name}: this study exists; go on with --resume, or give another --name"
            )
        asked = command(replace(options, name=name), private=False)
        return Identity(name, folder, About(f"{name}-{uuid.uuid4().hex[:8]}", asked, now))
    if saved is None:
        raise UserError(f"--resume: there is no study {name!r} in {root.uri}; leave --resume out")
    for what, value in now.items():
        if (before := saved.same.get(what)) != value:
            raise UserError(
                f"--resume: study {name!r} was started with another {what} ({before}, now "
                f"{value}); give the same, or another --name without --resume"
            )
    return Identity(name, folder, saved)


def _free_name(name: str, taken: set[str], resume: bool) -> str:
    """Returns the first name of its kind that is free; with ``resume``, the last that is not."""
    numbered = [f"{name}-{n}" for n in range(2, len(taken) + 3)]
    known = [one for one in (name, *numbered) if one in taken]
    if resume and known:
        return known[-1]
    return next(one for one in (name, *numbered) if one not in taken)


def _about(folder: Folder) -> About | None:
    content = folder.read("study.json")
    if content is None:
        return None
    saved = json.loads(content)
    return About(**{field.name: saved.get(field.name) for field in fields(About)})


def _same(options: StudyOptions, dataset: Dataset, protocol: Protocol) -> dict[str, str]:
    asked = {
        one.name: str(getattr(options, one.name))
        for one in declared(type(options))
        if one.flag.same
    }
    return asked | protocol.facts() | {"data": dataset.fingerprint}


def tags(options: StudyOptions, dataset: Dataset, protocol: Protocol) -> dict[str, str]:
    """Returns the tags of the study in MLflow: what it was made of."""
    tags = {
        "seqtune.model": options.model,
        "seqtune.data": options.data,
        "seqtune.data_fingerprint": dataset.fingerprint,
        "seqtune.protocol": protocol.sentence(dataset),
        "seqtune.git_commit": git_commit(),
        "seqtune.command": command(options, private=False),
    }
    return tags | {f"seqtune.version.{name}": version for name, version in versions().items()}
