"""Finalists as MLflow's logged models: servable, with their metrics on the data of the test.

So the best model of a data set, over all studies of a store, is one query.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune.metrics import mlflow_name
from seqtune.options import data_name
from seqtune.results import CHECKPOINT_FILES
from seqtune.storage import Folder
from seqtune.track.experiment import STUDY
from seqtune.track.store import asking

PACKAGE = Path(__file__).parents[1]
CHECKPOINT = "seqtune.checkpoint"  # tag: digest of the weights
FINGERPRINT, PROTOCOL = "seqtune.data_fingerprint", "seqtune.protocol"  # tags


@dataclass(frozen=True)
class Found:
    """A finalist of some study."""

    study: str
    model: str
    uri: str  # what MLflow and --checkpoint load
    protocol: str
    valid: dict[str, float]
    test: dict[str, float]


def log_model(
    client: Any,
    folder: Folder,
    run: Any,
    tags: Mapping[str, str],
    metrics: Mapping[str, float] | None = None,
) -> Any:
    """Returns the logged model of a run that holds these weights, made where there is none.

    ``metrics`` (``valid/ndcg_10``) are logged with the data set that the tags name; the run has
    them too.
    """
    digest = weights_digest(folder)
    wanted = f"source_run_id = '{run.info.run_id}'"
    known = client.search_logged_models([run.info.experiment_id], wanted)
    own = [one for one in known if one.tags.get(CHECKPOINT) == digest and one.status == "READY"]
    logged = own[0] if own else _log(client, folder, run, {**tags, CHECKPOINT: digest})
    there = {(one.key, one.value) for one in logged.metrics or ()}
    new = {name: v for name, v in (metrics or {}).items() if (name, v) not in there}
    if new:
        _measure(client, run, logged.model_id, tags, new)
    return logged


def weights_digest(folder: Folder) -> str:
    """Returns the digest of the weights of a checkpoint."""
    weights = folder.read("model.safetensors")
    if weights is None:
        raise FileNotFoundError(f"{folder / 'model.safetensors'}")
    return hashlib.sha256(weights).hexdigest()


def _measure(
    client: Any, run: Any, model_id: str, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    source, fingerprint = tags.get("seqtune.data", ""), tags.get(FINGERPRINT, "")
    name, now = data_name(source), int(time.time() * 1000)
    data = Dataset(name, fingerprint, "local", json.dumps({"uri": source}))
    used = DatasetInput(data, [InputTag("mlflow.data.context", "training and test")])
    client.log_inputs(run.info.run_id, [used])
    points = [
        Metric(key, value, now, 0, model_id, name, fingerprint, run.info.run_id)
        for key, value in metrics.items()
    ]
    client.log_batch(run.info.run_id, metrics=points)


def _log(client: Any, folder: Folder, run: Any, tags: dict[str, str]) -> Any:
    """Uploads the checkpoint, ``serving.py`` and the package as a model of MLflow 3."""
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=tags.get("seqtune.model") or "model",
        source_run_id=run_id,
        params=run.data.params,
        tags=tags,
        model_type="seqtune",
    )
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, target = Path(scratch) / "checkpoint", Path(scratch) / "model"
        checkpoint.mkdir()
        for name in CHECKPOINT_FILES:
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


def best_of(uri: str, fingerprint: str, metric: str) -> list[Found]:
    """Returns the finalists of all studies on some data, the best on validation first.

    ``metric`` is written as people do: ``ndcg@10``.

    Raises:
        UserError: MLflow cannot be asked.
    """
    key = f"valid/{mlflow_name(metric)}"
    with asking(uri) as client:
        every = [one.experiment_id for one in client.search_experiments()]
        found = client.search_logged_models(
            every,
            f"tags.`{FINGERPRINT}` = '{fingerprint}'",
            order_by=[{"field_name": f"metrics.{key}", "ascending": False}],
        )
    rows = []
    for one in found:
        values = {metric.key: metric.value for metric in one.metrics or ()}
        parts = {
            part: {
                name.removeprefix(f"{part}/").replace("_", "@"): value
                for name, value in values.items()
                if name.startswith(f"{part}/")
            }
            for part in ("valid", "test")
        }
        if metric in parts["valid"]:
            study = one.tags.get(STUDY, "").rpartition("-")[0]
            own = (study, one.tags.get("seqtune.model", ""), f"models:/{one.model_id}")
            rows.append(Found(*own, one.tags.get(PROTOCOL, ""), parts["valid"], parts["test"]))
    return rows
