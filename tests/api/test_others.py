"""Clusters where others have a hand in a run's Jobs and pods: containers that are put into pods, labels that are changed, finalizers."""

import asyncio
from typing import Any

from comd_operator.planner import labels
from comd_operator.runtime.observe import OUTLIVED_SECONDS
from tests.api.operators import operating
from tests.api.simulator import JOB_NAME, Simulator, Waits, done, moment, runs_on
from tests.api.world import World, condition, make_manifest, stage_of

MERGE = "application/merge-patch+json"
PATIENCE = 3 * OUTLIVED_SECONDS + 45


async def until_pod(world: World, nodes: Simulator, job: str) -> dict[str, Any]:
    """The pod of a Job, running."""
    await world.until_so(lambda: bool(nodes.pods_of(job)), world.job_names, seconds=PATIENCE)
    return nodes.pods_of(job)[0]


async def end_the_trainer(nodes: Simulator, pod: dict[str, Any], code: int, message: str | None) -> None:
    """Another container of the pod lives on."""
    end = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message or ""}
    times = {"startedAt": moment(), "finishedAt": moment()}
    await nodes.set_state(pod, "Running", {"terminated": {**end, **times}})


async def change_job(world: World, job: str, **fields: Any) -> None:
    await world.api.patch(world.jobs(job), fields, content_type=MERGE)


async def test_containers_that_outlive_the_trainer(world: World) -> None:
    """Each stage is booked all the same, never are more than three Jobs there, and in the end nothing is held."""
    await world.apply(make_manifest())
    async with operating(world), world.simulated(runs_on) as nodes:
        for number, job in enumerate(("tiny-preflight-a1", "tiny-pretrain-a1", "tiny-round-1-a1", "tiny-round-2-a1")):
            pod = await until_pod(world, nodes, job)
            assert sum(not made.gone for made in world.feed.jobs.values()) <= 3, f"at {number}: {world.job_names()}"
            await end_the_trainer(nodes, pod, 0, done(pod).message)
        status = await world.until_phase("Succeeded", seconds=PATIENCE)
        await world.until_gone("tiny-round-2-a1")
    assert [stage["attempt"] for stage in status["stages"]] == [1, 1, 1, 1]


async def test_a_container_that_hides_the_trainer_s_failure(world: World) -> None:
    await world.apply(make_manifest())
    async with operating(world), world.simulated(runs_on) as nodes:
        pod = await until_pod(world, nodes, "tiny-preflight-a1")
        await end_the_trainer(nodes, pod, 64, '{"exitClass":"UserError","message":"no such bucket"}')
        status = await world.until_phase("Failed", seconds=PATIENCE)
        await world.until_gone("tiny-preflight-a1")
    assert condition(status, "Failed")[1:] == ("UserError", "preflight: no such bucket")


async def test_pods_that_fail_before_their_trainer(world: World) -> None:
    """An init container that a webhook puts in. Its attempts cost nothing, so somebody has to be told."""
    await world.apply(make_manifest(retry={"limit": 0, "backoffSeconds": 300}))
    starting = {"waiting": {"reason": "PodInitializing"}}
    async with operating(world), world.simulated(lambda _: Waits(reason="PodInitializing", message="")) as nodes:
        await world.until_job("tiny-preflight-a1")
        while not (pod := (await world.pods())[0])["status"].get("containerStatuses"):
            await asyncio.sleep(0.05)  # Else the node's first word would come after this end.
        mesh = {"name": "mesh", "image": "x", "imageID": "x", "ready": False, "restartCount": 0}
        end = {"exitCode": 3, "reason": "Error", "startedAt": moment(), "finishedAt": moment()}
        ended = [{**mesh, "state": {"terminated": end}}]
        await nodes.set_state(pod, "Failed", starting, initContainerStatuses=ended)
        status = await world.until_phase("Stalled")
    assert condition(status, "Stalled")[1] == "CannotStart"
    assert "its init container mesh ended with 3" in condition(status, "Stalled")[2]


async def test_a_label_that_a_policy_engine_changes(world: World) -> None:
    """No watch tells of the Job any more: it is the run's all the same, to its end and when the run is suspended."""
    await world.apply(make_manifest())
    other = {"labels": {labels.MANAGED_BY: "platform"}}
    async with operating(world), world.simulated(runs_on) as nodes:
        await until_pod(world, nodes, "tiny-preflight-a1")
        await change_job(world, "tiny-preflight-a1", metadata=other)
        await nodes.end_job("tiny-preflight-a1")
        await world.until(lambda status: stage_of(status, "pretrain").get("phase") == "Running")
        await until_pod(world, nodes, "tiny-pretrain-a1")
        await change_job(world, "tiny-pretrain-a1", metadata=other)
        await world.change(suspend=True)
        await world.until_phase("Suspended")
        name = {"labelSelector": f"{JOB_NAME}=tiny-pretrain-a1"}
        for _ in range(100):
            pods = await world.api.get(world.core("pods"), params=name)
            if not any(pod["status"]["phase"] == "Running" for pod in pods["items"]):
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("a pod of a suspended run goes on")
    assert len(world.job_names()) == len(set(world.job_names())) == 2


async def test_a_label_that_a_policy_engine_changes_on_pods(world: World) -> None:
    """Their Job keeps its own, so that the run is told of its end, and the result is in a pod that no watch tells of."""
    await world.apply(make_manifest())
    async with operating(world), world.simulated(runs_on) as nodes:
        pod = await until_pod(world, nodes, "tiny-preflight-a1")
        change = {"metadata": {"labels": {labels.MANAGED_BY: "platform"}}}
        await world.api.patch(world.core("pods", pod["metadata"]["name"]), change, content_type=MERGE)
        await nodes.end_job("tiny-preflight-a1")
        status = await world.until(lambda status: stage_of(status, "pretrain").get("phase") == "Running")
    assert (stage_of(status, "preflight")["phase"], stage_of(status, "preflight")["attempt"]) == ("Succeeded", 1)


async def test_a_job_that_somebody_s_finalizer_keeps(world: World) -> None:
    """The run waits for it, and says so: named at once, stalled when patience is over."""
    await world.apply(make_manifest(trainer__podTemplate__spec__terminationGracePeriodSeconds=15))
    async with operating(world, start_patience_seconds=4.0), world.simulated(runs_on) as nodes:
        await until_pod(world, nodes, "tiny-preflight-a1")
        await change_job(world, "tiny-preflight-a1", metadata={"finalizers": ["example.com/keep"]})
        await world.change(suspend=True)
        await world.until_phase("Suspended")
        await world.change(suspend=False)
        status = await world.until(lambda status: "waits for Job" in condition(status, "Ready")[2])
        assert "tiny-preflight-a1" in condition(status, "Ready")[2]
        await world.until_phase("Stalled")
        await change_job(world, "tiny-preflight-a1", metadata={"finalizers": None})
        await world.until(lambda status: stage_of(status, "preflight").get("attempt") == 2)


async def test_a_job_that_somebody_wants_no_pods_of(world: World) -> None:
    await world.apply(make_manifest())
    async with operating(world), world.simulated(runs_on):
        await world.until_job("tiny-preflight-a1")
        await change_job(world, "tiny-preflight-a1", spec={"parallelism": 0})
        status = await world.until_reason("NoPods")
    assert status["phase"] == "Queued"
    assert "somebody has set its spec.parallelism to 0" in condition(status, "Ready")[2]
