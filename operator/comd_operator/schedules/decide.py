"""What to do about a schedule: slots to start, runs to delete, the whole new status, when to look again. Pure.

Level-triggered as the decision about a run: it is given what is, and may be asked at any time and any number of times. A slot is started
at most once, because its run's name is a function of the slot, and because `status.settledTime`, up to which all is settled, only ever
grows. A slot is settled when its run is there: who is stopped between making a run and writing that down finds the run, and settles it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice

from comd_api.schedule import DistillationSchedule, RunReference, ScheduleSpec, ScheduleStatus
from comd_operator.policies.clock import from_text, to_text
from comd_operator.policies.events import Event
from comd_operator.policies.hold import Obstacle
from comd_operator.schedules import concurrency, history
from comd_operator.schedules.conditions import State, conditions, missed_text
from comd_operator.schedules.runs import ScheduledRun, slot_name, slot_of
from comd_operator.schedules.slots import Due, due
from comd_operator.schedules.timetable import timetable

MAX_NEXT, MAX_ACTIVE = 3, 32
LONGEST_SECONDS = 900.0
"""A timer does not notice that somebody has set the clock: nobody sleeps for longer. A look in between asks and writes nothing."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    create: tuple[datetime, ...] = ()
    """Slots whose runs are to be made. They are settled by the next decision, which finds the runs."""
    replace: tuple[ScheduledRun, ...] = ()
    """Runs to be deleted, and to be waited for until all that they have running is gone."""
    expire: tuple[ScheduledRun, ...] = ()
    """Runs that are over, to be deleted after the status was written."""
    status: ScheduleStatus
    requeue_after: float | None = None
    """Seconds until something is due without any run changing."""
    event: Event | None = None
    """To be told after the status was written."""
    started: int = 0
    skipped: int = 0
    missed: int = 0
    """Slots that are settled by this."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    status: ScheduleStatus
    state: State
    due: Due | None = None
    """Slots that are settled."""
    create: tuple[datetime, ...] = ()
    replace: tuple[ScheduledRun, ...] = ()
    event: Event | None = None
    started: int = 0
    skipped: int = 0
    again: float | None = None
    """Seconds until what could not be done is tried again."""
    next_slots: list[datetime] = field(default_factory=list)


def problem(spec: ScheduleSpec) -> str | None:
    """What is wrong with schedules or time zone, in a sentence."""
    try:
        timetable(tuple(spec.schedules), spec.time_zone)
    except ValueError as error:
        return str(error)
    return None


def decide(
    schedule: DistillationSchedule,
    runs: Sequence[ScheduledRun],
    now: datetime,
    *,
    wrong: str | None = None,
    obstacle: Obstacle | None = None,
) -> Decision:
    """runs: all that the schedule owns. wrong: what keeps any run from being made, in a sentence that names the field. obstacle: what
    kept the run of a slot from being made when that was tried."""
    before = schedule.status or ScheduleStatus()
    status = _count_runs(_note_edit(schedule, before, now), runs)
    step = _step(schedule, status, runs, now, wrong=wrong, obstacle=obstacle)
    status = step.status.replace(
        observed_generation=schedule.metadata.generation,
        next_schedule_times=[to_text(slot) for slot in step.next_slots],
        conditions=conditions(
            step.state, step.due, before=before.conditions, generation=schedule.metadata.generation, now=now
        ),
    )
    waits = [(slot - now).total_seconds() for slot in step.next_slots[:1]]
    waits += [] if step.again is None else [step.again]
    return Decision(
        create=step.create,
        replace=step.replace,
        expire=tuple(history.expired(schedule.spec, [run for run in runs if _is_settled(schedule, status, run)])),
        status=status,
        requeue_after=min((LONGEST_SECONDS, *waits)) if waits else None,
        event=step.event or _newly_stalled(before, status),
        started=step.started,
        skipped=step.skipped,
        missed=step.due.missed if step.due is not None else 0,
    )


def _note_edit(schedule: DistillationSchedule, status: ScheduleStatus, now: datetime) -> ScheduleStatus:
    """Slots count from the schedule's creation on, and after a change of what names them from when that is seen: the past of a new
    timetable is nobody's wish."""
    text = timetable_text(schedule.spec)
    if status.settled_time is None:
        created = schedule.metadata.creation_timestamp
        return status.replace(timetable=text, settled_time=created or to_text(now))
    if status.timetable == text:
        return status
    settled = max(from_text(status.settled_time), _whole_second(now))
    return status.replace(timetable=text, settled_time=to_text(settled), pending_slot=None)


def timetable_text(spec: ScheduleSpec) -> str:
    """`0 2 * * *; 30 9 * * 1 in Europe/Berlin`."""
    return f"{'; '.join(spec.schedules)} in {spec.time_zone}"


def _count_runs(status: ScheduleStatus, runs: Sequence[ScheduledRun]) -> ScheduleStatus:
    active = sorted((run for run in runs if not run.ended), key=lambda run: (run.created, run.name))
    succeeded = [(run.completed, run.name) for run in runs if run.phase == "Succeeded" and run.completed is not None]
    if status.last_successful_time is not None:  # It may be that of a run that is not kept any more.
        succeeded.append((from_text(status.last_successful_time), status.last_successful_run or ""))
    if succeeded:
        when, name = max(succeeded)
        status = status.replace(last_successful_time=to_text(when), last_successful_run=name or None)
    return status.replace(
        num_active=len(active),
        active=[RunReference(name=run.name, uid=run.uid) for run in active[-MAX_ACTIVE:]],
    )


def _is_settled(schedule: DistillationSchedule, status: ScheduleStatus, run: ScheduledRun) -> bool:
    """Whether nothing is lost when the run is gone. Who was stopped before a slot was written down, and then found the schedule suspended
    or the next run refused, knows by the slot's run alone that it was started."""
    slot = slot_of(schedule.metadata.name, run.name)
    if slot is None or status.settled_time is None:
        return True
    return slot <= from_text(status.settled_time) and to_text(slot) != status.pending_slot


def _step(
    schedule: DistillationSchedule,
    status: ScheduleStatus,
    runs: Sequence[ScheduledRun],
    now: datetime,
    *,
    wrong: str | None,
    obstacle: Obstacle | None,
) -> _Step:
    spec = schedule.spec
    wrong = problem(spec) or wrong
    if wrong is not None:
        return _Step(status=status, state=State(true=("Stalled",), reason="InvalidSpec", message=wrong))
    if spec.suspend:
        state = State(true=("Ready", "Suspended"), reason="Suspended", message="spec.suspend is true")
        return _Step(status=status, state=state)

    times = timetable(tuple(spec.schedules), spec.time_zone)
    assert status.settled_time is not None, "it is set at the first look"
    settled = from_text(status.settled_time)
    fresh = due(times, since=settled, now=now, deadline_seconds=spec.starting_deadline_seconds, catch_up=spec.catch_up)
    come = fresh if status.pending_slot is None else _with_pending(fresh, from_text(status.pending_slot))
    next_slots = list(islice(times.following(max(now, settled)), MAX_NEXT))
    ready = State(true=("Ready",), reason="Scheduled", message=timetable_text(spec))
    if come is None:
        return _Step(status=status, state=ready, next_slots=next_slots)

    settles = status.replace(settled_time=to_text(max(come.newest, settled)), pending_slot=None)
    step = _Step(status=settles, state=ready, due=come if fresh is not None else None, next_slots=next_slots)
    if not come.start:
        return replace(step, event=_told(come))
    start = concurrency.start(spec, come.start, runs, schedule=schedule.metadata.name)
    if start.create and obstacle is None:
        return replace(step, status=status, due=None, create=start.create)
    if start.create and obstacle is not None:
        state = State(true=("Stalled",), reason=obstacle.reason, message=obstacle.message)
        return replace(step, status=status, due=None, state=state, again=obstacle.seconds)
    if start.outcome == "Started":
        names = [slot_name(schedule.metadata.name, slot) for slot in come.start]
        settles = settles.replace(last_schedule_time=to_text(come.start[-1]))
        return replace(step, status=settles, event=_told(come, started=names), started=len(names))
    names = [run.name for run in start.in_the_way]
    if start.outcome == "Skipped":
        words = f"{_some(names)} is not over, and concurrencyPolicy is Forbid"
        return replace(step, event=_told(come, skipped=words), skipped=len(come.start))
    return _wait(step, come.start[-1], start.in_the_way, new=to_text(come.start[-1]) != status.pending_slot)


def _wait(step: _Step, slot: datetime, in_the_way: Sequence[ScheduledRun], *, new: bool) -> _Step:
    """For runs that are replaced. That the slot waits is written down, so that it does not become too late for its deadline by that."""
    names, pending = _some([run.name for run in in_the_way]), to_text(slot)
    told = Event(type="Normal", reason="RunReplaced", message=f"{names} is deleted for the slot of {pending}")
    return replace(
        step,
        status=step.status.replace(pending_slot=pending),
        state=State(true=("Reconciling",), reason="Replacing", message=f"waits until {names} is gone"),
        event=told if new else None,
        replace=tuple(run for run in in_the_way if not run.going),
    )


def _with_pending(come: Due | None, pending: datetime) -> Due:
    """Slots that have come; where none of them can be started, the one that has waited for others to go is."""
    if come is None:
        return Due(newest=pending, start=(pending,))
    if not come.start:
        return Due(newest=come.newest, start=(pending,), missed=come.missed, many=come.many)
    return Due(newest=come.newest, start=come.start, missed=come.missed + 1, many=come.many)


def _told(come: Due, *, started: Sequence[str] = (), skipped: str = "") -> Event:
    """What has become of slots."""
    words = [f"started {_some(started)}"] if started else [skipped] if skipped else []
    words += [missed_text(come)] if come.missed else []
    reason = "RunStarted" if started else "SlotSkipped" if skipped else "SlotsMissed"
    if come.many:
        reason = "TooManyMissedSlots"
    fine = not come.many and reason != "SlotsMissed"
    return Event(type="Normal" if fine else "Warning", reason=reason, message="; ".join(words))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _newly_stalled(before: ScheduleStatus, after: ScheduleStatus) -> Event | None:
    """Told once for each reason."""
    stalled = _stalled_because(after)
    if stalled is None or stalled == _stalled_because(before):
        return None
    return Event(type="Warning", reason=stalled[0], message=stalled[1])


def _stalled_because(status: ScheduleStatus) -> tuple[str, str] | None:
    found = next((entry for entry in status.conditions if entry.type == "Stalled" and entry.status == "True"), None)
    return (found.reason, found.message) if found is not None else None


def _whole_second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)
