"""Schedules on a real API server: slots that come, kills at each call of one, several operators, what kubectl and git see."""

import asyncio
import json
from typing import Any, Literal

import pytest

from comd_operator.cli.trigger import trigger
from comd_operator.planner import labels
from comd_operator.runtime.api import ApiError
from comd_operator.schedules.conditions import TYPES
from comd_operator.validation import check_document
from tests.api.operators import killed, operating
from tests.api.proxy import Call
from tests.api.simulator import runs_on
from tests.api.slots import (
    NAME,
    Slots,
    apply_schedule,
    change_schedule,
    look,
    make_schedule,
    told,
    until_schedule,
)
from tests.api.test_kubectl import cells
from tests.api.world import World, condition, make_manifest
from tests.unit.schedule_examples import GOOD, ONLY_TEXT, REFUSED
from tests.unit.schedules import schedule_manifest

STATUS = "patch distillationschedules/status"
SLOT = ["create distillationruns", STATUS, "create events"]


def of_schedule(call: Call) -> bool:
    """Whether it is made for the schedule, and not for one of its runs."""
    told = (
        call.resource == "events" and (call.body or {}).get("involvedObject", {}).get("kind") == "DistillationSchedule"
    )
    return told or call.what in SLOT[:2] or call.what == "delete distillationruns"


def active(status: dict[str, Any]) -> list[str]:
    return [run["name"] for run in status.get("active", [])]


async def test_on_time_and_twice(world: World) -> None:
    """By timers alone, a minute after the other; each slot costs a run, a status and an event, and each run's end a status."""
    slots = Slots()
    manifest = json.dumps(make_schedule(schedules=slots.two))
    await world.kubectl("apply", "-f", "-", input=manifest)
    async with world.proxied() as proxy, operating(world, proxy) as operator, world.simulated():
        await until_schedule(world, lambda status: bool(status.get("conditions")))
        slots.set_clock(operator)
        slots.come(0, seconds=3.0)
        await look(world)
        for number in (0, 1):
            await world.until_phase("Succeeded", slots.run(number), seconds=100)
            await until_schedule(world, lambda status: active(status) == [])
        writes = [call for call in proxy.writes() if of_schedule(call)]
        assert [call.what for call in writes] == [STATUS, *SLOT, STATUS, *SLOT, STATUS]
        asked = [call.at for call in writes if call.what == SLOT[0]]
        assert 59.0 < asked[1] - asked[0] < 61.5, "a minute apart"
        assert await world.kubectl("diff", "-f", "-", input=manifest) == ""
    assert sorted(world.feed.runs) == [slots.run(0), slots.run(1)]
    found = await world.api.get(world.schedules(NAME))
    managers = {entry["manager"]: entry.get("subresource") for entry in found["metadata"]["managedFields"]}
    assert managers.pop("comd-operator") == "status"
    assert found["metadata"]["generation"] == 1
    assert found["status"]["lastScheduleTime"] == slots.slot(1).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found["status"]["lastSuccessfulTime"]
    run = world.feed.runs[slots.run(1)]["metadata"]
    assert run["labels"][labels.SCHEDULE] == NAME
    assert run["annotations"][labels.SLOT] == found["status"]["lastScheduleTime"]
    assert await told(world) == ["RunStarted", "RunStarted"]


async def one_slot(world: World, slots: Slots) -> dict[str, Any]:
    """A slot comes while an operator is at work, and its run ends; the status of its schedule at the end."""
    await apply_schedule(world, make_schedule(suspend=True, schedules=[slots.daily]))
    await until_schedule(world, lambda status: bool(status.get("conditions")))
    slots.come(0)
    await change_schedule(world, suspend=False)
    await world.until_phase("Succeeded", slots.run(0))
    return await until_schedule(
        world,
        lambda status: bool(status.get("lastSuccessfulTime")) and active(status) == [] and status["lastScheduleTime"],
    )


def same(status: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from life to life, and without the messages of what is not so."""
    vary = ("settledTime", "lastScheduleTime", "lastSuccessfulTime", "nextScheduleTimes")
    kept = {key: value for key, value in status.items() if key not in vary}
    conditions = [
        {key: value for key, value in entry.items() if key != "lastTransitionTime"}
        | ({"message": ""} if entry["status"] == "False" else {})
        for entry in status["conditions"]
    ]
    return {**kept, "conditions": conditions}


def the_end(slots: Slots) -> dict[str, Any]:
    why = {"status": "False", "reason": "Scheduled", "message": "", "observedGeneration": 2}
    conditions = [{"type": kind, **why} for kind in TYPES]
    conditions[0] |= {"reason": "NothingMissed"}
    conditions[1] |= {"status": "True", "message": f"{slots.daily} in Etc/UTC"}
    return {
        "observedGeneration": 2,
        "timetable": f"{slots.daily} in Etc/UTC",
        "lastSuccessfulRun": slots.run(0),
        "numActive": 0,
        "active": [],
        "conditions": conditions,
    }


@pytest.mark.parametrize("when", ["Before", "After"])
@pytest.mark.parametrize("point", [(SLOT[0], 1), (STATUS, 1), (STATUS, 2), (STATUS, 3), (SLOT[2], 1)], ids=str)
async def test_killed_at(world: World, point: tuple[str, int], when: Literal["Before", "After"]) -> None:
    """Each call of a slot."""
    slots, (what, number), seen = Slots(), point, 0

    def is_the_one(call: Call) -> bool:
        nonlocal seen
        hit = call.what == what and of_schedule(call)
        seen += hit
        return hit and seen == number

    async with (
        world.proxied() as proxy,
        world.simulated(),
        killed(world, proxy, at=is_the_one, when=when, prepare=slots.set_clock) as relay,
    ):
        status = await one_slot(world, slots)
        made = [call for call in proxy.written() if call.what == SLOT[0]]
        await asyncio.sleep(0.5)
        assert relay.kills == 1
        assert len(made) == 1
    assert sorted(world.feed.runs) == [slots.run(0)]
    assert same(status) == the_end(slots)
    reasons = await told(world)
    assert reasons in (["RunStarted"], []), "told at most once"
    assert reasons or what == SLOT[2] or (what, number) == (STATUS, 2), "lost only where it was to be told"


async def test_undisturbed(world: World) -> None:
    """What those above are compared with; and a restart writes nothing."""
    slots = Slots()
    async with world.simulated():
        async with operating(world) as operator:
            slots.set_clock(operator)
            status = await one_slot(world, slots)
        async with world.proxied() as proxy:
            async with operating(world, proxy) as operator:
                slots.set_clock(operator)
                await asyncio.sleep(2.0)
            assert proxy.writes() == []
    assert same(status) == the_end(slots)
    assert await told(world) == ["RunStarted"]


async def test_two_operators(world: World) -> None:
    slots = Slots()
    mine: dict[str, Any] = {"leader_election": True, "lease_namespace": world.namespace}
    async with world.proxied() as one, world.proxied() as two, world.simulated():
        async with (
            operating(world, one, identity="one", **mine) as first,
            operating(world, two, identity="two", **mine) as second,
        ):
            slots.set_clock(first)
            slots.set_clock(second)
            await one_slot(world, slots)
        writers = [proxy for proxy in (one, two) if any(of_schedule(call) for call in proxy.writes())]
        assert len(writers) == 1
        assert writers[0].count(SLOT[0]) == 1
    assert sorted(world.feed.runs) == [slots.run(0)]


async def test_replace(world: World) -> None:
    """The second run is made when the first one and all that it had running is gone."""
    slots = Slots()
    async with operating(world) as operator, world.simulated(runs_on):
        slots.set_clock(operator)
        await apply_schedule(world, make_schedule(suspend=True, concurrencyPolicy="Replace"))
        slots.come(0)
        await change_schedule(world, suspend=False)
        first = slots.run(0)
        await world.until_job(f"{first}-preflight-a1")
        slots.come(1)
        await look(world)
        job = await world.until_job(f"{slots.run(1)}-preflight-a1")
        assert world.job(f"{first}-preflight-a1").gone
        assert first not in world.feed.runs
        assert [pod for pod in await world.pods() if pod["metadata"]["labels"][labels.RUN] == first] == []
        status = await until_schedule(world, lambda status: status["conditions"][2]["status"] == "False")
        assert active(status) == [slots.run(1)]
        assert job.object["metadata"]["labels"][labels.RUN] == slots.run(1)
    assert (await told(world))[-2:] == ["RunReplaced", "RunStarted"]


async def test_forbid(world: World) -> None:
    slots = Slots()
    async with operating(world) as operator, world.simulated(runs_on):
        slots.set_clock(operator)
        await apply_schedule(world, make_schedule(suspend=True, concurrencyPolicy="Forbid"))
        slots.come(0)
        await change_schedule(world, suspend=False)
        await world.until_phase("Running", slots.run(0))
        slots.come(1)
        await look(world)
        settled = slots.slot(1).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = await until_schedule(world, lambda status: status["settledTime"] == settled)
        assert active(status) == [slots.run(0)]
        await world.delete_run(slots.run(0))
        await until_schedule(world, lambda status: active(status) == [])
    assert sorted(world.feed.runs) == []
    assert (await told(world))[-1] == "SlotSkipped"


async def test_what_runs_begin_with(world: World) -> None:
    """The first with nothing, the second with the first, and one that somebody wants with the second, whether anything has changed or
    not; though the first is not kept."""
    slots = Slots()
    manifest = make_schedule(
        suspend=True, startFrom="LastSuccessful", skipIfUnchanged=True, successfulRunsHistoryLimit=0
    )
    async with operating(world) as operator, world.simulated():
        slots.set_clock(operator)
        await apply_schedule(world, manifest)
        slots.come(0)
        await change_schedule(world, suspend=False)
        first, second = slots.run(0), slots.run(1)
        begins = [await made_as(world, first)]
        await until_schedule(world, lambda status: status.get("lastSuccessfulRun") == first)
        await world.until_so(lambda: first not in world.feed.runs, lambda: world.feed.runs)
        slots.come(1)
        await look(world)
        begins.append(await made_as(world, second))
        await until_schedule(world, lambda status: status.get("lastSuccessfulRun") == second)
        wanted = await trigger(world.api, NAME, namespace=world.namespace)
        begins.append(await made_as(world, wanted))
    assert begins == [
        {},
        {"startFrom": {"run": first}, "skipIfUnchangedSince": first},
        {"startFrom": {"run": second}},
    ]


async def made_as(world: World, run: str) -> dict[str, Any]:
    """What a run has that the schedule says of it, once it is there."""
    await world.until_so(lambda: run in world.feed.runs, lambda: world.feed.runs)
    spec = world.feed.runs[run]["spec"]
    return {key: spec[key] for key in ("startFrom", "skipIfUnchangedSince") if key in spec}


async def test_trigger_history_and_columns(world: World) -> None:
    """Nothing of the schedule's own is written, and the runs count like any other."""
    manifest = json.dumps(
        make_schedule(schedules=["0 0 1 1 *"], successfulRunsHistoryLimit=1, timeZone="Europe/Berlin")
    )
    await world.kubectl("apply", "-f", "-", input=manifest)
    async with operating(world), world.simulated(runs_on) as nodes:
        names = [await trigger(world.api, NAME, namespace=world.namespace) for _ in range(2)]
        assert all(name.startswith(f"{NAME}-manual-") for name in names)
        await until_schedule(world, lambda status: sorted(active(status)) == sorted(names))
        header, line = [row.split("   ") for row in (await world.kubectl("get", "dsched", NAME)).splitlines()]
        assert cells(header) == ["NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE", "LAST SCHEDULE", "AGE"]
        assert cells(line)[:5] == [NAME, '["0 0 1 1 *"]', "Europe/Berlin", "false", "2"]
        for name in names:
            for job in ("preflight", "pretrain", "round-1"):
                await nodes.end_job(f"{name}-{job}-a1")
            await world.until(lambda status: status.get("phase") == "Succeeded", name)
            await asyncio.sleep(1.1)  # whole seconds tell which ended first
        await world.until_so(lambda: list(world.feed.runs) == names[1:], lambda: list(world.feed.runs))
        assert await world.kubectl("diff", "-f", "-", input=manifest) == ""
    found = await world.api.get(world.schedules(NAME))
    assert found["metadata"]["generation"] == 1
    assert "annotations" not in world.feed.runs[names[1]]["metadata"]


@pytest.mark.parametrize("policy", ["Background", "Orphan"])
async def test_a_schedule_that_is_deleted(world: World, policy: str) -> None:
    """Takes its runs with it, or leaves them."""
    await apply_schedule(world, make_schedule(schedules=["0 0 1 1 *"]))
    async with operating(world), world.simulated(runs_on):
        name = await trigger(world.api, NAME, namespace=world.namespace)
        await world.until_phase("Running", name)
        await world.api.delete(world.schedules(NAME), body={"propagationPolicy": policy})
        if policy == "Background":
            await world.until_so(lambda: not world.feed.runs, lambda: world.feed.runs)
            await world.until_gone(f"{name}-preflight-a1")
        else:
            await asyncio.sleep(2.0)
            assert (await world.status(name))["phase"] == "Running"


async def test_a_name_that_is_another_s(world: World) -> None:
    """It is not touched; the slot is started when it is gone."""
    slots = Slots()
    await world.apply(make_manifest(slots.run(0), suspend=True))
    async with operating(world) as operator, world.simulated():
        slots.set_clock(operator)
        await apply_schedule(world, make_schedule(suspend=True))
        slots.come(0)
        await change_schedule(world, suspend=False)
        status = await until_schedule(
            world, lambda status: condition(status, "Stalled")[0] == "True" if status else False
        )
        assert condition(status, "Stalled")[1] == "NameCollision"
        await world.delete_run(slots.run(0))
        await world.until_phase("Succeeded", slots.run(0))
        await until_schedule(world, lambda status: condition(status, "Stalled")[0] == "False")


async def test_a_time_zone_that_is_none(world: World) -> None:
    await apply_schedule(world, make_schedule(timeZone="Europe/Berln"))
    async with operating(world):
        status = await until_schedule(world, lambda status: bool(status.get("conditions")))
    assert condition(status, "Stalled")[1:] == (
        "InvalidSpec",
        "spec.timeZone: 'Europe/Berln' is no time zone; right would be a name of the IANA database, such as Europe/Berlin",
    )
    assert world.feed.runs == {}


@pytest.mark.parametrize("spec", GOOD, ids=str)
async def test_what_the_server_takes(world: World, spec: dict[str, Any]) -> None:
    document = schedule_manifest(**spec)
    accepted = await world.api.create(f"{world.schedules()}?dryRun=All", document)
    here, _ = check_document(document)
    assert here is not None
    assert accepted["spec"] == here.to_wire()["spec"], "the server fills in what we do"


@pytest.mark.parametrize("number", range(len(REFUSED)))
async def test_what_the_server_refuses(world: World, number: int) -> None:
    document, _ = REFUSED[number]
    with pytest.raises(ApiError) as refused:
        await world.api.create(f"{world.schedules()}?dryRun=All", document)
    assert refused.value.status == 422, refused.value


async def test_what_is_only_text_to_the_server(world: World) -> None:
    for document, _ in ONLY_TEXT:
        await world.api.create(f"{world.schedules()}?dryRun=All", document)
