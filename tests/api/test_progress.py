"""How far a stage is: asked of its trainer now and then, and written when it has changed."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from comd_operator.planner.defaults import TRAINER_PORT
from tests.api.operators import operating
from tests.api.simulator import moment, runs_on
from tests.api.world import World, make_manifest

HERE = "127.0.0.1"


@asynccontextmanager
async def a_trainer() -> AsyncIterator[list[int]]:
    """One that is further each time it is asked; gives what it said."""
    told: list[int] = []
    steps = itertools.count(1)

    async def progress(_: web.Request) -> web.Response:
        told.append(next(steps))
        return web.json_response({"stage": "preflight", "phase": "preflight", "done": told[-1], "total": 100})

    app = web.Application()
    app.router.add_get("/progress", progress)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HERE, TRAINER_PORT).start()
    try:
        yield told
    finally:
        await runner.cleanup()


async def test_it_is_asked_now_and_then(world: World) -> None:
    await world.apply(make_manifest(rounds__count=1))
    async with (
        a_trainer() as told,
        world.proxied() as proxy,
        operating(world, proxy, progress_seconds=1.0),
        world.simulated(runs_on) as nodes,
    ):
        await world.until_so(lambda: bool(nodes.pods_of("tiny-preflight-a1")), world.job_names)
        (pod,) = nodes.pods_of("tiny-preflight-a1")
        started = {"running": {"startedAt": moment()}}
        await nodes.set_state(pod, "Running", started, podIP=HERE, podIPs=[{"ip": HERE}])
        status = await world.until(lambda status: "progress" in status)
        assert status["progress"] == "preflight 1 %"
        before, written = len(told), len(proxy.writes())
        await asyncio.sleep(4.0)
        assert 3 <= len(told) - before <= 5
        more = proxy.writes()[written:]
        assert {call.what for call in more} == {"patch distillationruns/status"}
        assert len(more) <= len(told) - before + 1
        await nodes.end_job("tiny-preflight-a1")
        await nodes.end_job("tiny-pretrain-a1")
        status = await world.until(lambda status: status["stage"] == "round-1")
        assert "progress" not in status, "of a stage that is over nothing is said"
