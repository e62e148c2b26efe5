"""Two operators, one Lease: one works, the other takes over, and never do both."""

import asyncio
import time
from itertools import groupby
from typing import Any

import pytest

from comd_operator.shell.operator import Operator
from tests.api.operators import kill, operating, options
from tests.api.proxy import Call, Fault, Proxy, no_fault
from tests.api.simulator import done, runs_on
from tests.api.world import World, make_manifest, stage_of

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
            await until_leading(second, seconds=3.0)
        finally:
            await second.stop()


async def refuse(_call: Call) -> Fault:
    return Fault(kind="Drop")


@pytest.mark.parametrize("how", ["silent", "refused"])
async def test_one_that_is_cut_off_stops_before_the_other_begins(world: World, how: str) -> None:
    """Its network is gone, and comes back when the other works: what it had in hand is not written then."""
    async with world.proxied() as one, world.proxied() as two, world.simulated(done):
        first = await started(world, one, "one", lease_seconds=6.0)
        await until_leading(first, seconds=10)
        second = await started(world, two, "two", lease_seconds=6.0)
        try:
            for number in range(5):
                await world.apply(make_manifest(f"early-{number}"))
            await world.until_so(lambda: len(working(one)) > 5, lambda: one.calls)
            if how == "silent":
                one.fall_silent()
            else:
                one.hook = refuse
                one.end_watches()
            for number in range(5):
                await world.apply(make_manifest(f"run-{number}"))
            await until_leading(second, seconds=15.0)
            assert not first.leading
            taken_over = time.monotonic()
            one.release()
            one.hook = no_fault
            for number in range(5):
                await world.until_phase("Succeeded", f"run-{number}")
                await world.until_phase("Succeeded", f"early-{number}")
        finally:
            await second.stop()
            await first.stop()
        assert "could not be renewed" in str(first.failed)
        assert [call.what for call in working(one) if call.at > taken_over] == []
        assert in_turns(one, two) == ["one", "two"]
        assert len(world.job_names()) == len(set(world.job_names())) == 40


def in_turns(one: Proxy, two: Proxy) -> list[str]:
    """Who has written what the server took, one stretch after the other."""
    calls = [(call.at, "one") for call in one.written() if call.resource != "leases"]
    calls += [(call.at, "two") for call in two.written() if call.resource != "leases"]
    return [who for who, _ in groupby(who for _, who in sorted(calls))]


@pytest.mark.parametrize("resource", ["distillationruns", "jobs", "pods"])
async def test_a_standby_whose_watch_lags(world: World, resource: str) -> None:
    """It knows no better than the API server when its turn comes: nothing is begun again, and nothing is forgotten."""
    async with world.proxied() as one, world.proxied() as two, world.simulated(runs_on) as nodes:
        first = await started(world, one, "one", lease_seconds=3.0)
        await until_leading(first, seconds=10)
        second = await started(world, two, "two", lease_seconds=3.0)
        try:
            await world.until_so(second.is_synced, lambda: two.calls)
            two.stall(resource)
            await world.apply(make_manifest(rounds__count=1))
            await nodes.end_job("tiny-preflight-a1")
            await world.until(lambda status: stage_of(status, "pretrain").get("phase") == "Running")
            await kill(first)
            await until_leading(second, seconds=15)
            await asyncio.sleep(1.0)
            await nodes.end_job("tiny-pretrain-a1")
            await nodes.end_job("tiny-round-1-a1")
            await asyncio.sleep(2.0)
            two.release()
            status = await world.until_phase("Succeeded")
        finally:
            await second.stop()
        assert in_turns(one, two) == ["one", "two"]
    assert world.job_names() == ["tiny-preflight-a1", "tiny-pretrain-a1", "tiny-round-1-a1"]
    assert [stage["attempt"] for stage in status["stages"]] == [1, 1, 1]


async def test_a_standby_that_has_missed_the_end(world: World) -> None:
    """A run that is over, its Jobs cleaned up, does not begin anew for it."""
    async with world.proxied() as one, world.proxied() as two, world.simulated(runs_on) as nodes:
        first = await started(world, one, "one", lease_seconds=3.0)
        await until_leading(first, seconds=10)
        second = await started(world, two, "two", lease_seconds=3.0)
        try:
            await world.apply(make_manifest(rounds__count=1, ttlSecondsAfterFinished=0))
            await world.until_job("tiny-preflight-a1")
            await asyncio.sleep(0.5)
            two.stall("distillationruns")
            for job in ("preflight", "pretrain", "round-1"):
                await nodes.end_job(f"tiny-{job}-a1")
            await world.until_phase("Succeeded")
            await world.until_so(lambda: all(job.gone for job in world.feed.jobs.values()), world.job_names)
            await kill(first)
            await until_leading(second, seconds=15)
            await asyncio.sleep(2.0)
            assert working(two) == []
        finally:
            await second.stop()
    assert len(world.job_names()) == 3


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
