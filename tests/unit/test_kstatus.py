"""What tools that know nothing of us read from the conditions: Flux, Argo CD and `kubectl wait`."""

from collections.abc import Callable
from typing import Any

import pytest

from comd_api.run import DistillationRun
from comd_operator.policies.queue import Wait
from tests.unit.cluster_world import PENDING, ClusterWorld
from tests.unit.runs import make_run
from tests.unit.test_decide_cluster import COLLISION, QUEUE, begun, world_of


def kstatus(run: DistillationRun) -> str:
    """As cli-utils computes it for a kind that it does not know (pkg/kstatus/status: generic.go, then the condition Ready)."""
    status = run.status.to_wire() if run.status is not None else {}
    if "observedGeneration" in status and status["observedGeneration"] != run.metadata.generation:
        return "InProgress"
    conditions = status.get("conditions", [])
    for condition in conditions:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    return "Current" if ready is None or ready["status"] == "True" else "InProgress"


def after(act: Callable[[ClusterWorld], Any], **changes: Any) -> ClusterWorld:
    world = begun(**changes)
    act(world)
    world.step(seconds=1)
    return world


def queued(wait: Wait) -> ClusterWorld:
    world = world_of(**QUEUE)
    world.step()
    world.set(wait=wait)
    world.step()
    return world


def obstructed() -> ClusterWorld:
    world = world_of()
    world.step(obstacle=COLLISION)
    return world


def suspended() -> ClusterWorld:
    world = begun()
    world.change(suspend=True)
    world.step()
    return world


def succeeded() -> ClusterWorld:
    world = begun()
    while world.status.phase != "Succeeded":
        world.complete()
        world.step(seconds=1)
    return world


@pytest.mark.parametrize(
    ("world", "phase", "read", "true"),
    [
        (begun(), "Running", "InProgress", "Reconciling"),
        (after(lambda world: world.complete()), "Running", "InProgress", "Reconciling"),
        (after(lambda world: world.fail()), "Running", "InProgress", "Reconciling"),
        (queued(PENDING), "Queued", "InProgress", "Queued Reconciling"),
        (
            queued(Wait(reason="Inadmissible", message="no such queue", stuck=True)),
            "Stalled",
            "Failed",
            "Queued Stalled",
        ),
        (after(lambda world: world.give_up()), "Stalled", "Failed", "Stalled"),
        (obstructed(), "Stalled", "Failed", "Stalled"),
        (suspended(), "Suspended", "InProgress", "Suspended"),
        (after(lambda world: world.fail("UserError")), "Failed", "Failed", "Failed Stalled"),
        (after(lambda world: world.fail(), retry={"limit": 0}), "Failed", "Failed", "Failed Stalled"),
        (succeeded(), "Succeeded", "Current", "Ready Succeeded"),
    ],
)
def test_every_phase_reads_as_what_it_is(world: ClusterWorld, phase: str, read: str, true: str) -> None:
    assert world.status.phase == phase
    assert kstatus(world.run) == read
    assert " ".join(found.type for found in world.status.conditions if found.status == "True") == true
    assert {found.observed_generation for found in world.status.conditions} == {world.run.metadata.generation}
    assert all(found.status in ("True", "False") and found.reason for found in world.status.conditions)


def test_a_run_that_nobody_has_looked_at_reads_as_done_to_those_who_do_not_ask_for_ready() -> None:
    """Why all conditions are there from the first visit on, and why that visit comes at once."""
    assert kstatus(make_run()) == "Current"
    world = world_of(suspend=True)
    world.step()
    assert kstatus(world.run) == "InProgress"


@pytest.mark.parametrize("world", [begun(), suspended(), succeeded(), after(lambda world: world.fail("UserError"))])
def test_a_change_reads_as_in_progress_until_it_was_looked_at(world: ClusterWorld) -> None:
    settled = kstatus(world.run)
    world.change(ttl_seconds_after_finished=7)
    assert kstatus(world.run) == "InProgress"
    world.step()
    assert kstatus(world.run) == settled


def test_what_is_stalled_goes_on_once_it_is_mended() -> None:
    world = obstructed()
    world.step(seconds=10)
    assert kstatus(world.run) == "InProgress"
    world = after(lambda world: world.give_up())
    world.clear()
    world.step(seconds=60)
    world.run_on()
    world.step()
    assert kstatus(world.run) == "InProgress"
