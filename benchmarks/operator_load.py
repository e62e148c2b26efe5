"""Many runs on a real API server without nodes: how fast their first Jobs are made, and at what cost."""

import asyncio
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from benchmarks import operator_program
from benchmarks.operator_bodies import NAME, run_manifest, run_name
from benchmarks.operator_client import NAMES_ONLY, Client, Write
from benchmarks.operator_program import Program

from comd_api import API_VERSION
from comd_operator.planner import labels
from comd_operator.runtime.api import namespaced
from tests.cluster import lifecycle
from tests.cluster.cluster import Cluster
from tests.cluster.layout import CONTROL

Who = Literal["operator", "floor"]
CREATORS = 32
"""Connections over which runs are made at once."""


@dataclass
class Series:
    """One measurement."""

    who: Who
    count: int
    delays: list[float] = field(default_factory=list)
    """From each run's POST, or in a backlog from the first Job, to its Job at a watch."""
    seconds: float = 0.0
    """From the first run's POST (in a backlog: from the first Job) to the last Job."""
    cpu: float = 0.0
    rss_before: float = 0.0
    rss: float = 0.0
    writes: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    def quantile(self, share: float) -> float:
        ordered = sorted(self.delays)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def median(self) -> float:
        return statistics.median(self.delays)


class Arrivals:
    """When the first Job of each run, or a run itself, is seen, on a watch of the benchmark's own."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self._news = asyncio.Event()

    async def follow(self, client: Client, path: str, version: str) -> None:
        async for line in client.watch(path, version, accept=NAMES_ONLY):
            if line.startswith(b'{"type":"ADDED"'):
                metadata = json.loads(line)["object"]["metadata"]
                run = metadata.get("labels", {}).get(labels.RUN) or metadata["name"]
                self.at.setdefault(run, time.monotonic())
                self._news.set()

    async def all(self, count: int, *, most: float) -> None:
        async with asyncio.timeout(most):
            while len(self.at) < count:
                self._news.clear()
                await self._news.wait()


class Load:
    """workers: of the floor. The operator has its own default."""

    def __init__(self, client: Client, cluster: Cluster, *, workers: int) -> None:
        self.client, self.cluster, self.workers = client, cluster, workers
        self._number = 0

    @contextmanager
    def controllers_stopped(self) -> Iterator[None]:
        """No pods are made and no Job is touched, so that two cores are left to what is measured."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    @contextmanager
    def controllers_go_on(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        pids = lifecycle.program_pids(self.cluster.layout, CONTROL)
        for name in ("kube-controller-manager", "kube-scheduler"):
            if (pid := pids.get(name)) is not None:
                os.kill(pid, number)

    async def until_pods(self, namespace: str, count: int) -> None:
        """A pod for each Job, on its way."""
        async with asyncio.timeout(600):
            while True:
                listed = await self.client.get(namespaced("v1", "pods", namespace), limit="1")
                more = listed["metadata"].get("remainingItemCount", 0)
                if len(listed["items"]) + more >= count:
                    return
                await asyncio.sleep(1.0)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[str]:
        """A namespace. All that was made in it is deleted afterwards."""
        self._number += 1
        name = f"bench-{self._number}"
        await self.client.create("/api/v1/namespaces", {"metadata": {"name": name}})
        try:
            yield name
        finally:
            for version, kind in (
                ("v1", "pods"),
                ("batch/v1", "jobs"),
                (API_VERSION, "distillationschedules"),
                (API_VERSION, "distillationruns"),
                ("v1", "events"),
            ):
                await self.client.delete(namespaced(version, kind, name), propagationPolicy="Background")

    def program(self, who: Who, namespace: str, **options: str | float) -> AbstractAsyncContextManager[Program]:
        if who == "floor":
            return operator_program.floor(namespace, workers=self.workers)
        return operator_program.operator(namespace, **options)

    @asynccontextmanager
    async def arrivals(self, namespace: str, path: str | None = None) -> AsyncIterator[Arrivals]:
        """path: of what is watched; the Jobs of the namespace when none is given."""
        arrivals, path = Arrivals(), path or namespaced("batch/v1", "jobs", namespace)
        task = asyncio.create_task(arrivals.follow(self.client, path, await self.client.version(path)))
        try:
            yield arrivals
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def make_runs(self, namespace: str, count: int, *, per_second: float = 0.0) -> dict[str, float]:
        """When each one's POST was sent. All at once, over CREATORS connections, unless a rate is given."""
        path = namespaced(API_VERSION, "distillationruns", namespace)
        body = json.dumps(run_manifest(NAME))
        limit = asyncio.Semaphore(CREATORS)
        sent: dict[str, float] = {}

        async def make(name: str) -> None:
            async with limit:
                sent[name] = time.monotonic()
                await self.client.write(Write("POST", path, body.replace(NAME, name)))

        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(make(run_name(number)))
                if per_second:
                    await asyncio.sleep(max(0.0, begun + (number + 1) / per_second - time.monotonic()))
        return sent

    async def arriving(
        self,
        who: Who,
        count: int,
        *,
        per_second: float = 0.0,
        afterwards: Callable[[str, Program], Awaitable[None]] | None = None,
        **options: str | float,
    ) -> Series:
        """Runs that are made while the program is at work."""
        async with (
            self.place() as namespace,
            self.arrivals(namespace) as arrivals,
            self.program(who, namespace, **options) as program,
        ):
            await program.rest()
            series = Series(who, count, rss_before=program.rss_mib())
            cpu = program.cpu_seconds()
            sent = await self.make_runs(namespace, count, per_second=per_second)
            await arrivals.all(count, most=300 + count / 10)
            await self._finish(series, program, cpu)
            if afterwards is not None:
                await afterwards(namespace, program)
        series.delays = [arrivals.at[name] - moment for name, moment in sent.items()]
        series.seconds = max(arrivals.at.values()) - min(sent.values())
        return series

    async def backlog(self, who: Who, count: int) -> Series:
        """Runs that are there when the program starts: nothing else goes on, so this is the program's own rate."""
        async with self.place() as namespace:
            await self.make_runs(namespace, count)
            async with self.arrivals(namespace) as arrivals, self.program(who, namespace) as program:
                await arrivals.all(count, most=300)
                series = Series(who, count)
                await self._finish(series, program, 0.0)
        first = min(arrivals.at.values())
        series.delays = [moment - first for moment in arrivals.at.values()]
        series.seconds = max(series.delays)
        return series

    async def _finish(self, series: Series, program: Program, cpu: float) -> None:
        await program.rest()
        series.cpu, series.rss = program.cpu_seconds() - cpu, program.rss_mib()
        if program.port:
            series.writes = await program.writes()
