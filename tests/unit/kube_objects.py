"""Jobs and Pods as the API server shows them, for tests of what is made of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from comd_api.stage import StageResult
from comd_api.status import ExitClass
from comd_operator.planner import labels
from comd_operator.runtime.records import JobRecord, PodRecord, read_job, read_pod

RUN_UID, JOB_UID = "11111111-run", "22222222-job"
MADE = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
"""When the Job was made."""
QUEUE = "kueue.x-k8s.io/queue-name"


def at(seconds: float) -> str:
    """A time on the wire, so long after the Job was made."""
    return (MADE + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def now(seconds: float) -> datetime:
    return MADE + timedelta(seconds=seconds)


def condition(kind: str, status: str = "True", *, reason: str = "", message: str = "", since: float = 0.0) -> Any:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at(since)}


def job_object(
    *,
    nodes: int = 1,
    suspend: bool = False,
    queue: str | None = None,
    conditions: list[Any] | None = None,
    deleting: float | None = None,
    started: float | None = None,
    owner: str | None = RUN_UID,
    uid: str = JOB_UID,
    own_labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": "tiny-round-1-a2",
        "namespace": "team",
        "uid": uid,
        "resourceVersion": "7",
        "creationTimestamp": at(0),
        "labels": {
            labels.STAGE: "round-1",
            labels.ATTEMPT: "2",
            labels.JOB_INDEX: "0",
            **({QUEUE: queue} if queue else {}),
            **(own_labels or {}),
        },
    }
    if owner is not None:
        metadata["ownerReferences"] = [{"kind": "DistillationRun", "uid": owner, "controller": True}]
    if deleting is not None:
        metadata["deletionTimestamp"] = at(deleting)
    return {
        "metadata": metadata,
        "spec": {"completions": nodes, "parallelism": nodes, **({"suspend": True} if suspend else {})},
        "status": {
            **({"conditions": conditions} if conditions else {}),
            **({"startTime": at(started)} if started is not None else {}),
        },
    }


def job(**changes: Any) -> JobRecord:
    return read_job(job_object(**changes))


def failed_job(message: str = "Job has reached the specified backoff limit", **changes: Any) -> JobRecord:
    reason = "PodFailurePolicy" if "rule at index" in message else "BackoffLimitExceeded"
    ended = condition("Failed", reason=reason, message=message, since=100)
    return job(conditions=[condition("FailureTarget", reason=reason, message=message, since=98), ended], **changes)


def complete_job(**changes: Any) -> JobRecord:
    return job(conditions=[condition("Complete", reason="CompletionsReached", since=100)], **changes)


def pod_object(
    *,
    index: int = 0,
    phase: str = "Running",
    state: dict[str, Any] | None = None,
    conditions: list[Any] | None = None,
    reason: str = "",
    message: str = "",
    deleting: float | None = None,
    grace: int = 30,
    node: str | None = "node-1",
    owner: str | None = JOB_UID,
) -> dict[str, Any]:
    """state: of the container. deleting: when it is to be gone, its grace period included."""
    metadata: dict[str, Any] = {
        "name": f"tiny-round-1-a2-{index}-abcde",
        "namespace": "team",
        "uid": f"33333333-pod-{index}",
        "resourceVersion": "8",
        "creationTimestamp": at(1),
        "labels": {
            labels.RUN_UID: RUN_UID,
            "batch.kubernetes.io/job-completion-index": str(index),
        },
    }
    if owner is not None:
        metadata["ownerReferences"] = [{"kind": "Job", "uid": owner, "controller": True}]
    if deleting is not None:
        metadata |= {"deletionTimestamp": at(deleting), "deletionGracePeriodSeconds": grace}
    status: dict[str, Any] = {"phase": phase}
    if state is not None:
        status["containerStatuses"] = [{"name": "proxy", "state": {}}, {"name": "trainer", "state": state}]
    for key, value in (("conditions", conditions), ("reason", reason), ("message", message)):
        if value:
            status[key] = value
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


def pod(**changes: Any) -> PodRecord:
    return read_pod(pod_object(**changes))


def running_pod(**changes: Any) -> PodRecord:
    return pod(state={"running": {"startedAt": at(5)}}, **changes)


def waiting_pod(reason: str, message: str = "", **changes: Any) -> PodRecord:
    return pod(phase="Pending", state={"waiting": {"reason": reason, "message": message}}, **changes)


def ended_pod(
    code: int, *, text: str = "", why: str = "", finished: float = 90.0, phase: str | None = None, **changes: Any
) -> PodRecord:
    """text: the termination message, or the log's end where the trainer left none."""
    state = {
        "terminated": {
            "exitCode": code,
            "reason": why or ("Completed" if code == 0 else "Error"),
            "message": text,
            "startedAt": at(5),
            "finishedAt": at(finished),
        }
    }
    return pod(state=state, phase=phase or ("Succeeded" if code == 0 else "Failed"), **changes)


def homeless_pod(message: str, *, since: float = 2.0, **changes: Any) -> PodRecord:
    """One that the scheduler finds no node for."""
    placed = condition("PodScheduled", "False", reason="Unschedulable", message=message, since=since)
    return pod(phase="Pending", node=None, conditions=[placed], **changes)


def disrupted(reason: str) -> list[Any]:
    return [condition("DisruptionTarget", reason=reason, message="told so", since=80)]


def message(exit_class: ExitClass = "Done", text: str = "", **fields: Any) -> str:
    """A trainer's termination message."""
    return StageResult(exit_class=exit_class, message=text, **fields).to_termination_message()
