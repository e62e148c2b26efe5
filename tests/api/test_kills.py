"""The operator is killed and started anew at each call of a run's life, and nobody could tell from what comes of it."""

from typing import Literal

import pytest

from tests.api import life
from tests.api.operators import killed, operating
from tests.api.proxy import Call
from tests.api.simulator import runs_on
from tests.api.world import World, make_manifest

LISTS = ["list distillationruns", "list distillationschedules", "list jobs", "list pods"]
STATUS = "patch distillationruns/status"
MADE, TOLD = ["create jobs", STATUS, "create events"], [STATUS, "create events"]
CALLS = [
    *LISTS,
    *MADE,  # preflight
    "get services",
    "create services",
    *MADE,  # pretrain
    *TOLD,  # it failed
    "get services",
    *MADE,
    "get services",
    *MADE,  # round-1
    *TOLD,  # suspended
    "delete jobs",
    "get services",
    *MADE,  # resumed
    *TOLD,  # succeeded
]
POINTS = [(what, CALLS[: at + 1].count(what)) for at, what in enumerate(CALLS)]


async def test_the_calls_of_a_life(world: World) -> None:
    """So that those below are all of them."""
    async with world.proxied() as proxy, operating(world, proxy), world.simulated(runs_on) as nodes:
        status = await life.play(world, nodes)
        await world.until_event("Succeeded")
        await life.assert_nothing_twice(world)
    assert life.same(status) == life.the_end()
    assert [event["reason"] for event in await world.events()] == life.EVENTS
    asked = [call.what for call in proxy.calls if call.verb != "watch"]
    assert sorted(asked[:4]) == LISTS
    assert asked[4:] == CALLS[4:]


@pytest.mark.parametrize("when", ["Before", "After"])
@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[0]}-{point[1]}")
async def test_killed_at(world: World, point: tuple[str, int], when: Literal["Before", "After"]) -> None:
    what, number = point
    seen = 0

    def is_the_one(call: Call) -> bool:
        nonlocal seen
        seen += call.what == what
        return call.what == what and seen == number

    async with (
        world.proxied() as proxy,
        world.simulated(runs_on) as nodes,
        killed(world, proxy, at=is_the_one, when=when) as relay,
    ):
        status = await life.play(world, nodes)
        await life.assert_nothing_twice(world)
    assert relay.kills == 1
    assert life.same(status) == life.the_end()


@pytest.mark.parametrize("when", ["Before", "After"])
async def test_killed_at_every_second_write(world: World, when: Literal["Before", "After"]) -> None:
    """Each operator gets one write further than the last."""
    seen = 0

    def is_second(call: Call) -> bool:
        nonlocal seen
        seen += call.writes
        return call.writes and seen % 2 == 0

    async with (
        world.proxied() as proxy,
        world.simulated(runs_on) as nodes,
        killed(world, proxy, at=is_second, when=when) as relay,
    ):
        status = await life.play(world, nodes)
        await life.assert_nothing_twice(world)
    assert relay.kills >= len(life.JOBS)
    assert life.same(status) == life.the_end()


@pytest.mark.parametrize("when", ["Before", "After"])
@pytest.mark.parametrize("number", range(1, 9))
async def test_killed_while_stages_hand_over(world: World, number: int, when: Literal["Before", "After"]) -> None:
    """Each is over as soon as it has begun: Jobs are made, and may have ended, before those before them are written down."""
    seen = 0

    def is_the_one(call: Call) -> bool:
        nonlocal seen
        seen += call.writes
        return call.writes and seen == number

    await world.apply(make_manifest())
    async with (
        world.proxied() as proxy,
        world.simulated(),
        killed(world, proxy, at=is_the_one, when=when) as relay,
    ):
        status = await world.until_phase("Succeeded")
    assert relay.kills == 1
    assert [(stage["attempt"], stage["failures"]) for stage in status["stages"]] == [(1, 0)] * 4
    assert world.job_names() == [f"tiny-{stage}-a1" for stage in ("preflight", "pretrain", "round-1", "round-2")]
