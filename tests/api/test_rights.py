"""operator/rbac.yaml holds what the operator asks for: nothing is forbidden to it, and nothing is allowed that it never does."""

import asyncio
from pathlib import Path
from typing import Any

import yaml

from comd_operator.shell.operator import Operator
from tests.api import life
from tests.api.operators import operating
from tests.api.proxy import Proxy
from tests.api.simulator import SCHEDULER, runs_on
from tests.api.slots import Slots, apply_schedule, change_schedule, look, make_schedule, until_schedule
from tests.api.world import World, make_manifest

RBAC = Path(__file__).parents[2] / "operator" / "rbac.yaml"
Right = tuple[str, str, str]
"""Group, resource, verb."""
OPTIONAL: set[Right] = {("kueue.x-k8s.io", "workloads", "list")}
"""Kueue is not here; tests/kueue asks for it."""


def allowed() -> set[Right]:
    documents = [
        document for document in yaml.safe_load_all(RBAC.read_text()) if document["kind"] in ("Role", "ClusterRole")
    ]
    rules = [rule for document in documents for rule in document["rules"]]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(proxy: Proxy) -> set[Right]:
    return {(call.group, call.resource, call.verb) for call in proxy.calls if call.resource != "discovery"}


def test_no_secret_and_nothing_of_the_cluster_s_own() -> None:
    rights = allowed()
    assert not {resource for _, resource, _ in rights} & {
        "secrets",
        "namespaces",
        "nodes",
        "customresourcedefinitions",
        "*",
    }
    assert not {verb for _, _, verb in rights} & {"*", "deletecollection", "impersonate", "escalate", "bind"}


async def test_a_service_account_with_these_rights_and_no_others(world: World) -> None:
    """A whole life over two nodes, one that leaves nothing, one more event of the same, a Job whose pods can't be made, a schedule, and
    the Lease."""
    kubectl = world.cluster.kubectl
    await asyncio.to_thread(kubectl, "apply", "-f", str(RBAC))
    token = await asyncio.to_thread(kubectl, "--namespace=comd-system", "create", "token", "comd-operator")
    async with (
        world.proxied(token=token.strip()) as proxy,
        operating(world, proxy, namespaces="", leader_election=True, lease_namespace="comd-system") as operator,
    ):
        async with world.simulated(runs_on) as nodes:
            await life.play(world, nodes)
            await life.assert_nothing_twice(world)
        async with world.simulated():
            await world.apply(make_manifest("brief", rounds__count=1, trainer__numNodes=2, ttlSecondsAfterFinished=0))
            await world.until_so(
                lambda: "delete services" in [call.what for call in proxy.calls],
                lambda: [call.what for call in proxy.writes()],
            )
        await world.apply(make_manifest("nobody", trainer__podTemplate__spec__serviceAccountName="nobody"))
        await world.until_reason("FailedCreate", "nobody")
        await tell_twice(world)
        await keep_time(world, operator)
    # It sees what other tests have left behind too, in namespaces that are going and take nothing any more.
    refused = [(call.what, code) for call, code in proxy.answers if code == 403 and world.namespace in call.path]
    assert refused == []
    assert asked(proxy) - OPTIONAL == allowed() - OPTIONAL


async def keep_time(world: World, operator: Operator) -> None:
    """A slot whose run is deleted by somebody, and one whose run is over and not kept."""
    slots = Slots()
    slots.set_clock(operator)
    await apply_schedule(world, make_schedule(schedules=slots.two, suspend=True, successfulRunsHistoryLimit=0))
    slots.come(0)
    await change_schedule(world, suspend=False)
    await world.until_job(f"{slots.run(0)}-preflight-a1")
    await world.delete_run(slots.run(0))
    await until_schedule(world, lambda status: status["numActive"] == 0)
    async with world.simulated():
        slots.come(1)
        await look(world)
        await until_schedule(world, lambda status: bool(status.get("lastSuccessfulTime")))
        await world.until_so(lambda: slots.run(1) not in world.feed.runs, lambda: world.feed.runs)


async def tell_twice(world: World) -> None:
    """A name that is another's, again and again: the same event is counted up."""
    foreign: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "taken-preflight-a1"},
        "spec": {
            "suspend": True,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "schedulerName": SCHEDULER,
                    "containers": [{"name": "x", "image": "x"}],
                }
            },
        },
    }
    await world.api.create(world.jobs(), foreign)
    await world.apply(make_manifest("taken"))
    for count in (1, 2):
        await world.until_reason("NameCollision", "taken")
        await until_told(world, count)
        await world.change("taken", suspend=True)
        await world.until_phase("Suspended", "taken")
        await world.change("taken", suspend=False)
        await asyncio.sleep(0.2)


async def until_told(world: World, count: int) -> None:
    """An event comes after the status that it speaks of."""
    told: list[dict[str, Any]] = []
    for _ in range(200):
        told = [event for event in await world.events("taken") if event["reason"] == "NameCollision"]
        if [event["count"] for event in told] == [count]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(told)
