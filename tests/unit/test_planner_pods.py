"""The pods of a run: what the user may shape and what not, and that they keep the standard `restricted`."""

from collections.abc import Mapping
from typing import Any

import pytest

from comd_operator.planner import labels, num_nodes, plan_job
from tests.unit.runs import make_run
from tests.unit.test_planner_manifests import BATCH, container_of, in_s3, job_of, make, pod_of, variables_of

WISHES: dict[str, Any] = {
    "metadata": {"labels": {"team": "a", "comd.dev/run-uid": "forged"}, "annotations": {"note": "hello"}},
    "spec": {
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "urgent",
        "serviceAccountName": "trainer",
        "schedulerName": "volcano",
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        "terminationGracePeriodSeconds": 600,
    },
}


def test_what_a_user_may_shape() -> None:
    run = make(
        trainer__podTemplate=WISHES,
        trainer__volumeMounts=[{"name": "data", "mountPath": "/data", "readOnly": True}],
        trainer__imagePullPolicy="Always",
        trainer__env=[{"name": "NCCL_DEBUG", "value": "INFO"}],
    )
    plain, job = job_of(make()), job_of(run)
    pod = pod_of(job)
    for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "serviceAccountName", "schedulerName"):
        assert pod[key] == WISHES["spec"][key]
    assert (pod["runtimeClassName"], pod["imagePullSecrets"]) == ("nvidia", [{"name": "registry"}])
    assert pod["terminationGracePeriodSeconds"] == 600
    assert container_of(job)["args"][-2:] == ["--grace-seconds", "590"]
    assert container_of(plain)["args"][-2:] == ["--grace-seconds", "110"], "of the 120 that are the default"
    assert pod["volumes"] == [*pod_of(plain)["volumes"], WISHES["spec"]["volumes"][0]]
    mounts = container_of(job)["volumeMounts"]
    assert mounts == [*container_of(plain)["volumeMounts"], {"name": "data", "mountPath": "/data", "readOnly": True}]
    assert container_of(job)["imagePullPolicy"] == "Always"
    assert variables_of(job)["NCCL_DEBUG"] == "INFO"
    template = job["spec"]["template"]["metadata"]
    assert template["annotations"] == {"note": "hello"}
    assert template["labels"]["team"] == "a"
    assert "team" not in job["metadata"]["labels"]


FOR_GPUS = {"nodeSelector", "affinity", "runtimeClassName"}


def test_preflight_is_not_placed_like_the_stages_that_need_gpus() -> None:
    """A node pool of GPUs has none free, or is not even up, while a run is only looked through: `preflight` does not wait for one."""
    run = make(
        trainer__podTemplate=WISHES, trainer__volumeMounts=[{"name": "data", "mountPath": "/data", "readOnly": True}]
    )
    stage, preflight = pod_of(job_of(run)), pod_of(job_of(run, "preflight"))
    assert stage.keys() - preflight.keys() == FOR_GPUS
    for key in WISHES["spec"].keys() - FOR_GPUS:
        assert preflight[key] == stage[key], f"{key} decides whether a pod may run, not where the GPUs are"
    assert job_of(run, "preflight")["spec"]["template"]["metadata"]["annotations"] == {"note": "hello"}


def test_what_a_user_may_not_shape() -> None:
    run = in_s3(
        make(
            trainer__podTemplate={"metadata": {"labels": dict.fromkeys(labels.of_job(make(), PLAN), "forged")}},
            trainer__env=[
                {"name": name, "value": "mine"} for name in ("HOME", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN")
            ],
        )
    )
    job = job_of(run)
    assert job["spec"]["template"]["metadata"]["labels"] == job["metadata"]["labels"]
    found = variables_of(job)
    assert found["HOME"] == "/scratch"
    assert isinstance(found["AWS_ACCESS_KEY_ID"], dict)
    names = [entry["name"] for entry in container_of(job)["env"]]
    assert len(names) == len(set(names)), "an optional key that is missing would leave the other in force"


PLAN = plan_job(make_run().spec, run="tiny", stage="round-1", job_index=0, attempt=1)

RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def breaches(pod: Mapping[str, Any]) -> list[str]:
    """Rules of the Pod Security Standard `restricted` that a pod breaks (k8s.io/pod-security-admission/policy)."""
    found: list[str] = []
    security = pod.get("securityContext", {})
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += ["sysctls"] if security.get("sysctls") else []
    for volume in pod.get("volumes", []):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} if kind not in RESTRICTED_VOLUMES]
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = {**security, **container.get("securityContext", {})}
        drops, adds = (own.get("capabilities", {}).get(key, []) for key in ("drop", "add"))
        rules = {
            "runAsNonRoot": own.get("runAsNonRoot") is True,
            "runAsUser": own.get("runAsUser") != 0,
            "seccompProfile": own.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "privileged": not own.get("privileged"),
            "procMount": own.get("procMount", "Default") == "Default",
            "capabilities": "ALL" in drops and set(adds) <= {"NET_BIND_SERVICE"},
            "hostPort": not [port for port in container.get("ports", []) if port.get("hostPort")],
        }
        found += [rule for rule, kept in rules.items() if not kept]
    return found


@pytest.mark.parametrize("stage", ["preflight", "pretrain", "round-1"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer__podTemplate": WISHES},
        {"trainer__scratch": {"sizeLimit": "10Gi", "storageClassName": "fast"}},
        {"trainer__numNodes": 2, **BATCH},
    ],
)
def test_pods_keep_the_restricted_standard(stage: str, changes: dict[str, Any]) -> None:
    pod = pod_of(job_of(make(**changes), stage))
    assert breaches(pod) == []
    assert container_of(job_of(make(**changes), stage))["securityContext"]["readOnlyRootFilesystem"] is True


def test_breaches_are_found() -> None:
    pod = pod_of(job_of(make()))
    bare = {**pod, "securityContext": {}, "hostNetwork": True, "volumes": [{"name": "x", "hostPath": {"path": "/"}}]}
    bare["containers"] = [{"name": "x", "ports": [{"hostPort": 80}], "securityContext": {"privileged": True}}]
    assert set(breaches(bare)) == {
        "hostNetwork", "volume hostPath", "runAsNonRoot", "seccompProfile", "allowPrivilegeEscalation", "privileged",
        "capabilities", "hostPort",
    }  # fmt: skip
    assert "runAsUser" in breaches({**pod, "securityContext": {"runAsUser": 0}})


def test_the_user_s_own_security_context_takes_the_place_of_ours() -> None:
    given_context = {"runAsUser": 1000, "runAsNonRoot": True}
    run = make(trainer__podTemplate={"spec": {"securityContext": given_context}})
    assert pod_of(job_of(run))["securityContext"] == given_context
    assert container_of(job_of(run))["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize(
    ("scratch", "volume"),
    [
        ({}, {"emptyDir": {}}),
        ({"sizeLimit": "10Gi"}, {"emptyDir": {"sizeLimit": "10Gi"}}),
        (
            {"sizeLimit": "10Gi", "storageClassName": "fast"},
            {
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "storageClassName": "fast",
                            "resources": {"requests": {"storage": "10Gi"}},
                        }
                    }
                }
            },
        ),
    ],
)
def test_scratch(scratch: dict[str, Any], volume: dict[str, Any]) -> None:
    pod = pod_of(job_of(make(trainer__scratch=scratch)))
    assert pod["volumes"][0] == {"name": "scratch", **volume}


def test_everything_that_is_mounted_is_there_and_everything_that_is_written_to_is_mounted() -> None:
    job = job_of(make())
    mounted = {mount["name"]: mount["mountPath"] for mount in container_of(job)["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod_of(job)["volumes"]}
    assert {"/tmp", "/dev/shm", variables_of(job)["HOME"]} <= set(mounted.values())
    assert num_nodes(make(), PLAN) == 1
