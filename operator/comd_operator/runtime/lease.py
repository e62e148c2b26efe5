"""Who of several replicas works: whoever holds a Lease (coordination.k8s.io/v1).

The official client's own election is not used: a request that hangs outlives its renewal deadline, so that two replicas would
work at once; it measures by the clock on the wall; and it does not give the Lease back at the end.

Others' renewals are timed by our own clock from when we saw them, as client-go does, so that clocks need not agree.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from comd_operator.runtime.api import Api, ApiError, namespaced

log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """It could not be renewed in time. All work has been stopped, before anybody else may take it."""


class Lease:
    """duration: seconds after which others may take a Lease that they have not seen renewed. renew_deadline: seconds after which
    we stop working when we could not renew it; the difference is the margin for a write that is still on its way."""

    def __init__(
        self,
        *,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        duration: float = 15.0,
        renew_deadline: float = 10.0,
        retry_period: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api, self._name, self._identity = api, name, identity
        self._path = namespaced("coordination.k8s.io/v1", "leases", namespace)
        self._namespace = namespace
        self._duration, self._deadline, self._retry = duration, renew_deadline, retry_period
        self._clock, self._sleep, self._now = clock, sleep, now
        self._held_until = float("-inf")
        self._seen: tuple[Any, ...] = ()
        self._seen_at = clock()
        self._seen_duration = duration

    def is_held(self) -> bool:
        """Asked before each write."""
        return self._clock() < self._held_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Waits for the Lease, then runs `lead` for as long as it is held.

        Raises:
            LeaseLostError: it was lost, and `lead` has been stopped.
        """
        while not await self._try(timeout=self._deadline):
            await self._sleep(self._retry * random.uniform(1.0, 1.2))
        log.info("holding the Lease %s/%s as %s", self._namespace, self._name, self._identity)
        work = asyncio.ensure_future(lead())
        try:
            await self._renew(work)
        finally:
            self_ended = work.done()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            if self.is_held():
                await self._release()
            if not self_ended:
                log.info("not holding the Lease any more")

    async def _renew(self, work: "asyncio.Future[None]") -> None:
        while True:
            done, _ = await asyncio.wait({work}, timeout=self._retry * random.uniform(0.9, 1.0))
            if done:
                await work  # its error, or an end that nobody asked for
                return
            left = self._held_until - self._clock()
            if left > 0:
                await self._try(timeout=min(left, self._deadline / 2))
            if not self.is_held():
                raise LeaseLostError(
                    f"the Lease {self._namespace}/{self._name} could not be renewed in {self._deadline:g} s"
                )

    async def _try(self, *, timeout: float) -> bool:
        """Takes the Lease when it is free, renews it when it is ours."""
        started = self._clock()
        try:
            async with asyncio.timeout(max(0.05, timeout)):
                ours = await self._take_or_renew()
        except (ApiError, TimeoutError) as error:
            log.warning("Lease %s/%s: %s", self._namespace, self._name, error or "no answer in time")
            return False
        if ours:
            self._held_until = started + self._deadline
        else:
            self._held_until = float("-inf")
        return ours

    async def _take_or_renew(self) -> bool:
        try:
            lease = await self._api.get(f"{self._path}/{self._name}", urgent=True)
        except ApiError as error:
            if error.status != 404:
                raise
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": self._namespace},
                "spec": self._spec({}, taken=True),
            }
            return await self._write(self._api.create(self._path, body, urgent=True))
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
            self._seen_duration = float(spec.get("leaseDurationSeconds") or self._duration)
        ours = holder == self._identity
        if not ours and holder and self._clock() < self._seen_at + self._seen_duration:
            return False
        lease["spec"] = self._spec(spec, taken=not ours)
        return await self._write(self._api.update(f"{self._path}/{self._name}", lease, urgent=True))

    async def _write(self, request: Awaitable[Any]) -> bool:
        try:
            await request
        except ApiError as error:
            if error.status == 409:  # somebody was quicker
                return False
            raise
        return True

    def _spec(self, old: dict[str, Any], *, taken: bool) -> dict[str, Any]:
        moment = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        transitions = int(old.get("leaseTransitions") or 0)
        return {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._duration),
            "renewTime": moment,
            "acquireTime": moment if taken else old.get("acquireTime", moment),
            "leaseTransitions": transitions + (taken and bool(old)),
        }

    async def _release(self) -> None:
        """So that the next one need not wait. Work has ended before."""
        left = self._held_until - self._clock()
        self._held_until = float("-inf")
        try:
            async with asyncio.timeout(max(0.05, min(left, 3.0))):
                lease = await self._api.get(f"{self._path}/{self._name}", urgent=True)
                if (lease.get("spec") or {}).get("holderIdentity") != self._identity:
                    return
                lease["spec"] |= {
                    "holderIdentity": "",
                    "leaseDurationSeconds": 1,
                    "renewTime": self._spec({}, taken=False)["renewTime"],
                }
                await self._api.update(f"{self._path}/{self._name}", lease, urgent=True)
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease could not be given back: %s", error or "no answer in time")
