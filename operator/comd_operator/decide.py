"""The brain: what to create, what to delete, the whole new status, when to look again. Pure, so both bodies share it:
the operator with Jobs and the API server, `comd run` with processes and a file.

Level-triggered: it is given what is, never what happened, and may be asked at any time and any number of times. What
has been finished is finished because the status says so, never because a Job is there or gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from comd_api.run import DistillationRun
from comd_api.stage import StageResult
from comd_api.status import ExitClass, RunStatus, StageStatus
from comd_operator.planner import JobPlan, plan_job
from comd_operator.policies import deadlines, ledger, stages, suspend
from comd_operator.policies.clock import to_text, until
from comd_operator.policies.conditions import conditions
from comd_operator.policies.events import Event, events
from comd_operator.policies.results import record
from comd_operator.policies.summary import summarize


@dataclass(frozen=True, kw_only=True)
class Child:
    """A Job as it was observed."""

    name: str
    stage: str
    attempt: int
    job_index: int = 0
    state: Literal["Running", "Succeeded", "Failed"]
    """`Running` from creation until the last of its processes has ended."""
    uid: str | None = None
    exit_class: ExitClass | None = None
    """What the body found out beside or against the result, such as `OutOfMemory`."""
    message: str = ""
    """For the user, where there is no result."""
    result: StageResult | None = None
    finished: datetime | None = None
    progress: str | None = None
    """Phase and share done, in few words."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    create: list[JobPlan] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    """Names of children; deleting one that is going already does nothing."""
    status: RunStatus
    requeue_after: float | None = None
    """Seconds until something is due without any child changing."""
    events: list[Event] = field(default_factory=list)
    """To be told after the status was written."""


def decide(run: DistillationRun, children: Sequence[Child], now: datetime) -> Decision:
    """What to do about a run."""
    before = run.status or RunStatus()
    if before.phase in ("Succeeded", "Failed"):
        return _keep_ended(run, before, children, now)

    status = _observe(run, before, children, now)
    status = _enforce_deadlines(run, status, now)
    create: list[JobPlan] = []
    paused = suspend.must_pause(run.spec, ledger.current(status))
    if paused:
        status = suspend.pause(status, now, message="suspended")
    else:
        status, create = _advance(run, suspend.resume(status, now), children, now)

    status = summarize(run.spec, status, now, paused=paused, progress=_progress(status, children))
    status = _stamp(run, status, now)
    return Decision(
        create=create,
        delete=_leftovers(status, children),
        status=status,
        requeue_after=_due(run, status, now),
        events=events(before, status),
    )


def interrupt(run: DistillationRun, now: datetime, *, message: str) -> RunStatus:
    """The status of a run whose body stops without having been asked to by the spec: neither failed nor suspended for
    good."""
    before = run.status or RunStatus()
    if before.phase in ("Succeeded", "Failed"):
        return before
    status = suspend.pause(before, now, message=message)
    status = summarize(run.spec, status, now, paused=True, progress=None)
    return _stamp(run, status, now, suspended_because=message)


def _keep_ended(run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime) -> Decision:
    """Terminal is sticky: nothing is created, what still runs is removed, a changed spec is only acknowledged."""
    return Decision(
        status=_stamp(run, status, now), delete=[child.name for child in children if child.state == "Running"]
    )


def _observe(run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime) -> RunStatus:
    """The end of the Job in flight, written into the ledger."""
    stage = ledger.current(status)
    child = _child_of(stage, children)
    if stage is None or child is None:
        return status
    if child.uid is not None and child.uid != stage.job_uid:
        stage = stage.replace(job_uid=child.uid)
        status = ledger.put(status, stage)
    if child.state == "Running":
        return status
    result = child.result
    exit_class: ExitClass = child.exit_class or (
        result.exit_class if result else "Done" if child.state == "Succeeded" else "Failed"
    )
    message = (result.message if result else "") or child.message
    stage = record(
        stage,
        spec=run.spec,
        exit_class=exit_class,
        message=message,
        result=result,
        ended=child.finished or now,
        seed=f"{run.metadata.uid or run.metadata.namespace}/{run.metadata.name}/{stage.name}",
    )
    return ledger.put(status, stage)


def _enforce_deadlines(run: DistillationRun, status: RunStatus, now: datetime) -> RunStatus:
    """A passed deadline fails the stage, and with it the run; its Job becomes a leftover."""
    stage = ledger.current(status)
    if stage is None and (name := stages.upcoming(run.spec, status)) is not None:
        stage = StageStatus(name=name)  # Between two stages: the next one is not begun only to be ended.
    if stage is None or stage.phase == "Failed":
        return status
    exceeded = deadlines.check(run.spec, status, stage, now).exceeded
    if exceeded is None:
        return status
    stage = stage.replace(
        phase="Failed",
        exit_class="Deadline",
        message=exceeded,
        active_seconds=deadlines.stage_active(stage, now),
        attempt_start_time=None,
        retry_time=None,
        completion_time=to_text(now),
    )
    return ledger.put(status, stage)


def _advance(
    run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime
) -> tuple[RunStatus, list[JobPlan]]:
    """The next Job, when there is one, it is due, and nothing else is left running."""
    stage = ledger.current(status)
    if stage is None:
        name = stages.upcoming(run.spec, status)
        if name is None:
            return status, []
        stage = StageStatus(name=name)
    if stage.phase == "Failed":
        return status, []
    others_run = any(child.state == "Running" and child.name != stage.job_name for child in children)
    if ledger.in_flight(stage):
        gone = _child_of(stage, children) is None
        return status, [_plan(run, stage)] if gone and not others_run else []
    if until(stage.retry_time, now) > 0 or any(child.state == "Running" for child in children):
        return ledger.put(status, stage), []

    first_or_again = stage.exit_class != "Done" or stage.attempt == 0
    stage = stage.replace(attempt=stage.attempt + first_or_again, phase="Running", retry_time=None)
    job = _plan(run, stage)
    stage = stage.replace(
        job_name=job.name, job_uid=None, start_time=stage.start_time or to_text(now), attempt_start_time=to_text(now)
    )
    status = status.replace(
        start_time=status.start_time or to_text(now), active_since=status.active_since or to_text(now)
    )
    return ledger.put(status, stage), [job]


def _plan(run: DistillationRun, stage: StageStatus) -> JobPlan:
    return plan_job(
        run.spec, run=run.metadata.name, stage=stage.name, job_index=stage.completed_jobs, attempt=stage.attempt
    )


def _child_of(stage: StageStatus | None, children: Sequence[Child]) -> Child | None:
    """The Job in flight, as observed."""
    if stage is None or not ledger.in_flight(stage):
        return None
    return next((child for child in children if child.name == stage.job_name), None)


def _leftovers(status: RunStatus, children: Sequence[Child]) -> list[str]:
    """Everything that runs and is not the Job in flight."""
    kept = _child_of(ledger.current(status), children)
    return [child.name for child in children if child.state == "Running" and child is not kept]


def _progress(status: RunStatus, children: Sequence[Child]) -> str | None:
    child = _child_of(ledger.current(status), children)
    return child.progress if child is not None else None


def _stamp(
    run: DistillationRun, status: RunStatus, now: datetime, *, suspended_because: str | None = None
) -> RunStatus:
    return status.replace(
        observed_generation=run.metadata.generation,
        conditions=conditions(run, status, now, suspended_because=suspended_because),
    )


def _due(run: DistillationRun, status: RunStatus, now: datetime) -> float | None:
    """Seconds until the next attempt or the next deadline."""
    if status.phase not in ("Pending", "Running"):
        return None
    stage = ledger.current(status)
    due = [deadlines.check(run.spec, status, stage, now).seconds_left]
    if stage is not None and stage.retry_time is not None:
        due.append(until(stage.retry_time, now))
    return min((seconds for seconds in due if seconds is not None), default=None)
