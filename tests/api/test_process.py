"""`comd operator` as a process: killed, frozen, stopped, and with no rights but those that it is given."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.api import life
from tests.api.operators import KOPF_RUN, Process, operating, start_process
from tests.api.proxy import Proxy
from tests.api.simulator import runs_on
from tests.api.test_rights import RBAC, allowed, asked
from tests.api.world import World, make_manifest

NAMESPACE_IS_THERE = ("", "namespaces", "get")
"""Asked of a namespace without runs; no role has that right, and nothing is missing without it."""
HELD: dict[str, Any] = {"leader_election": True, "lease_name": "test", "lease_seconds": 3.0}


@asynccontextmanager
async def process(world: World, proxy: Proxy | None = None, **changes: Any) -> AsyncIterator[Process]:
    started = await start_process(world, proxy, **{**HELD, "lease_namespace": world.namespace, **changes})
    try:
        yield started
    finally:
        await started.terminate()


async def test_killed_again_and_again(world: World) -> None:
    """SIGKILL whenever a Job has been made; each time another process takes over when the Lease is over."""
    made, current = 0, await start_process(world, lease_namespace=world.namespace, **HELD)

    async def kill_at_each_job() -> None:
        nonlocal made, current
        while True:
            await world.feed.change()
            if len(world.feed.jobs) > made:
                made = len(world.feed.jobs)
                current.send(signal.SIGKILL)
                await current.wait()
                current = await start_process(world, lease_namespace=world.namespace, **HELD)

    killing = asyncio.create_task(kill_at_each_job())
    try:
        async with world.simulated(runs_on) as nodes:
            status = await life.play(world, nodes)
            await life.assert_nothing_twice(world)
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        await current.terminate()
    assert made == len(life.JOBS)
    assert life.same(status) == life.the_end()


async def holder(world: World) -> str:
    lease = await world.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/test")
    return str(lease["spec"]["holderIdentity"])


async def test_started_by_kopf(world: World) -> None:
    """`kopf run` is another way to start the same."""
    await world.apply(make_manifest(rounds__count=1))
    async with world.simulated(), process(world, command=KOPF_RUN) as running:
        await world.until_phase("Succeeded")
        assert await holder(world) != ""
        assert await asyncio.wait_for(running.terminate(), timeout=10) == 0, running.log.read_text()
    assert await holder(world) == ""
    assert len(world.job_names()) == 3


async def test_stopped(world: World) -> None:
    """SIGTERM: it goes at once, gives the Lease back, and leaves the run as it is."""
    await world.apply(make_manifest())
    async with world.simulated(runs_on), process(world) as running:
        await world.until_job("tiny-preflight-a1")
        assert await holder(world) != ""
        code = await asyncio.wait_for(running.terminate(), timeout=5)
        assert code == 0, running.log.read_text()
        assert await holder(world) == ""
    assert world.job_names() == ["tiny-preflight-a1"]
    assert not world.job("tiny-preflight-a1").gone


async def test_frozen(world: World) -> None:
    """Its machine sleeps while it has writes in hand. When it wakes up another one works, and it writes nothing more."""
    runs = [f"run-{number}" for number in range(16)]
    async with world.proxied() as one, world.proxied() as two, world.simulated():
        async with process(world, one, qps=5.0, burst=3) as first:
            for name in runs:
                await world.apply(make_manifest(name, rounds__count=1))
            await world.until_so(lambda: one.count("create jobs") >= 2, lambda: one.calls)
            first.send(signal.SIGSTOP)
            mine = {**HELD, "lease_namespace": world.namespace, "identity": "two"}
            async with operating(world, two, **mine):
                await world.until_so(lambda: two.count("create jobs") >= 1, lambda: two.calls)
                taken_over = two.written()[1].at
                first.send(signal.SIGCONT)
                for name in runs:
                    await world.until_phase("Succeeded", name)
                await asyncio.wait_for(first.wait(), timeout=15)
        assert [call.what for call in one.written() if call.at > taken_over] == []
    assert len(world.job_names()) == len(set(world.job_names())) == 48


async def test_a_namespace_that_is_not_there(world: World) -> None:
    """A name that is mistyped is told, once; one that is there is not, though it has no runs."""
    async with process(world, namespaces=f"{world.namespace},nosuch") as running:
        await world.until_so(lambda: "leading" in running.log.read_text(), lambda: running.log.read_text())
        await world.apply(make_manifest())
        await world.until_job("tiny-preflight-a1")
    told = [line for line in running.log.read_text().splitlines() if "there is no namespace" in line]
    assert len(told) == 1
    assert "--namespaces: there is no namespace nosuch yet" in told[0]


async def test_with_the_rights_that_it_is_given(world: World) -> None:
    """What holds it, kopf, asks for nothing beside."""
    kubectl = world.cluster.kubectl
    await asyncio.to_thread(kubectl, "apply", "-f", str(RBAC))
    token = await asyncio.to_thread(kubectl, "--namespace=comd-system", "create", "token", "comd-operator")
    async with world.proxied(token=token.strip()) as proxy, world.simulated():
        async with process(world, proxy, lease_namespace="comd-system") as running:
            await world.apply(make_manifest(rounds__count=1))
            await world.until_phase("Succeeded")
        assert {call.user_agent.partition("/")[0] for call in proxy.calls} == {"comd-operator"}
        assert {(call.what, code) for call, code in proxy.answers if code in (401, 403)} <= {("get namespaces", 403)}
        assert asked(proxy) - {NAMESPACE_IS_THERE} <= allowed()
    assert '"level": "error"' not in running.log.read_text()
