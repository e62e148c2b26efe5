"""Argo CD and Flux on a real API server: the examples, whose fields are whose, and what replacing does to what runs."""

import json
from typing import Any

import pytest

from comd_operator.planner import labels
from comd_operator.validation import check_document
from tests.api.gitops import ARGO_CD, CLIENT, EXAMPLES, FLUX, OVERLAYS, TOOLS, Tool, live, parts, rendered, simulated
from tests.api.operators import operating
from tests.api.simulator import End, decode, done, runs_on
from tests.api.slots import Slots, look, make_schedule, until_schedule
from tests.api.world import World, condition, make_manifest
from tests.cluster.processes import ClusterError

REFUSED = r"spec\.seed can't change once the run has started"


def by_name(tool: Tool) -> str:
    return tool.name


def versions(*found: dict[str, Any]) -> list[str]:
    return [one["metadata"]["resourceVersion"] for one in found]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("tool", TOOLS, ids=by_name)
async def test_the_examples_applied_twice(world: World, overlay: str, tool: Tool) -> None:
    documents = await rendered(world, overlay)
    assert [document["kind"] for document in documents] == ["DistillationRun", "DistillationSchedule"]
    assert [check_document(document)[1] for document in documents] == [[], []]
    folder = str(EXAMPLES / "overlays" / overlay)
    await world.kubectl("apply", *tool.apply, "-k", folder)
    first = [await live(world, document) for document in documents]
    assert await world.kubectl("diff", *tool.apply, "-k", folder) == ""
    await world.kubectl("apply", *tool.apply, "-k", folder)
    assert versions(*first) == versions(*[await live(world, document) for document in documents])


async def test_an_overlay_sets_the_image_of_runs_and_of_templates(world: World) -> None:
    """By `images:` alone, since base/fields.yaml says where they are."""
    run, schedule = await rendered(world, "staging")
    specs = [run["spec"], schedule["spec"]["runTemplate"]["spec"]]
    assert [spec["trainer"]["image"] for spec in specs] == ["registry.example.com/comd/trainer:main"] * 2


@pytest.mark.parametrize("tool", TOOLS, ids=by_name)
async def test_whose_fields_are_whose(world: World, tool: Tool) -> None:
    """A whole run, and one of the schedule: the operator has the status, and nothing else of what git holds."""
    slots = Slots()
    run, schedule = await simulated(world, "staging")
    del schedule["spec"]["suspend"]
    schedule["spec"] |= {"schedules": [slots.daily], "timeZone": "Etc/UTC"}
    await tool.sync(world, run, schedule)
    async with operating(world) as operator, world.simulated():
        slots.set_clock(operator)
        await until_schedule(world, lambda status: bool(status.get("conditions")))
        slots.come(0)
        await look(world)
        for name in ("first", slots.run(0)):
            await world.until_phase("Succeeded", name)
        await until_schedule(world, lambda status: status["numActive"] == 0)
        ended = [await live(world, document) for document in (run, schedule)]
        assert await tool.difference(world, run, schedule) == ""
        await tool.sync(world, run, schedule)
        again = [await live(world, document) for document in (run, schedule)]
    assert versions(*ended) == versions(*again)
    for found in again:
        assert parts(found, "comd-operator") == [("status", {"status"})]
        [(subresource, fields)] = parts(found, tool.manager)
        assert (subresource, "spec" in fields) == (None, True)
        assert found["metadata"]["generation"] == 1
        assert "finalizers" not in found["metadata"]
        assert set(found["metadata"].get("annotations", {})) <= {"kubectl.kubernetes.io/last-applied-configuration"}


@pytest.mark.parametrize("tool", TOOLS, ids=by_name)
@pytest.mark.parametrize("in_git", [None, False], ids=["not-in-git", "false-in-git"])
async def test_suspended_by_hand(world: World, tool: Tool, in_git: bool | None) -> None:
    """As Argo CD's action does it. It is kept where git does not say `suspend`, and taken back where it does."""
    run, schedule = make_manifest(rounds__count=1), make_schedule(schedules=["0 0 1 1 *"])
    for document in (run, schedule):
        if in_git is not None:
            document["spec"]["suspend"] = in_git
    await tool.sync(world, run, schedule)
    async with operating(world), world.simulated(runs_on):
        await world.until_job("tiny-preflight-a1")
        for kind, name in (("drun", "tiny"), ("dsched", "nightly")):
            patch = ("--type=merge", "--field-manager=argocd-server", "-p", '{"spec": {"suspend": true}}')
            await world.kubectl("patch", kind, name, *patch)
        await world.until_phase("Suspended")
        await until_schedule(world, lambda status: condition(status, "Suspended")[0] == "True")
        if in_git is None:
            assert await tool.difference(world, run, schedule) == ""
        await tool.sync(world, run, schedule)
        for document in (run, schedule):
            assert (await live(world, document))["spec"]["suspend"] is (in_git is None)
        if in_git is False:
            await world.until_job("tiny-preflight-a2")
        else:
            assert (await world.status())["phase"] == "Suspended"


async def _replace(world: World, document: dict[str, Any]) -> None:
    """The operator may write its status between kubectl's two calls: then once more, as a sync does."""
    for _ in range(10):
        try:
            await world.kubectl("replace", "-f", "-", input=json.dumps(document))
            return
        except ClusterError as error:
            if "the object has been modified" not in str(error):
                raise
    raise AssertionError("the operator writes all the time")


async def test_replaced_without_force(world: World) -> None:
    """Argo CD's `Replace=true`: the Job goes on, for the status stays; what somebody has suspended by hand goes on, too."""
    run, schedule = make_manifest(rounds__count=1), make_schedule(schedules=["0 0 1 1 *"])
    await ARGO_CD.sync(world, run, schedule)
    async with operating(world), world.simulated(runs_on) as nodes:
        job = await world.until_job("tiny-preflight-a1")
        await until_schedule(world, lambda status: bool(status.get("conditions")))
        await world.until(lambda status: bool(status.get("stages", [{}])[-1].get("jobUid")))
        before = [await live(world, document) for document in (run, schedule)]
        await _replace(world, run)
        await _replace(world, schedule)
        after = [await live(world, document) for document in (run, schedule)]
        assert [one["metadata"]["uid"] for one in before] == [one["metadata"]["uid"] for one in after]
        assert [one["metadata"]["generation"] for one in after] == [1, 1]
        assert [one["status"] for one in before] == [one["status"] for one in after]
        await nodes.end_job("tiny-preflight-a1")
        await world.until_job("tiny-pretrain-a1")
        changed = {**run, "spec": {**run["spec"], "seed": 7}}
        with pytest.raises(ClusterError, match=REFUSED):
            await ARGO_CD.sync(world, changed)
        with pytest.raises(ClusterError, match=REFUSED):
            await _replace(world, changed)
        assert not job.gone
        assert world.job_names() == ["tiny-preflight-a1", "tiny-pretrain-a1"]
        await world.until(lambda status: status["stages"][-1].get("jobName") == "tiny-pretrain-a1")
        await world.change(suspend=True)
        await world.until_phase("Suspended")
        await _replace(world, run)
        await world.until_job("tiny-pretrain-a2")


def _the_first_ends(pod: dict[str, Any]) -> End | None:
    """The preflight of the run as it was: it has the template's own seed."""
    first = pod["metadata"]["labels"][labels.STAGE] == "preflight" and decode(pod)["spec"]["seed"] != 7
    return done(pod) if first else None


async def test_replaced_with_force(world: World) -> None:
    """`Force=true` with it: another run, whose first Job is made when those of the old one are gone."""
    run = make_manifest(rounds__count=1)
    await FLUX.sync(world, run)
    async with operating(world), world.simulated(_the_first_ends):
        await world.until_job("tiny-pretrain-a1")
        old = (await live(world, run))["metadata"]["uid"]
        changed = {**run, "spec": {**run["spec"], "seed": 7}}
        await world.kubectl("replace", "--force", "-f", "-", input=json.dumps(changed))
        new = (await live(world, changed))["metadata"]["uid"]
        assert new != old
        await world.until_so(lambda: world.job_names()[2:] == ["tiny-preflight-a1"], world.job_names)
        made = world.job("tiny-preflight-a1")
        assert [owner["uid"] for owner in made.owners] == [new]
        assert made.beside == []
        await world.until_gone("tiny-pretrain-a1")


async def test_a_schedule_that_is_replaced_with_force(world: World) -> None:
    """Takes its runs with it, those that are not over too."""
    slots, schedule = Slots(), make_schedule(suspend=True)
    await CLIENT.sync(world, schedule)
    async with operating(world) as operator, world.simulated(runs_on):
        slots.set_clock(operator)
        slots.come(0)
        await CLIENT.sync(world, make_schedule())
        await world.until_job(f"{slots.run(0)}-preflight-a1")
        await world.kubectl("replace", "--force", "-f", "-", input=json.dumps(schedule))
        await world.until_so(lambda: not world.feed.runs, lambda: world.feed.runs)
        await world.until_gone(f"{slots.run(0)}-preflight-a1")
