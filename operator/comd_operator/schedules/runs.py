"""The runs of a schedule: as they were observed, and as they are made."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from comd_api import API_VERSION
from comd_api.kinds import RUN, SCHEDULE
from comd_api.run import DistillationRun, ObjectMeta, RunSpec
from comd_api.schedule import DistillationSchedule, ScheduleSpec
from comd_api.start import StartFrom
from comd_api.status import RunPhase
from comd_operator.planner import ClusterDefaults, fill, labels, problem
from comd_operator.policies.clock import to_text

MAX_RUN_NAME = 63
_MAX_DIGITS = 9
"""Of minutes since 1970, until the year 3871."""


@dataclass(frozen=True, kw_only=True)
class ScheduledRun:
    """A run that the schedule owns, whether one of its slots or somebody's `comd trigger` has made it."""

    name: str
    uid: str
    phase: RunPhase = "Pending"
    created: datetime
    completed: datetime | None = None
    going: bool = False
    """It was deleted, and it or what it has running is still there."""
    unchanged: bool = False
    """It had nothing to do, for nothing had changed (`skipIfUnchanged`)."""

    @property
    def ended(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


def slot_name(schedule: str, slot: datetime) -> str:
    """A function of schedule and slot, with minutes since 1970 as CronJob has it: whoever makes the run twice meets the first one."""
    return f"{schedule}-{int(slot.timestamp()) // 60}"


def slot_of(schedule: str, run: str) -> datetime | None:
    """The slot that a run was made for, by its name; None for the run of a `comd trigger`."""
    minutes = run.removeprefix(f"{schedule}-")
    if not minutes.isdecimal() or len(minutes) > _MAX_DIGITS:
        return None
    slot = datetime.fromtimestamp(int(minutes) * 60, UTC)
    return slot if slot_name(schedule, slot) == run else None


def manual_name(schedule: str, *, mark: str) -> str:
    """mark: what tells the runs of one schedule apart. A long name of the schedule is cut."""
    suffix = f"-manual-{mark}"
    return schedule[: MAX_RUN_NAME - len(suffix)].rstrip("-") + suffix


def slot_manifest(schedule: DistillationSchedule, slot: datetime, *, last: str | None) -> dict[str, Any]:
    """The run of a slot. last: the schedule's run that succeeded last."""
    return run_manifest(
        schedule,
        name=slot_name(schedule.metadata.name, slot),
        last=last,
        since=last if schedule.spec.skip_if_unchanged else None,
        annotations={labels.SLOT: to_text(slot)},
    )


def manual_manifest(schedule: DistillationSchedule, *, mark: str, last: str | None) -> dict[str, Any]:
    """The run of a `comd trigger`. Somebody wants it, whether anything has changed or not. last: as `slot_manifest`."""
    return run_manifest(schedule, name=manual_name(schedule.metadata.name, mark=mark), last=last)


def start_of(spec: ScheduleSpec, *, last: str | None) -> StartFrom | None:
    """What the schedule's next run begins with; None where the template says. The student that was promoted last is the best one, also
    after somebody has rolled back; the last run stands in where none of the template's students was."""
    if spec.start_from == "Scratch" or last is None:
        return None
    promotion = spec.run_template.spec.promotion
    return StartFrom(run=last, channel=promotion.channel if promotion is not None else None)


def spec_of(spec: ScheduleSpec, *, last: str | None, since: str | None) -> RunSpec:
    """A run's. Where the schedule says nothing, the template may."""
    template = spec.run_template.spec
    return template.replace(
        start_from=start_of(spec, last=last) or template.start_from,
        skip_if_unchanged_since=since or template.skip_if_unchanged_since,
    )


def run_manifest(
    schedule: DistillationSchedule,
    *,
    name: str,
    last: str | None,
    since: str | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A run as the template has it, owned by the schedule: Kubernetes deletes it when the schedule is gone. since: the run without changes
    since which it has nothing to do."""
    template = schedule.spec.run_template
    return {
        "apiVersion": API_VERSION,
        "kind": RUN.name,
        "metadata": {
            "name": name,
            "namespace": schedule.metadata.namespace,
            "labels": {**template.metadata.labels, labels.SCHEDULE: schedule.metadata.name},
            "annotations": {**template.metadata.annotations, **(annotations or {})},
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": SCHEDULE.name,
                    "name": schedule.metadata.name,
                    "uid": schedule.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "spec": spec_of(schedule.spec, last=last, since=since).to_wire(),
    }


def template_run(schedule: DistillationSchedule) -> DistillationRun:
    """The template as a run of the schedule's own name."""
    metadata = ObjectMeta(name=schedule.metadata.name, namespace=schedule.metadata.namespace)
    return DistillationRun(metadata=metadata, spec=schedule.spec.run_template.spec)


def template_problem(schedule: DistillationSchedule, defaults: ClusterDefaults) -> str | None:
    """Why no run of the template could begin on a cluster, in a sentence that names the field. Later runs carry more than the first one,
    and must fit as well."""
    longest = "x" * MAX_RUN_NAME
    since = longest if schedule.spec.skip_if_unchanged else None
    run = fill(template_run(schedule).replace(spec=spec_of(schedule.spec, last=longest, since=since)), defaults)
    if run.spec.managed_by not in (None, labels.MANAGER):
        return None
    words = problem(run)
    if words is None:
        return None
    return f"spec.runTemplate.{words}" if words.startswith("spec") else f"spec.runTemplate: {words}"
