"""Two operators, one Lease: one works, the other takes over, and never do both."""

import asyncio
import time
from typing import Any

import pytest

from comd_operator.shell.operator import Operator
from tests.api.operators import kill, operating, options
from tests.api.proxy import Call, Proxy
from tests.api.simulator import done
from tests.api.world import World, make_manifest

HELD: dict[str, Any] = {"leader_election": True, "lease_name": "test"}


def working(proxy: Proxy) -> list[Call]:
    """Its writes, but for those of the Lease itself."""
    return [call for call in proxy.writes() if call.resource != "leases"]


async def until_leading(operator: Operator, *, seconds: float) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    while not operator.leading:
        assert time.monotonic() - begun < seconds, f"does not lead after {seconds:g} s"
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def started(world: World, proxy: Proxy, name: str, **more: Any) -> Operator:
    chosen = options(world, proxy, **{**HELD, "identity": name, "lease_namespace": world.namespace, **more})
    operator = Operator(chosen)
    await operator.start()
    return operator


@pytest.mark.parametrize(("lease_seconds", "most"), [(15.0, 20.0), (6.0, 8.0)])
async def test_the_standby_takes_over_from_one_that_was_killed(world: World, lease_seconds: float, most: float) -> None:
    """In less than 20 seconds with the Lease as shipped."""
    async with world.proxied() as one, world.proxied() as two, world.simulated(done):
        first = await started(world, one, "one", lease_seconds=lease_seconds)
        await until_leading(first, seconds=10)
        second = await started(world, two, "two", lease_seconds=lease_seconds)
        try:
            await world.apply(make_manifest("before"))
            await world.until_phase("Succeeded", "before")
            assert working(two) == []
            await kill(first)
            await world.apply(make_manifest("after"))
            took = await until_leading(second, seconds=most)
            await world.until_phase("Succeeded", "after")
        finally:
            await second.stop()
    assert took > lease_seconds / 2, "not before the Lease was over"
    assert len(world.job_names()) == len(set(world.job_names())) == 8


async def test_one_that_is_stopped_gives_the_lease_back(world: World) -> None:
    async with world.proxied() as one, world.proxied() as two:
        first = await started(world, one, "one")
        await until_leading(first, seconds=10)
        second = await started(world, two, "two")
        try:
            await first.stop()
            await until_leading(second, seconds=4.0)
        finally:
            await second.stop()


async def test_one_that_is_cut_off_stops_before_the_other_begins(world: World) -> None:
    """Its network is gone, and comes back when the other works: what it had in hand is not written then."""
    async with world.proxied() as one, world.proxied() as two, world.simulated(done):
        first = await started(world, one, "one", lease_seconds=6.0)
        await until_leading(first, seconds=10)
        second = await started(world, two, "two", lease_seconds=6.0)
        try:
            one.fall_silent()
            for number in range(5):
                await world.apply(make_manifest(f"run-{number}"))
            await until_leading(second, seconds=12.0)
            assert not first.leading
            taken_over = time.monotonic()
            one.release()
            for number in range(5):
                await world.until_phase("Succeeded", f"run-{number}")
        finally:
            await second.stop()
            await first.stop()
        assert "could not be renewed" in str(first.failed)
        assert [call.what for call in working(one) if call.at > taken_over] == []
        assert len(world.job_names()) == len(set(world.job_names())) == 20


async def test_both_see_everything_and_one_writes(world: World) -> None:
    async with world.proxied() as one, world.proxied() as two, world.simulated(done):
        mine = {**HELD, "lease_namespace": world.namespace}
        async with operating(world, one, identity="one", **mine), operating(world, two, identity="two", **mine):
            for number in range(3):
                await world.apply(make_manifest(f"run-{number}"))
            for number in range(3):
                await world.until_phase("Succeeded", f"run-{number}")
        assert sorted([bool(working(one)), bool(working(two))]) == [False, True]
        assert one.count("watch jobs") >= 1
        assert two.count("watch jobs") >= 1
