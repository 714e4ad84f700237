"""The best checkpoint as a model that MLflow serves."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from seqtune.errors import UserError
from seqtune.storage import Folder
from seqtune.track.store import brief, quiet, shown

PACKAGE = Path(__file__).parents[1]

CHECKPOINT = "seqtune.checkpoint"  # tag: digest of the weights


def register(client: Any, folder: Folder, name: str, run: Any) -> int:
    """Logs a checkpoint as a model of a run, registers it and gives it the alias ``champion``.

    Returns the version; weights that the run has logged before keep theirs.
    """
    from mlflow.exceptions import MlflowException

    weights = folder.read("model.safetensors")
    if weights is None:
        raise FileNotFoundError(f"{folder.uri}/model.safetensors")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {n: value for n, value in run.data.tags.items() if n.startswith("seqtune.")}
    tags[CHECKPOINT] = hashlib.sha256(weights).hexdigest()
    known = client.search_model_versions(f"name = '{name}' AND run_id = '{run.info.run_id}'")
    same = [one for one in known if one.tags.get(CHECKPOINT) == tags[CHECKPOINT]]
    if same:
        version = int(same[0].version)
    else:
        logged = _log(client, folder, run, tags)
        # By its place: models:/ID would be looked up in the store of the working directory.
        place, run_id, model_id = logged.artifact_location, run.info.run_id, logged.model_id
        made = client.create_model_version(name, place, run_id, tags=tags, model_id=model_id)
        version = int(made.version)
        versions = json.dumps([{"name": name, "version": version}])
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
    client.set_registered_model_alias(name, "champion", str(version))
    return version


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
                model_uuid=logged.model_id,
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
