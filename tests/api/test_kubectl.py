"""A run as kubectl shows it, and as scripts wait for it."""

import asyncio
import json

from tests.api.operators import operating
from tests.api.simulator import End, runs_on
from tests.api.world import World, make_manifest


async def table(world: World, *more: str) -> list[list[str]]:
    lines = (await world.kubectl("get", "drun", *more)).splitlines()
    return [line.split("   ") for line in lines]


def cells(line: list[str]) -> list[str]:
    return [cell.strip() for cell in line if cell.strip()]


async def test_columns(world: World) -> None:
    await world.apply(make_manifest(rounds__count=1))
    async with operating(world), world.simulated(runs_on) as nodes:
        await world.until_job("tiny-preflight-a1")
        await world.until_phase("Running")
        header, line = await table(world)
        assert cells(header) == ["NAME", "PHASE", "STAGE", "ROUND", "SCORE", "AGE"]
        assert cells(line)[:3] == ["tiny", "Running", "preflight"]
        for job in ("preflight", "pretrain", "round-1"):
            await nodes.end_job(f"tiny-{job}-a1")
        await world.until_phase("Succeeded")
        _, line = await table(world)
        assert cells(line)[:5] == ["tiny", "Succeeded", "round-1", "1", "0.500"]
        header, line = await table(world, "-o", "wide")
        assert cells(header) == ["NAME", "PHASE", "STAGE", "ROUND", "SCORE", "PROGRESS", "QUEUE", "MESSAGE", "AGE"]
        assert "all 3 stages are done" in cells(line)


async def test_wait_for_succeeded(world: World) -> None:
    await world.kubectl("apply", "-f", "-", input=json.dumps(make_manifest(rounds__count=1)))
    waiting = asyncio.create_task(world.kubectl("wait", "drun/tiny", "--for=condition=Succeeded", "--timeout=60s"))
    async with operating(world), world.simulated():
        assert "condition met" in await waiting
    assert (await world.status())["phase"] == "Succeeded"


async def test_no_drift(world: World) -> None:
    """What git holds is what is there, before, while and after it runs."""
    manifest = json.dumps(make_manifest(rounds__count=1))
    await world.kubectl("apply", "-f", "-", input=manifest)
    async with operating(world), world.simulated(runs_on) as nodes:
        for job in ("preflight", "pretrain", "round-1"):
            await world.until_job(f"tiny-{job}-a1")
            assert await world.kubectl("diff", "-f", "-", input=manifest) == ""
            await nodes.end_job(f"tiny-{job}-a1")
        await world.until_phase("Succeeded")
    ended = (await world.run())["metadata"]
    for how in ((), ("--server-side", "--force-conflicts")):
        await world.kubectl("apply", *how, "-f", "-", input=manifest)
        again = (await world.run())["metadata"]
        assert again["generation"] == ended["generation"] == 1
    managers = {entry["manager"]: entry.get("subresource") for entry in again["managedFields"]}
    assert managers.pop("comd-operator") == "status"
    assert all("kubectl" in manager for manager in managers), managers


async def test_wait_for_failed(world: World) -> None:
    await world.apply(make_manifest())
    waiting = asyncio.create_task(world.kubectl("wait", "drun/tiny", "--for=condition=Failed", "--timeout=60s"))
    async with operating(world), world.simulated(lambda _: End(code=64)):
        assert "condition met" in await waiting


async def test_events_are_told_of_the_run(world: World) -> None:
    await world.apply(make_manifest())
    async with operating(world), world.simulated(lambda _: End(code=64, message="no such folder")):
        await world.until_event("Failed")
        described = await world.kubectl("describe", "drun", "tiny")
    events = described.partition("Events:")[2]
    assert "Warning  Failed" in events.replace("   ", "  ")
    assert "no such folder" in events
    assert "comd-operator" in events
