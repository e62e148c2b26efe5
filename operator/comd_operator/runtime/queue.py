"""The work queue, with client-go's contract: a key waits at most once, is in the hands of one worker at a time, and one that
is added while it is worked on is worked on again. Timers lie beside it: deadlines, backoff and resync are all a key later.

Everything but `get` returns at once, and all of it belongs to one event loop.
"""

import asyncio
import contextlib
import heapq
import random
import time
from collections import deque
from collections.abc import Callable

from comd_operator.runtime.metrics import Metrics

_MOST_DOUBLINGS = 40


class WorkQueue:
    def __init__(
        self,
        *,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        base_delay: float = 0.02,
        max_delay: float = 120.0,
    ) -> None:
        """base_delay, max_delay: seconds before a key is tried again after its first, after its umpteenth failure.
        clock: monotonic seconds, the event loop's unless a test sets them."""
        self._clock, self._rng = clock, rng or random.Random()
        self._base, self._max = base_delay, max_delay
        self._waiting: deque[str] = deque()
        self._wanted: dict[str, float] = {}
        """Keys to be handed out, now or when their worker is done, and since when they are."""
        self._running: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        """Times of `_due`, soonest first, among some that are no longer true."""
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._metrics = metrics
        metrics.queue_depth.set_function(self.__len__)
        metrics.queue_longest.set_function(self.longest_running)

    def __len__(self) -> int:
        """Keys that wait for a worker; those under way and those with a timer don't count."""
        return len(self._waiting)

    def longest_running(self) -> float:
        """Seconds since the oldest key under way was handed out."""
        now = self._clock()
        return now - min(self._running.values(), default=now)

    def add(self, key: str) -> None:
        """To be worked on as soon as possible; once, however often it is added meanwhile. Its timer stays."""
        if key in self._wanted:
            return
        self._wanted[key] = self._clock()
        self._metrics.queue_adds.inc()
        if key not in self._running:
            self._line_up(key)

    def add_after(self, key: str, seconds: float) -> None:
        """To be worked on after so many seconds. A key has one timer: the earliest wanted time wins."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if self._due.get(key, due + 1.0) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(due, key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
        self._set_alarm()

    def add_rate_limited(self, key: str, at_least: float = 0.0) -> None:
        """After a failure: twice as late each time until `forget`, up to the cap, at random between half of that and all of
        it. at_least: seconds, as the API server asks for with Retry-After."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._metrics.queue_retries.inc()
        delay = min(self._max, self._base * 2 ** min(failures, _MOST_DOUBLINGS))
        self.add_after(key, max(at_least, delay * self._rng.uniform(0.5, 1.0)))

    def forget(self, key: str) -> None:
        """It went well: its next failure is its first."""
        self._failures.pop(key, None)

    async def get(self) -> str:
        """The next key; `done` has to follow. One who is cancelled here takes nothing with him."""
        # A key that comes back at once, for ever, must leave a turn to the Lease, the watches and signals.
        await asyncio.sleep(0)
        while True:
            self._release()
            if self._waiting:
                return self._hand_out()
            await self._wait()

    def done(self, key: str) -> None:
        """The worker has finished with it; if it was added meanwhile, it lines up again.

        Raises:
            ValueError: nobody works on it.
        """
        if key not in self._running:
            raise ValueError(f"done with {key!r}, which nobody was working on")
        del self._running[key]
        if key in self._wanted:
            self._line_up(key)

    def _hand_out(self) -> str:
        key = self._waiting.popleft()
        now = self._clock()
        self._metrics.queue_latency.observe(now - self._wanted.pop(key))
        self._running[key] = now
        return key

    def _line_up(self, key: str) -> None:
        self._waiting.append(key)
        self._wake_one()

    def _wake_one(self) -> None:
        while self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _wait(self) -> None:
        """As asyncio.Queue does it: who is woken and cancelled at once passes the call on. (`asyncio.wait_for` would not do: in
        Python 3.11 it swallows a cancellation that comes as it is woken, and its worker works on for ever.)"""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        try:
            await waiter
        except BaseException:
            woken = not waiter.cancel() and not waiter.cancelled()
            with contextlib.suppress(ValueError):
                self._idle.remove(waiter)
            if woken and self._waiting:
                self._wake_one()
            raise

    def _release(self) -> None:
        """Adds the keys whose time has come, never one too early."""
        now = self._clock()
        while self._heap and (self._heap[0][0] <= now or self._stale(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if not self._stale(entry):
                del self._due[entry[1]]
                self.add(entry[1])

    def _stale(self, entry: tuple[float, str]) -> bool:
        return self._due.get(entry[1]) != entry[0]

    def _set_alarm(self) -> None:
        if not self._heap or (self._alarm is not None and self._alarm_at <= self._heap[0][0]):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._heap[0][0]
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(max(0.0, self._alarm_at - self._clock()), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._release()
        self._set_alarm()
