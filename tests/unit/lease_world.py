"""A Lease on a simulated server, and replicas that compete for it over bad networks, with clocks of their own, in virtual time."""

import asyncio
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from comd_operator.runtime.api import Api, ApiError
from comd_operator.runtime.lease import Lease
from tests.unit.virtual_time import now

DURATION, DEADLINE, RETRY = 15.0, 10.0, 2.0


@dataclass
class LeaseServer:
    """One Lease, guarded by its resourceVersion as the real server does it."""

    lease: dict[str, Any] | None = None
    version: int = 0
    on_write: Callable[[dict[str, Any]], None] = lambda _lease: None

    def get(self) -> dict[str, Any]:
        if self.lease is None:
            raise ApiError(status=404, reason="NotFound", message="there is none")
        return self.lease

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.lease is not None:
            raise ApiError(status=409, reason="AlreadyExists", message="there is one")
        return self.store(body)

    def update(self, body: dict[str, Any]) -> dict[str, Any]:
        version = self.get()["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise ApiError(status=409, reason="Conflict", message="it has changed")
        return self.store(body)

    def store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "uid": "u", "resourceVersion": str(self.version)}}
        self.on_write(self.lease)
        return self.lease

    @property
    def holder(self) -> str | None:
        holder: str | None = self.lease["spec"]["holderIdentity"] if self.lease is not None else None
        return holder


@dataclass
class Link:
    """A replica's way to the server. What was sent arrives, even if nobody waits for the answer any more."""

    server: LeaseServer
    rng: random.Random
    there: float = 0.005
    """Most seconds that a request takes to the server."""
    back: float = 0.005
    lost_there: float = 0.0
    """Share of requests that never arrive; the caller hears nothing."""
    lost_back: float = 0.0
    refuse: ApiError | None = None
    running: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while the process is frozen."""
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.running.set()

    async def get(self, _path: str, *, urgent: bool) -> dict[str, Any]:
        assert urgent
        return await self._carry("get", self.server.get)

    async def create(self, _path: str, body: dict[str, Any], *, urgent: bool) -> dict[str, Any]:
        assert urgent
        return await self._carry("create", lambda: self.server.create(body))

    async def update(self, _path: str, body: dict[str, Any], *, urgent: bool) -> dict[str, Any]:
        assert urgent
        return await self._carry("update", lambda: self.server.update(body))

    async def _carry(self, verb: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        await self.running.wait()
        self.requests.append(verb)
        try:
            return await asyncio.shield(asyncio.ensure_future(self._travel(act)))
        finally:
            await self.running.wait()

    async def _travel(self, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        await asyncio.sleep(self.rng.uniform(0, self.there))
        if self.rng.random() < self.lost_there:
            await asyncio.sleep(100_000)
        if self.refuse is not None:
            raise self.refuse
        answer = act()
        await asyncio.sleep(self.rng.uniform(0, self.back))
        if self.rng.random() < self.lost_back:
            await asyncio.sleep(100_000)
        return answer


_numbers = itertools.count()


class Replica:
    """A process with its own clock, which is off and goes up to 2 % too fast or too slow."""

    def __init__(self, server: LeaseServer, *, seed: int = 0, drift: bool = False, name: str = "") -> None:
        self.rng = random.Random(seed)
        self.name = name or f"replica-{next(_numbers)}"
        self.link = Link(server, self.rng)
        offset = self.rng.uniform(0, 1e6) if drift else 0.0
        rate = self.rng.uniform(0.98, 1.02) if drift else 1.0
        wall = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=self.rng.uniform(0, 1e8))

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds / rate)
            await self.link.running.wait()

        self.clock = lambda: offset + rate * now()
        self.lease = Lease(
            api=cast(Api, self.link),
            namespace="n",
            name="comd",
            identity=self.name,
            duration=DURATION,
            renew_deadline=DEADLINE,
            retry_period=RETRY,
            clock=self.clock,
            sleep=sleep,
            now=lambda: wall + timedelta(seconds=self.rng.uniform(-1e5, 1e5)),
            rng=self.rng,
        )
        self.led: list[tuple[float, float]] = []
        """From when to when `lead` ran."""
        self.stopping = 0.0
        """Seconds that `lead` takes to stop."""
        self.task = asyncio.ensure_future(self.lease.run(self.lead))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def lead(self) -> None:
        start = now()
        try:
            await asyncio.sleep(1e9)
        finally:
            if self.stopping:
                await asyncio.sleep(self.stopping)
            self.led.append((start, now()))

    async def until_held(self) -> float:
        """When it was."""
        while not self.lease.is_held():
            assert not self.task.done(), self.task
            await asyncio.sleep(0.001)
        return now()

    async def shut_down(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self.task

    def crash(self) -> None:
        """As `kill -9`: nothing more is sent, nothing given back."""
        self.link.running.clear()
