"""What is worth telling: the difference between two statuses, so that a repeated decision tells nothing twice. One
transition is one event, for clusters drop the events of whoever sends many."""

from dataclasses import dataclass
from typing import Literal

from comd_api.status import Condition, RunStatus, StageStatus
from comd_operator.policies.hold import without_next_attempt


@dataclass(frozen=True, kw_only=True)
class Event:
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def event(before: RunStatus, after: RunStatus, *, queue: bool) -> Event | None:
    """The weightiest thing that happened, with what followed from it at once. queue: whether the run has one."""
    started = next(filter(None, (_started(before.stage_named(stage.name), stage) for stage in after.stages)), None)
    ended = [
        told for stage in after.stages if (told := _ended(before.stage_named(stage.name), stage, after)) is not None
    ]
    if before.phase != after.phase:
        told = _of_phase(before, after, started, went_on=not started and not ended, queue=queue)
        if told is not None:
            return told
    if ended:
        last = ended[-1]
        words = (last.message, _taken_over(before, after), started)
        return Event(type=last.type, reason=last.reason, message="; ".join(filter(None, words)))
    if after.phase == "Stalled" and _ready(before).reason != _ready(after).reason:
        return Event(type="Warning", reason=_ready(after).reason, message=_ready(after).message)
    return Event(type="Normal", reason="JobStarted", message=started) if started else None


def _of_phase(before: RunStatus, after: RunStatus, started: str | None, *, went_on: bool, queue: bool) -> Event | None:
    """went_on: the Job in flight is the one that was in flight before."""
    ready = _ready(after)
    match after.phase:
        case "Succeeded" | "Suspended":
            return Event(type="Normal", reason=after.phase, message=ready.message)
        case "Failed":
            return Event(type="Warning", reason="Failed", message=f"{ready.reason}: {ready.message}")
        case "Stalled":
            return Event(type="Warning", reason=ready.reason, message=without_next_attempt(ready.message))
        case "Queued" if went_on and before.phase != "Stalled":
            return Event(type="Normal", reason="Queued", message=ready.message)
        case "Running" if before.phase == "Suspended":
            return Event(type="Normal", reason="Resumed", message=started or "the run goes on")
        case "Running" if before.phase in ("Queued", "Stalled") and went_on:
            return Event(type="Normal", reason="Admitted" if queue else "Running", message=f"{after.stage} runs")
    return None


def _ended(before: StageStatus | None, after: StageStatus, status: RunStatus) -> Event | None:
    """status: what `after` is of. Of attempts that can't be started each is told in the same words, so that they are counted."""
    old = before or StageStatus(name=after.name)
    if after.phase == "Succeeded" and old.phase != "Succeeded":
        words = f"{after.name}: {after.message}" if after.message else after.name
        return Event(type="Normal", reason="StageSucceeded", message=words)
    another = old.phase != "Retrying" or old.attempt != after.attempt
    if after.phase == "Retrying" and another and after.exit_class not in (None, "Done"):
        ready = _ready(status)
        if ready.reason == after.exit_class == "CannotStart":
            return Event(type="Warning", reason="CannotStart", message=without_next_attempt(ready.message))
        words = f"{after.name}: {after.exit_class}: {after.message or 'no reason was given'}"
        return Event(type="Warning", reason="AttemptFailed", message=words)
    return None


def _taken_over(before: RunStatus, after: RunStatus) -> str | None:
    names = [stage.name for stage in after.stages if stage.phase == "Reused" and before.stage_named(stage.name) is None]
    return f"reused: {', '.join(names)}" if names else None


def _started(before: StageStatus | None, after: StageStatus) -> str | None:
    flying = after.attempt_start_time is not None or after.queued_since is not None
    if not flying or (before is not None and before.job_name == after.job_name):
        return None
    return f"{after.name}: attempt {after.attempt}, Job {after.job_name}"


def _ready(status: RunStatus) -> Condition:
    none = Condition(type="Ready", status="False", reason="", last_transition_time="", observed_generation=0)
    return next((condition for condition in status.conditions if condition.type == "Ready"), none)
