"""From a Job and its Pods, as the API server shows them, to the brain's `Child`. Pure.

Only the Job says that an attempt has failed: a pod of a Job that the queue takes back ends with code 143 like one that was
killed, and only `spec.suspend`, set before the signal, tells the two apart. The reason is then looked for in the pods, and
where they are gone in the Job's message, which names the rule that matched.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from comd_api.stage import StageResult
from comd_api.status import ExitClass
from comd_operator.policies.children import Child, ChildState
from comd_operator.policies.kubelet import waiting_words
from comd_operator.policies.outcome import outcome, parse_result
from comd_operator.policies.queue import Wait, in_the_queue
from comd_operator.runtime.placing import Held, held, podless_key, speaks_in
from comd_operator.runtime.records import JobRecord, PodRecord

LOST_SECONDS = 30.0
"""A pod that was to be gone for so long, and whose container has not been seen to end, is on a node that does not answer."""
OUTLIVED_SECONDS = 15.0
"""A pod whose trainer has ended for so long, and that has not, has another container that lives on: one that was put into it."""
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
_POD_FAILED = "BackoffLimitExceeded"
"""A Job's reason when a pod of it has failed and no rule matched. One that fails by itself stays where it is; what is gone was deleted,
such as while it was waiting for its image, or with a grace period that was over before it had ended."""
_DISK_LIMIT = re.compile(r"exceed(s|ed) .*\blimit\b")
"""In a kubelet's words for an eviction that the pod itself is to blame for. Of a node that was low on memory, older ones say that
the container "exceeds its request"."""
_RULE = re.compile(r"matching FailJob rule at index (\d)")
_CLASS_OF_RULE: dict[str, ExitClass] = {"0": "TryAgain", "1": "UserError", "2": "BadData", "3": "TryAgain"}
"""As `planner.manifests` puts the rules in order."""
_HEARSAY = re.compile(r"node \d+ of \d+ \(counted from 0\) (ended the stage: |does not answer)")
"""In a trainer's words for an end that was another node's doing."""


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
    ages: Mapping[str, float],
    now: datetime,
) -> Child:
    """wait: words of the queue or of the Job's events, where they were asked for. pods: those of the run; others' are passed
    over. ages: of what is `timed`."""
    own = [pod for pod in pods if pod.job_uid == job.uid]
    child = Child(
        name=job.name,
        stage=job.stage,
        attempt=job.attempt,
        job_index=job.job_index,
        state="Running",
        uid=job.uid,
        generation=job.generation,
        content=job.content,
        created=job.created,
        started=len({pod.index for pod in own if pod.started and pod.exit_reason not in NEVER_RAN}) >= job.nodes,
        vanished=job.has_pods and not own,
        deleting=job.deleting is not None,
        overdue=job.deleting is not None and now - job.deleting >= timedelta(seconds=_leave_seconds(own, patience)),
    )
    if job.ended == "Complete":
        return _completed(replace(child, finished=job.ended_at), own)
    if job.ended == "Failed":
        return _failed(replace(child, state="Failed", finished=job.ended_at), job, own)
    lost = next((pod for pod in own if _is_lost(pod, ages)), None)
    if job.suspended and (job.deleting is None or lost is None):
        wait = wait or _unexplained(job)
        return replace(child, state="Queued", wait=wait, preempted=_ran_before(job))
    if ages.get(_outlived_key(job), 0.0) >= OUTLIVED_SECONDS:
        return _outlived(child, job, own)
    finished = _finishing(job, own) if job.deleting is None else None
    if finished is not None:
        # To take back what it last said of its progress would be a write of its own.
        return replace(child, state="Finishing", result=finished[0], finished=finished[1], progress=progress)
    if lost is not None:
        message = f"node {lost.node} does not answer any more"
        return replace(child, state="Failed", exit_class="TryAgain", message=message, lingers=True, lost=True)
    kept = held(job, own, wait=wait, ages=ages, patience_seconds=patience.start_seconds, now=now)
    return _starting(child, job, own, kept) or replace(child, progress=progress)


def timed(jobs: Sequence[JobRecord], pods: Sequence[PodRecord]) -> list[str]:
    """What is to be counted by our own clock, as keys: pods that were told to go (their uid), Jobs whose trainers have ended though
    their pods have not, and Jobs without pods."""
    keys = [pod.uid for pod in pods if pod.deleting is not None and pod.exit_code is None]
    for job in jobs:
        own = [pod for pod in pods if pod.job_uid == job.uid]
        if job.ended is not None or job.deleting is not None or job.suspended:
            continue
        if not own and job.started is not None:
            keys.append(podless_key(job))
        lasting = [pod for pod in own if pod.phase not in ("Succeeded", "Failed")]
        ended = {pod.index for pod in own if pod.exit_code is not None}
        if lasting and all(pod.exit_code is not None for pod in lasting) and len(ended) >= job.nodes:
            keys.append(_outlived_key(job))
    return keys


def _outlived_key(job: JobRecord) -> str:
    return f"{job.uid}/outlived"


def _leave_seconds(pods: Sequence[PodRecord], patience: Patience) -> float:
    """How long a Job that was told to go may take for it before somebody is asked to look."""
    return patience.start_seconds + max((pod.grace_seconds for pod in pods), default=0.0)


def left_behind(
    pods: Sequence[PodRecord], jobs: Sequence[JobRecord], *, namespace: str, ages: Mapping[str, float]
) -> list[PodRecord]:
    """Pods whose Job is gone, or is not this run's any more, and that run or may be started: whoever deletes a Job without waiting
    leaves them to save and to end. Pods that no Job controls, or elsewhere, only carry our labels."""
    known = {job.uid for job in jobs}
    return [
        pod
        for pod in pods
        if pod.job_uid is not None
        and pod.namespace == namespace
        and pod.job_uid not in known
        and pod.exit_code is None
        and pod.phase not in ("Succeeded", "Failed")
        and not _is_lost(pod, ages)
    ]


def next_look(
    job: JobRecord,
    pods: Sequence[PodRecord],
    *,
    wait: Wait | None,
    patience: Patience,
    ages: Mapping[str, float],
    now: datetime,
) -> float | None:
    """Seconds until time alone changes what is observed: a node counts as lost, patience is over. Nobody sends an event of that."""
    if job.ended is not None or (job.suspended and job.deleting is None):
        return None
    own = [pod for pod in pods if pod.job_uid == job.uid]
    left = [pod.grace_seconds + LOST_SECONDS - ages[pod.uid] for pod in own if pod.uid in ages]
    if job.deleting is not None:
        left.append(_leave_seconds(own, patience) - (now - job.deleting) / timedelta(seconds=1))
    else:
        kept = held(job, own, wait=wait, ages=ages, patience_seconds=patience.start_seconds, now=now)
        outlived = ages.get(_outlived_key(job))
        waits = [kept.gives_up_in, kept.changes_in] if kept else [speaks_in(job, own, wait=wait, ages=ages, now=now)]
        left += [seconds for seconds in waits if seconds is not None]
        left += [OUTLIVED_SECONDS - outlived] if outlived is not None else []
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


def _outlived(child: Child, job: JobRecord, pods: Sequence[PodRecord]) -> Child:
    """By how the trainers ended: the Job may never end, as another container in their pods does not. It is to be deleted, so that
    this gives back what it holds."""
    ended = [_of_index(pods, index) for index in range(job.nodes)]
    child = replace(child, finished=max((pod.finished for pod in ended if pod and pod.finished), default=None))
    well = all(pod is not None and pod.exit_code == 0 for pod in ended)
    return replace(
        _completed(child, pods) if well else _failed(replace(child, state="Failed"), job, pods), lingers=True
    )


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
        told = f"{job.ended_reason}: {job.ended_message}"
        if job.ended_reason == _POD_FAILED and not fallen:
            words = f"the pod that ended Job {job.name} was deleted before its end was read ({told})"
            return replace(child, exit_class="TryAgain", message=words)
        return replace(child, exit_class="Failed", message=told)
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
        why = pod.init_failed or "nobody says why"
        words = f"pod {pod.name} failed before its trainer was started: {why}"
        return _BLAME["CannotStart"], "CannotStart", words, None
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


def _starting(child: Child, job: JobRecord, pods: Sequence[PodRecord], kept: Held | None) -> Child | None:
    """What keeps pods from running, if anything does. Of a Job on its way out nothing is given up any more."""
    broken = next((pod for pod in pods if _is_unstartable(pod) and pod.deleting is None), None)
    if broken is not None and job.deleting is None:
        return _given_up(child, waiting_words(broken.waiting_reason, broken.waiting_message))
    if kept is None:
        return None
    if kept.gives_up_in is not None and kept.gives_up_in <= 0 and job.deleting is None:
        return _given_up(child, f"{kept.wait.reason}: {kept.wait.message}")
    return replace(child, state="Queued", wait=kept.wait)


def _is_unstartable(pod: PodRecord) -> bool:
    slow = pod.waiting_reason.startswith("CreateContainer") and _HICCUP.search(pod.waiting_message) is not None
    return pod.waiting_reason in UNSTARTABLE and not slow


def _given_up(child: Child, message: str) -> Child:
    return replace(child, state="Failed", exit_class="CannotStart", message=message, lingers=True)


def _is_lost(pod: PodRecord, ages: Mapping[str, float]) -> bool:
    """By our own clock, from when its deletion was seen first: by the server's, which may be behind, a pod that still saves would
    count as lost."""
    going = ages.get(pod.uid)
    return going is not None and pod.exit_code is None and going >= pod.grace_seconds + LOST_SECONDS


def _ran_before(job: JobRecord) -> bool:
    """Kueue suspends a Job when it is made; a later suspension takes a running one back."""
    if job.resumed:
        return True
    return job.suspended_since is not None and job.suspended_since - job.created > timedelta(seconds=2)


def _unexplained(job: JobRecord) -> Wait:
    if job.queue:
        return in_the_queue(job.queue)
    return Wait(reason="Suspended", message=f"Job {job.name} was suspended by somebody else")


def _of_index(pods: Sequence[PodRecord], index: int) -> PodRecord | None:
    """Of several pods of an index (one before a preemption, one after) the one that ended well, if any did."""
    found = [pod for pod in pods if pod.index == index]
    return min(found, key=lambda pod: pod.exit_code != 0, default=None)


def _lines(pod: PodRecord) -> list[str]:
    """The log's end, which the kubelet gives where the trainer left no message."""
    return [line for line in pod.exit_message.splitlines() if line.strip()][-12:]
