"""What the operator remembers of each object: small, because it remembers thousands. Pure."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from comd_api.kinds import SCHEDULE
from comd_api.status import RunPhase
from comd_operator.planner import labels
from comd_operator.planner.manifests import CONTAINER
from comd_operator.policies.clock import from_text
from comd_operator.policies.conditions import UNCHANGED

_KEPT = ("name", "namespace", "uid", "generation", "resourceVersion")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What every record has, for the store."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    owner: str | None
    """Uid of the run that controls it; of a run and a schedule, its own."""
    deleting: datetime | None
    """When it was asked to go."""

    @property
    def owners(self) -> tuple[str, ...]:
        """Uids of what is looked at when it changes."""
        return (self.owner,) if self.owner is not None else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord(Identity):
    body: bytes
    """The object as JSON, without what only the API server needs. Parsed when it is worked on: as Python objects, thousands of
    runs would not fit."""
    phase: RunPhase | None
    """`status.phase`."""
    schedule: str | None
    """Uid of the schedule that controls it."""
    created: datetime
    completed: datetime | None
    unchanged: bool
    """It succeeded because there was nothing to do."""

    @property
    def owners(self) -> tuple[str, ...]:
        return (self.uid, self.schedule) if self.schedule is not None else (self.uid,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleRecord(Identity):
    body: bytes
    """As of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord(Identity):
    stage: str
    attempt: int
    job_index: int
    nodes: int
    parallelism: int
    """`spec.parallelism`: as many pods as nodes, unless somebody has changed it."""
    generation: int | None
    """Of the run, when it was made for it."""
    content: str | None
    """What of the run's spec it was made of (`planner.labels.CONTENT`)."""
    created: datetime
    suspended: bool
    """`spec.suspend`: by Kueue when it has a queue, else by somebody."""
    suspended_since: datetime | None
    """Of the condition `Suspended`, when it is true."""
    resumed: bool
    """Whether the condition `Suspended` says that it was admitted once."""
    queue: str | None
    started: datetime | None
    """When the Job controller came to it, for the last time if it was suspended: only then has it said why there are no pods."""
    has_pods: bool
    """Whether the Job controller counts pods of it: where none are seen, it has not come to their end yet."""
    ended: str | None
    """`Complete` or `Failed`."""
    ended_at: datetime | None
    ended_reason: str
    ended_message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PodRecord(Identity):
    job_uid: str | None
    job_name: str | None
    index: int
    phase: str
    reason: str
    message: str
    """The pod's own, such as `Evicted` and why."""
    ip: str | None
    node: str | None
    created: datetime
    grace_seconds: float
    placed: datetime | None
    """When the scheduler found its node."""
    unschedulable: str | None
    """The scheduler's words, while it finds no node."""
    unschedulable_since: datetime | None
    gated: str | None
    """Words for a scheduling gate, which keeps it from the scheduler."""
    scheduler_error: str | None
    """The scheduler's words when it could not even look for a node."""
    disrupted: str | None
    """Reason of the condition `DisruptionTarget`: evicted, preempted, its node lost."""
    started: bool
    """The container has run."""
    waiting_reason: str
    waiting_message: str
    init_failed: str
    """Which container before the trainer's ended badly, and how; empty when none did."""
    exit_code: int | None
    exit_reason: str
    exit_message: str
    finished: datetime | None


def read_run(obj: dict[str, Any]) -> RunRecord:
    metadata, status = obj["metadata"], obj.get("status", {})
    return RunRecord(
        **_identity(obj, owner=metadata["uid"]),
        body=_body(obj),
        phase=status.get("phase"),
        schedule=_controller(obj, kind=SCHEDULE.name),
        created=from_text(metadata["creationTimestamp"]),
        completed=_time(status.get("completionTime")),
        unchanged=any(
            (entry.get("type"), entry.get("reason")) == ("Succeeded", UNCHANGED)
            for entry in status.get("conditions", ())
        ),
    )


def read_schedule(obj: dict[str, Any]) -> ScheduleRecord:
    return ScheduleRecord(**_identity(obj, owner=obj["metadata"]["uid"]), body=_body(obj, "creationTimestamp"))


def _body(obj: dict[str, Any], *more: str) -> bytes:
    """more: of the metadata, beside what tells objects and their states apart."""
    metadata = obj["metadata"]
    kept = {key: metadata[key] for key in (*_KEPT, *more) if key in metadata}
    body = {**{key: value for key, value in obj.items() if key != "metadata"}, "metadata": kept}
    return json.dumps(body, separators=(",", ":")).encode()


def read_job(obj: dict[str, Any]) -> JobRecord:
    own, spec, status = _labels(obj), obj["spec"], obj.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    ended = next((kind for kind in ("Failed", "Complete") if conditions.get(kind, {}).get("status") == "True"), None)
    end = conditions.get(ended, {}) if ended else {}
    notes = obj["metadata"].get("annotations") or {}
    suspension = conditions.get("Suspended", {})
    return JobRecord(
        **_identity(obj, owner=_controller(obj)),
        stage=own.get(labels.STAGE, ""),
        attempt=_int(own.get(labels.ATTEMPT)),
        job_index=_int(own.get(labels.JOB_INDEX)),
        nodes=spec.get("completions") or 1,
        parallelism=spec.get("parallelism", 1),
        generation=_int(notes.get(labels.GENERATION)) or None,
        content=notes.get(labels.CONTENT),
        created=from_text(obj["metadata"]["creationTimestamp"]),
        suspended=bool(spec.get("suspend")),
        suspended_since=_time(suspension.get("lastTransitionTime")) if suspension.get("status") == "True" else None,
        resumed=suspension.get("status") == "False",
        queue=own.get("kueue.x-k8s.io/queue-name"),
        started=_time(status.get("startTime")),
        has_pods=_counts_pods(status) or conditions.get("FailureTarget", {}).get("status") == "True",
        ended=ended,
        ended_at=_time(end.get("lastTransitionTime")),
        ended_reason=end.get("reason", ""),
        ended_message=end.get("message", ""),
    )


def read_pod(obj: dict[str, Any]) -> PodRecord:
    status, own = obj.get("status", {}), _labels(obj)
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    placed = conditions.get("PodScheduled", {})
    unplaced = placed.get("reason") if placed.get("status") == "False" else None
    unschedulable = unplaced == "Unschedulable"
    disruption = conditions.get("DisruptionTarget", {})
    container: dict[str, Any] = next(
        (entry for entry in status.get("containerStatuses", []) if entry["name"] == CONTAINER), {}
    )
    state = container.get("state", {})
    waiting, ended = state.get("waiting", {}), state.get("terminated", {})
    return PodRecord(
        **_identity(obj, owner=own.get(labels.RUN_UID)),
        job_uid=_controller(obj),
        job_name=own.get("batch.kubernetes.io/job-name"),
        index=_int(own.get("batch.kubernetes.io/job-completion-index")),
        phase=status.get("phase", "Pending"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        ip=status.get("podIP"),
        node=obj["spec"].get("nodeName"),
        created=from_text(obj["metadata"]["creationTimestamp"]),
        grace_seconds=float(obj["metadata"].get("deletionGracePeriodSeconds") or 0),
        placed=_time(placed.get("lastTransitionTime")) if placed.get("status") == "True" else None,
        unschedulable=placed.get("message", "") if unschedulable else None,
        unschedulable_since=_time(placed.get("lastTransitionTime")) if unschedulable else None,
        gated=placed.get("message", "") if unplaced == "SchedulingGated" else None,
        scheduler_error=placed.get("message", "") if unplaced == "SchedulerError" else None,
        disrupted=disruption.get("reason", "") if disruption.get("status") == "True" else None,
        started="running" in state or bool(ended),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        init_failed=_failed_before(status),
        exit_code=ended.get("exitCode"),
        exit_reason=ended.get("reason", ""),
        exit_message=ended.get("message", ""),
        finished=_time(ended.get("finishedAt")),
    )


def _counts_pods(status: dict[str, Any]) -> bool:
    """Those that run or end, and those that have ended and are not booked yet: their objects go before the Job's own end is told."""
    unbooked = status.get("uncountedTerminatedPods") or {}
    return bool(status.get("active") or status.get("terminating") or any(unbooked.values()))


def _failed_before(status: dict[str, Any]) -> str:
    for entry in status.get("initContainerStatuses", []):
        end = entry.get("state", {}).get("terminated", {})
        if end.get("exitCode"):
            return f"its init container {entry['name']} ended with {end['exitCode']}"
    return ""


def _identity(obj: dict[str, Any], *, owner: str | None) -> dict[str, Any]:
    metadata = obj["metadata"]
    return {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "resource_version": metadata["resourceVersion"],
        "owner": owner,
        "deleting": _time(metadata.get("deletionTimestamp")),
    }


def _labels(obj: dict[str, Any]) -> dict[str, str]:
    return obj["metadata"].get("labels") or {}


def _controller(obj: dict[str, Any], *, kind: str | None = None) -> str | None:
    """Uid of what controls it, if that is of the kind. Who only carries our labels is not ours."""
    references = obj["metadata"].get("ownerReferences") or []
    controller = next((reference for reference in references if reference.get("controller")), None)
    return controller["uid"] if controller is not None and kind in (None, controller["kind"]) else None


def _time(text: str | None) -> datetime | None:
    return from_text(text) if text else None


def _int(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
