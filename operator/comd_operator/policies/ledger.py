"""Reading and changing the ledger, `status.stages`. Its last entry is the stage the run is at."""

from collections.abc import Mapping
from typing import Any

from comd_api.status import RunStatus, StageStatus


def current(status: RunStatus) -> StageStatus | None:
    """The stage that was begun and is not done; None between stages."""
    last = status.stages[-1] if status.stages else None
    return last if last is not None and not last.done else None


def newest(status: RunStatus) -> StageStatus | None:
    """The last stage that was begun, done or not."""
    return status.stages[-1] if status.stages else None


def in_flight(stage: StageStatus | None) -> bool:
    """Whether the ledger says that a Job of the stage was made and has not been seen to end: it runs, or waits in the queue."""
    return stage is not None and (stage.attempt_start_time is not None or stage.queued_since is not None)


def put(status: RunStatus, stage: StageStatus) -> RunStatus:
    """The status with a stage replaced, or added at the end."""
    if status.stage_named(stage.name) is None:
        return status.replace(stages=[*status.stages, stage])
    return status.replace(stages=[stage if entry.name == stage.name else entry for entry in status.stages])


def note_uid(status: RunStatus, job: Mapping[str, Any]) -> RunStatus:
    """With the uid of a Job (its metadata) that was just made, so that it needs no write of its own."""
    stage = current(status)
    if stage is None or stage.job_name != job["name"]:
        return status
    return put(status, stage.replace(job_uid=job["uid"]))


def failed_stage(status: RunStatus) -> StageStatus | None:
    """The stage that ended the run."""
    return next((stage for stage in status.stages if stage.phase == "Failed"), None)
