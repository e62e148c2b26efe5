"""What is left of a run that has ended: its Jobs, kept for their logs until `ttlSecondsAfterFinished` is over. The run itself
stays, so that whoever applies it again from git finds it finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from comd_api.run import RunSpec
from comd_api.status import RunStatus
from comd_operator.policies.children import Child
from comd_operator.policies.clock import from_text


@dataclass(frozen=True, kw_only=True)
class CleanUp:
    delete: list[str]
    seconds_left: float | None = None
    """Until the rest is due."""
    over: bool = False
    """The rest goes now, and with it what is no Job."""


def after_the_end(spec: RunSpec, status: RunStatus, children: Sequence[Child], now: datetime) -> CleanUp:
    """What still runs goes at once, all of it when its time is over."""
    live = [child.name for child in children if child.live]
    left = seconds_left(spec, status, now)
    if left is None or not children:
        return CleanUp(delete=live)
    if left <= 0:
        delete = [child.name for child in children if not child.deleting]
        return CleanUp(delete=delete, over=bool(delete))
    return CleanUp(delete=live, seconds_left=left)


def seconds_left(spec: RunSpec, status: RunStatus, now: datetime) -> float | None:
    """Until the Jobs of a run that has ended are to go; None when they are kept."""
    if spec.ttl_seconds_after_finished is None or status.completion_time is None:
        return None
    ends = from_text(status.completion_time) + timedelta(seconds=spec.ttl_seconds_after_finished)
    return max(0.0, (ends - now) / timedelta(seconds=1))
