"""What is worth telling: the difference between two statuses, so that a repeated decision tells nothing twice."""

from dataclasses import dataclass
from typing import Literal

from comd_api.status import RunStatus, StageStatus


@dataclass(frozen=True, kw_only=True)
class Event:
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events(before: RunStatus, after: RunStatus) -> list[Event]:
    """In the order in which things happened."""
    told = [event for stage in after.stages for event in _of_stage(before.stage_named(stage.name), stage)]
    if before.phase == after.phase:
        return told
    message = next((condition.message for condition in after.conditions if condition.type == "Ready"), "")
    match after.phase:
        case "Succeeded":
            told.append(Event(type="Normal", reason="Succeeded", message=message))
        case "Failed":
            told.append(Event(type="Warning", reason="Failed", message=f"in stage {after.stage}, see above"))
        case "Suspended":
            told.append(Event(type="Normal", reason="Suspended", message=message))
        case "Running" if before.phase == "Suspended":
            told.insert(0, Event(type="Normal", reason="Resumed", message="the run goes on"))
    return told


def _of_stage(before: StageStatus | None, after: StageStatus) -> list[Event]:
    told = []
    old = before or StageStatus(name=after.name)
    ended = (
        after.exit_class not in (None, "Done") and after.phase in ("Retrying", "Failed") and old.phase != after.phase
    )
    if ended:
        reason = "StageFailed" if after.phase == "Failed" else "AttemptFailed"
        told.append(
            Event(
                type="Warning",
                reason=reason,
                message=f"{after.name}: {after.exit_class}: {after.message or 'no reason was given'}",
            )
        )
    if after.phase == "Succeeded" and old.phase != "Succeeded":
        told.append(Event(type="Normal", reason="StageSucceeded", message=after.name))
    if after.attempt_start_time is not None and old.job_name != after.job_name:
        told.append(
            Event(
                type="Normal",
                reason="JobStarted",
                message=f"{after.name}: attempt {after.attempt}, Job {after.job_name}",
            )
        )
    return told
