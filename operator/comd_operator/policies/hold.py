"""Why a run that should move does not."""

from dataclasses import dataclass

from comd_api.run import RunSpec
from comd_api.status import RunStatus, StageStatus
from comd_operator.policies import ledger
from comd_operator.policies.children import Child
from comd_operator.policies.fields import with_field
from comd_operator.policies.queue import in_the_queue

_NEXT = "; next attempt at "


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What keeps the next Job from being made: seen when making it was tried, or in the manifest before that."""

    reason: str
    """A word for the condition, such as `NameCollision`."""
    message: str
    seconds: float | None = None
    """Until it is tried again; None when only a change of the run can help."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    reason: str
    message: str
    queued: bool
    """It waits to be admitted or scheduled."""
    stalled: bool
    """Somebody has to do something. Neither: it goes on by itself, and soon."""


def with_next_attempt(message: str, stage: StageStatus) -> str:
    """`…; next attempt at 18:31:12Z`, while one is due at a time that is known."""
    return f"{message}{_NEXT}{stage.retry_time.partition('T')[2]}" if stage.retry_time is not None else message


def without_next_attempt(message: str) -> str:
    """So that what is told of each attempt is the same, and counted up."""
    return message.rpartition(_NEXT)[0] or message


def hold(
    spec: RunSpec, status: RunStatus, child: Child | None, obstacle: Obstacle | None, left: Child | None = None
) -> Hold | None:
    """child: the Job in flight. left: what has to go before the next one is made."""
    stage = ledger.current(status)
    if stage is not None and stage.phase == "Failed":
        return None
    if obstacle is not None and not ledger.in_flight(stage):
        return Hold(reason=obstacle.reason, message=obstacle.message, queued=False, stalled=True)
    if stage is None:
        return None
    if left is not None and (left.overdue or stage.phase != "Retrying"):
        words = f"{stage.name} waits for {'Job' if left.stage else 'pod'} {left.name} to go"
        if left.overdue:
            words += "; a finalizer may keep it, or a pod of it that does not end"
        return Hold(reason="Waiting", message=words, queued=False, stalled=left.overdue)
    waiting = stage.queued_since is not None
    wait = child.wait if child is not None and child.state == "Queued" else None
    if wait is not None and wait.stuck:
        return Hold(
            reason=wait.reason, message=f"{stage.name}: {with_field(spec, wait.message)}", queued=True, stalled=True
        )
    # Until a later attempt has shown that it can be started, the last one's reason holds.
    if stage.exit_class == "CannotStart" and (child is None or not child.started):
        message = f"{stage.name}: {with_field(spec, stage.message or 'no reason was given')}"
        return Hold(reason="CannotStart", message=message, queued=waiting, stalled=True)
    if wait is None and waiting and spec.queue is not None:
        wait = in_the_queue(spec.queue.name)
    if wait is not None:
        return Hold(reason=wait.reason, message=f"{stage.name}: {wait.message}", queued=True, stalled=False)
    if waiting:
        return Hold(reason="Queued", message=f"{stage.name} waits to be admitted", queued=True, stalled=False)
    return None
