"""The best checkpoint as a model that MLflow serves."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.storage import Folder
from seqtune.track.pages import NOTE, described
from seqtune.track.store import brief, quiet, shown
from seqtune.track.undocumented import show_version

PACKAGE = Path(__file__).parents[1]

ALIAS = "champion"
CHECKPOINT = "seqtune.checkpoint"  # tag: digest of the weights
METRIC, VALUE = "seqtune.metric", "seqtune.value"  # tags: what was maximised, and how far
SHARED = {  # tags that two versions must share for their values to be comparable
    "seqtune.data_fingerprint": "data",
    "seqtune.protocol": "protocol",
    METRIC: "metric",
}


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
    promoted: bool = False,
) -> Registered:
    """Logs a checkpoint as a model of a run, and registers it as a version of the model ``name``.

    The alias ``champion`` moves to it from a version that it beats on the same data, by the same
    protocol and metric. It stays on any other: several studies may share a name, and somebody may
    serve what the alias points to. One that was ``promoted`` by hand gets it from any. ``metric``
    is MLflow's name of what the study maximised.

    Weights that the run has logged before keep their version.
    """
    weights = folder.read("model.safetensors")
    if weights is None:
        raise FileNotFoundError(f"{folder / 'model.safetensors'}")
    tags = {n: value for n, value in run.data.tags.items() if n.startswith("seqtune.")}
    tags[CHECKPOINT] = hashlib.sha256(weights).hexdigest()
    tags["seqtune.chosen"] = "by hand" if promoted else "on validation"
    tags |= {METRIC: metric, VALUE: str(run.data.metrics.get(f"best/{metric}", math.nan))}
    description = described(tags, verdict)
    version = _version(client, folder, name, run, tags, description)
    client.update_model_version(name, version, description)
    left = "" if promoted else _why_left(client, name, version, tags)
    if not left:
        client.set_registered_model_alias(name, ALIAS, version)
    return Registered(name, version, left)


def _version(
    client: Any, folder: Folder, name: str, run: Any, tags: dict[str, str], description: str
) -> str:
    """Returns the version that holds these weights of this run, made where there is none."""
    from mlflow.exceptions import MlflowException

    about = (
        f"The best models of the studies named {name}. The alias {ALIAS} moves only to a version "
        "that is better on the same data, by the same protocol and metric."
    )
    try:
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in client.search_model_versions(f"name = '{name}' AND run_id = '{run.info.run_id}'"):
        if known.tags.get(CHECKPOINT) == tags[CHECKPOINT]:
            return str(known.version)
    logged = _log(client, folder, run, tags | {NOTE: description})
    # By its place: models:/ID would be looked up in the store of the working directory.
    place, model_id = logged.artifact_location, logged.model_id
    made = client.create_model_version(name, place, run.info.run_id, tags=tags, model_id=model_id)
    show_version(client, model_id, name, made.version)
    return str(made.version)


def _why_left(client: Any, name: str, version: str, tags: dict[str, str]) -> str:
    """Says why the alias must stay on the version that has it; ``""`` where it may move."""
    held = client.get_registered_model(name).aliases.get(ALIAS)
    if held is None or str(held) == version:
        return ""
    other = client.get_model_version(name, held).tags
    differ = [what for tag, what in SHARED.items() if other.get(tag, "") != tags.get(tag, "")]
    before, now = _value(other), _value(tags)
    if not differ and now > before:
        return ""
    reason = f"was chosen with other {' and '.join(differ)}"
    if not differ:
        metric = tags[METRIC].replace("_", "@")  # as people write it
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


def _log(client: Any, folder: Folder, run: Any, tags: dict[str, str]) -> Any:
    """Uploads the checkpoint, ``serving.py`` and the package as a model of MLflow 3."""
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id,
        name="champion",
        source_run_id=run_id,
        params=run.data.params,
        tags=tags,
        model_type="seqtune",
    )
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, target = Path(scratch) / "checkpoint", Path(scratch) / "model"
        checkpoint.mkdir()
        for name in ("model.json", "model.safetensors", "items.parquet"):
            (checkpoint / name).write_bytes(folder.read(name) or b"")
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(PACKAGE / "serving.py"),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(PACKAGE)],
            input_example=_example(checkpoint),
            pip_requirements=requirements(),
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_id=logged.model_id,
            ),
        )
        for cache in list(target.rglob("__pycache__")):
            shutil.rmtree(cache)
        client.log_model_artifacts(logged.model_id, str(target))
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return client.finalize_logged_model(logged.model_id, "READY")


def _example(checkpoint: Path) -> tuple[list[list[Any]], dict[str, Any]]:
    """Returns two histories of the most popular items, and the parameters of a request."""
    import pyarrow.parquet as pq

    items = pq.read_table(checkpoint / "items.parquet").sort_by([("popularity", "descending")])
    ids = items["item"][:3].to_pylist()
    mask_seen = json.loads((checkpoint / "model.json").read_text())["mask_seen"]
    return [ids, ids[:1]], {"k": 10, "exclude_seen": mask_seen}


def requirements() -> list[str]:
    """Returns what serving needs, as installed here.

    Written down, since MLflow would start a process that loads the model to find out.
    """
    from importlib.metadata import version

    names = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "torch")
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


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
    """Downloads the checkpoint of a registered model: ``models:/NAME@ALIAS`` or ``/VERSION``."""
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if parts is None:
        raise UserError(f"{uri}: write models:/NAME@champion, models:/NAME/VERSION or a folder")
    quiet()
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    name, alias, version = parts.groups()
    try:
        client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
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
