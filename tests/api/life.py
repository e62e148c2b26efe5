"""A whole life: two nodes, a stage that fails once, a suspension in the middle of another. Played to operators to which things
happen, and the same in the end, whatever those are."""

from typing import Any

from comd_api.status import RunStatus
from comd_operator.policies.conditions import TYPES
from comd_operator.policies.ledger import current
from tests.api.simulator import End, Simulator, result
from tests.api.world import World, make_manifest

JOBS = ["preflight-a1", "pretrain-a1", "pretrain-a2", "round-1-a1", "round-1-a2"]
EVENTS = [
    "JobStarted",
    "StageSucceeded",
    "AttemptFailed",
    "JobStarted",
    "StageSucceeded",
    "Suspended",
    "Resumed",
    "Succeeded",
]
VARY = frozenset(
    {
        "activeSeconds",
        "activeSince",
        "attemptStartTime",
        "completionTime",
        "jobUid",
        "lastTransitionTime",
        "queuedSeconds",
        "startTime",
    }
)
"""Fields that no two lives share."""


def a_life(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    return make_manifest(name, **{"rounds__count": 1, "trainer__numNodes": 2, **changes})


async def play(world: World, nodes: Simulator, name: str = "tiny") -> dict[str, Any]:
    """What nodes and user do in it; returns the status at the end. Each step waits for what the status says, never for a time."""

    async def booked(job: str) -> None:
        await world.until(lambda status: _runs(status) == f"{name}-{job}", name)

    async def end(job: str, end: End | None = None) -> None:
        await booked(job)
        await nodes.end_job(f"{name}-{job}", end)

    await world.apply(a_life(name))
    await end("preflight-a1")
    await end("pretrain-a1", End(code=1, message="out of luck"))
    await end("pretrain-a2")
    await booked("round-1-a1")
    await world.change(name, suspend=True)
    await world.until_phase("Suspended", name)
    await world.until_gone(f"{name}-round-1-a1")
    await world.change(name, suspend=False)
    await end("round-1-a2")
    return await world.until_phase("Succeeded", name)


def _runs(status: dict[str, Any]) -> str | None:
    """The Job that is under way, as the ledger says."""
    stage = current(RunStatus.model_validate(status))
    return stage.job_name if stage is not None and stage.phase == "Running" else None


def same(status: Any) -> Any:
    """A status without what differs from life to life."""
    if isinstance(status, dict):
        return {key: same(value) for key, value in status.items() if key not in VARY}
    return [same(entry) for entry in status] if isinstance(status, list) else status


def the_end(name: str = "tiny") -> dict[str, Any]:
    """The status that such a life ends with."""
    stages = [_stage(name, "preflight", 1), _stage(name, "pretrain", 2, failures=1), _stage(name, "round-1", 2)]
    true = {"status": "True", "message": "all 3 stages are done"}
    conditions = [
        {
            "type": kind,
            "reason": "Finished",
            "observedGeneration": 3,
            **(true if kind in ("Ready", "Succeeded") else {"status": "False", "message": ""}),
        }
        for kind in TYPES
    ]
    return {
        "phase": "Succeeded",
        "stage": "round-1",
        "round": 1,
        "score": "0.500",
        "student": stages[-1]["artifacts"][0],
        "observedGeneration": 3,
        "stages": stages,
        "conditions": conditions,
    }


def _stage(name: str, stage: str, attempt: int, *, failures: int = 0) -> dict[str, Any]:
    told = result(stage).to_wire()
    return {
        "name": stage,
        "phase": "Succeeded",
        "attempt": attempt,
        "failures": failures,
        "preemptions": 0,
        "completedJobs": 1,
        "jobName": f"{name}-{stage}-a{attempt}",
        "exitClass": "Done",
        "phases": [],
        "artifacts": told["artifacts"],
        "scores": told["scores"],
    }


async def assert_nothing_twice(world: World, name: str = "tiny", *, jobs: list[str] = JOBS) -> None:
    """The Jobs of that life, each once and one at a time, and nothing told twice."""
    made = [job for job in world.feed.jobs.values() if job.name.startswith(f"{name}-")]
    assert [job.name for job in made] == [f"{name}-{job}" for job in jobs]
    assert [job.beside for job in made] == [[] for _ in made]
    uid = world.feed.runs[name]["metadata"]["uid"]
    for job in made:
        assert [(owner["uid"], owner["controller"]) for owner in job.owners] == [(uid, True)]
        assert "finalizers" not in job.object["metadata"] or job.gone
    events = await world.events(name)
    assert all(event["count"] == 1 for event in events), events
    # One more where the Job that was suspended is still seen to go when the run is resumed.
    assert len(events) <= len(EVENTS) + 1, [event["reason"] for event in events]
