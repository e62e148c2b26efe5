"""Runs and schedules in every situation, as the API server has them after the operator's write, and what GitOps tools are to make of them.

The statuses are recorded from the code that decides, at each test anew, so that none of them can be out of date."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from comd_operator.policies.children import Child
from comd_operator.policies.hold import Obstacle
from comd_operator.policies.queue import Wait
from tests.unit.cluster_world import PENDING, ClusterWorld
from tests.unit.schedules import ScheduleWorld
from tests.unit.test_decide_cluster import COLLISION, QUEUE, begun, world_of

FORBIDDEN = Obstacle(reason="Forbidden", message="exceeded quota: runs", seconds=10.0)


class Situation(NamedTuple):
    name: str
    wire: dict[str, Any]
    phase: str | None
    """Of a run."""
    kstatus: str
    argo: str
    true: str
    """The conditions that are true."""


def after(act: Callable[[ClusterWorld], Any], **changes: Any) -> ClusterWorld:
    world = begun(**changes)
    act(world)
    world.step(seconds=1)
    return world


def pending() -> ClusterWorld:
    """A Job of an earlier run of that name has not gone yet."""
    world = world_of()
    world.children["old"] = Child(
        name="old", stage="preflight", attempt=1, job_index=0, state="Running", uid="u", started=True, deleting=True
    )
    world.step()
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


def suspended(**changes: Any) -> ClusterWorld:
    world = begun()
    world.change(suspend=True, **changes)
    world.step()
    return world


def made_suspended() -> ClusterWorld:
    """From the first visit on."""
    world = world_of(suspend=True)
    world.step()
    return world


def succeeded() -> ClusterWorld:
    world = begun()
    while world.status.phase != "Succeeded":
        world.complete()
        world.step(seconds=1)
    return world


def waits_for_others() -> ScheduleWorld:
    world = ScheduleWorld(concurrencyPolicy="Replace")
    world.step()
    world.step(seconds=3600)
    world.step(seconds=3600)
    return world


def schedule(*steps: float, wrong: str | None = None, obstacle: Obstacle | None = None, **spec: Any) -> ScheduleWorld:
    world = ScheduleWorld(**spec)
    world.wrong = wrong
    world.step()
    for seconds in steps:
        world.step(seconds=seconds, obstacle=obstacle)
    return world


def edited() -> ScheduleWorld:
    world = schedule(3600.0)
    world.edit(suspend=True)
    return world


def failing() -> ScheduleWorld:
    world = schedule(3600.0)
    world.end_all("Failed")
    world.step(seconds=60)
    return world


def _wire(world: ClusterWorld | ScheduleWorld) -> dict[str, Any]:
    made = world.run if isinstance(world, ClusterWorld) else world.schedule
    wire: dict[str, Any] = made.to_wire()
    assert wire["metadata"]["generation"] == made.metadata.generation
    return wire


_REFUSED = Wait(reason="Inadmissible", message="no such queue", stuck=True)
_RUNS: list[tuple[str, ClusterWorld, str, str, str, str]] = [
    ("pending", pending(), "Pending", "InProgress", "Progressing", "Reconciling"),
    ("begun", begun(), "Running", "InProgress", "Progressing", "Reconciling"),
    ("next", after(lambda world: world.complete()), "Running", "InProgress", "Progressing", "Reconciling"),
    ("retrying", after(lambda world: world.fail()), "Running", "InProgress", "Progressing", "Reconciling"),
    ("queued", queued(PENDING), "Queued", "InProgress", "Progressing", "Queued Reconciling"),
    ("refused", queued(_REFUSED), "Stalled", "Failed", "Degraded", "Queued Stalled"),
    ("no-image", after(lambda world: world.give_up()), "Stalled", "Failed", "Degraded", "Stalled"),
    ("obstructed", obstructed(), "Stalled", "Failed", "Degraded", "Stalled"),
    ("suspended", suspended(), "Suspended", "InProgress", "Suspended", "Suspended"),
    ("made-suspended", made_suspended(), "Suspended", "InProgress", "Suspended", "Suspended"),
    ("stops-later", suspended(suspend_policy="StageEnd"), "Running", "InProgress", "Progressing", "Reconciling"),
    ("user-error", after(lambda world: world.fail("UserError")), "Failed", "Failed", "Degraded", "Failed Stalled"),
    (
        "given-up",
        after(lambda world: world.fail(), retry={"limit": 0}),
        "Failed",
        "Failed",
        "Degraded",
        "Failed Stalled",
    ),
    ("succeeded", succeeded(), "Succeeded", "Current", "Healthy", "Ready Succeeded"),
]
_SCHEDULES: list[tuple[str, ScheduleWorld, str, str, str]] = [
    ("new", schedule(), "Current", "Healthy", "Ready"),
    ("active", schedule(3600.0), "Current", "Healthy", "Ready"),
    ("last-one-failed", failing(), "Current", "Healthy", "Ready"),
    ("paused", schedule(suspend=True), "Current", "Healthy", "Ready Suspended"),
    ("missed", schedule(timedelta(days=1).total_seconds()), "Current", "Healthy", "Missed Ready"),
    ("replacing", waits_for_others(), "InProgress", "Progressing", "Reconciling"),
    ("wrong", schedule(wrong="spec.runTemplate: no image"), "Failed", "Degraded", "Stalled"),
    ("no-such-zone", schedule(timeZone="Europe/Berln"), "Failed", "Degraded", "Stalled"),
    ("quota", schedule(3600.0, obstacle=FORBIDDEN), "Failed", "Degraded", "Stalled"),
]

RUNS = [Situation(name, _wire(world), phase, *read) for name, world, phase, *read in _RUNS]
SCHEDULES = [Situation(name, _wire(world), None, *read) for name, world, *read in _SCHEDULES]
SITUATIONS = RUNS + SCHEDULES
UNSEEN = [_wire(edited()), _wire(world_of()), _wire(ScheduleWorld())]
"""Changes, and objects, that the operator has not looked at."""
