"""`suspend` and `suspendPolicy`: when to stop, and what stopping does to the ledger."""

from datetime import datetime

from comd_api.run import RunSpec
from comd_api.status import RunStatus, StageStatus
from comd_operator.policies import ledger
from comd_operator.policies.clock import to_text
from comd_operator.policies.deadlines import run_active, stage_active


def must_pause(spec: RunSpec, stage: StageStatus | None) -> bool:
    """Whether nothing of the run may be running. With `StageEnd` a stage that runs may finish first; one that waits for
    its next attempt is not running."""
    if not spec.suspend:
        return False
    if spec.suspend_policy == "Now":
        return True
    between_jobs = stage is not None and stage.phase == "Running" and stage.completed_jobs > 0
    return not ledger.in_flight(stage) and not between_jobs


def pause(status: RunStatus, now: datetime, *, message: str) -> RunStatus:
    """Both clocks stopped, and an attempt under way recorded as one to try again. Pausing twice changes nothing."""
    stage = ledger.current(status)
    if stage is not None and stage.phase != "Failed":
        if ledger.in_flight(stage):
            stage = stage.replace(
                active_seconds=stage_active(stage, now), attempt_start_time=None, exit_class="TryAgain", message=message
            )
        status = ledger.put(status, stage.replace(phase="Suspended", retry_time=None))
    return status.replace(active_seconds=run_active(status, now), active_since=None)


def resume(status: RunStatus, now: datetime) -> RunStatus:
    """The run's clock goes on, when it had been started and stopped."""
    if status.start_time is None or status.active_since is not None:
        return status
    return status.replace(active_since=to_text(now))
