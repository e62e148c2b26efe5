"""A run's life on the real API server: what is written, when, and how often."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

from comd_api.run import DistillationRun
from comd_api.stage import ReusedStage
from comd_api.status import Counts
from comd_operator.planner import labels, plan_run
from tests.api.operators import operating
from tests.api.simulator import STORAGE, End, Waits, decode, done, result
from tests.api.world import World, condition, make_manifest

STAGES = ["preflight", "pretrain", "round-1", "round-2"]


def slowly(pod: dict[str, Any]) -> End:
    """Each stage ends when the one before is booked."""
    return replace(done(pod), after=2.5)


async def test_a_run_from_apply_to_succeeded(world: World) -> None:
    """Every write is counted: two for each transition, one event, and not one that touches what the user wrote."""
    async with world.proxied() as proxy:
        applied = await world.apply(make_manifest())
        async with operating(world, proxy), world.simulated(slowly):
            status = await world.until_phase("Succeeded")
            await asyncio.sleep(1.5)
            writes = [call.what for call in proxy.writes()]
            per_stage = ["create jobs", "patch distillationruns/status", "create events"]
            assert sorted(writes) == sorted([*per_stage * len(STAGES), *per_stage[1:]]), "nor are there any later"
        async with operating(world, proxy):
            await asyncio.sleep(1.0)
        assert len(proxy.writes()) == len(writes), "nothing is written by a new operator"
    assert status["score"] == "0.500"
    assert status["student"]["uri"] == f"{STORAGE}/round-2/student"
    assert condition(status, "Ready")[:2] == ("True", "Finished")
    ended = await world.run()
    for field in ("labels", "annotations", "finalizers", "ownerReferences", "generation"):
        assert ended["metadata"].get(field) == applied["metadata"].get(field)
    assert ended["spec"] == applied["spec"]
    reasons = [event["reason"] for event in await world.events()]
    assert reasons == ["JobStarted", "StageSucceeded", "StageSucceeded", "StageSucceeded", "Succeeded"]


async def test_a_stage_is_handed_over_before_its_job_is_complete(world: World) -> None:
    """The next Job is made when the container has ended and its result is read, with the artifacts of that result."""
    configs: list[dict[str, Any]] = []

    def script(pod: dict[str, Any]) -> End | Waits | None:
        configs.append(decode(pod))
        return done(pod)

    await world.apply(make_manifest())
    async with operating(world), world.simulated(script):
        await world.until_phase("Succeeded")
    jobs = {job.object["metadata"]["labels"][labels.STAGE]: job.object for job in world.feed.jobs.values()}
    for first, second in pairwise(STAGES):
        assert jobs[second]["metadata"]["creationTimestamp"] <= jobs[first]["status"]["completionTime"]
    assert [config["stage"] for config in configs] == STAGES
    assert [ref["name"] for ref in configs[3]["inputs"]] == ["preflight", "student", "pools"]
    assert configs[3]["inputs"][1]["uri"] == f"{STORAGE}/round-1/student"


async def test_stages_that_preflight_finds_finished(world: World) -> None:
    """No Job is made for them, and they cost no write of their own."""

    def script(pod: dict[str, Any]) -> End | Waits | None:
        stage = pod["metadata"]["labels"][labels.STAGE]
        if stage != "preflight":
            return slowly(pod)
        made = {name: result(name) for name in STAGES[1:3]}
        reused = [
            ReusedStage(name=name, artifacts=each.artifacts, scores=each.scores, counts=Counts(teacher_answers=0))
            for name, each in made.items()
        ]
        return End(message=result(stage).replace(reused=reused).to_termination_message(), after=2.5)

    async with world.proxied() as proxy:
        await world.apply(make_manifest())
        async with operating(world, proxy), world.simulated(script):
            status = await world.until_phase("Succeeded")
            await asyncio.sleep(1.5)
            writes = [call.what for call in proxy.writes()]
    assert world.job_names() == ["tiny-preflight-a1", "tiny-round-2-a1"]
    assert [(stage["name"], stage["phase"]) for stage in status["stages"]] == [
        ("preflight", "Succeeded"),
        ("pretrain", "Reused"),
        ("round-1", "Reused"),
        ("round-2", "Succeeded"),
    ]
    assert writes.count("patch distillationruns/status") == 3, "as of a run of two stages"
    messages = [event["message"] for event in await world.events()]
    assert any("preflight; reused: pretrain, round-1; round-2: attempt 1" in message for message in messages), messages


async def test_a_job_for_each_phase(world: World) -> None:
    """One after the other, in one stage of the ledger."""
    await world.apply(make_manifest(rounds__count=1, execution="Phase"))
    async with operating(world), world.simulated():
        status = await world.until_phase("Succeeded")
    run = DistillationRun.model_validate(await world.run(), by_alias=True, by_name=False)
    assert world.job_names() == [job.name for job in plan_run(run.spec, run="tiny")]
    assert len(world.job_names()) > 4
    assert [stage["name"] for stage in status["stages"]] == STAGES[:3]
    assert all(stage["attempt"] == 1 for stage in status["stages"])


async def test_many_runs_at_once(world: World) -> None:
    """As the limits are shipped; each has its Jobs, once, and its events."""
    names = [f"run-{number}" for number in range(20)]
    async with operating(world, qps=50.0, burst=100), world.simulated():
        await asyncio.gather(*(world.apply(make_manifest(name, rounds__count=1)) for name in names))
        for name in names:
            await world.until_phase("Succeeded", name)
            await world.until_event("Succeeded", name)
    assert sorted(world.job_names()) == sorted(f"{name}-{stage}-a1" for name in names for stage in STAGES[:3])
