"""What the pods of a Job wait for that has none running, and whether that can end: in the words of the queue, the scheduler or the
kubelet, or in ours where nobody says anything. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from comd_operator.policies.queue import Wait
from comd_operator.runtime.records import JobRecord, PodRecord

QUIET_SECONDS = 20.0
"""Nothing that works takes so long to make a pod or to say why it has no node."""
UNBOUND_SECONDS = 5.0
"""A claim may be bound only after its volume was made: until then it is no news that it isn't."""
_NO_NODES = "no nodes available"
_ALL_NODES = re.compile(r"preemption: 0/(\d+) nodes are available: (?:\d+ [^,]*, )*(\d+) Preemption is not helpful")
_NO_CLAIM = re.compile(r'persistentvolumeclaim "[^"]*" not found')
_UNBOUND = "unbound immediate PersistentVolumeClaims"
_NEVER_PREEMPTS = "not eligible due to preemptionPolicy=Never"
_REASONS = re.compile(r"0/(\d+) nodes are available: (.*?)\.(?: |$)")
_IN_USE = re.compile(r"Insufficient|Too many pods|free ports|anti-affinity|topology spread|volume count|free storage")
"""In the scheduler's words for a node that may have room later."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """Why nothing of a Job runs, and when there is more to say of it."""

    wait: Wait
    gives_up_in: float | None = None
    """Seconds of patience left, where more waiting is no use; its Job is then deleted and made again later."""
    changes_in: float | None = None
    """Seconds until it counts as stuck though nobody has said so."""


def podless_key(job: JobRecord) -> str:
    """Under which it is counted for how long a Job has had no pods."""
    return f"{job.uid}/podless"


def since_when(job: JobRecord, pods: Sequence[PodRecord]) -> datetime:
    """Since when a Job of which nothing runs has been free to: its pods have their nodes, it was admitted, it was made."""
    return max((pod.placed for pod in pods if pod.placed is not None), default=None) or job.started or job.created


def are_unseen(job: JobRecord, pods: Sequence[PodRecord], ages: Mapping[str, float]) -> bool:
    """Whether a Job's pods may be there though no watch tells of them: its controller has counted them for long."""
    silent = job.ended is None and job.has_pods and not any(pod.job_uid == job.uid for pod in pods)
    return silent and ages.get(podless_key(job), 0.0) >= QUIET_SECONDS


def podless_for(job: JobRecord, pods: Sequence[PodRecord], *, ages: Mapping[str, float], now: datetime) -> float | None:
    """Seconds for which a Job has had no pods; None when it has some. Since its start, which a start of ours does not change;
    where its controller has not noticed yet that the pods are gone, since we have seen that."""
    seen = ages.get(podless_key(job))
    if pods:
        return None
    if seen is None or job.started is None or job.has_pods:
        return seen
    return _seconds(job.started, now)


def _unplaced_for(job: JobRecord, pod: PodRecord, now: datetime) -> float:
    """Of a pod that may have been made long after its Job, such as when a quota had no room for it."""
    return _seconds(max(pod.created, job.started or job.created), now)


def held(
    job: JobRecord,
    pods: Sequence[PodRecord],
    *,
    wait: Wait | None,
    ages: Mapping[str, float],
    patience_seconds: float,
    now: datetime,
) -> Held | None:
    """What a Job's pods wait for that are to be placed or made. ages: seconds for which the Job has had no pods, by `podless_key`."""
    homeless = next((pod for pod in pods if pod.unschedulable is not None), None)
    if homeless is not None and homeless.unschedulable is not None:
        age = _seconds(homeless.unschedulable_since or job.created, now)
        return _in_the_scheduler_s_words(homeless.unschedulable, age=age, patience_seconds=patience_seconds)
    if any(pod.started for pod in pods):
        return None
    age = _seconds(since_when(job, pods), now)
    if wait is not None:
        return Held(wait=wait, gives_up_in=patience_seconds - age if wait.stuck else None)
    if job.deleting is not None:
        return None
    gated = next((pod for pod in pods if pod.gated is not None), None)
    if gated is not None:
        words = f"pod {gated.name} has a scheduling gate that nobody has taken off: {gated.gated}"
        return _stuck_later(
            "SchedulingGated", words, age=_unplaced_for(job, gated, now), patience_seconds=patience_seconds
        )
    alone = next((pod for pod in pods if pod.node is None and pod.placed is None), None)
    if alone is not None and (age := _unplaced_for(job, alone, now)) >= QUIET_SECONDS:
        return _stuck_later("NotScheduled", _not_scheduled(alone), age=age, patience_seconds=patience_seconds)
    podless = podless_for(job, pods, ages=ages, now=now)
    if podless is not None and (podless >= QUIET_SECONDS or job.parallelism == 0):
        words = f"Job {job.name} has no pods, and {_why_podless(job)}"
        return _stuck_later("NoPods", words, age=podless, patience_seconds=patience_seconds)
    return None


def _not_scheduled(pod: PodRecord) -> str:
    if pod.scheduler_error is not None:
        return f"the scheduler can't look for a node for pod {pod.name}: {pod.scheduler_error}"
    return f"no scheduler has looked at pod {pod.name}; check trainer.podTemplate.spec.schedulerName, and that this scheduler runs"


def _why_podless(job: JobRecord) -> str:
    if job.parallelism == 0:
        return "somebody has set its spec.parallelism to 0"
    return "the Job controller has not noticed that they are gone" if job.has_pods else "no event of it says why"


def speaks_in(
    job: JobRecord, pods: Sequence[PodRecord], *, wait: Wait | None, ages: Mapping[str, float], now: datetime
) -> float | None:
    """Seconds until silence is news of its own, where `held` has nothing to say yet."""
    if wait is not None or any(pod.started for pod in pods):
        return None
    podless = podless_for(job, pods, ages=ages, now=now)
    if podless is not None:
        return QUIET_SECONDS - podless
    alone = next((pod for pod in pods if pod.node is None and pod.placed is None), None)
    return QUIET_SECONDS - _unplaced_for(job, alone, now) if alone is not None else None


def no_node_could(message: str) -> bool:
    """Whether the scheduler says of every node that making room on it would not help: none is of the right kind or size; or that a
    claim is missing."""
    found = _ALL_NODES.search(message)
    if message.startswith(_NO_NODES) or (found is not None and found.group(1) == found.group(2)):
        return True
    if _NO_CLAIM.search(message):
        return True
    reasons = _REASONS.search(message) if _NEVER_PREEMPTS in message else None
    return reasons is not None and _never_fitting(reasons.group(2)) >= int(reasons.group(1))


def _never_fitting(reasons: str) -> int:
    """Of how many nodes the reasons (`2 Insufficient cpu, 1 node(s) had …`) have nothing to do with what is in use there."""
    counted = [part.partition(" ") for part in reasons.split(", ")]
    return sum(int(count) for count, _, why in counted if count.isdigit() and not _IN_USE.search(why))


def _in_the_scheduler_s_words(message: str, *, age: float, patience_seconds: float) -> Held:
    if _UNBOUND in message:
        stuck = age >= UNBOUND_SECONDS
        return Held(
            wait=Wait(reason="Unschedulable", message=message, stuck=stuck),
            gives_up_in=patience_seconds - age if stuck else None,
            changes_in=UNBOUND_SECONDS - age,
        )
    if no_node_could(message):
        wait = Wait(reason="Unschedulable", message=message, stuck=True)
        return Held(wait=wait, gives_up_in=patience_seconds - age)
    if _NEVER_PREEMPTS in message:
        # The scheduler does not say then whether the nodes are full or too small.
        return _stuck_later("Unschedulable", message, age=age, patience_seconds=patience_seconds)
    return Held(wait=Wait(reason="Unschedulable", message=message))


def _stuck_later(reason: str, message: str, *, age: float, patience_seconds: float) -> Held:
    """It may end by itself, so it is never given up; when patience is over, somebody is asked to look."""
    return Held(
        wait=Wait(reason=reason, message=message, stuck=age >= patience_seconds), changes_in=patience_seconds - age
    )


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since) / timedelta(seconds=1)
