"""Waiting to be admitted or scheduled: no clock but the queue's own runs, and it costs no retry."""

from dataclasses import dataclass
from datetime import datetime

from comd_api.status import RunStatus, StageStatus
from comd_operator.policies import ledger
from comd_operator.policies.clock import since, to_text
from comd_operator.policies.deadlines import run_active, stage_active


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Why a Job has no running pods yet, in the words of whoever holds it back."""

    reason: str
    """A word for the condition, such as `Pending` or `Unschedulable`."""
    message: str
    stuck: bool = False
    """It can't end by itself: no such queue, more than the queue's maximum, a node that does not exist."""


def in_the_queue(name: str) -> Wait:
    """Until the queue itself says why: the same words before its Job is seen and afterwards, for else each would be a write."""
    return Wait(reason="Queued", message=f"waits in the queue {name}")


def enter(
    status: RunStatus, stage: StageStatus, now: datetime, *, preempted: bool, vanished: bool = False
) -> RunStatus:
    """The Job of the stage waits. Waiting on changes nothing."""
    if stage.queued_since is not None:
        return status
    has_run = (preempted or vanished) and stage.exit_class != "CannotStart"
    stage = stage.replace(
        phase="Queued",
        active_seconds=stage_active(stage, now),
        attempt_start_time=None,
        queued_since=to_text(now),
        waiting_since=to_text(now) if has_run else stage.waiting_since or to_text(now),
        preemptions=stage.preemptions + preempted,
    )
    return stop_clock(ledger.put(status, stage), now)


def leave(status: RunStatus, stage: StageStatus, now: datetime) -> RunStatus:
    """The Job of the stage was admitted."""
    if stage.queued_since is None:
        return status
    stage = end_wait(stage, now).replace(phase="Running", attempt_start_time=to_text(now))
    return start_clock(ledger.put(status, stage), now)


def end_wait(stage: StageStatus, now: datetime) -> StageStatus:
    """The time of the wait, if there is one, added up."""
    return stage.replace(queued_seconds=stage.queued_seconds + since(stage.queued_since, now), queued_since=None)


def stop_clock(status: RunStatus, now: datetime) -> RunStatus:
    """The run is not active from now on. Stopping twice changes nothing."""
    return status.replace(active_seconds=run_active(status, now), active_since=None)


def start_clock(status: RunStatus, now: datetime) -> RunStatus:
    """The run's clock goes on, when it had been started and stopped."""
    if status.start_time is None or status.active_since is not None:
        return status
    return status.replace(active_since=to_text(now))
