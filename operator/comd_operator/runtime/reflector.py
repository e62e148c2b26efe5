"""Keeps a store like the API server: lists, then watches, and lists again when the watch has lost its place."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from comd_operator.runtime.api import Api, ApiError, namespaced
from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")
PAGE = 500
_LIST_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.8, 30.0
_STABLE_SECONDS = 10.0
"""A watch that lasted so long was one, even if nothing happened in it."""
_TRIES_TO_RESUME = 3
_REMIND_SECONDS = 60.0
_EXPIRED, _UNKNOWN = 410, 404
_NOT_THE_PLACE = (0, 429)
"""No answer, or one that says to wait: no reason to doubt that the watch can go on where it was."""


class Reminder:
    """A sentence that is logged at most once a minute, whoever gives cause for it."""

    def __init__(self, sentence: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.sentence, self._clock, self._said = sentence, clock, -math.inf

    def say(self) -> None:
        if self._clock() - self._said >= _REMIND_SECONDS:
            self._said = self._clock()
            log.warning("%s", self.sentence)


class Reflector(Generic[T]):
    """One resource, in one namespace or in all. `run()` never ends by itself, whatever the server does."""

    def __init__(
        self,
        *,
        api: Api,
        resource: str,
        api_version: str,
        namespace: str | None,
        params: Mapping[str, str],
        store: Store[T],
        on_change: Callable[[set[str]], None],
        metrics: Metrics,
        unknown: Reminder | None = None,
        resync: float = 600.0,
        inactivity_timeout: float = 70.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """params: of list and watch, such as `labelSelector`. unknown: what to say while the server has no such resource. resync:
        seconds after which everything is listed anew, whatever the watch says. inactivity_timeout: seconds of silence after which
        a watch is given up; the server sends a bookmark each minute. on_change: is given the owners of what changed; must not
        fail."""
        self.resource, self._namespace = resource, namespace
        self._api, self._path = api, namespaced(api_version, resource, namespace)
        self._params, self._store, self._on_change, self._metrics = dict(params), store, on_change, metrics
        self._unknown, self._resync, self._inactivity = unknown, resync, inactivity_timeout
        self._clock, self._sleep, self._rng = clock, sleep, rng or random.Random()
        self.synced = asyncio.Event()
        self._alive = clock()
        self._version: str | None = None
        """Where the watch is; None when it has no place to go on from."""
        self._list_due = 0.0

    def age(self) -> float:
        """Seconds since the last sign of life: a list, an event, a bookmark."""
        return self._clock() - self._alive

    async def refresh(self) -> None:
        """Lists now, beside the watch, until that has succeeded. The watch keeps its own place."""
        failures = 0
        while True:
            try:
                place, due = self._version, self._list_due
                await self._list()
                if place is not None:
                    self._version, self._list_due = place, due
                return
            except (ApiError, KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("list of %s: %s", self._path, error)
                failures += 1
                asked = error.retry_after if isinstance(error, ApiError) else None
                await self._sleep(max(asked or 0.0, self._pause(failures)))

    async def run(self) -> None:
        """Until it is cancelled."""
        failures = 0
        while True:
            started, alive = self._clock(), self._alive
            error: ApiError | None = None
            try:
                if self._version is None or started >= self._list_due:
                    await self._list()
                    started = alive = self._alive
                await self._watch()
            except ApiError as caught:
                error = caught
            except Exception as caught:  # What nobody thought of must not end it, nor pass unseen.
                log.exception("watch of %s", self._path)
                error = ApiError(status=500, reason="Bug", message=repr(caught))
            worked = self._alive > alive or self._clock() - started >= _STABLE_SECONDS
            refused = error is not None and error.status not in (0, _EXPIRED)
            failures = (0 if worked else failures) + (refused or not worked)
            await self._recover(error, failures=failures)

    async def _recover(self, error: ApiError | None, *, failures: int) -> None:
        """Decides where to go on, and waits: not at all after a watch that worked, else longer each time."""
        reason = "ended" if error is None else str(error.status or error.reason)
        lost = error is not None and error.status == _EXPIRED
        if error is not None or self._clock() < self._list_due:
            self._metrics.watch_restarts.labels(resource=self.resource, reason=reason).inc()
        if error is not None:
            if lost or (failures >= _TRIES_TO_RESUME and error.status not in _NOT_THE_PLACE):
                self._version = None
            if error.status == _UNKNOWN and self._unknown is not None:
                self._unknown.say()
            else:
                log.log(logging.WARNING if failures > 1 else logging.DEBUG, "watch of %s: %s", self._path, error)
        pauses = failures - lost  # The first list after a lost place waits for nothing.
        pause = 0.0
        if pauses > 0:
            pause = self._pause(pauses)
        if error is not None and error.retry_after is not None:
            pause = max(pause, error.retry_after)
        if pause:
            await self._sleep(pause)

    def _pause(self, failures: int) -> float:
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 16)) * self._rng.uniform(0.5, 1.0)

    async def _list(self) -> None:
        """All pages are of one moment, which the first one fixes; when the server has forgotten it meanwhile, it is asked for all
        at once."""
        try:
            await self._list_pages({**self._params, "limit": str(PAGE)})
        except ApiError as error:
            if error.status != _EXPIRED:
                raise
            await self._list_pages(self._params)

    async def _list_pages(self, params: Mapping[str, str]) -> None:
        listing = self._store.listing(namespace=self._namespace)
        version, more = "", ""
        while True:
            page = await self._api.get(
                self._path, params={**params, "continue": more} if more else params, timeout=_LIST_SECONDS
            )
            listing.add(page.get("items") or [])
            version = version or str(page["metadata"]["resourceVersion"])
            more = page["metadata"].get("continue") or ""
            if not more:
                break
            await asyncio.sleep(0)
        touched = listing.finish(version)
        self._version = version
        self._list_due = self._clock() + self._resync * self._rng.uniform(0.9, 1.1)
        self._alive = self._clock()
        self.synced.set()
        if touched:
            self._on_change(touched)

    async def _watch(self) -> None:
        """Until the server ends it, or it is time to list again."""
        left = self._list_due - self._clock()
        params = {
            **self._params,
            "resourceVersion": self._version or "",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, math.ceil(left))),
        }
        events = self._api.watch(self._path, params=params, inactivity_timeout=self._inactivity)
        async with aclosing(events):
            async for event in events:
                self._take(event)
                if self._clock() >= self._list_due:
                    return

    def _take(self, event: Mapping[str, Any]) -> None:
        kind, obj = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiError.of(obj, status=int(obj.get("code") or 500))
        touched: set[str] = set()
        if kind == "DELETED":
            touched = self._store.discard(obj)
        elif kind in ("ADDED", "MODIFIED"):
            touched = self._store.put(obj)
        self._version = obj["metadata"]["resourceVersion"]
        self._store.advance(int(self._version), namespace=self._namespace)
        self._alive = self._clock()
        if touched:
            self._on_change(touched)
