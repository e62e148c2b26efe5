"""The cluster with nodes: what tests of the operator and of the trainer in pods rely on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import images
from tests.cluster.cluster import GPUS, Cluster
from tests.cluster.layout import TRAINER_IMAGE

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def container(command: list[str], **more: Any) -> dict[str, Any]:
    return {
        "name": "main",
        "image": TRAINER_IMAGE,
        "command": command,
        "securityContext": RESTRICTED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": {"requests": {"cpu": "10m"}},
        **more,
    }


def pod(command: list[str], *, node: str | None = None, **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"restartPolicy": "Never", "containers": [container(command, **more)]}
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


def job(spec: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", **template}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {**spec, "template": template}}


class World:
    """One namespace of the cluster."""

    def __init__(self, cluster: Cluster, namespace: str):
        self.cluster, self.namespace = cluster, namespace

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def apply(self, *objects: dict[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.cluster.apply(json.dumps(items), namespace=self.namespace)

    def wait(self, what: str, condition: str) -> None:
        self.kubectl("wait", f"--for={condition}", what, "--timeout=120s")

    def ended(self, what: str = "pod/p") -> dict[str, Any]:
        """How the pod's container did."""
        self.wait(what, "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}")
        status = json.loads(self.kubectl("get", what, "-o", "json"))["status"]
        terminated: dict[str, Any] = status["containerStatuses"][0]["state"]["terminated"]
        return terminated


@pytest.fixture
def world(cluster: Cluster, namespace: str) -> World:
    return World(cluster, namespace)


def test_a_restricted_pod_runs_this_python_with_this_checkout(world: World) -> None:
    code = "import comd_api, os, sys; print(os.getuid(), sys.prefix, comd_api.__file__, 'torch' in sys.modules)"
    world.apply(pod(["python", "-c", code]))
    assert world.ended()["exitCode"] == 0
    import comd_api

    assert world.kubectl("logs", "p").split() == ["1000", sys.prefix, comd_api.__file__, "False"]


def test_pods_on_two_nodes_find_each_other_by_name_and_hold_their_gpus(world: World) -> None:
    server = "import socket; s = socket.create_server(('', 5000)); print(s.accept()[0].recv(9))"
    client = """
import socket, time
while True:
    try:
        socket.create_connection(('j-0.ring', 5000), timeout=5).send(b'hello')
        break
    except OSError:
        time.sleep(0.2)
"""
    command = [
        "sh",
        "-c",
        'case $JOB_COMPLETION_INDEX in 0) exec python -c "$SERVER";; *) exec python -c "$CLIENT";; esac',
    ]
    environment = [{"name": "SERVER", "value": server}, {"name": "CLIENT", "value": client}]
    resources = {"limits": {"nvidia.com/gpu": GPUS}, "requests": {"cpu": "10m"}}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "ring"},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": "j"}},
    }
    indexed = {"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimit": 0}
    ring = {"subdomain": "ring", "containers": [container(command, env=environment, resources=resources)]}
    world.apply(service, job(indexed, ring))
    world.wait("job/j", "condition=Complete")
    assert "hello" in world.kubectl("logs", "-l", "batch.kubernetes.io/job-completion-index=0")
    pods = json.loads(world.kubectl("get", "pods", "-o", "json"))["items"]
    assert sorted(item["spec"]["nodeName"] for item in pods) == ["node-0", "node-1"]


def test_a_pod_that_asks_for_more_gpus_than_a_node_has_waits(world: World) -> None:
    world.apply(pod(["true"], resources={"limits": {"nvidia.com/gpu": GPUS + 1}}))
    world.wait("pod/p", "condition=PodScheduled=False")
    condition = json.loads(world.kubectl("get", "pod", "p", "-o", "json"))["status"]["conditions"][0]
    assert condition["reason"] == "Unschedulable"
    assert "Insufficient nvidia.com/gpu" in condition["message"]


def test_exit_64_fails_a_job_at_once(world: World) -> None:
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [64]}}
    spec = {"backoffLimit": 6, "podFailurePolicy": {"rules": [rule]}}
    world.apply(job(spec, {"containers": [container(["sh", "-c", "echo no such model; exit 64"])]}))
    world.wait("job/j", "condition=Failed")
    status = json.loads(world.kubectl("get", "job", "j", "-o", "json"))["status"]
    assert status["failed"] == 1
    assert {condition["reason"] for condition in status["conditions"]} == {"PodFailurePolicy"}
    message = "{.items[0].status.containerStatuses[0].state.terminated.message}"
    assert world.kubectl("get", "pods", "-o", f"jsonpath={message}") == "no such model\n"


def test_memory_beyond_the_limit_ends_a_container(world: World) -> None:
    limits = {"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m"}}
    world.apply(pod(["python", "-c", "bytearray(200_000_000); input()"], resources=limits))
    ended = world.ended()
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_a_pod_reaches_the_s3_server_that_the_test_reaches(world: World) -> None:
    s3 = world.cluster.s3
    s3.make_bucket(world.namespace)
    code = (
        "import boto3, os\n"
        "s3 = boto3.client('s3', endpoint_url=os.environ['ENDPOINT'], region_name='us-east-1')\n"
        "print([bucket['Name'] for bucket in s3.list_buckets()['Buckets']])\n"
    )
    variables = {**s3.environment, "ENDPOINT": s3.endpoint}
    world.apply(pod(["python", "-c", code], env=[{"name": name, "value": value} for name, value in variables.items()]))
    assert world.ended()["exitCode"] == 0
    assert world.namespace in world.kubectl("logs", "p")


def test_an_image_of_an_archive_runs(world: World, tmp_path: Path) -> None:
    program = images.Entry(Path(world.cluster.layout.program("pause")).read_bytes())
    (tmp_path / "image.tar").write_bytes(images.archive("localhost/archived:1", [{"pause": program}]))
    world.cluster.load(tmp_path / "image.tar")
    world.apply(pod(["/pause"], image="localhost/archived:1"))
    world.wait("pod/p", "condition=Ready")


def test_a_node_whose_power_was_cut_comes_back_with_its_images_and_gpus(world: World) -> None:
    world.cluster.stop_node(1)
    assert world.cluster.nodes == ["node-0"]
    world.cluster.start_node(1)
    resources = {"limits": {"nvidia.com/gpu": GPUS}, "requests": {"cpu": "10m"}}
    world.apply(pod(["python", "-c", "import comd_api"], node="node-1", resources=resources))
    assert world.ended()["exitCode"] == 0
