"""The work queue shares the event loop with the Lease, the watches and the signals."""

import asyncio

import pytest

from comd_operator.runtime.metrics import Metrics
from comd_operator.runtime.queue import WorkQueue


def test_a_key_that_comes_back_at_once_for_ever_leaves_a_turn_to_the_rest() -> None:
    async def work(queue: WorkQueue, most: int) -> None:
        for _ in range(most):
            key = await queue.get()
            queue.add_after(key, 0.0)
            queue.done(key)

    async def whole() -> None:
        queue = WorkQueue(metrics=Metrics())
        queue.add("run")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work(queue, most=1_000_000), timeout=0.05)

    asyncio.run(whole())
