"""observe → decide → act, for one run at a time."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from comd_api.run import DistillationRun
from comd_api.status import RunStatus, StageStatus
from comd_operator.decide import Decision, decide
from comd_operator.planner import ClusterDefaults, JobPlan, fill, job_manifest, labels, num_nodes, problem, stage_config
from comd_operator.policies import ledger
from comd_operator.policies.children import Child
from comd_operator.policies.hold import Obstacle
from comd_operator.runtime.api import ApiError
from comd_operator.runtime.logcontext import about
from comd_operator.runtime.measures import measure
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.observe import Patience, next_look, observe
from comd_operator.runtime.progress import Progress
from comd_operator.runtime.records import JobRecord, PodRecord, RunRecord, read_job
from comd_operator.runtime.second_look import SecondLook, ends_are_told
from comd_operator.runtime.store import Store
from comd_operator.runtime.words import Words
from comd_operator.runtime.writes import GoneError, ObstacleError, Writer

log = logging.getLogger(__name__)

PODLESS_SECONDS = 2.0
"""A Job without pods for so long is asked why."""


@dataclass(frozen=True, kw_only=True)
class Stores:
    runs: Store[RunRecord]
    jobs: Store[JobRecord]
    pods: Store[PodRecord]


class NotLeadingError(Exception):
    """The Lease is not ours any more: nothing may be written."""


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
    may_write: Callable[[], bool]
    """Whether the Lease is held: asked before each write."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _blocked: dict[str, _Blocked] = field(default_factory=dict)
    _problems: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    """Of each run: a generation, and what is wrong with it."""

    async def reconcile(self, uid: str) -> float | None:
        """Brings one run a step further. Returns the seconds after which it is to be looked at again, if ever.

        Raises:
            ApiError: the API server did not do what it was asked; to be tried again.
        """
        record = next(iter(self.stores.runs.of(uid)), None)
        if record is None or record.deleting is not None:
            self._forget(uid)
            return None
        run = parse(record)
        if run is None or run.spec.managed_by not in (None, labels.MANAGER):
            self._forget(uid)
            return None
        stage = ledger.current(run.status or RunStatus())
        with about(run=run.metadata.name, namespace=run.metadata.namespace, stage=stage):
            try:
                return await self._step(run, record)
            except GoneError:
                self._forget(uid)
                return None

    async def _step(self, run: DistillationRun, record: RunRecord) -> float | None:
        children, look = await self._children(run)
        obstacle = self._obstacle(run)
        decision = decide(run, children, self.now(), obstacle=obstacle)
        try:
            for job in decision.create:
                made = await self._create(run, job, decision)
                decision = replace(decision, status=ledger.note_uid(decision.status, made["metadata"]))
        except ObstacleError as error:
            self._block(run, error.obstacle)
            decision = decide(run, children, self.now(), obstacle=error.obstacle)
        await self._write_status(run, record, decision)
        for child in children:
            if child.name in decision.delete and (not child.deleting or child.lost):
                self.check_leading()
                log.info("deleting Job %s", child.name)
                going = await self.writer.delete_job(child, namespace=run.metadata.namespace)
                if going is not None:
                    self.stores.jobs.put(going)  # else it is deleted again before the watch has told
        if decision.event is not None:
            log.info("%s: %s", decision.event.reason, decision.event.message)
            self.metrics.events.labels(reason=decision.event.reason).inc()
            await self.writer.tell(run, decision.event, now=self.now())
        return min((seconds for seconds in (decision.requeue_after, look) if seconds is not None), default=None)

    async def _children(self, run: DistillationRun) -> tuple[list[Child], float | None]:
        """The run's Jobs as they are, and in how many seconds they are worth a look though nothing is told of them."""
        assert run.metadata.uid is not None, "the API server gives every object one"
        stage = ledger.current(run.status or RunStatus())
        if stage is not None and ledger.in_flight(stage):
            await self._look_twice(run, stage)
        pods, now = self.stores.pods.of(run.metadata.uid), self.now()
        children: list[Child] = []
        looks: list[float] = []
        for job in self.stores.jobs.of(run.metadata.uid):
            own = [pod for pod in pods if pod.job_uid == job.uid]
            wait = None
            podless = not own and (now - job.created).total_seconds()
            if job.ended is None and job.deleting is None and (job.suspended or (job.started and not own)):
                if job.suspended or podless >= PODLESS_SECONDS:
                    wait, pause = await self.words.of(job, clock=self.clock(), now=now)
                    looks.append(pause)
                else:
                    looks.append(PODLESS_SECONDS)
            else:
                self.words.forget(job.uid)
            text = self.progress.of(job.uid)
            child = observe(job, own, wait=wait, progress=text, patience=self.patience, now=now)
            look = next_look(job, own, wait=wait, patience=self.patience, now=now)
            looks += [look] if look is not None else []
            running = stage is not None and stage.job_name == job.name and child.state == "Running"
            first = next((pod for pod in own if pod.index == 0 and pod.started and pod.exit_code is None), None)
            if running and first is not None and first.ip is not None:
                self.progress.follow(job.uid, ip=first.ip, run_uid=run.metadata.uid)
            else:
                self.progress.forget(job.uid)
            children.append(child)
        return children, min(looks, default=None)

    async def _look_twice(self, run: DistillationRun, stage: StageStatus) -> None:
        """At what the watches have yet to tell of the Job in flight."""
        uid, name = str(run.metadata.uid), str(stage.job_name)
        job = next((job for job in self.stores.jobs.of(uid) if job.name == name), None)
        if job is None:
            found = await self.second_look.job(namespace=run.metadata.namespace, name=name)
            if found is None or read_job(found).owner != uid:
                return
            job = read_job(found)
            self.stores.jobs.put(found)
        if not ends_are_told(job, self.stores.pods.of(uid)):
            for pod in await self.second_look.pods(job):
                self.stores.pods.put(pod)

    def _obstacle(self, run: DistillationRun) -> Obstacle | None:
        words = self._problem(run)
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
            seconds=max(0.0, blocked.until - self.clock()),
        )

    def _problem(self, run: DistillationRun) -> str | None:
        """Found once for each generation of the spec: it takes as long as the decision."""
        uid, generation = str(run.metadata.uid), run.metadata.generation
        known = self._problems.get(uid)
        if known is None or known[0] != generation:
            known = self._problems[uid] = (generation, problem(fill(run, self.defaults)))
        return known[1]

    def _block(self, run: DistillationRun, obstacle: Obstacle) -> None:
        until = self.clock() + (obstacle.seconds if obstacle.seconds is not None else float("inf"))
        self._blocked[str(run.metadata.uid)] = _Blocked(obstacle, run.metadata.generation, until)

    async def _create(self, run: DistillationRun, job: JobPlan, decision: Decision) -> dict[str, Any]:
        """The config is made from the status as it will be: it names what the stages before have made."""
        run = fill(run, self.defaults)
        config = stage_config(run.replace(status=decision.ahead), job)
        if num_nodes(run, job) > 1:
            self.check_leading()
            await self.writer.ensure_service(run)
        self.check_leading()
        manifest = job_manifest(run, job, config)
        made = await self.writer.create_job(run, manifest)
        self.stores.jobs.put(made)
        return made

    async def _write_status(self, run: DistillationRun, record: RunRecord, decision: Decision) -> None:
        if decision.status == run.status:
            return
        self.check_leading()
        written = await self.writer.write_status(run, decision.status, resource_version=record.resource_version)
        self.stores.runs.put(written)
        measure(self.metrics, run.status or RunStatus(), decision.status)

    def check_leading(self) -> None:
        """Raises NotLeadingError."""
        if not self.may_write():
            raise NotLeadingError

    def _forget(self, uid: str) -> None:
        self._blocked.pop(uid, None)
        self._problems.pop(uid, None)
        for job in self.stores.jobs.of(uid):
            self.words.forget(job.uid)
            self.progress.forget(job.uid)


def parse(record: RunRecord) -> DistillationRun | None:
    """The run, or None for one that this version can't read, which it then leaves alone."""
    try:
        return DistillationRun.model_validate_json(record.body, by_alias=True, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        log.error(
            "run %s/%s can't be read and is left alone: %s: %s (was it written by another version?)",
            record.namespace,
            record.name,
            place,
            first["msg"],
        )
        return None


__all__ = ["ApiError", "NotLeadingError", "Reconciler", "Stores", "parse"]
