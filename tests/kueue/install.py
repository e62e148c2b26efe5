"""Kueue on a test cluster: its own manifests, with a small image of its own, and only what a test needs of it."""

import json
import time
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.processes import ClusterError, wait
from tests.kueue.program import source

IMAGE = "localhost/kueue:0.14.0"
NAMESPACE = "kueue-system"
API_VERSION = "kueue.x-k8s.io/v1beta1"
CONFIGURATION = {
    "apiVersion": "config.kueue.x-k8s.io/v1beta1",
    "kind": "Configuration",
    "health": {"healthProbeBindAddress": ":8081"},
    "metrics": {"bindAddress": ":8443"},
    "webhook": {"port": 9443},
    "leaderElection": {"leaderElect": False},
    "clientConnection": {"qps": 50, "burst": 100},
    "integrations": {"frameworks": ["batch/job"]},
}
PRIORITIES = {"low": 100, "high": 1000}


def install(cluster: Cluster, *, manager: Path, folder: Path) -> None:
    """Usable when it returns: queues can be made. manager: the program. folder: for the archive of the image."""
    archive = folder / "kueue.tar"
    archive.write_bytes(images.archive(IMAGE, [{"manager": images.Entry(manager.read_bytes())}], ["/manager"]))
    cluster.load(archive)
    documents = _manifests(cluster)
    definitions = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    rest = [document for document in documents if document["kind"] != "CustomResourceDefinition"]
    # A manager that starts before its resources are served ends once.
    _apply(cluster, definitions)
    names = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    cluster.kubectl("wait", "--for=create", *names, "--timeout=60s")
    cluster.kubectl("wait", "--for=condition=Established", *names, "--timeout=60s")
    _apply(cluster, rest)
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/kueue-controller-manager", "--timeout=240s")
    wait("Kueue's webhooks", lambda: _made(cluster, _basics()), 120)


def queue(cluster: Cluster, namespace: str, *, gpus: int) -> None:
    """A queue `lq` in the namespace, with a quota of its own. A higher priority takes what a lower one has."""
    group = {
        "coveredResources": ["nvidia.com/gpu"],
        "flavors": [{"name": "gpu", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": gpus}]}],
    }
    spec = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [group],
    }
    own = {"name": "lq", "namespace": namespace}
    _apply(
        cluster,
        [
            {"apiVersion": API_VERSION, "kind": "ClusterQueue", "metadata": {"name": namespace}, "spec": spec},
            {"apiVersion": API_VERSION, "kind": "LocalQueue", "metadata": own, "spec": {"clusterQueue": namespace}},
        ],
    )
    cluster.kubectl("wait", "--for=condition=Active", f"clusterqueue/{namespace}", "--timeout=60s")


def _basics() -> list[dict[str, Any]]:
    """What all queues share."""
    flavor = {"apiVersion": API_VERSION, "kind": "ResourceFlavor", "metadata": {"name": "gpu"}}
    classes = [
        {"apiVersion": API_VERSION, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
        for name, value in PRIORITIES.items()
    ]
    return [flavor, *classes]


def _manifests(cluster: Cluster) -> list[dict[str, Any]]:
    text = cluster.kubectl("kustomize", str(source() / "config" / "default"))
    # The test cluster aggregates no APIs: with this one, no namespace could be deleted.
    documents = [document for document in yaml.safe_load_all(text) if document["kind"] != "APIService"]
    for document in documents:
        if document["kind"] == "ConfigMap":
            document["data"] = {"controller_manager_config.yaml": yaml.safe_dump(CONFIGURATION)}
        if document["kind"] == "Deployment":
            _change(document["spec"]["template"]["spec"])
    return documents


def _change(pod: dict[str, Any]) -> None:
    """Our image, which has no user of its own, on a machine with little to spare."""
    pod["securityContext"] = {**pod.get("securityContext", {}), "runAsNonRoot": True, "runAsUser": 65_532}
    container = pod["containers"][0]
    container |= {
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": [*container.get("args", []), "--feature-gates=VisibilityOnDemand=false"],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    }
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    container["livenessProbe"] |= {"initialDelaySeconds": 60}


def _apply(cluster: Cluster, documents: list[dict[str, Any]]) -> None:
    items = {"apiVersion": "v1", "kind": "List", "items": documents}
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=json.dumps(items))


def _made(cluster: Cluster, documents: list[dict[str, Any]]) -> bool:
    """False while the webhooks, which are asked first, don't answer yet."""
    try:
        _apply(cluster, documents)
    except ClusterError:
        time.sleep(0.3)
        return False
    return True
