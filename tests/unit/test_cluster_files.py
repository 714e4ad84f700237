"""What describes a cluster: manifests, the image, services beside it, machines of clouds.

KubeRay's own checks need its operator, so that its fields are kept here as facts of its API of
version v1, as KubeRay 1.6 has it; all that is Kubernetes' own is checked by its published schemas.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = CLUSTER / "kubernetes"
KUBERAY = {
    "RayCluster": {
        *("rayVersion", "authOptions", "autoscalerOptions", "enableInTreeAutoscaling"),
        *("headGroupSpec", "workerGroupSpecs", "gcsFaultToleranceOptions", "suspend"),
    },
    "RayJob": {
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "entrypoint"),
        *("entrypointNumCpus", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes"),
        *("submissionMode", "submitterPodTemplate", "ttlSecondsAfterFinished"),
    },
    "authOptions": {"mode", "secretName"},
    "autoscalerOptions": {
        *("version", "idleTimeoutSeconds", "upscalingMode", "resources", "env", "envFrom"),
    },
    "headGroupSpec": {"rayStartParams", "template", "serviceType", "headService"},
    "workerGroupSpec": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"),
        *("rayStartParams", "template", "scaleStrategy"),
    },
}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield f"{path.name}: {document['kind']}", document


every_document = pytest.mark.parametrize(
    "document", [pytest.param(one, id=name) for name, one in documents()]
)


def one(kind: str) -> Any:
    return next(found for _, found in documents() if found["kind"] == kind)


def clusters() -> list[Any]:
    return [one("RayCluster")["spec"], one("RayJob")["spec"]["rayClusterSpec"]]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Yields all templates of pods, wherever they are."""
    if isinstance(node, dict):
        if "template" in node and "spec" in node["template"]:
            yield node["template"]
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


@every_document
def test_a_manifest_is_what_its_kind_allows(document: dict[str, Any]) -> None:
    if document["kind"] in ("RayCluster", "RayJob"):
        assert document["apiVersion"] == "ray.io/v1"
        assert set(document["spec"]) <= KUBERAY[document["kind"]]
    elif document["kind"] != "Kustomization":
        kubernetes_validate.validate(document, "1.33", strict=True)
    for pod in pods(document):
        as_one = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
        kubernetes_validate.validate(as_one | {"template": pod}, "1.33", strict=True)


def test_a_typo_in_a_manifest_is_noticed() -> None:
    wrong = one("StatefulSet") | {"replica": 1}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


@every_document
def test_no_pod_is_root_or_holds_a_secret(document: dict[str, Any]) -> None:
    for pod in pods(document):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {"memory"} <= set(container["resources"]["limits"])
            for variable in container.get("env", []):
                secret = re.search("PASS|SECRET|TOKEN|KEY", variable["name"])
                assert not (secret and "value" in variable), variable["name"]


@pytest.mark.parametrize("spec", clusters(), ids=["RayCluster", "RayJob"])
def test_a_cluster_has_the_fields_that_kuberay_knows(spec: dict[str, Any]) -> None:
    assert set(spec) <= KUBERAY["RayCluster"]
    assert set(spec["headGroupSpec"]) <= KUBERAY["headGroupSpec"]
    for part in ("authOptions", "autoscalerOptions"):
        assert set(spec[part]) <= KUBERAY[part]
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= KUBERAY["workerGroupSpec"]
        assert group["minReplicas"] == 0
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
    gpus = [
        container["resources"]["limits"].get("nvidia.com/gpu")
        for group in spec["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    ]
    assert gpus == [None, "1"]


def test_the_study_has_the_cluster_of_the_page() -> None:
    cluster, of_the_job = clusters()
    assert cluster == of_the_job
    job = one("RayJob")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    assert "cluster/again.sh" in job["entrypoint"], "a second try goes on"


def test_kustomize_is_given_every_file_but_the_study() -> None:
    files = {path.name for path in KUBERNETES.glob("*.yaml")}
    assert set(one("Kustomization")["resources"]) == files - {"kustomization.yaml", "study.yaml"}


def test_everything_runs_the_ray_of_the_constraints() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert {spec["rayVersion"] for spec in clusters()} == {pinned[1]}


def test_the_image_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    file = CLUSTER / "Dockerfile"
    done = subprocess.run([linter, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert "USER 1000" in text
    assert "-c constraints.txt" in text
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), f"the image copies {name}"


def test_the_services_are_a_composition() -> None:
    text = (CLUSTER / "compose.yaml").read_text()
    plain = re.sub(r"\$\{\w+(?::-([^}]*))?(?::\?[^}]*)?\}", r"\1", text)
    services = compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(plain)))
    services.validate()
    assert sorted(services.service_names()) == ["buckets", "mlflow", "objects", "postgres"]
    for name in ("postgres", "objects", "mlflow"):
        ports = yaml.safe_load(plain)["services"][name]["ports"]
        assert all(port.startswith("127.0.0.1:") for port in ports), "nothing is open to others"
    assert "postgresql+psycopg://seqtune@postgres" in text, "the address has no password"


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_takes_the_machines_of_a_cloud(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())
    validate_config(prepare_config(config))
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    for name in ("cpu", "gpu"):
        assert kinds[name]["min_workers"] == 0
        assert re.search("spot", str(kinds[name]["node_config"]), re.IGNORECASE)
    for start in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert start[-1].startswith("RAY_AUTH_MODE=token ")
