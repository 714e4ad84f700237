"""The experiment of a study in MLflow, and the runs in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqtune.track.moved import ARTIFACTS

STUDY = "seqtune.study"  # tag: which study a run belongs to
REFRESHES = "seqtune.refreshes"  # tag: whose champion a run was trained to take the place of


def find_experiment(client: Any, uri: str, name: str, study: str) -> str:
    """Returns the id of the experiment of that name, made or restored where that is needed."""
    found = client.get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        place = None
        if uri.startswith("sqlite:///"):
            # An absolute folder beside the file: the default depends on the working directory.
            place = (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS).as_uri()
        try:
            made: str = client.create_experiment(name, place)
            return made
        except MlflowException:  # somebody was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    identity: str = found.experiment_id
    if found.lifecycle_stage == "deleted":
        _restore(client, identity, study)
    return identity


def _restore(client: Any, experiment_id: str, study: str) -> None:
    """Restores a deleted experiment; of its runs, which MLflow restores too, only the study's."""
    from mlflow.entities import ViewType

    deleted = list(runs(client, experiment_id, stage=ViewType.DELETED_ONLY))
    client.restore_experiment(experiment_id)
    for run in deleted:
        if run.data.tags.get(STUDY) != study:
            client.delete_run(run.info.run_id)


def runs(
    client: Any, experiment_id: str, wanted: str = "", stage: int | None = None
) -> Iterator[Any]:
    """Yields the runs that a filter wants; those that are not deleted, unless ``stage`` says so."""
    from mlflow.entities import ViewType

    stage = ViewType.ACTIVE_ONLY if stage is None else stage
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], wanted, stage, 1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
