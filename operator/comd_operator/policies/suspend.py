"""`suspend` and `suspendPolicy`: when to stop, and what stopping does to the ledger."""

from datetime import datetime

from comd_api.run import RunSpec
from comd_api.status import RunStatus, StageStatus
from comd_operator.policies import ledger, queue
from comd_operator.policies.deadlines import stage_active


def must_pause(spec: RunSpec, stage: StageStatus | None) -> bool:
    """Whether nothing of the run may be running. With `StageEnd` a stage that runs may finish first; one that waits, in
    the queue or for its next attempt, is not running."""
    if not spec.suspend:
        return False
    if spec.suspend_policy == "Now":
        return True
    runs = stage is not None and stage.attempt_start_time is not None
    between_jobs = stage is not None and stage.phase == "Running" and stage.completed_jobs > 0
    return not runs and not between_jobs


def pause(status: RunStatus, now: datetime, *, message: str) -> RunStatus:
    """Both clocks stopped, and an attempt under way recorded as one to try again. Pausing twice changes nothing."""
    stage = ledger.current(status)
    if stage is not None and stage.phase != "Failed":
        if ledger.in_flight(stage):
            stage = queue.end_wait(stage, now).replace(
                active_seconds=stage_active(stage, now), attempt_start_time=None, exit_class="TryAgain", message=message
            )
        status = ledger.put(status, stage.replace(phase="Suspended", retry_time=None, waiting_since=None))
    return queue.stop_clock(status, now)
