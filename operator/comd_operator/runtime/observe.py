"""From a Job and its Pods, as the API server shows them, to the brain's `Child`. Pure.

Only the Job says that an attempt has failed: a pod of a Job that the queue takes back ends with code 143 like one that was
killed, and only `spec.suspend`, set before the signal, tells the two apart. The reason is then looked for in the pods, and
where they are gone in the Job's message, which names the rule that matched.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from comd_api.stage import StageResult
from comd_api.status import ExitClass
from comd_operator.policies.children import Child, ChildState
from comd_operator.policies.kubelet import waiting_words
from comd_operator.policies.outcome import outcome, parse_result
from comd_operator.policies.queue import Wait
from comd_operator.runtime.records import JobRecord, PodRecord

LOST_SECONDS = 30.0
"""A pod that was to be gone for so long, and whose container has not been seen to end, is on a node that does not answer."""
UNSTARTABLE = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
    }
)
"""Reasons for which a container waits until somebody mends something. `ErrImagePull` is not one: it may be a registry's hiccup,
and turns into `ImagePullBackOff` when it repeats."""
_HICCUP = re.compile(r"timed out waiting for the condition|context deadline exceeded|is reserved for")
"""In the kubelet's words for a container that could not be made when it, or the container runtime, was only slow: it tries again by
itself."""
NEVER_RAN = frozenset({"StartError", "ContainerCannotRun"})
"""Reasons of an end before the container's first instruction: no such command in the image, say."""
END_UNSEEN = frozenset({"Unknown", "ContainerStatusUnknown"})
"""Reasons of an end that nobody has seen, and whose exit code is made up: the node, or its container runtime, was started again."""
_DISK_LIMIT = re.compile(r"exceed(s|ed) .*\blimit\b")
"""In a kubelet's words for an eviction that the pod itself is to blame for. Of a node that was low on memory, older ones say that
the container "exceeds its request"."""
_RULE = re.compile(r"matching FailJob rule at index (\d)")
_CLASS_OF_RULE: dict[str, ExitClass] = {"0": "TryAgain", "1": "UserError", "2": "BadData", "3": "TryAgain"}
"""As `planner.manifests` puts the rules in order."""
_HEARSAY = re.compile(r"node \d+ of \d+ \(counted from 0\) (ended the stage: |does not answer)")
"""In a trainer's words for an end that was another node's doing."""
_NO_NODES = "no nodes available"
_ALL_NODES = re.compile(r"preemption: 0/(\d+) nodes are available: (?:\d+ [^,]*, )*(\d+) Preemption is not helpful")


@dataclass(frozen=True, kw_only=True)
class Patience:
    start_seconds: float = 300.0
    """How long pods that can't be placed or made are left waiting (an autoscaler may add a node), before their Job is deleted,
    gives its quota back, and is made again later."""


def observe(
    job: JobRecord,
    pods: Sequence[PodRecord],
    *,
    wait: Wait | None,
    progress: str | None,
    patience: Patience,
    now: datetime,
) -> Child:
    """wait: words of the queue or of the Job's events, where they were asked for. pods: those of the run; others' are passed
    over."""
    own = [pod for pod in pods if pod.job_uid == job.uid]
    child = Child(
        name=job.name,
        stage=job.stage,
        attempt=job.attempt,
        job_index=job.job_index,
        state="Running",
        uid=job.uid,
        generation=job.generation,
        created=job.created,
        started=len({pod.index for pod in own if pod.started and pod.exit_reason not in NEVER_RAN}) >= job.nodes,
        deleting=job.deleting is not None,
    )
    if job.ended == "Complete":
        return _completed(replace(child, finished=job.ended_at), own)
    if job.ended == "Failed":
        return _failed(replace(child, state="Failed", finished=job.ended_at), job, own)
    lost = next((pod for pod in own if _is_lost(pod, now)), None)
    if job.suspended and (job.deleting is None or lost is None):
        wait = wait or Wait(reason="Suspended", message=_suspended_by(job))
        return replace(child, state="Queued", wait=wait, preempted=_ran_before(job))
    finished = _finishing(job, own) if job.deleting is None else None
    if finished is not None:
        return replace(child, state="Finishing", result=finished[0], finished=finished[1])
    if lost is not None:
        message = f"node {lost.node} does not answer any more"
        return replace(child, state="Failed", exit_class="TryAgain", message=message, lingers=True, lost=True)
    return _starting(child, job, own, wait=wait, patience=patience, now=now) or replace(child, progress=progress)


def left_behind(
    pods: Sequence[PodRecord], jobs: Sequence[JobRecord], *, namespace: str, now: datetime
) -> list[PodRecord]:
    """Pods whose Job is gone, and that still run: whoever deletes a Job without waiting leaves them to save and to end. Pods that no
    Job controls, or elsewhere, only carry our labels."""
    known = {job.uid for job in jobs}
    return [
        pod
        for pod in pods
        if pod.job_uid is not None
        and pod.namespace == namespace
        and pod.job_uid not in known
        and pod.started
        and pod.exit_code is None
        and pod.phase not in ("Succeeded", "Failed")
        and not _is_lost(pod, now)
    ]


def next_look(
    job: JobRecord, pods: Sequence[PodRecord], *, wait: Wait | None, patience: Patience, now: datetime
) -> float | None:
    """Seconds until time alone changes what is observed: a node counts as lost, patience is over. Nobody sends an event of that."""
    if job.ended is not None or (job.suspended and job.deleting is None):
        return None
    own = [pod for pod in pods if pod.job_uid == job.uid]
    moments = [
        pod.deleting + timedelta(seconds=LOST_SECONDS)
        for pod in own
        if pod.deleting is not None and pod.exit_code is None
    ]
    held = _held(job, own, wait=wait)
    if held is not None and held[0].stuck and job.deleting is None:
        moments.append(held[1] + timedelta(seconds=patience.start_seconds))
    left = [(moment - now) / timedelta(seconds=1) for moment in moments]
    return min((seconds for seconds in left if seconds > 0), default=None)


def _completed(child: Child, pods: Sequence[PodRecord]) -> Child:
    first = _of_index(pods, 0)
    if first is None or first.exit_code is None:
        words = (
            "the stage was done, but its pod was removed before its result was read; trying again finds it in the store"
        )
        return replace(child, state="Failed", exit_class="TryAgain", message=words)
    found = outcome(code=0, termination_message=first.exit_message, tail=_lines(first), stop_asked=False)
    state: ChildState = "Succeeded" if found.exit_class == "Done" else "Failed"
    return replace(child, state=state, exit_class=found.exit_class, message=found.message, result=found.result)


def _finishing(job: JobRecord, pods: Sequence[PodRecord]) -> tuple[StageResult, datetime | None] | None:
    """The result, once the container of every index has ended well."""
    ended = [_of_index(pods, index) for index in range(job.nodes)]
    if not all(pod is not None and pod.exit_code == 0 for pod in ended):
        return None
    first = ended[0]
    result = parse_result(first.exit_message) if first is not None else None
    if result is None or result.exit_class != "Done":
        return None
    times = [pod.finished for pod in ended if pod is not None and pod.finished is not None]
    return result, max(times, default=None)


_Account = tuple[int, ExitClass, str, StageResult | None]
"""Blame (lowest first), class, message, and the result where it agrees with the class."""
_BLAME: dict[ExitClass, int] = {
    "UserError": 0, "BadData": 1, "OutOfMemory": 2, "TryAgain": 3, "CannotStart": 4, "Failed": 5,
}  # fmt: skip
_MISSED = 6
"""Blame of a pod that says only that it missed another one: whatever is known of that one counts."""


def _failed(child: Child, job: JobRecord, pods: Sequence[PodRecord]) -> Child:
    """With the account of the pod that is to blame: others only fell with it. Of accounts that are alike, its own."""
    fallen = [pod for pod in pods if pod.phase == "Failed" or (pod.exit_code or 0) != 0]
    telling = sorted((pod for pod in fallen if not _swept_away(pod, fallen)), key=_tells_hearsay)
    accounts = [_account(pod) for pod in telling] + _rule_account(job, fallen)
    if not accounts:
        return replace(child, exit_class="Failed", message=f"{job.ended_reason}: {job.ended_message}")
    _, exit_class, message, result = min(accounts, key=lambda account: account[0])
    return replace(child, exit_class=exit_class, message=message, result=result)


def _tells_hearsay(pod: PodRecord) -> bool:
    result = parse_result(pod.exit_message)
    return result is not None and _HEARSAY.match(result.message) is not None


def _rule_account(job: JobRecord, fallen: Sequence[PodRecord]) -> list[_Account]:
    """What the Job's own message tells: of a pod that is gone by now, as one is that was evicted, it is all that is left, while
    the pods that only missed it are still there. Of one of these it tells nothing."""
    rule = _RULE.search(job.ended_message)
    exit_class = _CLASS_OF_RULE.get(rule.group(1)) if rule else None
    if exit_class is None or any(f"/{pod.name} " in job.ended_message and _tells_hearsay(pod) for pod in fallen):
        return []
    return [(_BLAME[exit_class], exit_class, f"{job.ended_reason}: {job.ended_message}", None)]


def _asked_to_go(pod: PodRecord) -> datetime | None:
    """When a pod was deleted that had not ended by itself before."""
    if pod.deleting is None:
        return None
    asked = pod.deleting - timedelta(seconds=pod.grace_seconds)
    return None if pod.finished is not None and pod.finished < asked else asked


def _swept_away(pod: PodRecord, fallen: Sequence[PodRecord]) -> bool:
    """Whether a pod was deleted after another had failed: the Job controller does that with those that are left."""
    asked = _asked_to_go(pod)
    if asked is None or pod.disrupted is not None:
        return False
    return any(
        other.finished is not None and other.finished <= asked for other in fallen if _asked_to_go(other) is None
    )


def _account(pod: PodRecord) -> _Account:
    result = parse_result(pod.exit_message)
    if result is not None and result.exit_class in ("UserError", "BadData"):
        return _BLAME[result.exit_class], result.exit_class, result.message, result
    if pod.exit_reason == "OOMKilled":
        return _BLAME["OutOfMemory"], "OutOfMemory", _memory_words(pod), result
    if pod.reason == "Evicted" and _DISK_LIMIT.search(pod.message):
        return _BLAME["Failed"], "Failed", f"pod {pod.name} was evicted: {pod.message}", None
    if pod.disrupted is not None or _asked_to_go(pod) is not None or pod.reason:
        why = pod.disrupted or pod.reason or "deleted"
        words = f"pod {pod.name} was disrupted ({why}{': ' + pod.message if pod.message else ''})"
        agrees = result is not None and result.exit_class == "TryAgain"
        return _BLAME["TryAgain"], "TryAgain", words, result if agrees else None
    if pod.exit_reason in END_UNSEEN:
        words = f"nobody saw how the trainer in pod {pod.name} ended ({pod.exit_reason}): its node was started again, or was lost"
        return _BLAME["TryAgain"], "TryAgain", words, None
    if pod.exit_reason in NEVER_RAN:
        return _BLAME["CannotStart"], "CannotStart", f"{pod.exit_reason}: {pod.exit_message}", None
    if pod.exit_code is None:
        return _BLAME["TryAgain"], "TryAgain", f"pod {pod.name} failed before its container had run", None
    found = outcome(code=pod.exit_code, termination_message=pod.exit_message, tail=_lines(pod), stop_asked=False)
    blame = _BLAME.get(found.exit_class, _BLAME["Failed"])
    if found.exit_class == "TryAgain" and _tells_hearsay(pod):
        blame = _MISSED
    return blame, found.exit_class, found.message, found.result


def _memory_words(pod: PodRecord) -> str:
    return (
        f"the trainer in pod {pod.name} was killed because it used more memory than its limit; raise "
        "trainer.resourcesPerNode.limits.memory, or lower training.microBatchSize or the batch sizes of generation"
    )


def _starting(
    child: Child,
    job: JobRecord,
    pods: Sequence[PodRecord],
    *,
    wait: Wait | None,
    patience: Patience,
    now: datetime,
) -> Child | None:
    """What keeps pods from running, if anything does. Of a Job on its way out nothing is given up any more."""
    broken = next((pod for pod in pods if _is_unstartable(pod) and pod.deleting is None), None)
    if broken is not None and job.deleting is None:
        return _given_up(child, waiting_words(broken.waiting_reason, broken.waiting_message))
    held = _held(job, pods, wait=wait)
    if held is None:
        return None
    words, since = held
    if words.stuck and job.deleting is None and (now - since) / timedelta(seconds=1) >= patience.start_seconds:
        return _given_up(child, f"{words.reason}: {words.message}")
    return replace(child, state="Queued", wait=words)


def _held(job: JobRecord, pods: Sequence[PodRecord], *, wait: Wait | None) -> tuple[Wait, datetime] | None:
    """What a Job's pods wait for that are to be placed or made, and since when."""
    for pod in pods:
        if pod.unschedulable is not None:
            words = Wait(reason="Unschedulable", message=pod.unschedulable, stuck=no_node_could(pod.unschedulable))
            return words, pod.unschedulable_since or job.created
    nothing_runs = not any(pod.started for pod in pods)
    return (wait, since_when(job, pods)) if wait is not None and nothing_runs else None


def since_when(job: JobRecord, pods: Sequence[PodRecord]) -> datetime:
    """Since when a Job of which nothing runs has been free to: its pods have their nodes, it was admitted, it was made."""
    return max((pod.placed for pod in pods if pod.placed is not None), default=None) or job.started or job.created


def _is_unstartable(pod: PodRecord) -> bool:
    slow = pod.waiting_reason.startswith("CreateContainer") and _HICCUP.search(pod.waiting_message) is not None
    return pod.waiting_reason in UNSTARTABLE and not slow


def _given_up(child: Child, message: str) -> Child:
    return replace(child, state="Failed", exit_class="CannotStart", message=message, lingers=True)


def no_node_could(message: str) -> bool:
    """Whether the scheduler says of every node that making room on it would not help: none is of the right kind or size."""
    found = _ALL_NODES.search(message)
    return message.startswith(_NO_NODES) or (found is not None and found.group(1) == found.group(2))


def _is_lost(pod: PodRecord, now: datetime) -> bool:
    """`deletionTimestamp` is when it should be gone, grace included."""
    gone_by = pod.deleting
    return gone_by is not None and pod.exit_code is None and (now - gone_by) / timedelta(seconds=1) >= LOST_SECONDS


def _ran_before(job: JobRecord) -> bool:
    """Kueue suspends a Job when it is made; a later suspension takes a running one back."""
    if job.resumed:
        return True
    return job.suspended_since is not None and job.suspended_since - job.created > timedelta(seconds=2)


def _suspended_by(job: JobRecord) -> str:
    return f"waits in the queue {job.queue}" if job.queue else f"Job {job.name} was suspended by somebody else"


def _of_index(pods: Sequence[PodRecord], index: int) -> PodRecord | None:
    """Of several pods of an index (one before a preemption, one after) the one that ended well, if any did."""
    found = [pod for pod in pods if pod.index == index]
    return min(found, key=lambda pod: pod.exit_code != 0, default=None)


def _lines(pod: PodRecord) -> list[str]:
    """The log's end, which the kubelet gives where the trainer left no message."""
    return [line for line in pod.exit_message.splitlines() if line.strip()][-12:]
