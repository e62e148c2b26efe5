"""A cluster that distils: our custom resource, an operator at work, inputs in a bucket. And one run on it."""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comd_api import API_VERSION
from comd_api.stage import Progress
from comd_operator.planner import labels
from comd_operator.planner.defaults import TRAINER_PORT
from tests.cluster.cluster import Cluster
from tests.cluster.processes import wait
from tests.nodes import image
from tests.nodes.api import Api
from tests.nodes.operator_process import OperatorProcess

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = (ROOT / "crds", ROOT / "operator" / "rbac.yaml")
SLOW = 600.0
"""Seconds for what takes a few on an idle machine: others may keep all cores busy."""
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


class Site:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.api = Api(cluster)
        self.operator = OperatorProcess(cluster)

    def set_up(self) -> None:
        """The custom resource, the operator's rights, the image, the operator."""
        self.cluster.kubectl("apply", *(f"--filename={path}" for path in INSTALLED))
        wait("our custom resource", lambda: self.api.get(f"/apis/{API_VERSION}/distillationruns"), 60)
        image.provide(self.cluster)
        self.operator.start()

    def namespace(self, name: str, *, secret: bool = True, quota: dict[str, str] | None = None) -> str:
        """A new namespace in which only restricted pods may run, with the Secret of the store."""
        full = f"{name}-{os.urandom(2).hex()}"
        objects: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": full, "labels": RESTRICTED}}
        ]
        if secret:
            objects.append(self._secret(full))
        if quota:
            meta = {"name": "quota", "namespace": full}
            objects.append({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": quota}})
        self.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        return full

    def _secret(self, namespace: str) -> dict[str, Any]:
        """The store's keys, by the name that the operator expects."""
        s3 = self.cluster.s3
        data = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
        metadata = {"name": "s3", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}

    def create_secret(self, namespace: str) -> None:
        self.cluster.apply(json.dumps(self._secret(namespace)))

    def apply(self, document: dict[str, Any], namespace: str) -> "Run":
        self.cluster.apply(json.dumps(document), namespace=namespace)
        return Run(self, namespace, document["metadata"]["name"])

    def bring_back(self, node: int) -> None:
        """Gives a node its power back, and the image of these tests."""
        self.cluster.start_node(node)
        image.provide(self.cluster)


@dataclass(frozen=True)
class Run:
    site: Site
    namespace: str
    name: str

    # ---- what the API server knows

    def object(self) -> dict[str, Any]:
        found: dict[str, Any] = self.site.api.get(
            f"/apis/{API_VERSION}/namespaces/{self.namespace}/distillationruns/{self.name}"
        )
        return found

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.object().get("status", {})
        return status

    def stage(self, name: str) -> dict[str, Any]:
        """The ledger's entry; empty before the stage has begun."""
        return next((entry for entry in self.status().get("stages", []) if entry["name"] == name), {})

    def jobs(self) -> list[str]:
        return sorted(job["metadata"]["name"] for job in self.job_objects())

    def job_objects(self) -> list[dict[str, Any]]:
        return self._list("/apis/batch/v1", "jobs")

    def pods(self, **wanted: str) -> list[dict[str, Any]]:
        """With these of our labels: `stage`, `attempt` …"""
        selector = ",".join([labels.SELECTOR, *(f"comd.dev/{name}={value}" for name, value in wanted.items())])
        return self._list("/api/v1", "pods", labelSelector=selector)

    def events(self) -> list[dict[str, Any]]:
        """Of the run itself, in order."""
        found = self._list("/api/v1", "events", fieldSelector="involvedObject.kind=DistillationRun")
        return sorted(found, key=lambda event: (event["firstTimestamp"], event["metadata"]["creationTimestamp"]))

    def _list(self, group: str, resource: str, **query: str) -> list[dict[str, Any]]:
        listed = self.site.api.get(f"{group}/namespaces/{self.namespace}/{resource}", **query)
        items: list[dict[str, Any]] = listed["items"]
        return items

    def quota_used(self) -> dict[str, str]:
        """Of the namespace's ResourceQuota."""
        used: dict[str, str] = self._list("/api/v1", "resourcequotas")[0].get("status", {}).get("used", {})
        return used

    def kubectl(self, *arguments: str) -> str:
        return self.site.cluster.kubectl("-n", self.namespace, *arguments)

    def change(self, **spec: Any) -> None:
        self.kubectl("patch", "drun", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    # ---- waiting

    def until(self, what: Callable[[dict[str, Any]], Any], *, seconds: float = SLOW) -> dict[str, Any]:
        """The status once it is as wanted. A run that has failed will not be."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            if what(status):
                return status
            text = json.dumps(status, indent=1)
            assert status.get("phase") != "Failed", f"{self.namespace} failed: {text}"
            assert time.monotonic() < deadline, f"{self.namespace}: not so after {seconds:g} s: {text}"
            time.sleep(0.2)

    def until_phase(self, phase: str, *, seconds: float = SLOW) -> dict[str, Any]:
        return self.until(lambda status: status.get("phase") == phase, seconds=seconds)

    def until_idle(self, *, seconds: float = SLOW) -> None:
        """Until no pod runs or could run."""
        deadline = time.monotonic() + seconds
        while live := [pod for pod in self.pods() if pod["status"]["phase"] in ("Pending", "Running")]:
            assert time.monotonic() < deadline, (
                f"{self.namespace} still has {[pod['metadata']['name'] for pod in live]}"
            )
            time.sleep(0.2)

    def until_step(self, step: int, *, seconds: float = SLOW) -> tuple[dict[str, Any], int]:
        """The pod (of index 0) that trains, once it has done so many steps, and how many it has."""
        deadline = time.monotonic() + seconds
        while True:
            for pod in self.pods(stage="round-1"):
                said = _progress(pod)
                if said is not None and said.phase == "tune" and said.done >= step:
                    return pod, said.done
            assert time.monotonic() < deadline, f"{self.namespace} never came to step {step}: {self.status()}"
            time.sleep(0.1)

    # ---- what pods and stages have left

    def log(self, pod: dict[str, Any]) -> list[dict[str, Any]]:
        """Our own lines of it; libraries write others between them."""
        text = self.kubectl("logs", pod["metadata"]["name"])
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def resumed_at(self, attempt: int) -> int:
        """The step that an attempt of round 1 went on from; 0 when it began anew."""
        lines = [line for pod in self.pods(stage="round-1", attempt=str(attempt)) for line in self.log(pod)]
        found = [re.search(r"continues from the checkpoint of step (\d+)", line["message"]) for line in lines]
        steps = {int(match[1]) for match in found if match}
        assert len(steps) <= 1, steps
        return steps.pop() if steps else 0

    def files(self) -> dict[str, str]:
        """SHA-256 of every file of every artifact, by `stage/phase/file`; all are what their manifests say."""
        found: dict[str, str] = {}
        for manifest in sorted(self._stored().glob("*/*/*/manifest.json")):
            stage, phase = manifest.relative_to(self._stored()).parts[:2]
            content = json.loads(manifest.read_text())
            for entry in content["files"]:
                data = (manifest.parent / content["root"] / entry["path"]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == entry["sha256"], f"{manifest}: {entry['path']}"
                found[f"{stage}/{phase}/{entry['path']}"] = entry["sha256"]
        return found

    def leftovers(self) -> list[str]:
        """What attempts have left half done, checkpoints above all."""
        files = (path for path in self._stored().glob("*/*/*/partial/**/*") if path.is_file())
        return [path.relative_to(self._stored()).as_posix() for path in files]

    def _stored(self) -> Path:
        """The S3 server keeps objects as files."""
        uri: str = self.object()["spec"]["storage"]["uri"]
        return self.site.cluster.s3.folder / uri.removeprefix("s3://") / self.namespace / self.name


def _progress(pod: dict[str, Any]) -> Progress | None:
    """What its trainer says of itself, if it runs and says anything."""
    address = pod["status"].get("podIP")
    if address is None or pod["status"]["phase"] != "Running":
        return None
    try:
        with urllib.request.urlopen(f"http://{address}:{TRAINER_PORT}/progress", timeout=2) as answer:
            return Progress.model_validate(json.load(answer))
    except (urllib.error.URLError, OSError, ValueError):
        return None


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    """Status, reason, message."""
    found = next((entry for entry in status.get("conditions", []) if entry["type"] == kind), None)
    return (found["status"], found["reason"], found["message"]) if found else ("", "", "")
