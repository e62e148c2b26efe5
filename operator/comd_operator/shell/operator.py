"""The operator put together: four watches fill the stores, whoever holds the Lease works on what changed."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any

from comd_api import API_VERSION
from comd_api.kinds import RUN, SCHEDULE
from comd_operator.planner import labels
from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.credentials import own_namespace
from comd_operator.runtime.lease import Lease, NotLeadingError
from comd_operator.runtime.limiter import TokenBucket
from comd_operator.runtime.logcontext import about
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.observe import Patience
from comd_operator.runtime.progress import Progress
from comd_operator.runtime.queue import WorkQueue
from comd_operator.runtime.reconciler import Reconciler, Stores
from comd_operator.runtime.records import Identity, read_job, read_pod, read_run, read_schedule
from comd_operator.runtime.reflector import Reflector, Reminder
from comd_operator.runtime.schedules import ScheduleReconciler
from comd_operator.runtime.second_look import SecondLook
from comd_operator.runtime.store import Store
from comd_operator.runtime.words import Words
from comd_operator.runtime.writes import Writer
from comd_operator.shell.options import Options, own_identity
from comd_operator.shell.probes import Probes

log = logging.getLogger(__name__)

RESOURCES: tuple[tuple[str, str, dict[str, str]], ...] = (
    (SCHEDULE.plural, API_VERSION, {}),
    (RUN.plural, API_VERSION, {}),
    ("jobs", "batch/v1", {"labelSelector": labels.SELECTOR}),
    ("pods", "v1", {"labelSelector": labels.SELECTOR}),
)


def _not_installed(resource: str) -> str:
    return (
        f"the custom resource definition {resource}.{API_VERSION.partition('/')[0]} is not installed: "
        f"kubectl apply -f crds/{resource}.yaml; waiting for it"
    )


def _owners(record: Identity) -> tuple[str, ...]:
    return record.owners


class Operator:
    """`start()` and `stop()` once each; `failed` says why it stopped by itself."""

    def __init__(self, options: Options, *, metrics: Metrics | None = None) -> None:
        self.options = options
        self.metrics = metrics or Metrics()
        self.failed: BaseException | None = None
        self.reflectors: list[Reflector[Any]] = []
        self.stores = Stores(
            schedules=Store(read=read_schedule, owners=_owners),
            runs=Store(read=read_run, owners=_owners),
            jobs=Store(read=read_job, owners=_owners),
            pods=Store(read=read_pod, owners=_owners),
        )
        self.leading = False
        self._not_before: dict[str, float] = {}
        """Runs and schedules that the API server wants to be left alone with, whatever changes, and until when."""
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = asyncio.Event()
        self._opened = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Connects, begins to watch, serves probes, and competes for the Lease. Returns at once."""
        options = self.options
        self.api = await Api.connect(
            limiter=TokenBucket(rate=options.qps, burst=options.burst, clock=time.monotonic, sleep=asyncio.sleep),
            metrics=self.metrics,
            context=options.context or None,
            user_agent="comd-operator",
        )
        self._opened.push_async_callback(self.api.close)
        self.queue: WorkQueue = WorkQueue(metrics=self.metrics)
        self.progress = Progress(every_seconds=options.progress_seconds, on_change=self.queue.add, clock=time.monotonic)
        writer, second_look = Writer(api=self.api), SecondLook(api=self.api)
        self._runs = Reconciler(
            stores=self.stores,
            writer=writer,
            words=Words(api=self.api),
            second_look=second_look,
            progress=self.progress,
            metrics=self.metrics,
            defaults=self.options.defaults,
            patience=Patience(start_seconds=self.options.start_patience_seconds),
            on_change=self._changed,
            clock=time.monotonic,
        )
        self._schedules = ScheduleReconciler(
            stores=self.stores,
            writer=writer,
            second_look=second_look,
            metrics=self.metrics,
            defaults=self.options.defaults,
            on_change=self._changed,
            clock=time.monotonic,
        )
        self._watch()
        self.metrics.watch_ages(self._watch_ages)
        self.metrics.count_runs(lambda: (record.phase or "Pending" for record in self.stores.runs))
        self.probes = Probes(
            metrics=self.metrics,
            ready=self.is_synced,
            reflectors=self.reflectors,
            address=options.address,
            port=options.port,
        )
        self._opened.push_async_callback(self.probes.stop)
        await self.probes.start()
        for reflector in self.reflectors:
            self._spawn(reflector.run(), name=f"watch {reflector.resource}")
        self._spawn(self._compete(), name="lease")

    async def stop(self) -> None:
        """Breaks off what is under way, which whoever comes next picks up; gives the Lease back; closes everything."""
        self._stopped.set()
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._opened.aclose()

    def is_synced(self) -> bool:
        return bool(self.reflectors) and all(reflector.synced.is_set() for reflector in self.reflectors)

    def _watch_ages(self) -> dict[str, float]:
        ages: dict[str, float] = {}
        for reflector in self.reflectors:
            ages[reflector.resource] = max(ages.get(reflector.resource, 0.0), reflector.age())
        return ages

    def _watch(self) -> None:
        namespaces: list[str | None] = [*self.options.namespace_list] or [None]
        known = self.stores
        stores: tuple[Store[Any], ...] = (known.schedules, known.runs, known.jobs, known.pods)
        for (resource, api_version, params), store in zip(RESOURCES, stores, strict=True):
            unknown = Reminder(_not_installed(resource)) if api_version == API_VERSION else None
            for namespace in namespaces:
                self.reflectors.append(
                    Reflector(
                        api=self.api,
                        resource=resource,
                        api_version=api_version,
                        namespace=namespace,
                        params=params,
                        store=store,
                        on_change=self._changed,
                        metrics=self.metrics,
                        unknown=unknown,
                        resync=self.options.resync_seconds,
                    )
                )

    def _changed(self, owners: set[str]) -> None:
        if self.leading:
            for owner in owners:
                self.queue.add(owner)
                waits = self._schedules.waiting.get(owner)
                if waits is not None:
                    self.queue.add(waits)

    async def _compete(self) -> None:
        options = self.options
        if not options.leader_election:
            await self._lead()
            return
        lease = Lease(
            api=self.api,
            namespace=options.lease_namespace or own_namespace() or "default",
            name=options.lease_name,
            identity=options.identity or own_identity(),
            duration=options.lease_seconds,
            renew_deadline=options.lease_seconds * 2 / 3,
            retry_period=options.lease_seconds * 2 / 15,
        )
        self.api.before_write = lease.check
        await lease.run(self._lead)

    async def _lead(self) -> None:
        """Works until cancelled. Nothing is decided before everything was listed once; what a standby knows is listed anew, for its
        watches may lag behind what the last leader has done."""
        known = [reflector for reflector in self.reflectors if reflector.synced.is_set()]
        await asyncio.gather(*(reflector.refresh() for reflector in known if self.options.leader_election))
        await asyncio.gather(*(reflector.synced.wait() for reflector in self.reflectors))
        stores = self.stores
        counts = len(stores.schedules), len(stores.runs), len(stores.jobs), len(stores.pods)
        log.info("leading: %d schedules, %d runs, %d Jobs, %d Pods", *counts)
        self.leading = True
        self.metrics.leader.set(1)
        try:
            for record in (*self.stores.schedules, *self.stores.runs):
                self.queue.add(record.uid)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.progress.run(), name="progress")
                group.create_task(self._doubt_namespaces(), name="namespaces")
                for number in range(self.options.workers):
                    group.create_task(self._work(), name=f"worker {number}")
        finally:
            self.leading = False
            self.metrics.leader.set(0)

    async def _doubt_namespaces(self) -> None:
        """A name that is mistyped lists as an empty namespace does. Who may not know whether it is there is not told."""
        for name in sorted(set(self.options.namespace_list) - {record.namespace for record in self.stores.runs}):
            try:
                await self.api.get(namespaced("v1", "namespaces", name=name))
            except ApiError as error:
                if error.status == 404:
                    log.warning("--namespaces: there is no namespace %s yet", name)

    async def _work(self) -> None:
        while True:
            uid = await self.queue.get()
            left = self._not_before.get(uid, 0.0) - time.monotonic()
            if left > 0:
                self.queue.add_after(uid, left)
                self.queue.done(uid)
                continue
            started, result = time.monotonic(), "done"
            try:
                with self._about(uid):
                    result = await self._work_on(uid)
            except NotLeadingError:
                result = "not-leading"
                raise
            finally:
                self.queue.done(uid)
                self.metrics.reconciles.labels(result=result).inc()
                self.metrics.reconcile_duration.observe(time.monotonic() - started)

    async def _work_on(self, uid: str) -> str:
        """What came of it, in a word."""
        try:
            again = await self._reconcile(uid)
        except ApiError as error:
            log.log(logging.DEBUG if error.status == 409 else logging.WARNING, "to be tried again: %s", error)
            if error.retry_after:
                self._not_before[uid] = time.monotonic() + error.retry_after
            self.queue.add_rate_limited(uid, at_least=error.retry_after or 0.0)
            return "conflict" if error.status == 409 else "api-error"
        except NotLeadingError:
            raise
        except Exception:
            log.exception("to be tried again")
            self.queue.add_rate_limited(uid)
            return "error"
        self.queue.forget(uid)
        self._not_before.pop(uid, None)
        if again is not None:
            self.queue.add_after(uid, again)
        return "done"

    async def _reconcile(self, uid: str) -> float | None:
        """A uid is a schedule's or a run's; of what is gone both let go."""
        if self.stores.schedules.of(uid):
            return await self._schedules.reconcile(uid)
        self._schedules.forget(uid)
        return await self._runs.reconcile(uid)

    def _about(self, uid: str) -> AbstractContextManager[None]:
        schedule = next(iter(self.stores.schedules.of(uid)), None)
        if schedule is not None:
            return about(schedule=schedule.name, namespace=schedule.namespace)
        run = next((run for run in self.stores.runs.of(uid) if run.uid == uid), None)
        return about(run=run.name, namespace=run.namespace) if run is not None else contextlib.nullcontext()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """None of the tasks ends by itself; when one does, the process ends and is started anew."""
        if self._stopped.is_set() or task.cancelled():
            return
        self.failed = task.exception() or RuntimeError(f"{task.get_name()} ended")
        log.error("%s: %s; the operator ends", task.get_name(), self.failed or "ended", exc_info=self.failed)
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getpid(), 15)
