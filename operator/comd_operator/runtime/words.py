"""Why a Job has no pods, in the words of Kueue's Workload or of the Job's events. Asked for only while a Job waits, and ever more
seldom: what ends the wait is seen on the Job itself, at once."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from comd_api.pods import amount
from comd_operator.policies.clock import from_text
from comd_operator.policies.queue import Wait
from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.records import JobRecord, PodRecord

log = logging.getLogger(__name__)

KUEUE = "kueue.x-k8s.io"
NO_WORKLOAD_SECONDS = 5.0
"""Kueue makes a Job's Workload within a fraction of a second; for a Job that it can't queue it makes none, and says so only in
its log."""
FIRST_LOOK_SECONDS, LONGEST_SECONDS = 1.0, 30.0
MOST_PER_SECOND = 5.0
"""Of all waiting Jobs together, in the long run: each is asked about more seldom where there are many."""
UNREADABLE_SECONDS = 600.0
"""A right that was missing may have been given since."""
FORGOTTEN_SECONDS = 600.0
"""A Job that nobody has asked about for so long after it was due is gone."""
_NEVER = re.compile(
    r"(?:insufficient quota for \S+|untolerated taint [^,]*?) in flavor ([^\s,]+)|flavor (\S+) doesn't match node affinity"
)
"""Why a flavor of a ClusterQueue can never be given: more than its maximum, or not for such pods."""
_QUOTA = re.compile(r"exceeded quota: [^,]+, requested: (\S+), used: \S+, limited: (\S+)")
_NOT_NOW = re.compile(r"insufficient unused quota for \S+ in flavor ([^\s,]+)")


def of_workload(workload: Mapping[str, Any] | None, *, job: JobRecord, now: datetime) -> Wait | None:
    """None while it is too early to tell."""
    if workload is None:
        if (now - (job.suspended_since or job.created)) / timedelta(seconds=1) < NO_WORKLOAD_SECONDS:
            return None
        words = "Kueue made no Workload for it; check that Kueue runs and that the priority class exists"
        return Wait(reason="NoWorkload", message=words, stuck=True)
    conditions = {entry["type"]: entry for entry in workload.get("status", {}).get("conditions", [])}
    evicted, reserved = conditions.get("Evicted", {}), conditions.get("QuotaReserved", {})
    out = evicted.get("status") == "True"
    if not workload.get("spec", {}).get("active", True):
        reason, words = (
            (evicted["reason"], evicted["message"]) if out else ("Deactivated", "the Workload is deactivated")
        )
        return Wait(reason=reason, message=words, stuck=True)
    held = _of_condition(reserved) if reserved.get("status") == "False" else None
    if out and (held is None or not held.stuck):
        return _of_condition(evicted)
    return held


def _of_condition(condition: Mapping[str, Any]) -> Wait:
    reason, message = condition.get("reason") or "Pending", str(condition.get("message", ""))
    return Wait(reason=reason, message=message, stuck=reason == "Inadmissible" or _can_never_be(message))


def _can_never_be(message: str) -> bool:
    """Whether no flavor can ever be given: one that is only in use now can."""
    never = {name for names in _NEVER.findall(message) for name in names if name}
    return "unavailable in ClusterQueue" in message or (bool(never) and never.issuperset(_NOT_NOW.findall(message)))


def of_events(events: Sequence[Mapping[str, Any]], *, suspended: bool, started: datetime | None = None) -> Wait | None:
    """The newest event that says why: of Kueue for a suspended Job, of the Job controller for one whose pods can't be made. started: when
    that came to the Job last; what it said before the queue had it again is over."""
    wanted = ("Stopped", "CreatedWorkload") if suspended else ("FailedCreate",)
    told = [event for event in events if event.get("reason") in wanted]
    if not told:
        return None
    newest = max(told, key=_when)
    if not suspended and started is not None and _when(newest) and from_text(_when(newest)) < started:
        return None
    message = newest.get("message", "")
    return Wait(reason=newest["reason"], message=message, stuck=not suspended and not _fits_quota(message))


def of_pod_events(events: Sequence[Mapping[str, Any]]) -> Wait | None:
    """Why a pod that has a node does not start on it. What is not there is mended by nobody but its user; what can't be attached
    yet may still be on its way from another node."""
    told = [event for event in events if event.get("reason") in _NOT_STARTED]
    if not told:
        return None
    newest = max(told, key=_when)
    message = newest.get("message", "")
    return Wait(reason=newest["reason"], message=message, stuck=_MISSING.search(message) is not None)


def _when(event: Mapping[str, Any]) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or ""


_MISSING = re.compile(r"not found|non-existent config key")
"""Of an object, or of a key of one that a volume is made of."""
_NOT_STARTED = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")


def _fits_quota(message: str) -> bool:
    """Whether pods were refused by a ResourceQuota that they will fit into once others are gone."""
    found = _QUOTA.search(message)
    if found is None:
        return False
    try:
        requested, limited = (
            {name: amount(value) for name, _, value in (part.partition("=") for part in group.split(","))}
            for group in found.groups()
        )
    except ValueError:
        return False
    return all(value <= limited.get(name, value) for name, value in requested.items())


@dataclass
class _Heard:
    about: tuple[bool, str | None]
    """Whether the Job was suspended, and the uid of a pod that does not start."""
    wait: Wait | None
    looked: float
    pause: float


class Words:
    """Asks, and remembers what was said. They are a courtesy: who can't be asked holds nobody up."""

    def __init__(self, *, api: Api) -> None:
        self._api = api
        self._heard: dict[str, _Heard] = {}
        self._swept = 0.0
        self._workloads_version: str | None = None
        self._unreadable: dict[str, float] = {}
        """Namespaces where Workloads may not be read, and until when that is taken for granted."""
        self._shown: dict[str, tuple[Wait, float]] = {}
        """What was made of the scheduler's words last, by Job, and when."""

    def forget(self, job_uid: str) -> None:
        self._heard.pop(job_uid, None)

    async def of(
        self, job: JobRecord, pod: PodRecord | None = None, *, clock: float, now: datetime
    ) -> tuple[Wait | None, float]:
        """The words, and seconds until it is worth asking again. pod: one that does not start. clock: monotonic seconds."""
        heard, about = self._heard.get(job.uid), (job.suspended, pod.uid if pod is not None else None)
        if heard is not None and heard.about != about:
            heard = None  # It was admitted, or has a pod by now: what kept it before does not any more.
        if heard is not None and clock - heard.looked < heard.pause:
            return heard.wait, heard.pause - (clock - heard.looked)
        try:
            wait = await (self._ask(job, clock=clock, now=now) if pod is None else self._ask_of_pod(pod))
        except ApiError as error:
            log.warning("what Job %s waits for can't be asked: %s", job.name, error)
            wait = heard.wait if heard is not None else None
        longest = max(LONGEST_SECONDS, len(self._heard) / MOST_PER_SECOND)
        if heard is None or (heard.wait is None and wait is not None):
            pause = FIRST_LOOK_SECONDS
        elif heard.wait == wait:
            pause = min(longest, heard.pause * 2)
        else:
            pause = longest  # Words that change all the time are not written down all the time.
        self._heard[job.uid] = _Heard(about, wait, clock, pause)
        self._sweep(clock)
        return wait, pause

    def steady(self, job_uid: str, wait: Wait, *, clock: float) -> tuple[Wait, float | None]:
        """The scheduler counts nodes anew with each try, so its words change all the time; they are not written down all the time.
        What to show, and seconds until there is something newer to show."""
        shown, at = self._shown.get(job_uid, (wait, -math.inf))
        left = LONGEST_SECONDS - (clock - at)
        if (shown.reason, shown.stuck) == (wait.reason, wait.stuck) and wait != shown and left > 0:
            return shown, left
        if wait != shown or at == -math.inf:
            self._shown[job_uid] = (wait, clock)
            self._sweep(clock)
        return wait, None

    def _sweep(self, clock: float) -> None:
        """Lets go of Jobs that vanished while they waited."""
        if clock - self._swept < FORGOTTEN_SECONDS:
            return
        self._swept = clock
        old = [uid for uid, heard in self._heard.items() if clock - heard.looked > heard.pause + FORGOTTEN_SECONDS]
        for uid in old:
            del self._heard[uid]
        self._shown = {uid: shown for uid, shown in self._shown.items() if clock - shown[1] <= FORGOTTEN_SECONDS}

    async def _ask(self, job: JobRecord, *, clock: float, now: datetime) -> Wait | None:
        if job.suspended and job.queue is not None and clock >= self._unreadable.get(job.namespace, clock):
            try:
                return of_workload(await self._workload(job), job=job, now=now)
            except ApiError as error:
                if error.status == 404:
                    self._workloads_version = None
                    return Wait(
                        reason="NoKueue", message="the run has a queue, but this cluster has no Kueue", stuck=True
                    )
                if error.status != 403:
                    raise
                self._unreadable[job.namespace] = clock + UNREADABLE_SECONDS
        return of_events(await self._events(job.namespace, job.uid), suspended=job.suspended, started=job.started)

    async def _ask_of_pod(self, pod: PodRecord) -> Wait | None:
        return of_pod_events(await self._events(pod.namespace, pod.uid))

    async def _events(self, namespace: str, uid: str) -> list[Mapping[str, Any]]:
        """Of an object; none where they may not be read."""
        try:
            listed = await self._api.get(
                namespaced("v1", "events", namespace), params={"fieldSelector": f"involvedObject.uid={uid}"}
            )
        except ApiError as error:
            if error.status == 403:
                return []
            raise
        items: list[Mapping[str, Any]] = listed["items"]
        return items

    async def _workload(self, job: JobRecord) -> Mapping[str, Any] | None:
        if self._workloads_version is None:
            group = await self._api.get(f"/apis/{KUEUE}")
            self._workloads_version = group["preferredVersion"]["groupVersion"]
        listed = await self._api.get(
            namespaced(self._workloads_version, "workloads", job.namespace),
            params={"labelSelector": f"{KUEUE}/job-uid={job.uid}"},
        )
        return next(iter(listed["items"]), None)
