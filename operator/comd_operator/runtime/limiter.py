"""How fast the API server may be asked: a token bucket in which nobody overtakes."""

import asyncio
import time
from collections.abc import Awaitable, Callable

_ALMOST_ONE = 1.0 - 1e-9
"""Rounding may leave a hair less than a token after exactly the time that it takes to fill up."""


class TokenBucket:
    """`rate` tokens a second on average, at most `burst` at once. A rate of 0 or less means no limit."""

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """clock: monotonic seconds; sleep: waits for so many of them.

        Raises:
            ValueError: a burst of less than one would let nobody through.
        """
        if burst < 1:
            raise ValueError(f"a burst of {burst} lets nobody through; it must be at least 1")
        self._rate, self._burst, self._clock, self._sleep = rate, burst, clock, sleep
        self._tokens, self._filled = float(burst), clock()
        self._turn = asyncio.Lock()

    async def take(self) -> float:
        """Waits for a token, first come, first served. Returns the seconds waited; one who gives up takes nothing."""
        if self._rate <= 0:
            return 0.0
        start = self._clock()
        async with self._turn:  # Fair: its waiters are served in order, and one that is cancelled leaves no gap.
            self._fill()
            while self._tokens < _ALMOST_ONE:
                await self._sleep((1.0 - self._tokens) / self._rate)
                self._fill()
            self._tokens -= 1.0
        return self._clock() - start

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(float(self._burst), self._tokens + (now - self._filled) * self._rate)
        self._filled = now
