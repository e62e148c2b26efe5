"""The brain: what to create, what to delete, the whole new status, when to look again. Pure, so both bodies share it:
the operator with Jobs and the API server, `comd run` with processes and a file.

Level-triggered: it is given what is, never what happened, and may be asked at any time and any number of times. What
has been finished is finished because the status says so, never because a Job is there or gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from comd_api.run import DistillationRun
from comd_api.status import ExitClass, RunStatus, StageStatus
from comd_operator.planner import JobPlan, content_mark, plan_job
from comd_operator.policies import children as observed
from comd_operator.policies import cleanup, deadlines, ledger, queue, stages, suspend
from comd_operator.policies.children import Child
from comd_operator.policies.clock import to_text
from comd_operator.policies.conditions import conditions
from comd_operator.policies.events import Event, event
from comd_operator.policies.hold import Hold, Obstacle, hold
from comd_operator.policies.results import record, take_over
from comd_operator.policies.retry import pause_left
from comd_operator.policies.summary import summarize


class _Step(NamedTuple):
    status: RunStatus
    create: Sequence[JobPlan] = ()
    adopted: bool = False
    """The next Job was there already, because we were stopped between making it and writing that down."""
    outdated: str | None = None
    """Name of the next Job when it is there, but was made of another spec than the run has now."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    create: list[JobPlan] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)
    """Names of children; deleting one that is going already does nothing."""
    over: bool = False
    """The last of the Jobs go, and with them the run's Service."""
    status: RunStatus
    ahead: RunStatus
    """The status once a Job that is finishing is complete: what a Job made now is to build on. Else the same as `status`."""
    requeue_after: float | None = None
    """Seconds until something is due without any child changing."""
    event: Event | None = None
    """To be told after the status was written."""


def decide(
    run: DistillationRun, children: Sequence[Child], now: datetime, *, obstacle: Obstacle | None = None
) -> Decision:
    """What to do about a run. obstacle: what keeps its next Job from being made."""
    before = run.status or RunStatus()
    if before.phase in ("Succeeded", "Failed"):
        return _keep_ended(run, before, children, now)

    status, settled, paused = before, None, False
    step = _Step(status)
    while True:
        status = _admit_finishing(status, children, now)
        if settled is None and _is_finishing(status, children):
            settled = status
        status = _enforce_deadlines(run, _observe(run, status, children, now), now)
        paused = suspend.must_pause(run.spec, ledger.current(status))
        if paused:
            status = suspend.pause(status, now, message="suspended")
            break
        if _newly_retrying(before, status):
            break  # What ended the last attempt is written down before the next one is made.
        step = _advance(run, status, children, now, obstacle=obstacle)
        status = step.status
        if not step.adopted:
            break

    leftovers = _leftovers(status, children, outdated=step.outdated)
    ahead = status
    if settled is not None:
        # The successor of a Job that is finishing starts now; both are written down at once when that Job is complete.
        status, paused = settled, False
    child = observed.in_flight(ledger.current(status), children)
    left = observed.in_the_way(ledger.current(status), children)
    held = None if paused else hold(run.spec, status, child, obstacle, left)
    progress = child.progress if child is not None else None
    status = summarize(run.spec, status, now, paused=paused, hold=held, progress=progress)
    status = _stamp(run, status, now, hold=held)
    return Decision(
        create=list(step.create),
        delete=leftovers,
        status=status,
        ahead=ahead if settled is not None else status,
        requeue_after=_due(run, status, children, now, obstacle=obstacle),
        event=event(before, status, queue=run.spec.queue is not None),
    )


def interrupt(run: DistillationRun, now: datetime, *, message: str) -> RunStatus:
    """The status of a run whose body stops without having been asked to by the spec: neither failed nor suspended for
    good."""
    before = run.status or RunStatus()
    if before.phase in ("Succeeded", "Failed"):
        return before
    status = suspend.pause(before, now, message=message)
    status = summarize(run.spec, status, now, paused=True, hold=None, progress=None)
    return _stamp(run, status, now, suspended_because=message)


def _keep_ended(run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime) -> Decision:
    """Terminal is sticky: nothing is created, what still runs is removed, a changed spec is only acknowledged."""
    rest = cleanup.after_the_end(run.spec, status, children, now)
    if status.observed_generation != run.metadata.generation:
        status = _stamp(run, status, now)  # else its words stay, also when a later version has others
    return Decision(status=status, ahead=status, delete=rest.delete, over=rest.over, requeue_after=rest.seconds_left)


def _is_finishing(status: RunStatus, children: Sequence[Child]) -> bool:
    child = observed.in_flight(ledger.current(status), children)
    return child is not None and child.state == "Finishing"


def _admit_finishing(status: RunStatus, children: Sequence[Child], now: datetime) -> RunStatus:
    """A Job that is finishing has run, also when nobody saw it."""
    stage = ledger.current(status)
    return queue.leave(status, stage, now) if stage is not None and _is_finishing(status, children) else status


def _observe(run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime) -> RunStatus:
    """What the Job in flight shows, written into the ledger: it waits, it was admitted, it has ended, it is gone."""
    stage = ledger.current(status)
    if stage is None or not ledger.in_flight(stage):
        return status
    child = observed.in_flight(stage, children)
    if child is None:
        message = f"Job {stage.job_name} was deleted while it was under way"
        return _record(run, status, stage, exit_class="TryAgain", message=message, child=None, now=now)
    if child.uid is not None and child.uid != stage.job_uid:
        stage = stage.replace(job_uid=child.uid)
        status = ledger.put(status, stage)
    if child.started and stage.exit_class == "CannotStart":
        stage = stage.replace(
            exit_class=None, message=None, waiting_since=None
        )  # This attempt has shown that it can be.
        status = ledger.put(status, stage)
    if child.state == "Queued":
        return queue.enter(status, stage, now, preempted=child.preempted, vanished=child.vanished)
    if child.state == "Running":
        return queue.leave(status, stage, now)
    result = child.result
    exit_class: ExitClass = child.exit_class or (
        result.exit_class if result else "Failed" if child.state == "Failed" else "Done"
    )
    message = (result.message if result else "") or child.message
    return _record(run, status, stage, exit_class=exit_class, message=message, child=child, now=now)


def _record(
    run: DistillationRun,
    status: RunStatus,
    stage: StageStatus,
    *,
    exit_class: ExitClass,
    message: str,
    child: Child | None,
    now: datetime,
) -> RunStatus:
    ended = child.finished if child is not None and child.finished is not None else now
    seed = f"{run.metadata.uid or run.metadata.namespace}/{run.metadata.name}/{stage.name}"
    result = child.result if child is not None else None
    entry = record(stage, spec=run.spec, exit_class=exit_class, message=message, result=result, ended=ended, seed=seed)
    status = queue.start_clock(ledger.put(status, entry), now) if stage.queued_since else ledger.put(status, entry)
    if not entry.done or result is None:
        return status
    for found in result.reused:
        if found.name != stages.upcoming(run.spec, status):
            break  # The rounds end before it.
        status = ledger.put(status, take_over(found, spec=run.spec, ended=ended))
    return status


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
    stage = queue.end_wait(stage, now).replace(
        phase="Failed",
        exit_class="Deadline",
        message=exceeded,
        active_seconds=deadlines.stage_active(stage, now),
        attempt_start_time=None,
        retry_time=None,
        completion_time=to_text(now),
    )
    return ledger.put(status, stage)


def _newly_retrying(before: RunStatus, status: RunStatus) -> bool:
    stage = ledger.current(status)
    if stage is None or stage.phase != "Retrying":
        return False
    old = before.stage_named(stage.name)
    return old is None or old.phase != "Retrying" or old.attempt != stage.attempt


def _advance(
    run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime, *, obstacle: Obstacle | None
) -> _Step:
    """The next Job, when there is one, it is due, and nothing else is left running."""
    stage = ledger.current(status)
    if ledger.in_flight(stage):
        return _Step(status)
    status = queue.start_clock(status, now)
    if stage is None:
        name = stages.upcoming(run.spec, status)
        if name is None:
            return _Step(status)
        stage = StageStatus(name=name)
    if stage.phase == "Failed":
        return _Step(status)

    first_or_again = stage.exit_class != "Done" or stage.attempt == 0
    attempt = stage.attempt + first_or_again
    if status.stage_named(stage.name) is None:
        # None, unless the status was taken away: what runs of the stage then goes on.
        known = (child.attempt for child in children if child.stage == stage.name and child.job_index == 0)
        attempt = max((attempt, *known))
    begun = stage.replace(attempt=attempt, phase="Running", retry_time=None)
    job = plan_job(
        run.spec, run=run.metadata.name, stage=begun.name, job_index=begun.completed_jobs, attempt=begun.attempt
    )
    there = next((child for child in children if child.name == job.name), None)
    if there is None and (
        pause_left(stage.retry_time, run.spec.retry, now) > 0 or observed.no_room(children) or obstacle is not None
    ):
        return _Step(ledger.put(status, stage))
    if there is not None and _is_outdated(there, run):
        return _Step(ledger.put(status, stage), outdated=there.name)

    start = to_text(there.created if there is not None and there.created is not None else now)
    queued = run.spec.queue is not None
    begun = begun.replace(
        phase="Queued" if queued else "Running",
        job_name=job.name,
        job_uid=None,
        start_time=stage.start_time or start,
        attempt_start_time=None if queued else start,
        queued_since=start if queued else None,
        waiting_since=stage.waiting_since or (start if queued else None),
    )
    status = status.replace(start_time=status.start_time or start)
    status = queue.stop_clock(status, now) if queued else queue.start_clock(status, now)
    return _Step(ledger.put(status, begun), create=[] if there is not None else [job], adopted=there is not None)


def _is_outdated(child: Child, run: DistillationRun) -> bool:
    """Whether a Job was made of another spec than the run has now. An edit may have changed nothing that it was made of."""
    if child.generation in (None, run.metadata.generation):
        return False
    return child.content is None or child.content != content_mark(run.spec)


def _leftovers(status: RunStatus, children: Sequence[Child], *, outdated: str | None) -> list[str]:
    """Everything that may still run and is not the Job in flight, and the next one when it has to be made anew."""
    kept = observed.in_flight(ledger.current(status), children)
    return [
        child.name
        for child in children
        if child.name == outdated or (child.live and child is not kept and child.state != "Finishing")
    ]


def _stamp(
    run: DistillationRun,
    status: RunStatus,
    now: datetime,
    *,
    hold: Hold | None = None,
    suspended_because: str | None = None,
) -> RunStatus:
    return status.replace(
        observed_generation=run.metadata.generation,
        conditions=conditions(run, status, now, hold=hold, suspended_because=suspended_because),
    )


def _due(
    run: DistillationRun, status: RunStatus, children: Sequence[Child], now: datetime, *, obstacle: Obstacle | None
) -> float | None:
    """Seconds until the next attempt, deadline, or clean-up. An attempt that is overdue waits for something else than the time."""
    if status.phase in ("Succeeded", "Failed"):
        return cleanup.seconds_left(run.spec, status, now)
    if status.phase == "Suspended":
        return None
    stage = ledger.current(status)
    due = [deadlines.check(run.spec, status, stage, now).seconds_left]
    if stage is not None and stage.retry_time is not None:
        wait = pause_left(stage.retry_time, run.spec.retry, now)
        if wait > 0 or not (observed.no_room(children) or obstacle is not None):
            due.append(wait)
    if obstacle is not None and not ledger.in_flight(stage):
        due.append(obstacle.seconds)
    return min((seconds for seconds in due if seconds is not None), default=None)
