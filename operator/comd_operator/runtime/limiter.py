"""How many requests may be made: a bucket that fills at a steady rate."""

import asyncio
import time
from collections.abc import Awaitable, Callable


class TokenBucket:
    """`rate` tokens a second, at most `burst` in store. Those who wait are served in the order in which they came."""

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate, self._burst, self._clock, self._sleep = rate, burst, clock, sleep
        self._tokens = float(burst)
        self._filled = clock()

    async def take(self) -> float:
        """Waits for a token; returns the seconds that took. A rate of 0 or less is no limit."""
        if self._rate <= 0:
            return 0.0
        now = self._clock()
        self._tokens = min(float(self._burst), self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        # A debt is a place in the line: whoever comes later owes more and waits longer.
        self._tokens -= 1.0
        if self._tokens >= 0:
            return 0.0
        seconds = -self._tokens / self._rate
        await self._sleep(seconds)
        return seconds
