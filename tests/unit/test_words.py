"""Why a Job waits, in the words of Kueue 0.14 (measured: ../shared/peers.md A3 and A4), or of the Job's events."""

from typing import Any

import pytest

from comd_operator.policies.queue import Wait
from comd_operator.runtime.records import JobRecord
from comd_operator.runtime.words import NO_WORKLOAD_SECONDS, of_events, of_workload
from tests.unit.kube_objects import at, condition, job, now

QUEUED = job(suspend=True, queue="gpus", conditions=[condition("Suspended", since=0)])
PREEMPTED = "Preempted to accommodate a workload (UID: a, JobUID: b) due to prioritization in the ClusterQueue"
NO_QUOTA = (
    "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu in flavor gpu, 4 more needed"
)


TAINTED = "untolerated taint {team other NoSchedule <nil>} in flavor spot"


def too_large(flavor: str = "gpu") -> str:
    return f"insufficient quota for nvidia.com/gpu in flavor {flavor}, request > maximum capacity (8 > 4)"


def unused(flavor: str = "gpu", resource: str = "nvidia.com/gpu") -> str:
    return f"insufficient unused quota for {resource} in flavor {flavor}, 4 more needed"


def assigning(*reasons: str) -> str:
    return "couldn't assign flavors to pod set main: " + ", ".join(reasons)


def workload(*conditions: Any, active: bool | None = None) -> dict[str, Any]:
    spec = {} if active is None else {"active": active}
    return {"spec": spec, "status": {"conditions": list(conditions)}}


def pending(text: str, reason: str = "Pending") -> Any:
    return condition("QuotaReserved", "False", reason=reason, message=text)


def evicted(reason: str, text: str = "told so", status: str = "True") -> Any:
    return condition("Evicted", status, reason=reason, message=text)


WORKLOADS: dict[str, tuple[dict[str, Any], Wait | None]] = {
    "just made": (workload(), None),
    "just made, without a status": ({"spec": {"active": True}}, None),
    "no quota": (workload(pending(NO_QUOTA)), Wait(reason="Pending", message=NO_QUOTA)),
    "preempts another": (
        workload(pending(f"{NO_QUOTA}. Pending the preemption of 1 workload(s)")),
        Wait(reason="Pending", message=f"{NO_QUOTA}. Pending the preemption of 1 workload(s)"),
    ),
    "admitted, before its Job is told": (
        workload(condition("QuotaReserved", reason="QuotaReserved"), condition("Admitted", reason="Admitted")), None,
    ),
    "preempted": (
        workload(evicted("Preempted", PREEMPTED), condition("Preempted", reason="InClusterQueue")),
        Wait(reason="Preempted", message=PREEMPTED),
    ),
    "preempted and queued again": (
        workload(evicted("Preempted", PREEMPTED), pending(NO_QUOTA), condition("Requeued", reason="Preempted")),
        Wait(reason="Preempted", message=PREEMPTED),
    ),
    "resumed": (
        workload(
            evicted("QuotaReserved", f"Previously: {PREEMPTED}", "False"), condition("QuotaReserved", reason="QuotaReserved")
        ),
        None,
    ),
    "deactivated": (
        workload(evicted("Deactivated", "The workload is deactivated"), active=False),
        Wait(reason="Deactivated", message="The workload is deactivated", stuck=True),
    ),
    "deactivated before it was admitted": (
        workload(pending(NO_QUOTA), active=False),
        Wait(reason="Deactivated", message="the Workload is deactivated", stuck=True),
    ),
    "deactivated after it was once preempted": (
        workload(evicted("QuotaReserved", f"Previously: {PREEMPTED}", "False"), active=False),
        Wait(reason="Deactivated", message="the Workload is deactivated", stuck=True),
    ),
    "longer than its label allows": (
        workload(evicted("DeactivatedDueToMaximumExecutionTimeExceeded", "exceeding the maximum"), active=False),
        Wait(reason="DeactivatedDueToMaximumExecutionTimeExceeded", message="exceeding the maximum", stuck=True),
    ),
    "activated again": (workload(active=True), None),
    "unknown queue": (
        workload(pending("LocalQueue nowhere doesn't exist", "Inadmissible")),
        Wait(reason="Inadmissible", message="LocalQueue nowhere doesn't exist", stuck=True),
    ),
    "its queue went while it was out": (
        workload(evicted("Preempted", PREEMPTED), pending("LocalQueue gpus doesn't exist", "Inadmissible")),
        Wait(reason="Inadmissible", message="LocalQueue gpus doesn't exist", stuck=True),
    ),
    "stopped and drained": (
        workload(evicted("ClusterQueueStopped", "The ClusterQueue is stopped")),
        Wait(reason="ClusterQueueStopped", message="The ClusterQueue is stopped"),
    ),
    "stopped": (
        workload(
            evicted("ClusterQueueStopped", "The ClusterQueue is stopped"), pending("ClusterQueue cq is inactive", "Inadmissible")
        ),
        Wait(reason="Inadmissible", message="ClusterQueue cq is inactive", stuck=True),
    ),
    "more than the queue's maximum": (
        workload(pending(assigning(too_large()))),
        Wait(reason="Pending", message=assigning(too_large()), stuck=True),
    ),
    "more than the maximum, in the words of later versions": (
        workload(
            pending(
                assigning(
                    "insufficient quota for nvidia.com/gpu in flavor gpu, previously considered podsets requests (0) + current podset "
                    "request (8) > maximum capacity (4)"
                )
            )
        ),
        Wait(
            reason="Pending",
            message=assigning(
                "insufficient quota for nvidia.com/gpu in flavor gpu, previously considered podsets requests (0) + current podset "
                "request (8) > maximum capacity (4)"
            ),
            stuck=True,
        ),
    ),
    "more than one flavor's maximum, and another's is only in use": (
        workload(pending(assigning(too_large("spot"), unused("on-demand")))),
        Wait(reason="Pending", message=assigning(too_large("spot"), unused("on-demand"))),
    ),
    "more than the maximum of each of two flavors": (
        workload(pending(assigning(too_large("spot"), too_large("on-demand")))),
        Wait(reason="Pending", message=assigning(too_large("spot"), too_large("on-demand")), stuck=True),
    ),
    "more than the maximum, of a flavor that has no CPU left either": (
        workload(pending(assigning(unused(resource="cpu"), too_large()))),
        Wait(reason="Pending", message=assigning(unused(resource="cpu"), too_large()), stuck=True),
    ),
    "a resource that the queue has nothing of": (
        workload(pending(assigning("resource cpu unavailable in ClusterQueue"))),
        Wait(reason="Pending", message=assigning("resource cpu unavailable in ClusterQueue"), stuck=True),
    ),
    "no flavor that its pods may run on": (
        workload(pending(assigning(TAINTED, "flavor big doesn't match node affinity"))),
        Wait(reason="Pending", message=assigning(TAINTED, "flavor big doesn't match node affinity"), stuck=True),
    ),
    "one flavor that its pods may not run on, and another that is in use": (
        workload(pending(assigning("flavor spot doesn't match node affinity", unused("big")))),
        Wait(reason="Pending", message=assigning("flavor spot doesn't match node affinity", unused("big"))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_the_words_of_a_workload(name: str) -> None:
    found, words = WORKLOADS[name]
    assert of_workload(found, job=QUEUED, now=now(600)) == words


@pytest.mark.parametrize(
    ("waiting", "after", "told"),
    [
        (QUEUED, 0.0, False),
        (QUEUED, NO_WORKLOAD_SECONDS - 0.1, False),
        (QUEUED, NO_WORKLOAD_SECONDS, True),
        (job(suspend=True, queue="gpus"), NO_WORKLOAD_SECONDS, True),
        # Counted from the newest suspension: a Workload that was just deleted is made again.
        (job(suspend=True, queue="gpus", conditions=[condition("Suspended", since=100)]), 104.0, False),
    ],
)
def test_a_job_without_a_workload(waiting: JobRecord, after: float, told: bool) -> None:
    """Kueue makes none for an unknown priority class, and says so nowhere but in its log."""
    words = of_workload(None, job=waiting, now=now(after))
    assert (words is not None) == told
    if words is not None:
        assert (words.reason, words.stuck) == ("NoWorkload", True)
        assert "priority class" in words.message


def event(reason: str, text: str, seconds: float | None, *, new_style: bool = False) -> dict[str, Any]:
    key = "eventTime" if new_style else "lastTimestamp"
    return {"reason": reason, "message": text, key: at(seconds) if seconds is not None else None}


@pytest.mark.parametrize(
    ("events", "suspended", "words"),
    [
        ([], True, None),
        ([], False, None),
        ([event("CreatedWorkload", "made", 1)], True, Wait(reason="CreatedWorkload", message="made")),
        (
            [event("Stopped", PREEMPTED, 60), event("CreatedWorkload", "made", 1), event("Started", "by cq", 2)],
            True,
            Wait(reason="Stopped", message=PREEMPTED),
        ),
        ([event("SuccessfulCreate", "pod", 1), event("Suspended", "Job suspended", 3)], True, None),
        (
            [event("FailedCreate", "quota 1", 1), event("FailedCreate", "quota 2", 9, new_style=True)],
            False,
            Wait(reason="FailedCreate", message="quota 2", stuck=True),
        ),
        ([event("FailedCreate", "before", 1)], True, None),
        ([event("Stopped", "before", 1)], False, None),
        ([event("FailedCreate", "no time", None)], False, Wait(reason="FailedCreate", message="no time", stuck=True)),
    ],
)
def test_the_words_of_events(events: list[dict[str, Any]], suspended: bool, words: Wait | None) -> None:
    assert of_events(events, suspended=suspended) == words


QUOTA = 'pods "x" is forbidden: exceeded quota: gpus, requested: limits.memory=64Gi,requests.nvidia.com/gpu=2, used: {}, limited: {}'


@pytest.mark.parametrize(
    ("limited", "stuck"),
    [
        ("limits.memory=128Gi,requests.nvidia.com/gpu=2", False),
        ("limits.memory=64Gi,requests.nvidia.com/gpu=2", False),
        ("limits.memory=32Gi,requests.nvidia.com/gpu=2", True),
        ("limits.memory=65536Mi,requests.nvidia.com/gpu=1", True),
        ("limits.memory=?,requests.nvidia.com/gpu=2", True),
    ],
)
def test_a_namespace_s_quota_is_waited_for_if_it_could_ever_do(limited: str, stuck: bool) -> None:
    text = QUOTA.format("limits.memory=64Gi,requests.nvidia.com/gpu=2", limited)
    words = of_events([event("FailedCreate", text, 1)], suspended=False)
    assert words == Wait(reason="FailedCreate", message=text, stuck=stuck)
