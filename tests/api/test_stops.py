"""An operator ends when it is told to, whatever it is at."""

import asyncio

import pytest

from tests.api.operators import operating
from tests.api.world import World


@pytest.mark.parametrize("turns", range(5))
async def test_it_stops_at_the_moment_in_which_something_changes(world: World, turns: int) -> None:
    """Its workers are called to work and called off at once, so and so many turns of the loop later."""
    async with operating(world) as operator:
        await world.until_so(lambda: operator.leading, lambda: "not leading")
        await asyncio.sleep(0.2)  # all of them wait
        operator.queue.add("something")
        operator.progress.follow("job", ip="127.0.0.1", run_uid="run")
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await operator.stop()
