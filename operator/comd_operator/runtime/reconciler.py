"""observe → decide → act, for one run at a time."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from comd_api.run import DistillationRun, ObjectMeta
from comd_api.status import RunStatus, StageStatus
from comd_operator.decide import Decision, decide
from comd_operator.planner import ClusterDefaults, JobPlan, fill, job_manifest, labels, num_nodes, problem, stage_config
from comd_operator.planner.configs import moved_storage
from comd_operator.policies import ledger
from comd_operator.policies.children import Child
from comd_operator.policies.conditions import refused
from comd_operator.policies.events import Event
from comd_operator.policies.hold import Obstacle
from comd_operator.policies.queue import Wait
from comd_operator.runtime.api import ApiError
from comd_operator.runtime.logcontext import at
from comd_operator.runtime.measures import measure
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.observe import LOST_SECONDS, Patience, left_behind, next_look, observe, timed
from comd_operator.runtime.parsing import UnreadableError, parse
from comd_operator.runtime.placing import are_unseen, since_when
from comd_operator.runtime.progress import Progress
from comd_operator.runtime.records import JobRecord, PodRecord, RunRecord, ScheduleRecord, read_job, read_pod
from comd_operator.runtime.second_look import SecondLook, ends_are_told
from comd_operator.runtime.since import Since
from comd_operator.runtime.store import Store
from comd_operator.runtime.words import Words
from comd_operator.runtime.writes import MOST_WORDS, REFUSAL_SECONDS, GoneError, ObstacleError, Writer

log = logging.getLogger(__name__)

PODLESS_SECONDS = 2.0
"""A Job without pods for so long is asked why."""
STARTING_SECONDS = 20.0
"""So is a pod that has a node and does not start on it: what it mounts may not be there."""
FAILING_SECONDS = 10.0
"""A Job that can't be made for so long is told of, whatever the reason."""
UNWATCHED_SECONDS = 5.0
"""A Job or pod that our label was taken off is asked for so often: no watch tells of it."""
GONE_SECONDS = 30.0
"""What the server says is gone is looked at again, should the watch not have told by then: the kind itself may have been away."""
_BEFORE_IT_STARTS = ("", "ContainerCreating", "PodInitializing")


@dataclass(frozen=True, kw_only=True)
class Stores:
    schedules: Store[ScheduleRecord]
    runs: Store[RunRecord]
    jobs: Store[JobRecord]
    pods: Store[PodRecord]


@dataclass
class _Blocked:
    obstacle: Obstacle
    generation: int
    until: float


@dataclass(kw_only=True)
class Reconciler:
    stores: Stores
    writer: Writer
    words: Words
    second_look: SecondLook
    progress: Progress
    metrics: Metrics
    defaults: ClusterDefaults
    patience: Patience
    on_change: Callable[[set[str]], None]
    """Is given the uids of what else is to be looked at."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _blocked: dict[str, _Blocked] = field(default_factory=dict)
    _failing: dict[str, float] = field(default_factory=dict)
    """Since when a run's Job could not be made, for reasons that may pass."""
    _problems: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """Of each run: a generation, and what is wrong with it."""
    _since: Since = field(default_factory=Since)

    async def reconcile(self, uid: str) -> float | None:
        """Brings one run a step further. Returns the seconds after which it is to be looked at again, if ever.

        Raises:
            ApiError: the API server did not do what it was asked; to be tried again.
        """
        record = next((run for run in self.stores.runs.of(uid) if run.uid == uid), None)  # and not one that it owns
        if record is None or record.deleting is not None:
            self._forget(uid)
            return None
        try:
            try:
                run = parse(record.body, DistillationRun, status=RunStatus)
            except UnreadableError as error:
                if _is_ours(error.spec.get("managedBy")):
                    await self._refuse(record, error)
                return None
            if not _is_ours(run.spec.managed_by):
                self._forget(uid)
                return None
            return await self._step(fill(run, self.defaults), record)
        except GoneError:
            return GONE_SECONDS  # Unless the watch tells before that it is.

    async def _step(self, run: DistillationRun, record: RunRecord) -> float | None:
        children, look = await self._children(run)
        obstacle = self._obstacle(run)
        decision = decide(run, children, self.now(), obstacle=obstacle)
        at(ledger.newest(decision.status))
        try:
            for job in decision.create:
                made = await self._create(run, job, decision)
                if made.get("status"):
                    look = 0.0  # It was there before, and the watch may have nothing more to tell of it.
                decision = replace(decision, status=ledger.note_uid(decision.status, made["metadata"]))
        except (ObstacleError, ApiError) as error:
            obstacle = self._refused(run, error)
            self._block(run, obstacle)
            decision = decide(run, children, self.now(), obstacle=obstacle)
        else:
            self._failing.pop(str(run.metadata.uid), None)
        await self._write_status(run, record, decision)
        if decision.event is not None:  # Before what may fail: what was written once is never told again.
            await self._tell(run.metadata, decision.event)
        if decision.over and run.spec.trainer.num_nodes > 1:
            await self.writer.delete_service(run)
        for child in children:
            if child.name in decision.delete and (not child.deleting or child.lost):
                log.info("deleting Job %s", child.name)
                going = await self.writer.delete_job(child, namespace=run.metadata.namespace)
                if going is not None:
                    self._keep(going)  # else it is deleted again before the watch has told
        return min((seconds for seconds in (decision.requeue_after, look) if seconds is not None), default=None)

    async def _children(self, run: DistillationRun) -> tuple[list[Child], float | None]:
        """The run's Jobs as they are, and in how many seconds they are worth a look though nothing is told of them."""
        assert run.metadata.uid is not None, "the API server gives every object one"
        stage = ledger.current(run.status or RunStatus())
        jobs, children = await self._jobs(run, stage)
        looks = [UNWATCHED_SECONDS for job in jobs if self.stores.jobs.get(job.namespace, job.name) is None][:1]
        namespace, now, told = run.metadata.namespace, self.now(), self.stores.pods.of(run.metadata.uid)
        ages = self._since.ages(run.metadata.uid, timed(jobs, told), clock=self.clock())
        pods, again = await self._pods(run, jobs, stage, ages=ages)
        looks += [again] if again is not None else []
        self.progress.keep_only({job.uid for job in jobs}, run_uid=run.metadata.uid)
        left = left_behind(pods, jobs, namespace=namespace, ages=ages)
        children += [Child.of_pod(pod.name, uid=pod.uid) for pod in left]
        looks += [LOST_SECONDS] if left else []
        for job in jobs:
            own = [pod for pod in pods if pod.job_uid == job.uid]
            current = stage is not None and stage.job_uid == job.uid
            wait, pause = await self._wait(job, own, now=now)
            looks += [pause] if pause is not None else []
            text = self.progress.of(job.uid) or (run.status.progress if run.status and current else None)
            child = observe(job, own, wait=wait, progress=text, patience=self.patience, ages=ages, now=now)
            look = next_look(job, own, wait=wait, patience=self.patience, ages=ages, now=now)
            looks += [look] if look is not None else []
            if child.wait is not None and child.wait.reason == "Unschedulable":
                steady, newer = self.words.steady(job.uid, child.wait, clock=self.clock())
                looks += [newer] if newer is not None else []
                child = replace(child, wait=steady)
            running = current and child.state == "Running"
            first = next((pod for pod in own if pod.index == 0 and pod.started and pod.exit_code is None), None)
            if running and first is not None and first.ip is not None:
                self.progress.follow(job.uid, ip=first.ip, run_uid=run.metadata.uid)
            else:
                self.progress.forget(job.uid)
            children.append(child)
        return children, min(looks, default=None)

    async def _wait(
        self, job: JobRecord, pods: Sequence[PodRecord], *, now: datetime
    ) -> tuple[Wait | None, float | None]:
        """Why nothing of a Job runs, for one of which nothing does, and when that is worth asking again."""
        # What events say of the time before its pods were made does not explain that they are gone.
        unexplained = bool(pods) or not job.has_pods
        silent = job.suspended or (job.started is not None and unexplained and not any(pod.started for pod in pods))
        if job.ended is not None or job.deleting is not None or not silent:
            self.words.forget(job.uid)
            return None, None
        age = (now - since_when(job, pods)).total_seconds()
        patience = 0.0 if job.suspended else STARTING_SECONDS if pods else PODLESS_SECONDS
        if age < patience:
            return None, patience - age
        placed = next((pod for pod in pods if pod.node is not None and pod.waiting_reason in _BEFORE_IT_STARTS), None)
        if pods and placed is None and not job.suspended:
            return None, None  # What the scheduler or the kubelet says of it stands in the pod itself.
        return await self.words.of(job, None if job.suspended else placed, clock=self.clock(), now=now)

    async def _jobs(self, run: DistillationRun, stage: StageStatus | None) -> tuple[list[JobRecord], list[Child]]:
        """The run's Jobs, those too that no watch tells of: yet, or since somebody has changed our label on them. And, as a child, what
        is no longer this run's of what the ledger says is in flight."""
        uid, namespace = str(run.metadata.uid), run.metadata.namespace
        jobs, estranged = self.stores.jobs.of(uid), []
        in_flight = stage.job_name if stage is not None and ledger.in_flight(stage) else None
        left = left_behind(self.stores.pods.of(uid), jobs, namespace=namespace, ages={})
        names = {in_flight, *(pod.job_name for pod in left)} - {None, *(job.name for job in jobs)}
        for name in sorted(filter(None, names)):
            found = await self.second_look.job(namespace=namespace, name=name)
            job = read_job(found) if found is not None else None
            if found is not None and job is not None and job.owner == uid:
                self._keep(found)
                jobs.append(job)
            elif job is not None and stage is not None and name == in_flight:
                estranged.append(Child.estranged(stage, name))
        return jobs, estranged

    async def _pods(
        self, run: DistillationRun, jobs: Sequence[JobRecord], stage: StageStatus | None, *, ages: Mapping[str, float]
    ) -> tuple[list[PodRecord], float | None]:
        """The run's pods, those too of the Job in flight that no watch tells of: yet, or because somebody has changed our label on them.
        And when they are to be asked for again."""
        pods = self.stores.pods.of(str(run.metadata.uid))
        job = next(
            (job for job in jobs if stage is not None and ledger.in_flight(stage) and job.name == stage.job_name), None
        )
        if job is None:
            return pods, None
        unseen = are_unseen(job, pods, ages)
        if ends_are_told(job, pods) and not unseen:
            return pods, None
        found = await self.second_look.pods(job)
        for pod in filter(labels.is_watched, found):
            self.stores.pods.put(pod)
        # What was seen of a pod that has gone meanwhile counts on.
        newest = {pod.uid: pod for pod in (*pods, *map(read_pod, found))}
        return list(newest.values()), UNWATCHED_SECONDS if unseen else None

    def _keep(self, job: dict[str, Any]) -> None:
        """Only what the watch tells of as well: of anything else nobody would ever say that it has ended or is gone."""
        if labels.is_watched(job):
            self.stores.jobs.put(job)

    def _obstacle(self, run: DistillationRun) -> Obstacle | None:
        words = self._problem(run)
        if words is None and run.status is not None and not ledger.in_flight(ledger.current(run.status)):
            words = moved_storage(run)
        if words is not None:
            return Obstacle(reason="InvalidSpec", message=words)
        blocked = self._blocked.get(str(run.metadata.uid))
        if blocked is None:
            return None
        if blocked.generation != run.metadata.generation or self.clock() >= blocked.until:
            del self._blocked[str(run.metadata.uid)]
            return None
        return Obstacle(
            reason=blocked.obstacle.reason,
            message=blocked.obstacle.message,
            seconds=None if blocked.until == math.inf else max(0.0, blocked.until - self.clock()),
        )

    def _problem(self, run: DistillationRun) -> str | None:
        """What no artifact can change is found once for each generation of the spec: it takes as long as the decision."""
        uid, generation = str(run.metadata.uid), run.metadata.generation
        known = self._problems.get(uid)
        if known is None or known[0] != generation:
            known = self._problems[uid] = (generation, problem(run))
        return known[1]

    def _refused(self, run: DistillationRun, error: ObstacleError | ApiError) -> Obstacle:
        """What keeps the Job from being made. An error that may pass is raised, until it has lasted: then the run has to say so, whose
        status would otherwise never be written."""
        if isinstance(error, ObstacleError):
            return error.obstacle
        since = self._failing.setdefault(str(run.metadata.uid), self.clock())
        if error.status == 0 or self.clock() - since < FAILING_SECONDS:
            raise error
        message = f"the API server does not take the Job: {error}"[:MOST_WORDS]
        return Obstacle(reason="ApiError", message=message, seconds=REFUSAL_SECONDS)

    def _block(self, run: DistillationRun, obstacle: Obstacle) -> None:
        until = math.inf if obstacle.seconds is None else self.clock() + obstacle.seconds
        self._blocked[str(run.metadata.uid)] = _Blocked(obstacle, run.metadata.generation, until)

    async def _create(self, run: DistillationRun, job: JobPlan, decision: Decision) -> dict[str, Any]:
        """The config is made from the status as it will be: it names what the stages before have made."""
        run = run.replace(status=decision.ahead)
        moved = moved_storage(run)
        if moved is not None:
            raise ObstacleError(Obstacle(reason="InvalidSpec", message=moved))
        config = stage_config(run, job)
        if num_nodes(run, job) > 1:
            await self.writer.ensure_service(run)
        manifest = job_manifest(run, job, config)
        made = await self.writer.create_job(run, manifest)
        self._keep(made)
        return made

    async def _write_status(self, run: DistillationRun, record: RunRecord, decision: Decision) -> None:
        if decision.status == run.status:
            return
        written = await self.writer.write_status(
            run.metadata, decision.status, resource_version=record.resource_version
        )
        self._keep_run(written, record)
        measure(self.metrics, run.status or RunStatus(), decision.status)

    async def _refuse(self, record: RunRecord, error: UnreadableError[Any]) -> None:
        """A spec that its schema takes and we can't read: a form that a schema has no words for, such as that of a map's keys."""
        before = error.status
        if before is None or before.phase in ("Succeeded", "Failed"):
            return
        if before.stages:
            log.error("is left alone, though it was begun: %s", error)
            return
        status = refused(before, error.metadata.generation, message=str(error), now=self.now())
        if status == before:
            return
        written = await self.writer.write_status(error.metadata, status, resource_version=record.resource_version)
        self._keep_run(written, record)
        await self._tell(error.metadata, Event(type="Warning", reason="InvalidSpec", message=str(error)))

    def _keep_run(self, written: dict[str, Any], record: RunRecord) -> None:
        """What the watch has nothing to tell of any more: the run's schedule hears of it here."""
        self.on_change(self.stores.runs.put(written) - {record.uid})

    async def _tell(self, metadata: ObjectMeta, event: Event) -> None:
        log.log(logging.WARNING if event.type == "Warning" else logging.INFO, "%s: %s", event.reason, event.message)
        self.metrics.events.labels(reason=event.reason).inc()
        await self.writer.tell(metadata, event, now=self.now())

    def _forget(self, uid: str) -> None:
        self._blocked.pop(uid, None)
        self._failing.pop(uid, None)
        self._problems.pop(uid, None)
        self._since.forget(uid)
        self.progress.keep_only((), run_uid=uid)
        for job in self.stores.jobs.of(uid):
            self.words.forget(job.uid)


def _is_ours(managed_by: object) -> bool:
    return managed_by in (None, labels.MANAGER)
