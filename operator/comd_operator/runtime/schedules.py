"""observe → decide → act, for one schedule at a time."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from comd_api.kinds import SCHEDULE
from comd_api.run import ObjectMeta
from comd_api.schedule import DistillationSchedule, ScheduleStatus
from comd_operator.planner import ClusterDefaults
from comd_operator.policies.events import Event
from comd_operator.policies.hold import Obstacle
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.observe import LOST_SECONDS, left_behind, timed
from comd_operator.runtime.parsing import UnreadableError, parse
from comd_operator.runtime.reconciler import GONE_SECONDS, Stores
from comd_operator.runtime.records import RunRecord, ScheduleRecord, read_run
from comd_operator.runtime.second_look import SecondLook
from comd_operator.runtime.since import Since
from comd_operator.runtime.writes import GoneError, ObstacleError, Writer
from comd_operator.schedules.conditions import refused
from comd_operator.schedules.decide import Decision, decide
from comd_operator.schedules.runs import ScheduledRun, slot_manifest, template_problem

log = logging.getLogger(__name__)

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class _Blocked:
    obstacle: Obstacle
    generation: int
    until: float


@dataclass(kw_only=True)
class ScheduleReconciler:
    stores: Stores
    writer: Writer
    second_look: SecondLook
    metrics: Metrics
    defaults: ClusterDefaults
    on_change: Callable[[set[str]], None]
    """Is given the uids of what is known to us before the watch tells: then the watch has nothing to tell any more."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    waiting: dict[str, str] = field(default_factory=dict)
    """Uids of runs that are gone and have left something running, and of the schedules that wait for that to end."""
    _since: Since = field(default_factory=Since)
    """Of runs that are gone and have left something running."""
    _blocked: dict[str, _Blocked] = field(default_factory=dict)
    _wrong: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """Of each schedule: a generation, and what is wrong with its template."""

    async def reconcile(self, uid: str) -> float | None:
        """Brings one schedule a step further. Returns the seconds after which it is to be looked at again, if ever.

        Raises:
            ApiError: the API server did not do what it was asked; to be tried again.
        """
        record = next(iter(self.stores.schedules.of(uid)), None)
        if record is None or record.deleting is not None:
            self.forget(uid)
            return None
        try:
            try:
                schedule = parse(record.body, DistillationSchedule, status=ScheduleStatus)
            except UnreadableError as error:
                await self._refuse(record, error)
                return None
            return await self._step(schedule, record)
        except GoneError:
            return GONE_SECONDS  # Unless the watch tells before that it is.

    def forget(self, uid: str) -> None:
        self._blocked.pop(uid, None)
        self._wrong.pop(uid, None)
        for run in [run for run, schedule in self.waiting.items() if schedule == uid]:
            self._since.forget(run)
            del self.waiting[run]

    async def _step(self, schedule: DistillationSchedule, record: ScheduleRecord) -> float | None:
        runs, look = await self._runs(schedule)
        began = self.clock()
        wrong, now = self._template_problem(schedule), self.now()
        decision = decide(schedule, runs, now, wrong=wrong, obstacle=self._obstacle(schedule))
        if decision.create:
            try:
                for slot in decision.create:
                    runs = [*runs, await self._create(schedule, slot, last=decision.status.last_successful_run)]
            except ObstacleError as error:
                self._block(schedule, error.obstacle)
            decision = decide(schedule, runs, now, wrong=wrong, obstacle=self._obstacle(schedule))
        await self._write_status(schedule, record, decision)
        if decision.event is not None:  # Before what may fail: what was written once is never told again.
            await self._tell(schedule.metadata, decision.event)
        for run in (*decision.replace, *decision.expire):
            log.info("deleting run %s", run.name)
            await self.writer.delete_run(run.name, uid=run.uid, namespace=schedule.metadata.namespace)
        again = min((seconds for seconds in (decision.requeue_after, look) if seconds is not None), default=None)
        return None if again is None else max(0.0, again - (self.clock() - began))  # A slot waits for no write of ours.

    async def _runs(self, schedule: DistillationSchedule) -> tuple[list[ScheduledRun], float | None]:
        """Runs that are there, and those of which only Jobs or pods are; and in how many seconds the latter are worth a look though
        nothing is told of them."""
        uid = _uid(schedule)
        self.waiting = {run: waits for run, waits in self.waiting.items() if waits != uid}
        gone: list[ScheduledRun] = []
        for known in (schedule.status or ScheduleStatus()).active:
            if any(run.uid == known.uid for run in self.stores.runs.of(uid)):
                continue
            found = await self.second_look.run(namespace=schedule.metadata.namespace, name=known.name)
            if found is not None and found["metadata"]["uid"] == known.uid:
                self.on_change(self.stores.runs.put(found))  # the watch has yet to tell of it
            elif self._leaves_something(known.uid, namespace=schedule.metadata.namespace):
                self.waiting[known.uid] = uid
                gone.append(
                    ScheduledRun(name=known.name, uid=known.uid, phase="Running", created=_LONG_AGO, going=True)
                )
        there = [_observed(run) for run in self.stores.runs.of(uid)]
        return [*gone, *there], LOST_SECONDS if gone else None

    def _leaves_something(self, run_uid: str, *, namespace: str) -> bool:
        jobs = self.stores.jobs.of(run_uid)
        pods = self.stores.pods.of(run_uid)
        ages = self._since.ages(run_uid, timed(jobs, pods), clock=self.clock())
        if any(job.ended is None for job in jobs) or left_behind(pods, jobs, namespace=namespace, ages=ages):
            return True
        self._since.forget(run_uid)
        return False

    async def _create(self, schedule: DistillationSchedule, slot: datetime, *, last: str | None) -> ScheduledRun:
        made = await self.writer.create_run(schedule, slot_manifest(schedule, slot, last=last))
        self.on_change(self.stores.runs.put(made))
        lateness = (self.now() - slot) / timedelta(seconds=1)
        self.metrics.schedule_lateness.observe(max(0.0, lateness))
        return _observed(read_run(made))

    def _obstacle(self, schedule: DistillationSchedule) -> Obstacle | None:
        blocked = self._blocked.get(_uid(schedule))
        if blocked is None:
            return None
        left = blocked.until - self.clock()
        if blocked.generation != schedule.metadata.generation or left <= 0:
            del self._blocked[_uid(schedule)]
            return None
        return Obstacle(reason=blocked.obstacle.reason, message=blocked.obstacle.message, seconds=left)

    def _block(self, schedule: DistillationSchedule, obstacle: Obstacle) -> None:
        assert obstacle.seconds is not None, "what the API server refuses may be granted later"
        until = self.clock() + obstacle.seconds
        self._blocked[_uid(schedule)] = _Blocked(obstacle, schedule.metadata.generation, until)

    def _template_problem(self, schedule: DistillationSchedule) -> str | None:
        """Found once for each generation of the spec: it takes longer than the decision."""
        uid, generation = _uid(schedule), schedule.metadata.generation
        known = self._wrong.get(uid)
        if known is None or known[0] != generation:
            known = self._wrong[uid] = (generation, template_problem(schedule, self.defaults))
        return known[1]

    async def _write_status(self, schedule: DistillationSchedule, record: ScheduleRecord, decision: Decision) -> None:
        if decision.status == schedule.status:
            return
        written = await self.writer.write_status(
            schedule.metadata, decision.status, resource_version=record.resource_version, kind=SCHEDULE
        )
        self.stores.schedules.put(written)
        for result, count in (
            ("Started", decision.started),
            ("Skipped", decision.skipped),
            ("Missed", decision.missed),
        ):
            self.metrics.schedule_slots.labels(result=result).inc(count)

    async def _refuse(self, record: ScheduleRecord, error: UnreadableError[Any]) -> None:
        if error.status is None:
            return
        status = refused(error.status, error.metadata.generation, message=str(error), now=self.now())
        if status == error.status:
            return
        written = await self.writer.write_status(
            error.metadata, status, resource_version=record.resource_version, kind=SCHEDULE
        )
        self.stores.schedules.put(written)
        await self._tell(error.metadata, Event(type="Warning", reason="InvalidSpec", message=str(error)))

    async def _tell(self, metadata: ObjectMeta, event: Event) -> None:
        log.info("%s: %s", event.reason, event.message)
        self.metrics.events.labels(reason=event.reason).inc()
        await self.writer.tell(metadata, event, now=self.now(), kind=SCHEDULE)


def _uid(schedule: DistillationSchedule) -> str:
    assert schedule.metadata.uid is not None, "the API server gives every object one"
    return schedule.metadata.uid


def _observed(record: RunRecord) -> ScheduledRun:
    return ScheduledRun(
        name=record.name,
        uid=record.uid,
        phase=record.phase or "Pending",
        created=record.created,
        completed=record.completed,
        going=record.deleting is not None,
        unchanged=record.unchanged,
    )
