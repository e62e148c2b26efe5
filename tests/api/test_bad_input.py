"""Runs that can't work though their schema is right: what is wrong stands in their conditions within seconds, and they hold nothing."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from comd_operator.planner import labels
from tests.api.operators import operating
from tests.api.simulator import SCHEDULER, End, Waits, done, runs_on
from tests.api.world import World, condition, make_manifest, reason_of

SECONDS = 8.0
"""In which a run must say what is wrong: 5, and some for a machine that is busy."""
REAL: dict[str, Any] = {"trainer__podTemplate__spec__schedulerName": "default-scheduler"}
NO_SUCH_IMAGE = 'failed to resolve reference "registry.example/comd:none": not found'


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    reason: str
    words: str
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    waits: Waits | None = None
    queued: bool = False
    """Whether it waits for something, beside being stalled."""
    jobs: int = 0
    """That are there, or would be."""
    gives_up: bool = False
    """Whether its Job is deleted, to be made again later."""


CASES = [
    Case(name="no-storage", reason="InvalidSpec", words="spec.storage is not set", changes={"storage": None}),
    Case(name="no-image", reason="InvalidSpec", words="spec.trainer.image is not set", options={"trainer_image": ""}),
    Case(
        name="a-folder-in-the-pod",
        reason="InvalidSpec",
        words="spec.storage.uri (file:///data)",
        changes={"storage": {"uri": "file:///data"}},
    ),
    Case(
        name="a-volume-that-is-none",
        reason="InvalidSpec",
        words="'data' is no volume",
        changes={"trainer__volumeMounts": [{"name": "data", "mountPath": "/data"}]},
    ),
    Case(
        name="secret-missing",
        reason="CannotStart",
        words='secret "s3" not found',
        waits=Waits(reason="CreateContainerConfigError", message='secret "s3" not found'),
        jobs=1,
        gives_up=True,
    ),
    Case(
        name="image-not-there",
        reason="CannotStart",
        words="registry.example/comd:none",
        waits=Waits(reason="ImagePullBackOff", message=f"Back-off pulling image: {NO_SUCH_IMAGE}"),
        jobs=1,
        gives_up=True,
    ),
    Case(
        name="image-has-no-name",
        reason="CannotStart",
        words="couldn't parse image",
        waits=Waits(reason="InvalidImageName", message="couldn't parse image name"),
        jobs=1,
        gives_up=True,
    ),
    Case(
        name="no-such-service-account",
        reason="FailedCreate",
        words='serviceaccount "nobody" not found',
        changes={"trainer__podTemplate__spec__serviceAccountName": "nobody"},
        queued=True,
        jobs=1,
    ),
    Case(
        name="no-such-service-account-for-long",
        reason="CannotStart",
        words='serviceaccount "nobody" not found',
        changes={"trainer__podTemplate__spec__serviceAccountName": "nobody"},
        options={"start_patience_seconds": 3.0},
        jobs=1,
        gives_up=True,
    ),
    Case(
        name="unschedulable",
        reason="Unschedulable",
        words="no nodes available",
        changes=REAL,
        queued=True,
        jobs=1,
    ),
    Case(
        name="unschedulable-for-long",
        reason="CannotStart",
        words="no nodes available",
        changes=REAL,
        options={"start_patience_seconds": 2.0},
        jobs=1,
        gives_up=True,
    ),
    Case(
        name="no-kueue",
        reason="NoKueue",
        words="this cluster has no Kueue",
        changes={"queue": {"name": "gpus"}},
        queued=True,
        jobs=1,
    ),
    Case(
        name="a-pod-that-the-server-refuses",
        reason="Invalid",
        words="spec.template.spec.tolerations[0].operator",
        changes={"trainer__podTemplate__spec__tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_is_told_in_seconds(world: World, case: Case) -> None:
    begun = time.monotonic()
    async with world.proxied() as proxy, operating(world, proxy, **case.options), world.simulated(lambda _: case.waits):
        manifest = make_manifest(**{"retry": {"backoffSeconds": 30, "limit": 0}, **case.changes})
        applied = await world.apply(manifest)
        status = await world.until_reason(case.reason)
        assert time.monotonic() - begun < SECONDS
        assert status["phase"] == "Stalled"
        assert case.words in condition(status, "Stalled")[2]
        assert condition(status, "Stalled")[0] == "True"
        assert condition(status, "Queued")[0] == str(case.queued)
        assert condition(status, "Ready")[:2] == ("False", case.reason)
        if case.gives_up:
            await world.until_gone("tiny-preflight-a1")
        event = await world.until_event(case.words)
        assert event["type"] == "Warning"
        assert len(world.job_names()) == case.jobs
        written = len(proxy.writes())
        await asyncio.sleep(2.5)
        assert [call.what for call in proxy.writes()[written:]] == [], "it says so once"
    assert all(event["count"] == 1 for event in await world.events())
    assert (await world.run())["spec"] == applied["spec"]


async def test_an_image_that_is_not_pulled_at_once(world: World) -> None:
    """The first error may be a registry's hiccup; when it comes again it is none."""
    await world.apply(make_manifest())
    async with operating(world), world.simulated(lambda _: Waits(reason="ErrImagePull", message="EOF")) as nodes:
        await world.until_job("tiny-preflight-a1")
        await asyncio.sleep(1.0)
        assert (await world.status())["phase"] == "Running"
        (pod,) = await world.pods()
        await nodes.set_state(pod, "Pending", {"waiting": {"reason": "ImagePullBackOff", "message": NO_SUCH_IMAGE}})
        await world.until_reason("CannotStart")
        await world.until_gone("tiny-preflight-a1")


async def test_what_was_missing_comes(world: World) -> None:
    """The next attempt starts by itself, and nobody pays for those that could not."""
    there = False

    def script(pod: dict[str, Any]) -> End | Waits:
        return done(pod) if there else Waits(reason="CreateContainerConfigError", message='secret "s3" not found')

    await world.apply(make_manifest(rounds__count=1, retry={"limit": 0, "backoffSeconds": 1, "maxBackoffSeconds": 1}))
    async with operating(world), world.simulated(script):
        await world.until_job("tiny-preflight-a2")
        status = await world.until_reason("CannotStart")
        assert status["phase"] == "Stalled", "until one has shown that it can be started"
        there = True
        status = await world.until_phase("Succeeded")
    assert status["stages"][0]["failures"] == 0
    assert all(not job.beside for job in world.feed.jobs.values())


def foreign(name: str, **metadata: Any) -> dict[str, Any]:
    """Somebody else's Job."""
    container = {"name": "x", "image": "x"}
    pod = {"restartPolicy": "Never", "schedulerName": SCHEDULER, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, **metadata},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }


LOOKS_LIKE_OURS = {labels.MANAGED_BY: labels.OPERATOR_NAME, labels.RUN: "tiny", labels.STAGE: "preflight"}


@pytest.mark.parametrize("metadata", [{}, {"labels": LOOKS_LIKE_OURS}], ids=["foreign", "labels-like-ours"])
async def test_a_name_that_is_another_s(world: World, metadata: dict[str, Any]) -> None:
    """It is not touched, whatever its labels say, and the run goes on when it is gone."""
    await world.api.create(world.jobs(), foreign("tiny-preflight-a1", **metadata))
    await world.until_so(lambda: bool(world.feed.jobs), world.job_names)
    await asyncio.sleep(1.0)  # until the Job controller has said its word on it
    before = await world.api.get(world.jobs("tiny-preflight-a1"))
    begun = time.monotonic()
    await world.apply(make_manifest(rounds__count=1))
    async with operating(world), world.simulated():
        status = await world.until_reason("NameCollision")
        assert time.monotonic() - begun < SECONDS
        assert condition(status, "Stalled")[0] == "True"
        assert "tiny-preflight-a1" in condition(status, "Stalled")[2]
        await world.change(suspend=True)
        await world.until_phase("Suspended")
        await world.change(suspend=False)
        await world.until_reason("NameCollision")
        await world.delete_run()
        await world.until_so(lambda: not world.feed.runs, lambda: world.feed.runs)
        await asyncio.sleep(0.5)
        assert await world.api.get(world.jobs("tiny-preflight-a1")) == before
        await world.apply(make_manifest(rounds__count=1))
        await world.until_reason("NameCollision")
        await world.delete_job("tiny-preflight-a1")
        await world.until_phase("Succeeded")


async def test_a_service_that_is_another_s(world: World) -> None:
    service = {"metadata": {"name": "run-tiny"}, "spec": {"ports": [{"port": 80}]}}
    made = await world.api.create(world.core("services"), service)
    await world.apply(make_manifest(rounds__count=1, trainer__numNodes=2))
    async with operating(world), world.simulated():
        await world.until_reason("NameCollision")
        found = await world.api.get(world.core("services", "run-tiny"))
        assert found["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
        await world.api.delete(world.core("services", "run-tiny"))
        await world.until_phase("Succeeded")
    found = await world.api.get(world.core("services", "run-tiny"))
    assert [owner["uid"] for owner in found["metadata"]["ownerReferences"]] == [
        world.feed.runs["tiny"]["metadata"]["uid"]
    ]


QUOTA = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}


async def test_a_quota_that_has_no_room(world: World) -> None:
    """The quota's own words; and on it goes when there is room."""
    await world.api.create(world.core("resourcequotas"), QUOTA)
    await world.kubectl("wait", "--for=jsonpath={.status.hard.pods}=0", "resourcequota/none", "--timeout=30s")
    begun = time.monotonic()
    await world.apply(make_manifest(rounds__count=1))
    async with operating(world), world.simulated():
        status = await world.until_reason("FailedCreate")
        assert time.monotonic() - begun < SECONDS
        assert "exceeded quota: none" in condition(status, "Stalled")[2]
        await world.api.delete(world.core("resourcequotas", "none"))
        await world.until_phase("Succeeded", seconds=90)
    assert len(world.job_names()) == 3


async def test_a_quota_of_jobs(world: World) -> None:
    """The Job itself is refused."""
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    await world.api.create(world.core("resourcequotas"), quota)
    await world.kubectl("wait", "--for=jsonpath={.status.hard}", "resourcequota/none", "--timeout=30s")
    await world.apply(make_manifest())
    async with operating(world), world.simulated(runs_on):
        status = await world.until_reason("Forbidden")
        assert "exceeded quota: none" in condition(status, "Stalled")[2]
        await world.api.delete(world.core("resourcequotas", "none"))
        await world.change(retry={"limit": 2})  # a look at once, not only when it is due
        await world.until_job("tiny-preflight-a1")


async def test_managed_by_another(world: World) -> None:
    """Not one write, not even of a status; while what is ours by name is worked on."""
    await world.apply(make_manifest("theirs", managedBy="example.com/other"))
    await world.apply(make_manifest("ours", managedBy="comd.dev/operator", rounds__count=1))
    async with operating(world), world.simulated():
        await world.until_phase("Succeeded", "ours")
    assert "status" not in await world.run("theirs")
    assert all(name.startswith("ours-") for name in world.job_names())
    assert await world.events("theirs") == []


async def test_the_longest_name(world: World) -> None:
    """Its Jobs' names are cut; two runs whose names differ at their end alone don't meet."""
    names = ["x" * 62 + end for end in "ab"]
    for name in names:
        await world.apply(make_manifest(name, rounds__count=1, trainer__numNodes=2))
    async with operating(world), world.simulated():
        for name in names:
            await world.until_phase("Succeeded", name)
    jobs = world.job_names()
    assert len(jobs) == len(set(jobs)) == 6
    assert max(map(len, jobs)) <= 52
    assert reason_of(world.feed.runs[names[0]]["status"]) == "Finished"
