"""What MLflow holds of a study, deleted."""

from __future__ import annotations

from seqtune.track.experiment import REFRESHES, STUDY, runs
from seqtune.track.store import asking


def forget(uri: str, study: str) -> str:
    """Deletes the runs of a study and the model versions that came from them; says how many.

    An experiment or a registered model that holds nothing else goes too. MLflow keeps deleted runs
    until ``mlflow gc`` removes them.

    Raises:
        UserError: MLflow cannot be asked.
    """
    with asking(uri) as client:
        every = [one.experiment_id for one in client.search_experiments()]
        own = {
            run.info.run_id: run.info.experiment_id
            for experiment in every
            for tag in (STUDY, REFRESHES)
            for run in runs(client, experiment, f"tags.`{tag}` = '{study}'")
        }
        n_versions = 0
        for model in client.search_registered_models():
            versions = client.search_model_versions(f"name = '{model.name}'")
            ours = [one for one in versions if one.run_id in own]
            n_versions += len(ours)
            for version in ours:
                client.delete_model_version(model.name, version.version)
            # One without versions is left where an earlier deletion was killed.
            if len(ours) == len(versions) and (ours or model.tags.get(STUDY) == study):
                client.delete_registered_model(model.name)
        for run_id in own:
            client.delete_run(run_id)
        for experiment in set(own.values()):
            if not any(True for _ in runs(client, experiment)):
                client.delete_experiment(experiment)
    return f"{len(own)} runs and {n_versions} model versions"
