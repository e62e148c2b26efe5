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
    content: str | None = None
    """What of the run's spec it was made of (`planner.content_mark`), where its body notes that."""
    created: datetime | None = None
    started: bool = True
    """Whether a container of it has run: a Job that was never started has not shown that it can be."""
    wait: Wait | None = None
    """Why it is queued."""
    preempted: bool = False
    """It ran before and was sent back to the queue."""
    vanished: bool = False
    """It had pods, which are gone, and its end is not told yet: what it waits for now, it has not waited for before."""
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
    overdue: bool = False
    """It should be gone by now."""

    @classmethod
    def of_pod(cls, name: str, *, uid: str) -> "Child":
        """A pod that outlives its Job, on its way out: nothing is begun beside it."""
        return cls(name=name, stage="", attempt=0, state="Running", uid=uid, deleting=True)

    @classmethod
    def estranged(cls, stage: StageStatus, name: str) -> "Child":
        """A Job in flight from which somebody has taken that it is the run's: it is not ours to delete."""
        words = f"Job {name} is no longer this run's: somebody has taken off or changed its owner reference"
        return cls(
            name=name, stage=stage.name, attempt=stage.attempt, state="Failed", exit_class="TryAgain", message=words
        )

    @property
    def live(self) -> bool:
        """Whether pods of it may run or hold resources."""
        return self.lingers or self.state in ("Queued", "Running", "Finishing")


def no_room(children: Sequence[Child]) -> bool:
    """Whether something is left beside which no other Job is begun. Beside two that are finishing one is, for a stage may be shorter
    than the two seconds from its trainer's end to its Job's `Complete`; beside more none is, for their pods may go on for long."""
    finishing = sum(child.state == "Finishing" for child in children)
    return finishing > 2 or any(child.live and child.state != "Finishing" for child in children)


def in_the_way(stage: StageStatus | None, children: Sequence[Child]) -> Child | None:
    """What a stage of which nothing is under way waits for: of several the one that should be gone by now."""
    if stage is None or ledger.in_flight(stage):
        return None
    left = [child for child in children if child.live and child.state != "Finishing"]
    return max(left, key=lambda child: child.overdue, default=None)


def in_flight(stage: StageStatus | None, children: Sequence[Child]) -> Child | None:
    """The Job that the ledger says is under way, as observed."""
    if stage is None or not ledger.in_flight(stage):
        return None
    return next((child for child in children if child.name == stage.job_name), None)
