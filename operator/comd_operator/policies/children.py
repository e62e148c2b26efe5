"""A run's Jobs as they were observed, whichever body has made them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from comd_api.stage import StageResult
from comd_api.status import ExitClass, StageStatus
from comd_operator.policies import ledger
from comd_operator.policies.queue import Wait

ChildState = Literal["Queued", "Running", "Finishing", "Succeeded", "Failed"]


@dataclass(frozen=True, kw_only=True)
class Child:
    """A Job as it was observed."""

    name: str
    stage: str
    attempt: int
    job_index: int = 0
    state: ChildState
    """`Queued`: admitted by nobody yet, or by no node. `Running`: from then until the last of its processes has ended. `Finishing`: all
    of them ended well and the result is read, but the Job is not complete: its pods may still hold their GPUs for a second."""
    uid: str | None = None
    generation: int | None = None
    """Of the run that it was made for, where its body notes that."""
    created: datetime | None = None
    started: bool = True
    """Whether a container of it has run: a Job that was never started has not shown that it can be."""
    wait: Wait | None = None
    """Why it is queued."""
    preempted: bool = False
    """It ran before and was sent back to the queue."""
    exit_class: ExitClass | None = None
    """What the body found out beside or against the result, such as `OutOfMemory`."""
    message: str = ""
    """For the user, where there is no result."""
    result: StageResult | None = None
    finished: datetime | None = None
    progress: str | None = None
    """Phase and share done, in few words."""
    lingers: bool = False
    """It was given up (it can't be started, its node is lost), but is still there."""
    lost: bool = False
    """Its node does not answer, so that waiting for its pods to go would never end."""
    deleting: bool = False
    """On its way out."""

    @classmethod
    def of_pod(cls, name: str, *, uid: str) -> "Child":
        """A pod that outlives its Job, on its way out: nothing is begun beside it."""
        return cls(name=name, stage="", attempt=0, state="Running", uid=uid, deleting=True)

    @property
    def live(self) -> bool:
        """Whether pods of it may run or hold resources."""
        return self.lingers or self.state in ("Queued", "Running", "Finishing")


def in_flight(stage: StageStatus | None, children: Sequence[Child]) -> Child | None:
    """The Job that the ledger says is under way, as observed."""
    if stage is None or not ledger.in_flight(stage):
        return None
    return next((child for child in children if child.name == stage.job_name), None)
