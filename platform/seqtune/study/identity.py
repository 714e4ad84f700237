"""Which study it is: its name, its folder, and whether a resumed one is the same."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

from seqtune.data import Dataset
from seqtune.errors import UserError
from seqtune.options import StudyOptions, TrainOptions, command
from seqtune.state import Row
from seqtune.storage import Folder
from seqtune.versions import git_commit, versions

ALL_USERS = "all users"


def find(options: StudyOptions, dataset: Dataset) -> tuple[StudyOptions, Folder, Row]:
    """Finds the study's name and folder, and says what the study is: the content of study.json.

    A name that was not given is made unique; one that was given must be new, or be resumed.
    """
    root = Folder.at(options.storage)
    name, taken = options.study, set(root.names())
    if options.name is None:
        numbered = [f"{name}-{n}" for n in range(2, len(taken) + 3)]
        known = [one for one in (name, *numbered) if one in taken]
        if options.resume and known:
            name = known[-1]
        elif known:
            name = next(one for one in numbered if one not in taken)
    folder = root / name
    options = replace(options, name=name)
    saved: Row = json.loads(folder.read("study.json") or b"{}")
    now = {"model": options.model, "data": dataset.fingerprint, "metric": options.metric}
    now |= {"validation": validated(options)}
    if not options.resume:
        if saved:
            raise UserError(
                f"--name {name}: this study exists; go on with --resume, or give another --name"
            )
        asked = command(replace(options, tracking_uri=None))  # which may hold a password
        return options, folder, now | {"id": f"{name}-{uuid.uuid4().hex[:8]}", "command": asked}
    if not saved:
        raise UserError(f"--resume: there is no study {name!r} in {root.uri}; leave --resume out")
    for what, value in now.items():
        before = saved.get(what, ALL_USERS)  # where a study of old says nothing
        if before != value:
            raise UserError(
                f"--resume: study {name!r} was started with another {what} ({before}, now "
                f"{value}); give the same, or another --name without --resume"
            )
    return options, folder, saved


def tags(options: StudyOptions, dataset: Dataset) -> dict[str, str]:
    """Returns the tags of the study in MLflow: what it was made of."""
    tags = {
        "seqtune.model": options.model,
        "seqtune.data": options.data,
        "seqtune.data_fingerprint": dataset.fingerprint,
        "seqtune.git_commit": git_commit(),
        "seqtune.command": command(replace(options, tracking_uri=None)),  # it may hold a password
    }
    return tags | {f"seqtune.version.{name}": version for name, version in versions().items()}


def validated(options: StudyOptions | TrainOptions) -> str:
    """Says who validates: ``all users``, or ``1000 users of seed 0``."""
    n = options.valid_users
    return ALL_USERS if n is None else f"{n} user{'' if n == 1 else 's'} of seed {options.seed}"
