"""A run's life on the real API server: what is written, when, and how often."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

from comd_operator.planner import labels
from tests.api.conftest import Play
from tests.api.proxy import serve
from tests.api.simulator import End, Waits, done, simulating
from tests.api.world import World, condition, make_manifest, operating
from tests.cluster.cluster import Cluster

STAGES = ["preflight", "pretrain", "round-1", "round-2"]


def slowly(pod: dict[str, Any]) -> End:
    """Each stage ends when the one before is booked."""
    return replace(done(pod), after=2.5)


def test_a_run_from_apply_to_succeeded(play: Play, installed: Cluster, tmp_path: Any, monkeypatch: Any) -> None:
    """Every write is counted: two for each transition, one event, and not one that touches what the user wrote."""

    async def scenario(world: World) -> None:
        async with serve(kubeconfig=installed.kubeconfig) as proxy:
            monkeypatch.setenv("KUBECONFIG", str(proxy.kubeconfig(tmp_path / "kubeconfig")))
            applied = await world.apply(make_manifest())
            async with operating(world.namespace), simulating(world.api, world.namespace, slowly):
                status = await world.until_phase("Succeeded")
                writes = [(call.verb, call.resource) for call in proxy.writes()]
                per_stage = [("create", "jobs"), ("patch", "distillationruns/status"), ("create", "events")]
                assert sorted(writes) == sorted([*per_stage * len(STAGES), *per_stage[1:]])
                before = len(proxy.writes())
                await asyncio.sleep(1.5)
                assert len(proxy.writes()) == before, "nothing is written when nothing changes"
            async with operating(world.namespace):
                await asyncio.sleep(1.0)
            assert len(proxy.writes()) == before, "nothing is written by a new operator"

        assert [stage["name"] for stage in status["stages"]] == STAGES
        assert all(stage["phase"] == "Succeeded" and stage["attempt"] == 1 for stage in status["stages"])
        assert status["score"] == "0.500"
        assert status["student"]["uri"] == "s3://b/round-2/student"
        assert condition(status, "Ready")[:2] == ("True", "Finished")
        ended = await world.run()
        for field in ("labels", "annotations", "finalizers", "ownerReferences", "generation"):
            assert ended["metadata"].get(field) == applied["metadata"].get(field)
        assert ended["spec"] == applied["spec"]
        reasons = [event["reason"] for event in sorted(await world.events(), key=lambda event: event["firstTimestamp"])]
        assert reasons == ["JobStarted", "StageSucceeded", "StageSucceeded", "StageSucceeded", "Succeeded"]

    play(scenario)


def test_a_stage_is_handed_over_before_its_job_is_complete(play: Play) -> None:
    """The next Job is made when the container has ended and its result is read, with the artifacts of that result."""
    configs: list[dict[str, Any]] = []

    def script(pod: dict[str, Any]) -> End | Waits | None:
        from tests.api.simulator import decode

        configs.append(decode(pod))
        return done(pod)

    async def scenario(world: World) -> None:
        await world.apply(make_manifest())
        async with operating(world.namespace), simulating(world.api, world.namespace, script):
            await world.until_phase("Succeeded")
        jobs = {job["metadata"]["labels"][labels.STAGE]: job for job in await world.job_list()}
        for first, second in pairwise(STAGES):
            assert jobs[second]["metadata"]["creationTimestamp"] <= jobs[first]["status"]["completionTime"]
        assert [config["stage"] for config in configs] == STAGES
        assert [ref["name"] for ref in configs[3]["inputs"]] == ["preflight", "student", "pools"]
        assert configs[3]["inputs"][1]["uri"] == "s3://b/round-1/student"

    play(scenario)
