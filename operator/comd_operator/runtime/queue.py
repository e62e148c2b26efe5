"""The work queue, with client-go's contract: a key waits at most once, one worker has it at a time, what is added while it is
worked on is worked on again, and nothing that was added is lost. Keys can be added for later, which is how deadlines, back-off
and retries come back."""

import asyncio
import heapq
import random
import time
from collections import OrderedDict
from collections.abc import Callable

from comd_operator.runtime.metrics import Metrics


class ShutDownError(Exception):
    """The queue was shut down and is empty."""


class WorkQueue:
    def __init__(
        self,
        *,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        random_: random.Random | None = None,
        base_delay: float = 0.02,
        max_delay: float = 120.0,
    ) -> None:
        self._metrics, self._clock, self._random = metrics, clock, random_ or random.Random()
        self._base, self._max = base_delay, max_delay
        self._waiting: OrderedDict[str, float] = OrderedDict()
        """Key → when it was added."""
        self._working: dict[str, float] = {}
        """Key → since when."""
        self._again: set[str] = set()
        self._timers: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        """Key → its earliest timer; entries of the heap that are not it are stale."""
        self._failures: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._closed = False
        metrics.queue_depth.set_function(lambda: len(self._waiting))
        metrics.queue_longest.set_function(
            lambda: max((clock() - since for since in self._working.values()), default=0.0)
        )

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: str) -> None:
        if self._closed:
            return
        self._metrics.queue_adds.inc()
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = self._clock()
            self._wake.set()

    def add_after(self, key: str, seconds: float) -> None:
        """Not before so many seconds; of several times wanted for a key the earliest counts, and the later ones are forgotten when
        it comes: whoever works on the key says anew when to look again."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, (due, key))
        self._wake.set()

    def add_rate_limited(self, key: str, *, at_least: float = 0.0) -> None:
        """After an error: later each time, and never sooner than the server asked for."""
        self._metrics.queue_retries.inc()
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        full = min(self._max, self._base * 2.0 ** min(failures, 32))
        self.add_after(key, max(at_least, full * self._random.uniform(0.75, 1.0)))

    def forget(self, key: str) -> None:
        """All went well: the next error waits shortly again."""
        self._failures.pop(key, None)

    async def get(self) -> str:
        """The next key; the worker says `done(key)` when it has worked on it. Raises ShutDownError at the end."""
        # A key that comes back at once, for ever, must leave a turn to the Lease, the watches and signals.
        await asyncio.sleep(0)
        while True:
            self._fire_timers()
            if self._waiting:
                key, added = self._waiting.popitem(last=False)
                self._working[key] = self._clock()
                self._metrics.queue_latency.observe(self._clock() - added)
                if self._waiting:
                    self._wake.set()  # for the next worker
                return key
            if self._closed:
                raise ShutDownError
            self._wake.clear()
            seconds = max(0.0, self._timers[0][0] - self._clock()) if self._timers else None
            try:
                # Not wait_for: in Python 3.11 it swallows a cancellation that comes as it is woken, and its worker works on for ever.
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def done(self, key: str) -> None:
        self._working.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def shut_down(self) -> None:
        """Nothing is taken in any more; what waits is still handed out, timers are not."""
        self._closed = True
        self._timers.clear()
        self._due.clear()
        self._again.clear()
        self._wake.set()

    def _fire_timers(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, key = heapq.heappop(self._timers)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
