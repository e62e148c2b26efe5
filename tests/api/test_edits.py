"""What a user changes on a run that has started: suspension, deadlines, retries; and what can't be changed."""

import asyncio
import copy
from typing import Any

import pytest

from comd_operator.runtime.api import ApiError
from tests.api.operators import operating
from tests.api.simulator import End, Simulator, runs_on
from tests.api.world import World, condition, make_manifest, stage_of
from tests.unit.rule_examples import REFUSED, manifest


async def begun(world: World, nodes: Simulator, **changes: Any) -> None:
    """A run that is in its stage `pretrain`."""
    await world.apply(make_manifest(**{"rounds__count": 1, **changes}))
    await nodes.end_job("tiny-preflight-a1")
    await world.until(lambda status: stage_of(status, "pretrain").get("phase") == "Running")
    await world.until_so(lambda: bool(nodes.pods_of("tiny-pretrain-a1")), world.job_names)


async def test_suspended_now(world: World) -> None:
    """Its Job goes, and stays away; taken back, the stage goes on as another attempt that nobody pays for."""
    async with world.proxied() as proxy, operating(world, proxy), world.simulated(runs_on) as nodes:
        await begun(world, nodes, retry__limit=0)
        await world.change(suspend=True)
        status = await world.until_phase("Suspended")
        await world.until_gone("tiny-pretrain-a1")
        assert condition(status, "Suspended") == ("True", "Suspended", "spec.suspend is true")
        assert [condition(status, kind)[0] for kind in ("Ready", "Reconciling", "Stalled")] == ["False"] * 3
        assert stage_of(status, "pretrain")["phase"] == "Suspended"
        assert "activeSince" not in status
        written = len(proxy.writes())
        await asyncio.sleep(2.0)
        assert len(proxy.writes()) == written
        assert (await world.status())["activeSeconds"] == status["activeSeconds"], "its clock stands"
        await world.change(suspend=False)
        for job in ("pretrain-a2", "round-1-a1"):
            await nodes.end_job(f"tiny-{job}")
        status = await world.until_phase("Succeeded")
    assert stage_of(status, "pretrain")["failures"] == 0
    assert not any(call.verb in ("patch", "update") and call.resource == "jobs" for call in proxy.calls)
    reasons = [event["reason"] for event in await world.events()]
    assert (reasons.count("Suspended"), reasons.count("Resumed")) == (1, 1)


async def test_suspended_at_the_end_of_the_stage(world: World) -> None:
    async with operating(world), world.simulated(runs_on) as nodes:
        await begun(world, nodes)
        await world.change(suspend=True, suspendPolicy="StageEnd")
        await asyncio.sleep(1.5)
        assert not world.job("tiny-pretrain-a1").gone
        assert (await world.status())["phase"] == "Running"
        await nodes.end_job("tiny-pretrain-a1")
        status = await world.until_phase("Suspended")
        assert [stage["phase"] for stage in status["stages"]] == ["Succeeded", "Succeeded"]
        await asyncio.sleep(1.0)
        assert "tiny-round-1-a1" not in world.job_names()
        await world.change(suspend=False)
        await nodes.end_job("tiny-round-1-a1")
        await world.until_phase("Succeeded")
    assert len(world.job_names()) == 3


async def test_suspended_before_it_was_begun(world: World) -> None:
    await world.apply(make_manifest(rounds__count=1, suspend=True))
    async with operating(world), world.simulated():
        await world.until_phase("Suspended")
        await asyncio.sleep(1.0)
        assert world.job_names() == []
        await world.change(suspend=False)
        await world.until_phase("Succeeded")


async def test_suspended_and_resumed_at_once(world: World) -> None:
    """Also before anything was done about it: in the end it runs, once."""
    async with operating(world), world.simulated(runs_on) as nodes:
        await begun(world, nodes)
        for _ in range(3):
            await world.change(suspend=True)
            await world.change(suspend=False)
        await asyncio.sleep(2.0)
        status = await world.until(lambda status: stage_of(status, "pretrain").get("phase") == "Running")
        await nodes.end_job(stage_of(status, "pretrain")["jobName"])
        await nodes.end_job("tiny-round-1-a1")
        await world.until_phase("Succeeded")
    assert all(not job.beside for job in world.feed.jobs.values())


DEADLINES: dict[str, dict[str, Any]] = {
    "activeDeadlineSeconds": {},
    "stageDeadlineSeconds": {},
    "queueDeadlineSeconds": {"trainer__podTemplate__spec__schedulerName": "default-scheduler"},
}


@pytest.mark.parametrize("field", DEADLINES)
async def test_a_deadline_that_passes(world: World, field: str) -> None:
    """The run has failed, says why, and gives back what it holds."""
    await world.apply(make_manifest(**{field: 2, **DEADLINES[field]}))
    async with operating(world), world.simulated(runs_on):
        status = await world.until_phase("Failed")
        assert condition(status, "Failed")[:2] == ("True", "Deadline")
        assert field in condition(status, "Failed")[2]
        await world.until_gone("tiny-preflight-a1")
        await asyncio.sleep(1.0)
    assert world.job_names() == ["tiny-preflight-a1"]


async def test_time_suspended_counts_for_no_deadline(world: World) -> None:
    async with operating(world), world.simulated(runs_on) as nodes:
        await begun(world, nodes, activeDeadlineSeconds=300, stageDeadlineSeconds=300)
        await world.change(suspend=True)
        await world.until_gone("tiny-pretrain-a1")
        await world.change(activeDeadlineSeconds=30, stageDeadlineSeconds=30)
        before = (await world.until_phase("Suspended"))["activeSeconds"]
        await asyncio.sleep(3.0)
        await world.change(suspend=False)
        status = await world.until_phase("Running")
        assert status["activeSeconds"] == before < 30


async def test_a_deadline_that_is_set_while_it_runs(world: World) -> None:
    async with operating(world), world.simulated(runs_on) as nodes:
        await begun(world, nodes)
        await asyncio.sleep(2.0)
        await world.change(activeDeadlineSeconds=1)
        status = await world.until_phase("Failed")
    assert condition(status, "Failed")[:2] == ("True", "Deadline")


async def test_a_retry_limit_that_is_raised_in_time(world: World) -> None:
    async with operating(world), world.simulated(runs_on) as nodes:
        await begun(world, nodes, retry={"limit": 0, "backoffSeconds": 1})
        await world.change(retry={"limit": 1})
        await nodes.end_job("tiny-pretrain-a1", End(code=1))
        await world.until_job("tiny-pretrain-a2")
        await nodes.end_job("tiny-pretrain-a2", End(code=1))
        status = await world.until_phase("Failed")
    assert stage_of(status, "pretrain")["failures"] == 2
    assert status["observedGeneration"] == 2


async def test_what_can_t_change_does_not(world: World) -> None:
    """A run that an operator works on: each field that its Jobs were made from is refused by the server, by name."""
    async with operating(world), world.simulated(runs_on) as nodes:
        await begun(world, nodes)
        for change in REFUSED:
            run = await world.run()
            spec = copy.deepcopy(run["spec"])
            _lay_over(spec, _difference(change.changes))
            with pytest.raises(ApiError) as refused:
                await world.api.update(world.runs("tiny"), {**run, "spec": spec})
            assert f"spec.{change.field} can't change once the run has started" in refused.value.message
        assert (await world.run())["metadata"]["generation"] == 1
        await nodes.end_job("tiny-pretrain-a1")
        await nodes.end_job("tiny-round-1-a1")
        await world.until_phase("Succeeded")


def _difference(changes: dict[str, Any]) -> dict[str, Any]:
    """What changes set beside the smallest manifest."""
    plain, changed = manifest()["spec"], manifest(**changes)["spec"]
    return {key: value for key, value in changed.items() if plain.get(key) != value}


def _lay_over(target: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict) and "endpoint" not in value:
            _lay_over(target[key], value)
        else:
            target[key] = value


async def test_a_run_that_is_over_is_not_begun_again(world: World) -> None:
    """Whatever may still be changed on it."""
    await world.apply(make_manifest(rounds__count=1))
    async with world.proxied() as proxy, operating(world, proxy), world.simulated():
        await world.until_phase("Succeeded")
        await world.change(suspend=True, retry={"limit": 9}, activeDeadlineSeconds=1)
        status = await world.until(lambda status: status["observedGeneration"] == 2)
        assert status["phase"] == "Succeeded"
        await world.change(suspend=False)
        await world.until(lambda status: status["observedGeneration"] == 3)
        await asyncio.sleep(1.0)
    assert len(world.job_names()) == 3
    events = [event["reason"] for event in await world.events()]
    assert events.count("Succeeded") == 1
    assert not {"Suspended", "Resumed"} & set(events)
