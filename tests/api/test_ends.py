"""How an attempt can end, and what becomes of its run."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pytest

from comd_api.stage import StageResult
from comd_api.status import ArtifactRef, ExitClass
from comd_operator.planner import labels
from tests.api.operators import operating
from tests.api.simulator import DIGEST, STORAGE, End, Waits, done, result, runs_on
from tests.api.world import World, condition, make_manifest, stage_of

STAGE = "pretrain"


def says(exit_class: ExitClass, message: str) -> str:
    return StageResult(exit_class=exit_class, message=message).to_termination_message()


def disrupted(reason: str, message: str = "") -> dict[str, str]:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


WELL = End(message=result(STAGE).to_termination_message())
LOST = "data.images: s3://b/images has no such folder; right would be one that preflight can list"
NO_ROWS = "data.seed.instructions: none of 9 rows can be used"


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    ends: Sequence[End]
    """Of one attempt after the other."""
    limit: int = 0
    """retry.limit."""
    phase: str = "Succeeded"
    failures: int = 0
    """Of the stage in the end: what counted against the limit."""
    told: str = ""
    """What the run's condition, or else the event of the first attempt, says."""
    exit_class: ExitClass = "Done"
    """Of the last attempt."""


def ended(name: str, *ends: End, **more: Any) -> Case:
    return Case(name=name, ends=ends, **more)


def fails(name: str, *ends: End, exit_class: ExitClass = "Failed", **more: Any) -> Case:
    return Case(name=name, ends=ends, phase="Failed", exit_class=exit_class, **{"failures": len(ends), **more})


CASES = [
    ended("done", WELL),
    # The user's fault, and the data's: over at once, though there would be tries left.
    fails("64", End(code=64, message=says("UserError", LOST)), exit_class="UserError", told=LOST, limit=3),
    fails("65", End(code=65, message=says("BadData", NO_ROWS)), exit_class="BadData", told=NO_ROWS, limit=3),
    fails("64-no-result", End(code=64, message="a line\nthe last"), exit_class="UserError", told="the last", limit=3),
    fails("65-no-result", End(code=65), exit_class="BadData", told="ended with code 65", limit=3),
    # Nobody's fault: free, however often.
    ended("75", End(code=75, message=says("TryAgain", "S3 is away")), End(code=75), WELL, told="S3 is away"),
    ended("143", End(code=143), WELL, told="signal 15"),
    ended(
        "evicted", End(code=143, conditions=[disrupted("EvictionByEvictionAPI")]), WELL, told="EvictionByEvictionAPI"
    ),
    ended("preempted", End(code=137, conditions=[disrupted("PreemptionByScheduler")]), WELL, told="Preemption"),
    ended("node-lost", End(code=137, conditions=[disrupted("DeletionByTaintManager")]), WELL, told="DeletionByTaint"),
    ended(
        "node-out-of-memory",
        End(code=137, pod={"reason": "Evicted", "message": "The node was low on resource: memory."}),
        WELL,
        told="The node was low",
    ),
    # The run's own: each costs a retry.
    ended("1-then-done", End(code=1, message="out of luck"), WELL, limit=1, failures=1, told="out of luck"),
    fails("1-too-often", End(code=1), End(code=1, message="still"), limit=1, told="still"),
    fails("1-no-retry", End(code=1), told="ended with code 1 and left no result"),
    fails("139", End(code=139), told="SIGSEGV"),
    fails(
        "oom",
        End(code=137, reason="OOMKilled"),
        exit_class="OutOfMemory",
        told="trainer.resourcesPerNode.limits.memory",
    ),
    ended("oom-retried", End(code=137, reason="OOMKilled"), WELL, limit=1, failures=1, told="OutOfMemory"),
    fails("137", End(code=137), exit_class="OutOfMemory", told="signal 9"),
    fails(
        "too-much-disk",
        End(code=137, pod={"reason": "Evicted", "message": "Usage of EmptyDir volume exceeds the limit 1Gi."}),
        told="exceeds the limit 1Gi",
    ),
    fails("0-no-result", End(), told="left no result"),
    fails("0-cut-result", replace(WELL, message=(WELL.message or "")[:-9]), told="left no result"),
    fails("0-that-says-it-failed", End(message=says("Failed", "no")), told="left no result"),
    ended("0-no-result-retried", End(), WELL, limit=1, failures=1, told="left no result"),
    fails("1-that-says-it-is-done", replace(WELL, code=1), told="ended with code 1"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_end(world: World, case: Case) -> None:
    def script(pod: dict[str, Any]) -> End | Waits | None:
        own = pod["metadata"]["labels"]
        return case.ends[int(own[labels.ATTEMPT]) - 1] if own[labels.STAGE] == STAGE else done(pod)

    retry = {"limit": case.limit, "backoffSeconds": 1, "maxBackoffSeconds": 1}
    await world.apply(make_manifest(rounds__count=1, retry=retry))
    async with operating(world), world.simulated(script):
        status = await world.until(lambda status: status.get("phase") in ("Succeeded", "Failed"))
        await asyncio.sleep(1.5 if case.phase == "Failed" else 0)
    stage = stage_of(status, STAGE)
    assert (status["phase"], stage["exitClass"], stage["failures"]) == (case.phase, case.exit_class, case.failures)
    attempts = [f"tiny-{STAGE}-a{number + 1}" for number in range(len(case.ends))]
    assert [name for name in world.job_names() if STAGE in name] == attempts
    assert all(not job.beside for job in world.feed.jobs.values())
    if case.phase == "Failed":
        assert condition(status, "Failed") == ("True", case.exit_class, f"{STAGE}: {stage['message']}")
        assert condition(status, "Stalled")[0] == "True"
        assert [condition(status, kind)[0] for kind in ("Ready", "Succeeded", "Reconciling")] == ["False"] * 3
        assert case.told in stage["message"]
    events = [(event["reason"], event["message"]) for event in await world.events()]
    assert any(case.told in message for _, message in events)
    reasons = [reason for reason, _ in events]
    assert reasons.count("AttemptFailed") == len(case.ends) - 1
    assert reasons.count("Failed") == (case.phase == "Failed")


async def test_a_failure_is_tried_again_later_each_time(world: World) -> None:
    def script(pod: dict[str, Any]) -> End:
        return done(pod) if pod["metadata"]["labels"][labels.ATTEMPT] == "4" else End(code=1)

    await world.apply(make_manifest(retry={"limit": 3, "backoffSeconds": 1, "maxBackoffSeconds": 3}))
    async with operating(world), world.simulated(script):
        await world.until_job("tiny-preflight-a4")
    jobs = [job.object for job in world.feed.jobs.values()][:4]
    made = [datetime.fromisoformat(job["metadata"]["creationTimestamp"]) for job in jobs]
    ended = [datetime.fromisoformat(_end(job)["lastTransitionTime"]) for job in jobs[:3]]
    waits = [(later - earlier).total_seconds() for earlier, later in zip(ended, made[1:], strict=True)]
    # 1, 2 and 4 seconds, at most 3; a quarter may be taken off, and times are whole seconds.
    assert [least <= wait <= least + 3 for least, wait in zip((0, 1, 2), waits, strict=True)] == [True] * 3, waits
    assert waits[2] > waits[0]


def _end(job: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = next(entry for entry in job["status"]["conditions"] if entry["type"] == "Failed")
    return found


async def test_of_several_nodes_the_one_that_failed_says_why(world: World) -> None:
    """The others only miss it: they are stopped, or end in their own way."""

    def script(pod: dict[str, Any]) -> End | Waits | None:
        if pod["metadata"]["labels"][labels.STAGE] == "preflight":
            return done(pod)
        index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        return End(code=64, message=says("UserError", LOST)) if index == "1" else End(code=143, after=0.3)

    await world.apply(make_manifest(trainer__numNodes=2, retry__limit=3))
    async with operating(world), world.simulated(script):
        status = await world.until_phase("Failed")
    assert condition(status, "Failed") == ("True", "UserError", f"pretrain: {LOST}")
    assert world.job_names() == ["tiny-preflight-a1", "tiny-pretrain-a1"]


async def test_a_pod_that_is_gone_before_its_result_was_read(world: World) -> None:
    """The operator was away: the stage is begun again, which finds what it has made in the store, and nobody pays for it."""
    await world.apply(make_manifest(rounds__count=1, retry__limit=0))
    async with world.simulated(runs_on) as nodes:
        async with operating(world):
            await nodes.end_job("tiny-preflight-a1")
            await world.until(lambda status: stage_of(status, STAGE).get("phase") == "Running")
        await nodes.end_job(f"tiny-{STAGE}-a1")
        await world.until_so(lambda: world.job(f"tiny-{STAGE}-a1").ended, world.job_names)
        await world.kubectl("delete", "pods", "--all")
        async with operating(world):
            status = await world.until(lambda status: stage_of(status, STAGE).get("attempt") == 2)
            assert stage_of(status, STAGE)["failures"] == 0
            for job in (f"tiny-{STAGE}-a2", "tiny-round-1-a1"):
                await nodes.end_job(job)
            await world.until_phase("Succeeded")
    assert any("before its result was read" in event["message"] for event in await world.events())


async def test_a_result_as_long_as_it_may_be(world: World) -> None:
    """What a kubelet keeps of a message, 4,096 bytes, all the way into the status and back out of it."""
    long = StageResult(
        exit_class="Done",
        message="ö" * 500,
        artifacts=[ArtifactRef(name=f"n{number}", uri=f"{STORAGE}/{'p' * 300}", digest=DIGEST) for number in range(4)],
    ).to_termination_message()
    assert len(long.encode()) > 2500

    def script(pod: dict[str, Any]) -> End:
        return End(message=long) if pod["metadata"]["labels"][labels.STAGE] == "preflight" else done(pod)

    await world.apply(make_manifest(rounds__count=1))
    async with operating(world), world.simulated(script):
        status = await world.until_phase("Succeeded")
    preflight = stage_of(status, "preflight")
    assert preflight["message"] == "ö" * 500
    assert [len(ref["uri"]) for ref in preflight["artifacts"]] == [len(STORAGE) + 301] * 4
