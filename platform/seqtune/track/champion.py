"""The best checkpoint as a model that MLflow serves."""

from __future__ import annotations

import itertools
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.storage import Folder
from seqtune.track.experiment import REFRESHES, STUDY
from seqtune.track.logged import CHECKPOINT, log_model, weights_digest
from seqtune.track.pages import NOTE, described
from seqtune.track.store import brief, quiet, shown
from seqtune.track.undocumented import show_version

ALIAS = "champion"
CHOSEN = "seqtune.chosen"  # tag: how a version was chosen
ON_VALIDATION, BY_HAND, REFRESHED = "on validation", "by hand", "on newer data"
UNTESTED, PRODUCTION = "on validation, trained again on everything: no test", "production"
KEPT = {BY_HAND: "was promoted by hand", REFRESHED: "was trained on newer data"}
METRIC, VALUE = "seqtune.metric", "seqtune.value"  # tags: what was maximised, and how far


@dataclass(frozen=True)
class Registered:
    """A registered model, and whether it is the champion of its name."""

    name: str
    version: str
    left: str = ""  # why the alias stays on another version; "" where it is on this one

    @property
    def uri(self) -> str:
        """What ``mlflow models serve`` and ``--checkpoint`` take."""
        own = f"/{self.version}" if self.left else f"@{ALIAS}"
        return f"models:/{self.name}{own}"


def register(
    client: Any,
    folder: Folder,
    name: str,
    run: Any,
    metric: str,
    verdict: str,
    *,
    chosen: str = ON_VALIDATION,
) -> Registered:
    """Logs a checkpoint as a model of a run, and registers it as a version of the model ``name``.

    The name belongs to its study: where another study has it, this one gets a number. The alias
    ``champion`` moves to it from a version that it beats on validation. It stays on one that is as
    good, or that was chosen in another way: somebody may serve what it points to. One that is
    ``chosen`` in another way now gets it from any; one that was trained on everything, and so is
    untested, gets the alias ``production``. ``metric`` is MLflow's name of what the study
    maximised.

    Weights that the run has logged before keep their version.
    """
    tags = {n: value for n, value in run.data.tags.items() if n.startswith("seqtune.")}
    tags[CHECKPOINT] = weights_digest(folder)
    tags[CHOSEN] = chosen
    tags |= {METRIC: metric, VALUE: str(run.data.metrics.get(f"best/{metric}", math.nan))}
    description = described(tags, verdict)
    name = _own_name(client, name, tags.get(REFRESHES) or tags.get(STUDY, ""))
    version = _version(client, folder, name, run, tags, description)
    client.update_model_version(name, version, description)
    left = "" if chosen != ON_VALIDATION else _why_left(client, name, version, tags)
    if chosen == UNTESTED:
        client.set_registered_model_alias(name, PRODUCTION, version)
    elif not left:
        client.set_registered_model_alias(name, ALIAS, version)
    return Registered(name, version, left)


def _version(
    client: Any, folder: Folder, name: str, run: Any, tags: dict[str, str], description: str
) -> str:
    """Returns the version that holds these weights of this run, made where there is none."""
    for known in client.search_model_versions(f"name = '{name}' AND run_id = '{run.info.run_id}'"):
        if known.tags.get(CHECKPOINT) == tags[CHECKPOINT]:
            return str(known.version)
    logged = log_model(client, folder, run, tags)
    client.set_logged_model_tags(logged.model_id, tags | {NOTE: description})
    # By its place: models:/ID would be looked up in the store of the working directory.
    place, model_id = logged.artifact_location, logged.model_id
    made = client.create_model_version(name, place, run.info.run_id, tags=tags, model_id=model_id)
    show_version(client, model_id, name, made.version)
    return str(made.version)


def _own_name(client: Any, name: str, study: str) -> str:
    """Returns the first name of its kind that belongs to the study: NAME, NAME-2, ...

    A name that is there belongs to whoever made it, of whatever store, and is left alone.
    """
    from mlflow.exceptions import MlflowException

    about = (
        f"The best models of the study {study}. The alias {ALIAS} moves only to a version that is "
        "better on validation, was promoted by hand, or was trained on newer data."
    )
    for number in itertools.count(1):
        candidate = name if number == 1 else f"{name}-{number}"
        try:
            client.create_registered_model(candidate, tags={STUDY: study}, description=about)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            if client.get_registered_model(candidate).tags.get(STUDY) != study:
                continue
        return candidate
    raise AssertionError("numbers do not end")


def _why_left(client: Any, name: str, version: str, tags: dict[str, str]) -> str:
    """Says why the alias must stay on the version that has it; ``""`` where it may move."""
    held = client.get_registered_model(name).aliases.get(ALIAS)
    if held is None or str(held) == version:
        return ""
    other = client.get_model_version(name, held).tags
    before, now, metric = _value(other), _value(tags), tags[METRIC].replace("_", "@")
    if (kept := other.get(CHOSEN)) in KEPT:
        reason = KEPT[kept]
    elif now > before:
        return ""
    else:
        reason = f"has {metric} {before:.4f} on validation, where this one has {now:.4f}"
    return (
        f"{name}@{ALIAS} stays version {held}, which {reason}; this study's best model is version "
        f"{version} of {name}, and docs/serving.md has the command that gives it the alias"
    )


def _value(tags: dict[str, str]) -> float:
    try:
        return float(tags.get(VALUE, "nan"))
    except ValueError:  # somebody has edited the tag
        return math.nan


def fetch_file(uri: str, run: str, name: str) -> bytes:
    """Returns a file of a run.

    Raises:
        UserError: there is no such run, or it has no such file.
    """
    quiet()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        with tempfile.TemporaryDirectory() as scratch:
            return Path(MlflowClient(uri).download_artifacts(run, name, scratch)).read_bytes()
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{run}: has no {name} in {shown(uri)} ({brief(error)}); is it another --tracking-uri?"
        ) from None


def fetch(uri: str, tracking_uri: str, to: Path) -> Folder:
    """Downloads the checkpoint of a registered model: ``models:/NAME@ALIAS`` or ``/VERSION``.

    That of a logged model is ``models:/m-...``.
    """
    logged = re.fullmatch(r"models:/(m-[0-9a-f]{32})", uri)
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None and logged is None:
        raise UserError(f"{uri}: write models:/NAME@champion, models:/NAME/VERSION or a folder")
    quiet()
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
        if logged is not None:
            source = client.get_logged_model(logged[1]).artifact_location
        elif parts is not None:
            name, alias, version = parts.groups()
            version = version or client.get_model_version_by_alias(name, alias).version
            source = client.get_model_version_download_uri(name, version)
        place: str = download_artifacts(
            artifact_uri=f"{source}/artifacts/checkpoint",
            tracking_uri=tracking_uri,
            dst_path=str(to),
        )
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri}: not found in {shown(tracking_uri)} ({brief(error)}); is it another "
            "--tracking-uri?"
        ) from None
    return Folder.at(place)
