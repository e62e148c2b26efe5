"""What others delete: Jobs and pods in mid-stage, Jobs of runs that have ended, runs in every state."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from comd_operator.shell.operator import Operator
from tests.api.operators import operating
from tests.api.proxy import Call, Fault
from tests.api.simulator import End, Simulator, runs_on
from tests.api.world import World, condition, make_manifest, stage_of


async def until_owners_count(world: World) -> None:
    """The garbage collector looks for new kinds of owners every 30 seconds."""
    owner = await world.apply(make_manifest("owner", suspend=True))
    reference = {
        **{key: owner[key] for key in ("apiVersion", "kind")},
        **{key: owner["metadata"][key] for key in ("name", "uid")},
    }
    await world.api.create(world.core("configmaps"), {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    await world.delete_run("owner")
    async with asyncio.timeout(100):
        while "owned" in json.dumps(await world.api.get(world.core("configmaps"))):
            await asyncio.sleep(0.5)


Deed = Callable[[World, Simulator], Awaitable[None]]


async def _job_in_the_background(world: World, _: Simulator) -> None:
    await world.delete_job("tiny-pretrain-a1")


async def _job_in_the_foreground(world: World, _: Simulator) -> None:
    await world.delete_job("tiny-pretrain-a1", policy="Foreground")


async def _pod(world: World, nodes: Simulator) -> None:
    await world.api.delete(world.core("pods", nodes.pods_of("tiny-pretrain-a1")[0]["metadata"]["name"]))


async def _pod_by_eviction(world: World, nodes: Simulator) -> None:
    name = nodes.pods_of("tiny-pretrain-a1")[0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    await world.api.create(f"{world.core('pods', name)}/eviction", eviction)


async def _pod_that_does_not_listen(world: World, nodes: Simulator) -> None:
    """It is killed when its grace period is over, with a code that no rule of its Job knows."""
    pod = nodes.pods_of("tiny-pretrain-a1")[0]
    nodes.kill_with = 137
    await world.api.delete(world.core("pods", pod["metadata"]["name"]))


DEEDS: list[Deed] = [
    _job_in_the_background,
    _job_in_the_foreground,
    _pod,
    _pod_by_eviction,
    _pod_that_does_not_listen,
]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__.strip("_"))
async def test_in_mid_stage(world: World, deed: Deed) -> None:
    """The next attempt carries on, nobody pays for it, and it is not begun beside the last."""
    await world.apply(make_manifest(rounds__count=1, retry__limit=0))
    async with operating(world), world.simulated(runs_on) as nodes:
        await nodes.end_job("tiny-preflight-a1")
        await world.until(lambda status: stage_of(status, "pretrain").get("phase") == "Running")
        await world.until_so(lambda: bool(nodes.pods_of("tiny-pretrain-a1")), world.job_names)
        await deed(world, nodes)
        await world.until_job("tiny-pretrain-a2")
        for job in ("tiny-pretrain-a2", "tiny-round-1-a1"):
            await nodes.end_job(job)
        status = await world.until_phase("Succeeded")
    assert stage_of(status, "pretrain")["failures"] == 0
    assert len(world.job_names()) == 4
    assert all(not job.beside for job in world.feed.jobs.values())


async def test_jobs_of_a_run_that_has_succeeded(world: World) -> None:
    """Nothing runs again, and nothing is written, by the operator that saw it and by the next one."""
    await world.apply(make_manifest())
    async with world.proxied() as proxy, world.simulated():
        async with operating(world, proxy):
            await world.until_phase("Succeeded")
            await asyncio.sleep(1.0)
            written = len(proxy.writes())
            ended = await world.run()
            for name in world.job_names():
                await world.delete_job(name)
            await asyncio.sleep(1.0)
        async with operating(world, proxy):
            await asyncio.sleep(1.0)
        assert len(proxy.writes()) == written
    assert all(job.gone for job in world.feed.jobs.values())
    assert len(world.job_names()) == 4
    assert (await world.run())["metadata"]["resourceVersion"] == ended["metadata"]["resourceVersion"]


async def test_a_start_with_a_thousand_runs_that_have_ended(world: World) -> None:
    """They are nothing to it: no write, no question about any of them, and whoever comes next is served at once."""
    await world.apply(make_manifest("first", rounds__count=1))
    async with operating(world), world.simulated():
        status = await world.until_phase("Succeeded", "first")
    limit = asyncio.Semaphore(16)

    async def ended(name: str) -> None:
        async with limit:
            made = await world.apply(make_manifest(name, rounds__count=1))
            patch = {"status": {**status, "observedGeneration": made["metadata"]["generation"]}}
            path = f"{world.runs()}/{name}/status"
            await world.api.patch(path, patch, content_type="application/merge-patch+json")

    await asyncio.gather(*(ended(f"old-{number}") for number in range(1000)))
    async with world.proxied() as proxy, operating(world, proxy) as operator, world.simulated():
        await world.until_so(operator.is_synced, lambda: "not synced")
        await asyncio.sleep(1.0)
        assert len(operator.stores.runs) >= 1001
        assert proxy.writes() == []
        assert len(proxy.calls) < 20, [call.what for call in proxy.calls]
        await world.apply(make_manifest("new", rounds__count=1))
        await world.until_phase("Succeeded", "new")
    assert not [name for name in world.job_names() if name.startswith("old-")]


@pytest.mark.parametrize("seconds", [0, 2])
async def test_jobs_go_when_their_time_to_live_is_over(world: World, seconds: int) -> None:
    await world.apply(make_manifest(rounds__count=1, ttlSecondsAfterFinished=seconds))
    async with world.proxied() as proxy, operating(world, proxy), world.simulated():
        await world.until_phase("Succeeded")
        if seconds:
            assert not all(job.gone for job in world.feed.jobs.values()), "not before"
        await world.until_so(lambda: all(job.gone for job in world.feed.jobs.values()), world.job_names)
        await asyncio.sleep(1.0)
        kinds = [call.what for call in proxy.writes()]
        assert kinds.count("delete jobs") == 3
        assert kinds.count("patch distillationruns/status") in (3, 4), "two stages may be booked at once"
    assert len(world.job_names()) == 3
    assert (await world.status())["phase"] == "Succeeded"


async def _running(world: World, _: Simulator) -> None:
    await world.until_job("tiny-preflight-a1")


async def _retrying(world: World, nodes: Simulator) -> None:
    await nodes.end_job("tiny-preflight-a1", End(code=75))
    await world.until(lambda status: stage_of(status, "preflight").get("phase") == "Retrying")


async def _queued(world: World, _: Simulator) -> None:
    await world.until_phase("Stalled")  # Its words were asked for and written down: there is no Kueue here.


async def _suspended(world: World, _: Simulator) -> None:
    await world.until_job("tiny-preflight-a1")
    await world.change(suspend=True)
    await world.until_phase("Suspended")


async def _succeeded(world: World, nodes: Simulator) -> None:
    for job in ("preflight", "pretrain", "round-1"):
        await nodes.end_job(f"tiny-{job}-a1")
    await world.until_phase("Succeeded")


async def _failed(world: World, nodes: Simulator) -> None:
    await nodes.end_job("tiny-preflight-a1", End(code=64))
    await world.until_phase("Failed")


async def _stalled(world: World, _: Simulator) -> None:
    await world.until_reason("InvalidSpec")


STATES: dict[str, tuple[Deed, dict[str, Any]]] = {
    "running": (_running, {}),
    "retrying": (_retrying, {"retry": {"backoffSeconds": 60}}),
    "queued": (_queued, {"queue": {"name": "gpus"}}),
    "suspended": (_suspended, {}),
    "succeeded": (_succeeded, {}),
    "failed": (_failed, {}),
    "stalled": (_stalled, {"storage": None}),
}


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
@pytest.mark.parametrize("state", STATES)
async def test_a_run(world: World, state: str, policy: str) -> None:
    """Its Jobs go with it, by their owner alone; the operator has nothing left to say, and trips over nothing."""
    reach, changes = STATES[state]
    await until_owners_count(world)
    await world.apply(make_manifest(**{"rounds__count": 1, **changes}))
    async with world.proxied() as proxy, operating(world, proxy) as operator, world.simulated(runs_on) as nodes:
        await reach(world, nodes)
        await asyncio.sleep(0.5)  # what follows the write that was waited for, such as its event
        run = await world.run()
        assert "finalizers" not in run["metadata"]
        written = len(proxy.writes())
        await world.delete_run(policy=policy)
        await world.until_so(lambda: not world.feed.runs, lambda: world.feed.runs)
        await asyncio.sleep(0.5)  # A look at what keeps a Job may be on its way when its run goes.
        asked = len(proxy.calls)
        await world.until_so(lambda: all(job.gone for job in world.feed.jobs.values()), world.job_names)
        await asyncio.sleep(1.0)
        assert [call.what for call in proxy.calls[asked:]] == []
        assert [call.what for call in proxy.writes()[written:]] == []
        assert troubles(operator) == {}
    for job in world.feed.jobs.values():
        assert [(owner["uid"], owner["controller"]) for owner in job.owners] == [(run["metadata"]["uid"], True)]


def troubles(operator: Operator) -> dict[str, float]:
    """Reconciles that did not go well, by how. That somebody else was quicker to change a run is no trouble."""
    samples = [sample for metric in operator.metrics.reconciles.collect() for sample in metric.samples]
    counts = {sample.labels["result"]: sample.value for sample in samples if sample.name.endswith("_total")}
    return {result: count for result, count in counts.items() if result not in ("done", "conflict") and count}


@pytest.mark.parametrize("at", ["create jobs", "patch distillationruns/status", "create events"])
@pytest.mark.parametrize("when", ["Before", "After"])
async def test_a_run_in_the_middle_of_a_call(world: World, at: str, when: str) -> None:
    """Its first Job is being made, written down, or told of, when it is deleted."""

    async def delete(call: Call) -> Fault | None:
        if call.what == at and world.feed.runs:
            await world.delete_run()
            await world.until_so(lambda: not world.feed.runs, lambda: world.feed.runs)
        return None

    await until_owners_count(world)
    async with world.proxied() as proxy:
        if when == "Before":
            proxy.hook = delete
        else:
            proxy.after = delete
        async with operating(world, proxy) as operator, world.simulated(runs_on):
            await world.apply(make_manifest())
            await world.until_so(lambda: proxy.count(at) > 0 and not world.feed.runs, lambda: proxy.calls)
            await asyncio.sleep(1.0)
            asked = len(proxy.calls)
            await world.until_so(lambda: all(job.gone for job in world.feed.jobs.values()), world.job_names)
            await asyncio.sleep(1.0)
            assert [call.what for call in proxy.calls[asked:]] == []
            assert troubles(operator) == {}


async def test_a_run_that_is_made_again_at_once(world: World) -> None:
    """Under its old name, while the old one's Job is still there: it says what it waits for, and begins soon after that is gone."""
    await until_owners_count(world)
    old = (await world.apply(make_manifest(rounds__count=1)))["metadata"]["uid"]
    async with operating(world), world.simulated(runs_on) as nodes:
        await world.until_job("tiny-preflight-a1")
        await hold(world, ["example.com/slow"])
        await world.delete_run()
        new = (await world.apply(make_manifest(rounds__count=1)))["metadata"]["uid"]
        status = await world.until_reason("NameCollision")
        assert "belongs to an earlier run of this name" in condition(status, "Stalled")[2]
        await hold(world, None)
        await world.until_gone("tiny-preflight-a1")
        begun = time.monotonic()
        await world.until_so(lambda: len(world.feed.jobs) == 2, world.job_names)
        assert time.monotonic() - begun < 5.0
        for job in ("preflight", "pretrain", "round-1"):
            await nodes.end_job(f"tiny-{job}-a1")
        await world.until_phase("Succeeded")
    owners = [job.owners[0]["uid"] for job in world.feed.jobs.values()]
    assert owners == [old, new, new, new]


async def hold(world: World, finalizers: list[str] | None) -> None:
    """So that a Job that is deleted goes when we say so."""
    body = {"metadata": {"finalizers": finalizers}}
    await world.api.patch(world.jobs("tiny-preflight-a1"), body, content_type="application/merge-patch+json")


async def test_jobs_that_were_orphaned_are_nobody_s(world: World) -> None:
    """`kubectl delete --cascade=orphan`: they run on, and a new run of that name does not take them."""
    await world.apply(make_manifest())
    async with operating(world), world.simulated(runs_on):
        await world.until_job("tiny-preflight-a1")
        await world.delete_run(policy="Orphan")
        await world.until_so(lambda: not world.feed.runs, lambda: world.feed.runs)
        await world.until_so(lambda: world.job("tiny-preflight-a1").owners == [], world.job_names)
        await world.apply(make_manifest())
        await world.until_reason("NameCollision")
    assert world.job_names() == ["tiny-preflight-a1"]
    assert not world.job("tiny-preflight-a1").gone


async def test_a_namespace(world: World) -> None:
    """With all that is in it, while stages run."""
    async with world.proxied() as proxy, operating(world, proxy) as operator, world.simulated(runs_on):
        for number in range(3):
            await world.apply(make_manifest(f"run-{number}"))
        for number in range(3):
            await world.until_job(f"run-{number}-preflight-a1")
        await world.api.delete(f"/api/v1/namespaces/{world.namespace}")
        await world.until_so(lambda: not world.feed.runs and all(job.gone for job in world.feed.jobs.values()), str)
        await asyncio.sleep(1.0)
        asked = len(proxy.calls)
        await asyncio.sleep(1.0)
        assert [call.what for call in proxy.calls[asked:]] == []
        assert troubles(operator) == {}
