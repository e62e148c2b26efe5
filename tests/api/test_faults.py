"""A network and a server that are not well: a run's life comes to the same end, with the same Jobs, each once."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.api import life
from tests.api.operators import operating
from tests.api.proxy import Call, Fault, Hook, Proxy
from tests.api.simulator import End, runs_on
from tests.api.test_ends import LOST, says
from tests.api.world import World, make_manifest

GARBLED = {
    "html": "<html>a proxy's own page</html>",
    "cut": '{"kind": "List", "metadata": {',
    "null": "null",
    "list": "[]",
    "text": '"ok"',
    "empty": "{}",
    "strange": '{"type": "MODIFIED", "object": {"metadata": {}, "spec": []}, "items": [null, {"metadata": []}]}',
    "strange-error": '{"type": "ERROR", "object": []}',
}
FAULTS: dict[str, Fault] = {
    "500": Fault(kind="Answer"),
    "500-though-done": Fault(kind="Answer", carried_out=True),
    "503": Fault(kind="Answer", status=503, retry_after=1),
    "504-though-done": Fault(kind="Answer", status=504, carried_out=True),
    "429": Fault(kind="Answer", status=429, retry_after=1),
    "dropped": Fault(kind="Drop"),
    "dropped-though-done": Fault(kind="Drop", carried_out=True),
    **{f"garbled-{name}": Fault(kind="Text", text=text) for name, text in GARBLED.items()},
    **{
        f"garbled-{name}-though-done": Fault(kind="Text", text=GARBLED[name], carried_out=True)
        for name in ("html", "null", "empty")
    },
}


def first_of_each(fault: Fault, *, times: int = 2) -> Hook:
    """The first calls of each verb and resource get a fault."""
    seen: Counter[str] = Counter()

    async def hook(call: Call) -> Fault | None:
        seen[call.what] += 1
        watch_carried_out = call.verb == "watch" and fault.carried_out
        return fault if seen[call.what] <= times and not watch_carried_out else None

    return hook


async def assert_a_life(world: World, proxy: Proxy) -> None:
    async with operating(world, proxy), world.simulated(runs_on) as nodes:
        status = await life.play(world, nodes)
        await life.assert_nothing_twice(world)
    assert life.same(status) == life.the_end()


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_verb_fails_twice(world: World, fault: str) -> None:
    async with world.proxied() as proxy:
        proxy.hook = first_of_each(FAULTS[fault])
        await assert_a_life(world, proxy)
        kinds = {call.verb for call in proxy.calls}
        assert kinds == {"list", "watch", "get", "create", "patch", "delete"}


async def test_every_third_call_fails(world: World) -> None:
    faults = list(FAULTS.values())
    number = 0

    async def hook(call: Call) -> Fault | None:
        nonlocal number
        number += 1
        return faults[number // 3 % len(faults)] if number % 3 == 0 and call.verb != "watch" else None

    async with world.proxied() as proxy:
        proxy.hook = hook
        await assert_a_life(world, proxy)


async def test_latency(world: World) -> None:
    async with world.proxied() as proxy:
        proxy.latency = 0.02
        await assert_a_life(world, proxy)


async def test_watches_are_cut_all_the_time(world: World) -> None:
    async def cut(proxy: Proxy) -> None:
        while True:
            await asyncio.sleep(0.3)
            proxy.end_watches()

    async with world.proxied() as proxy:
        task = asyncio.create_task(cut(proxy))
        try:
            await assert_a_life(world, proxy)
        finally:
            task.cancel()
        assert proxy.count("watch jobs") > 5


def too_old() -> Fault:
    error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    return Fault(kind="Text", text=json.dumps({"type": "ERROR", "object": error}) + "\n")


GONE: dict[str, Fault] = {"answer": Fault(kind="Answer", status=410), "in-stream": too_old()}


async def in_a_gap(proxy: Proxy, resource: str, fault: Fault, deed: Callable[[], Awaitable[None]]) -> None:
    """Does something while a watch is away, which then has lost its place."""
    gap, lost = asyncio.Event(), False

    async def hook(call: Call) -> Fault | None:
        nonlocal lost
        if call.what != f"watch {resource}" or lost:
            return None
        lost = True
        await gap.wait()
        return fault

    proxy.hook = hook
    proxy.end_watches(resource)
    await deed()
    gap.set()


@pytest.mark.parametrize("how", GONE)
async def test_a_job_vanishes_in_a_gap(world: World, how: str) -> None:
    """No ghost of it is waited for."""
    await world.apply(make_manifest(rounds__count=1))
    async with world.proxied() as proxy, operating(world, proxy), world.simulated(runs_on) as nodes:
        await world.until_job("tiny-preflight-a1")

        async def deed() -> None:
            await world.delete_job("tiny-preflight-a1")
            await world.until_gone("tiny-preflight-a1")
            await asyncio.sleep(0.3)
            assert world.job_names() == ["tiny-preflight-a1"]

        await in_a_gap(proxy, "jobs", GONE[how], deed)
        for job in ("preflight-a2", "pretrain-a1", "round-1-a1"):
            await nodes.end_job(f"tiny-{job}")
        await world.until_phase("Succeeded")
    assert len(world.job_names()) == 4


@pytest.mark.parametrize("how", GONE)
async def test_a_run_vanishes_in_a_gap(world: World, how: str) -> None:
    async with world.proxied() as proxy, operating(world, proxy) as operator, world.simulated(runs_on):
        for name in ("one", "two"):
            await world.apply(make_manifest(name))
            await world.until_job(f"{name}-preflight-a1")

        async def deed() -> None:
            await world.delete_run("one")
            await world.until_gone("one-preflight-a1")

        await asyncio.sleep(0.5)  # until the last event is told
        written = len(proxy.written())
        await in_a_gap(proxy, "distillationruns", GONE[how], deed)
        await world.until_so(lambda: len(operator.stores.runs) == 1, lambda: list(operator.stores.runs))
        await asyncio.sleep(1.0)
        assert [call.what for call in proxy.written()[written:]] == []
    assert world.job_names() == ["one-preflight-a1", "two-preflight-a1"]


@pytest.mark.parametrize("how", GONE)
async def test_pods_vanish_in_a_gap(world: World, how: str) -> None:
    """Of a stage that was done when nobody looked: its result is lost, and is found again by the next attempt."""
    await world.apply(make_manifest(rounds__count=1))
    async with world.proxied() as proxy, operating(world, proxy), world.simulated(runs_on) as nodes:
        await world.until_job("tiny-preflight-a1")

        async def deed() -> None:
            proxy.stall("jobs")
            await nodes.end_job("tiny-preflight-a1")
            await world.until_so(lambda: world.job("tiny-preflight-a1").ended, world.job_names)
            await world.kubectl("delete", "pods", "--all")

        await in_a_gap(proxy, "pods", GONE[how], deed)
        proxy.release()
        for job in ("preflight-a2", "pretrain-a1", "round-1-a1"):
            await nodes.end_job(f"tiny-{job}")
        await world.until_phase("Succeeded")
    assert len(world.job_names()) == 4


@pytest.mark.parametrize("how", GONE)
async def test_a_server_that_always_forgets_is_not_hammered(world: World, how: str) -> None:
    async def hook(call: Call) -> Fault | None:
        return GONE[how] if call.verb == "watch" else None

    async with world.proxied() as proxy:
        proxy.hook = hook
        async with operating(world, proxy):
            await asyncio.sleep(4.0)
        assert 2 <= proxy.count("list jobs") <= 8


@pytest.mark.parametrize("code", [0, 64])
async def test_the_end_of_a_job_is_told_before_that_of_its_pod(world: World, code: int) -> None:
    """Watches of different kinds don't run level: what the pod has to say is not taken as lost."""
    await world.apply(make_manifest(rounds__count=1))
    async with world.proxied() as proxy, operating(world, proxy), world.simulated(runs_on) as nodes:
        await world.until(lambda status: status.get("phase") == "Running")
        await world.until_so(lambda: bool(nodes.pods_of("tiny-preflight-a1")), world.job_names)
        proxy.stall("pods")
        await nodes.end_job("tiny-preflight-a1", End(code=64, message=says("UserError", LOST)) if code else None)
        await world.until_so(lambda: world.job("tiny-preflight-a1").ended, world.job_names)
        await asyncio.sleep(1.0)
        proxy.release()
        if code:
            status = await world.until_phase("Failed")
            assert status["stages"][0]["message"] == LOST
        else:
            await nodes.end_job("tiny-pretrain-a1")
            await nodes.end_job("tiny-round-1-a1")
            status = await world.until_phase("Succeeded")
        assert [stage["attempt"] for stage in status["stages"]] == [1] * len(status["stages"])
    assert len(world.job_names()) == (1 if code else 3)


async def test_as_long_to_wait_as_the_server_says(world: World) -> None:
    """Whatever else happens meanwhile, a run that was told to wait is not asked about again before."""
    refused: list[float] = []

    async def hook(call: Call) -> Fault | None:
        if call.what == "create jobs" and not refused:
            refused.append(time.monotonic())
            return Fault(kind="Answer", status=429, retry_after=3)
        return None

    async with world.proxied() as proxy:
        proxy.hook = hook
        async with operating(world, proxy), world.simulated(runs_on):
            await world.apply(make_manifest())
            await world.until_so(lambda: bool(refused), lambda: proxy.calls)
            await world.change(retry={"limit": 7})
            await world.until_job("tiny-preflight-a1")
    later = [call.at - refused[0] for call in proxy.calls if call.at > refused[0] and call.verb != "watch"]
    assert min(later) >= 3.0
    assert min(later) < 4.5
