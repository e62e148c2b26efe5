"""Keeps a store like the API server: lists, then watches, and lists again when the watch has lost its place."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.store import Record, Store

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
PAGE = 500
MAX_PAUSE = 30.0
GONE = 410


class Reflector(Generic[R]):
    """One resource, in one namespace or in all. `run()` never ends by itself, whatever the server does."""

    def __init__(
        self,
        *,
        api: Api,
        resource: str,
        api_version: str,
        namespace: str | None,
        params: Mapping[str, str],
        store: Store[R],
        on_change: Callable[[set[str]], None],
        metrics: Metrics,
        resync: float = 600.0,
        inactivity_timeout: float = 90.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource, self._namespace = resource, namespace
        self._api, self._path = api, namespaced(api_version, resource, namespace)
        self._params, self._store, self._on_change, self._metrics = dict(params), store, on_change, metrics
        self._resync, self._inactivity, self._clock = resync, inactivity_timeout, clock
        self.synced = asyncio.Event()
        self._alive = clock()

    def age(self) -> float:
        """Seconds since the last sign of life: a list, an event, a bookmark."""
        return self._clock() - self._alive

    async def run(self) -> None:
        """Until it is cancelled."""
        pause = 0.1
        while True:
            try:
                version = await self._list()
                pause = 0.1
                await self._watch_until_resync(version)
                continue
            except ApiError as error:
                reason = str(error.status or error.reason)
                wait = max(error.retry_after or 0.0, pause * random.uniform(0.75, 1.0))
                log.log(logging.WARNING if pause > 1 else logging.DEBUG, "watch of %s: %s", self.resource, error)
            except (KeyError, ValueError, TypeError) as error:
                reason, wait = "malformed", pause
                log.warning("watch of %s: an answer that can't be read: %r", self.resource, error)
            self._metrics.watch_restarts.labels(resource=self.resource, reason=reason).inc()
            pause = min(MAX_PAUSE, pause * 2)
            await asyncio.sleep(wait)

    async def _list(self) -> str:
        """The version of the list. Pages are of one moment, which the first one fixes."""
        items: list[dict[str, Any]] = []
        params = {**self._params, "limit": str(PAGE)}
        version = ""
        while True:
            page = await self._api.get(self._path, params=params, timeout=60.0)
            items += page["items"]
            version = str(page["metadata"]["resourceVersion"])
            more = page["metadata"].get("continue")
            if not more:
                break
            params["continue"] = more
        touched = self._store.replace(items, resource_version=version, namespace=self._namespace)
        self._alive = self._clock()
        self.synced.set()
        self._on_change(touched)
        return version

    async def _watch_until_resync(self, version: str) -> None:
        """Goes on where a stream ended, for that is how the server ends them; returns when it is time to list again."""
        until = self._clock() + self._resync * random.uniform(0.9, 1.1)
        pause = 0.1
        while self._clock() < until:
            try:
                version, events = await self._follow(version, until)
            except _LostPlaceError:
                self._metrics.watch_restarts.labels(resource=self.resource, reason="410").inc()
                return
            except ApiError as error:
                if error.status == GONE:
                    self._metrics.watch_restarts.labels(resource=self.resource, reason="410").inc()
                    return
                if error.status:
                    raise
                events, version = 0, self._version
                reason = error.reason
            else:
                reason = "ended"
            if self._clock() >= until:
                return
            self._metrics.watch_restarts.labels(resource=self.resource, reason=reason).inc()
            pause = 0.1 if events else min(MAX_PAUSE, pause * 2)
            await asyncio.sleep(pause * random.uniform(0.75, 1.0))

    async def _follow(self, version: str, until: float) -> tuple[str, int]:
        """One stream; the version that it came to, and how many events."""
        self._version = version
        seconds = max(1, round(until - self._clock()))
        params = {
            **self._params,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        events = 0
        async for event in self._api.watch(self._path, params=params, inactivity_timeout=self._inactivity):
            kind, obj = event["type"], event["object"]
            if kind == "ERROR":
                if obj.get("code") == GONE:
                    raise _LostPlaceError
                raise ApiError(
                    status=int(obj.get("code") or 500),
                    reason=str(obj.get("reason") or "Error"),
                    message=str(obj.get("message") or "the watch was ended with an error"),
                )
            self._alive = self._clock()
            events += 1
            self._version = obj["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self._on_change(self._store.discard(obj))
            elif kind in ("ADDED", "MODIFIED"):
                self._on_change(self._store.put(obj))
        return self._version, events


class _LostPlaceError(Exception):
    """The server has forgotten the version that we are at."""
