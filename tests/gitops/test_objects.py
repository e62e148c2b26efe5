"""What examples/gitops has for Argo CD and Flux themselves, on a real API server."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError

EXAMPLES = Path(__file__).parents[2] / "examples" / "gitops"
OBJECTS = ("argocd/application.yaml", "flux/source.yaml", "flux/kustomization.yaml")
NOT_YET = ("no matches for kind", "could not find the requested resource", "not found")


def strictly(cluster: Cluster, namespace: str, document: dict[str, Any]) -> None:
    document = {**document, "metadata": {**document["metadata"], "namespace": namespace}}
    cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", input=json.dumps(document))


@pytest.fixture(scope="module")
def served(control_plane: Cluster, foreign: list[Path]) -> Cluster:
    for path in foreign:
        control_plane.kubectl("apply", "--server-side", "-f", str(path))
        name = yaml.safe_load(path.read_text())["metadata"]["name"]
        control_plane.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")
    return control_plane


@pytest.mark.parametrize("path", OBJECTS)
def test_they_are_as_their_definitions_have_them(served: Cluster, namespace: str, path: str) -> None:
    document = yaml.safe_load((EXAMPLES / path).read_text())
    for _ in range(50):  # the server publishes a new definition's schema a little after it serves the kind
        try:
            strictly(served, namespace, document)
            break
        except ClusterError as error:
            if not any(words in str(error) for words in NOT_YET):
                raise
            time.sleep(0.2)
    else:
        raise AssertionError(f"{document['kind']} is never served")
    with pytest.raises(ClusterError, match="unknown field"):
        strictly(served, namespace, {**document, "spec": {**document["spec"], "waiting": True}})


def test_the_patch_of_argocd_cm_leaves_the_rest(control_plane: Cluster, namespace: str) -> None:
    def kubectl(*arguments: str) -> str:
        return control_plane.kubectl("--namespace", namespace, *arguments)

    kubectl("create", "configmap", "argocd-cm", "--from-literal=url=https://argocd.example.com")
    patch = EXAMPLES / "argocd" / "argocd-cm.yaml"
    kubectl("patch", "configmap", "argocd-cm", "--type=merge", f"--patch-file={patch}")
    data = json.loads(kubectl("get", "configmap", "argocd-cm", "-o", "json"))["data"]
    assert data == {"url": "https://argocd.example.com", **yaml.safe_load(patch.read_text())["data"]}


def test_names_and_secrets_of_an_overlay_reach_both_kinds(control_plane: Cluster, tmp_path: Path) -> None:
    """Since base/fields.yaml says where they are."""
    secret = {"name": "s3", "literals": ["AWS_ACCESS_KEY_ID=a"], "options": {"disableNameSuffixHash": True}}
    overlay = {
        "resources": [os.path.relpath(EXAMPLES / "base", tmp_path.resolve())],
        "namePrefix": "vision-",
        "secretGenerator": [secret],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay))
    made = {one["kind"]: one for one in yaml.safe_load_all(control_plane.kubectl("kustomize", str(tmp_path)))}
    name = made["Secret"]["metadata"]["name"]
    specs = [made["DistillationRun"]["spec"], made["DistillationSchedule"]["spec"]["runTemplate"]["spec"]]
    assert name == "vision-s3"
    assert [spec["storage"]["s3"]["secretRef"]["name"] for spec in specs] == [name] * 2
