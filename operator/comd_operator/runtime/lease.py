"""Who of several replicas works: whoever holds a Lease (coordination.k8s.io/v1).

The official client's own election (`kubernetes.aio.leaderelection`) is not used. Its requests are not bounded by the renewal
deadline, so one that hangs lets its replica work on while another has taken over; it measures by the clock on the wall, which jumps;
and it does not give the Lease back at the end, so that each update of the operator would cost the whole duration.

Three times rule, all measured by our own clock from the *start* of a request that went well, for nobody else can have seen its effect
any earlier:

    start ────────▶ + renew_deadline: `is_held()` becomes false, work is stopped
          ─────────────────────────────▶ + duration: others may take it, who count from when they have seen it renewed, as client-go does

What lies between is the margin for a write that was on its way, and for clocks that don't run equally fast.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from comd_operator.runtime.api import Api, ApiError, namespaced

log = logging.getLogger(__name__)

JITTER = 1.2
_API_VERSION = "coordination.k8s.io/v1"
_SHORTEST_TRY = 1.0
_NEVER = float("-inf")


class LeaseLostError(Exception):
    """It could not be renewed in time, or is another's. All work has been stopped, before anybody else may take it."""


class NotLeadingError(Exception):
    """The Lease is not held any more: nothing may be written."""


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps: a replica that wakes up must not think that it still holds a Lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
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
        clock: Callable[[], float] = boot_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        """identity: no other process that lives may have it. duration, renew_deadline, retry_period: seconds; see above, and how
        often it is renewed or looked at. now: for what is written down for people; nothing is measured by it.

        Raises:
            ValueError: the three times don't leave a margin.
        """
        if not duration > renew_deadline > retry_period * JITTER > 0:
            raise ValueError(f"{duration=} must be more than {renew_deadline=}, and that than {JITTER} {retry_period=}")
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._all = namespaced(_API_VERSION, "leases", namespace)
        self._one = namespaced(_API_VERSION, "leases", namespace, name)
        self._duration, self._deadline, self._retry = duration, renew_deadline, retry_period
        self._clock, self._sleep, self._now, self._rng = clock, sleep, now, rng or random.Random()
        self._renewed = _NEVER
        """When the last renewal that went well was begun."""
        self._lease: dict[str, Any] = {}
        """As the server had it last."""
        self._busy_until = _NEVER
        """Until when another's hold on it is to be respected."""
        self._holder: str | None = None

    def held_until(self) -> float:
        """The moment of our clock until which nobody else can hold it, if it is never renewed again."""
        return self._renewed + self._deadline

    def is_held(self) -> bool:
        """Says no in time by itself, even if this process was frozen meanwhile."""
        return self._clock() < self.held_until()

    def check(self) -> None:
        """Goes before each write. Raises NotLeadingError."""
        if not self.is_held():
            raise NotLeadingError

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Waits for the Lease, then runs `lead` for as long as it is held. Returns or raises as `lead` does, should that end by
        itself. Cancelled, it stops `lead`, renewing as long as that takes, and gives the Lease back.

        Raises:
            LeaseLostError: it was lost, and `lead` has been stopped.
        """
        await self._acquire()
        log.info("holding the Lease %s/%s as %s", self._namespace, self._name, self._identity)
        leading = asyncio.ensure_future(lead())
        renewing = asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._stop(leading, renewing)
        lost = None if renewing.cancelled() else renewing.exception()
        if lost is not None:
            raise lost from (leading.exception() if leading.done() and not leading.cancelled() else None)
        await leading

    async def _stop(self, leading: "asyncio.Future[None]", renewing: "asyncio.Future[None]") -> None:
        """First the work, then the Lease; when that is lost already, the work is not waited for longer than is safe."""
        leading.cancel()
        try:
            await asyncio.wait({leading, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not leading.done():
                await asyncio.wait({leading}, timeout=0.8 * (self._duration - self._deadline))
            lost = renewing.done()
        finally:
            renewing.cancel()
        await asyncio.wait({renewing})
        if not leading.done():
            log.error("the Lease is lost, and work does not let itself be stopped: it may not write any more")
        elif not lost:
            await self._release()

    async def _acquire(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._deadline / 2):
                    if await self._try_to_take():
                        return
            except (ApiError, TimeoutError) as error:
                log.warning("Lease %s/%s: %s", self._namespace, self._name, str(error) or "no answer in time")
            wait = self._jittered()
            left = self._busy_until - self._clock()
            await self._sleep(min(wait, left) if left > 0 else wait)

    async def _keep(self) -> None:
        """Renews until it can't."""
        while True:
            await self._sleep(max(0.0, min(self._jittered(), self.held_until() - self._clock())))
            left = self.held_until() - self._clock()
            if left <= 0:
                raise LeaseLostError(
                    f"the Lease {self._namespace}/{self._name} could not be renewed in {self._deadline:g} s"
                )
            try:
                # Half of what is left, so that a dead connection leaves time for another one.
                async with asyncio.timeout(min(left, max(left / 2, _SHORTEST_TRY))):
                    await self._renew()
            except (ApiError, TimeoutError) as error:
                log.warning("Lease %s/%s: %s", self._namespace, self._name, str(error) or "no answer in time")

    async def _try_to_take(self) -> bool:
        """Whether it is ours now."""
        lease = await self._read()
        if lease is None:
            if self._clock() < self._busy_until:
                return False  # Deleted by somebody; whoever held it may not know yet.
            return await self._write(self._new())
        spec = lease.get("spec") or {}
        if self._is_free(lease):
            return await self._write({**lease, "spec": self._spec(spec)})
        holder = str(spec.get("holderIdentity"))
        if holder != self._holder:
            self._holder = holder
            log.info("the Lease %s/%s is held by %s; standing by", self._namespace, self._name, holder)
        return False

    def _is_free(self, lease: dict[str, Any]) -> bool:
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") in (None, "", self._identity):
            return True
        if _version(lease) != _version(self._lease):
            self._lease = lease
            self._busy_until = self._clock() + float(spec.get("leaseDurationSeconds") or self._duration)
        return self._clock() >= self._busy_until

    async def _renew(self) -> None:
        """With the version that we wrote last; where that is not the newest any more, with the newest."""
        if await self._write({**self._lease, "spec": self._spec(self._lease["spec"])}):
            return
        lease = await self._read()
        if lease is None:
            await self._write(self._new())
            return
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if holder != self._identity:
            self._renewed = _NEVER
            raise LeaseLostError(f"the Lease {self._namespace}/{self._name} is held by {holder or 'nobody'}")
        await self._write({**lease, "spec": self._spec(spec)})

    async def _read(self) -> dict[str, Any] | None:
        try:
            lease = await self._api.get(self._one, urgent=True)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return _must_be_one(lease)

    async def _write(self, lease: dict[str, Any]) -> bool:
        """Whether it was ours to write: False when somebody else has written, created or deleted it since it was read."""
        started = self._clock()
        known = "resourceVersion" in lease["metadata"]
        write, path = (self._api.update, self._one) if known else (self._api.create, self._all)
        try:
            self._lease = _must_be_one(await write(path, lease, urgent=True))
        except ApiError as error:
            if error.status == 409 or (known and error.status == 404):
                return False
            raise
        self._renewed = started
        return True

    async def _release(self) -> None:
        """So that the next one need not wait. Work has ended before."""
        self._renewed = _NEVER
        moment = self._moment()
        free = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": moment, "acquireTime": moment}
        try:
            async with asyncio.timeout(self._deadline / 2):
                for _ in range(2):
                    try:
                        body = {**self._lease, "spec": {**self._lease["spec"], **free}}
                        await self._api.update(self._one, body, urgent=True)
                    except ApiError as error:
                        if error.status != 409:
                            raise
                    else:
                        log.info("gave back the Lease %s/%s", self._namespace, self._name)
                        return
                    lease = await self._read()
                    if lease is None or lease["spec"].get("holderIdentity") != self._identity:
                        return
                    self._lease = lease
        except (ApiError, TimeoutError) as error:
            log.warning("the Lease could not be given back: %s", str(error) or "no answer in time")

    def _new(self) -> dict[str, Any]:
        metadata = {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": _API_VERSION, "kind": "Lease", "metadata": metadata, "spec": self._spec({})}

    def _spec(self, old: dict[str, Any]) -> dict[str, Any]:
        moment = self._moment()
        ours = old.get("holderIdentity") == self._identity
        return {
            **old,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._duration),
            "acquireTime": old.get("acquireTime", moment) if ours else moment,
            "renewTime": moment,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (bool(old) and not ours),
        }

    def _moment(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _jittered(self) -> float:
        return self._retry * self._rng.uniform(1.0, JITTER)


def _version(lease: dict[str, Any]) -> tuple[Any, Any]:
    metadata = lease.get("metadata") or {}
    return metadata.get("uid"), metadata.get("resourceVersion")


def _must_be_one(answer: Any) -> dict[str, Any]:
    """Raises ApiError: something between us and the server has answered."""
    if not isinstance(answer, dict) or not isinstance(answer.get("metadata"), dict):
        raise ApiError(status=0, reason="Garbled", message=f"no Lease: {str(answer)[:80]}")
    return answer
