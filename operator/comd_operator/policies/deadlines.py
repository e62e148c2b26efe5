"""`activeDeadlineSeconds` and `stageDeadlineSeconds`, by our own clock: the time that the ledger has recorded and the
time since it last started. Time spent suspended or waiting in the queue stands in neither; `queueDeadlineSeconds` has that of
one wait."""

from dataclasses import dataclass
from datetime import datetime

from comd_api.run import RunSpec
from comd_api.status import RunStatus, StageStatus
from comd_operator.policies.clock import since


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    exceeded: str | None
    """The sentence for the user, when one has passed."""
    seconds_left: float | None
    """Until the next one passes."""


def check(spec: RunSpec, status: RunStatus, stage: StageStatus | None, now: datetime) -> Deadlines:
    """All three at once, the run's first."""
    left: list[float] = []
    if spec.active_deadline_seconds is not None:
        rest = spec.active_deadline_seconds - run_active(status, now)
        if rest <= 0:
            return Deadlines(
                exceeded=f"the run was active for longer than activeDeadlineSeconds ({spec.active_deadline_seconds})",
                seconds_left=None,
            )
        if status.active_since is not None:
            left.append(rest)
    if spec.stage_deadline_seconds is not None and stage is not None:
        rest = spec.stage_deadline_seconds - stage_active(stage, now)
        if rest <= 0:
            return Deadlines(
                exceeded=f"stage {stage.name} was active for longer than "
                f"stageDeadlineSeconds ({spec.stage_deadline_seconds})",
                seconds_left=None,
            )
        if stage.attempt_start_time is not None:
            left.append(rest)
    if spec.queue_deadline_seconds is not None and stage is not None and _waits(stage):
        rest = spec.queue_deadline_seconds - since(stage.waiting_since or stage.queued_since, now)
        if rest <= 0:
            return Deadlines(
                exceeded=f"stage {stage.name} waited for longer than "
                f"queueDeadlineSeconds ({spec.queue_deadline_seconds}) to be admitted, scheduled and started",
                seconds_left=None,
            )
        left.append(rest)
    return Deadlines(exceeded=None, seconds_left=min(left, default=None))


def _waits(stage: StageStatus) -> bool:
    """In the queue, or between two attempts of which the last could not begin."""
    return stage.queued_since is not None or (stage.phase == "Retrying" and stage.waiting_since is not None)


def run_active(status: RunStatus, now: datetime) -> float:
    """Seconds that the run has been active, this stretch included."""
    return status.active_seconds + since(status.active_since, now)


def stage_active(stage: StageStatus, now: datetime) -> float:
    """Seconds that the stage's attempts have been active together."""
    return stage.active_seconds + since(stage.attempt_start_time, now)
