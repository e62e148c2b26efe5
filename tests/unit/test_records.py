"""What is remembered of objects."""

import json
from datetime import UTC, datetime

import pytest

from comd_operator.planner import labels
from comd_operator.runtime.records import read_job, read_pod, read_run
from tests.unit.kube_objects import RUN_UID, at, condition, job, job_object, now, pod_object


def test_a_job_is_remembered_by_who_controls_it() -> None:
    assert job().owner == RUN_UID
    assert job(owner=None).owner is None
    strange = job_object()
    strange["metadata"]["ownerReferences"][0]["controller"] = False
    assert read_job(strange).owner is None, "who only lists an owner is not controlled by it"


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5"])
def test_labels_that_somebody_has_written_over_do_no_harm(text: str) -> None:
    assert job(own_labels={labels.ATTEMPT: text, labels.JOB_INDEX: text}).attempt == 0
    bare = job_object()
    del bare["metadata"]["labels"]
    del bare["status"]
    assert (read_job(bare).stage, read_job(bare).attempt, read_job(bare).ended) == ("", 0, None)


def test_a_pod_with_nothing_in_it() -> None:
    bare = {"metadata": pod_object()["metadata"] | {"labels": None, "ownerReferences": None}, "spec": {}}
    found = read_pod(bare)
    assert (found.owner, found.job_uid, found.index, found.phase, found.started) == (None, None, 0, "Pending", False)


def test_only_the_trainer_s_container_counts() -> None:
    """A mesh's sidecar may have been put beside it."""
    found = pod_object(state={"running": {}})
    found["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 9}}
    assert (read_pod(found).exit_code, read_pod(found).started) == (None, True)


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("False", "Unschedulable", "no node"),
        ("False", "SchedulerError", None),
        ("False", "SchedulingGated", None),
        ("True", "", None),
    ],
)
def test_only_a_scheduler_that_found_no_node_makes_a_pod_unschedulable(
    status: str, reason: str, words: str | None
) -> None:
    placed = condition("PodScheduled", status, reason=reason, message="no node", since=7)
    found = read_pod(pod_object(phase="Pending", node=None, conditions=[placed]))
    assert found.unschedulable == words
    assert found.unschedulable_since == (now(7) if words is not None else None)


def test_a_run_is_remembered_without_what_only_the_api_server_needs() -> None:
    obj = {
        "apiVersion": "comd.dev/v1alpha1",
        "kind": "DistillationRun",
        "metadata": {
            "name": "tiny",
            "namespace": "team",
            "uid": RUN_UID,
            "generation": 3,
            "resourceVersion": "9",
            "creationTimestamp": at(0),
            "deletionTimestamp": at(9),
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x" * 10_000},
        },
        "spec": {"queue": {"name": "gpus"}},
        "status": {"phase": "Queued"},
    }
    found = read_run(obj)
    assert (found.owner, found.phase) == (RUN_UID, "Queued")
    assert found.deleting == datetime(2026, 1, 1, 12, 0, 9, tzinfo=UTC)
    body = json.loads(found.body)
    assert (body["spec"], body["status"], body["kind"]) == (obj["spec"], obj["status"], obj["kind"])
    assert body["metadata"].keys() == {"name", "namespace", "uid", "generation", "resourceVersion"}
    assert read_run({**obj, "spec": {}, "status": {}}).phase is None


def test_what_failed_before_the_trainer_is_named() -> None:
    found = pod_object(phase="Failed")
    found["status"]["initContainerStatuses"] = [
        {"name": "fetch", "state": {"terminated": {"exitCode": 0}}},
        {"name": "mesh", "state": {"terminated": {"exitCode": 3}}},
    ]
    assert read_pod(found).init_failed == "its init container mesh ended with 3"
    assert read_pod(pod_object()).init_failed == ""
