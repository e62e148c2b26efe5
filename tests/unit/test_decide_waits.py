"""The brain: what counts as one wait, and Jobs that were made of a spec that has changed since."""

from typing import Any

import pytest

from comd_operator.policies.queue import Wait
from tests.unit.cluster_world import PENDING, ClusterWorld
from tests.unit.runs import make_run

QUEUE = {"queue": {"name": "gpus"}}
FULL = Wait(reason="Unschedulable", message="no GPU is free")


def world_of(**changes: Any) -> ClusterWorld:
    return ClusterWorld(make_run(retry={"backoffSeconds": 0, "limit": 0}, **changes))


def try_again(world: ClusterWorld) -> None:
    """The attempt is over, its Job is gone, and the next one is made."""
    world.step()
    world.clear()
    world.step()


@pytest.mark.parametrize("queue", [QUEUE, {}])
def test_time_suspended_is_no_wait(queue: dict[str, Any]) -> None:
    """Whoever suspends a run to mend an image has all the time in the world."""
    world = world_of(**queue, queueDeadlineSeconds=3600)
    world.step()
    world.give_up()
    world.step()
    world.change(suspend=True)
    world.step()
    world.clear()
    world.change(suspend=False)
    world.step(seconds=7200)
    world.set(state="Queued", wait=PENDING)
    world.step(seconds=100)
    assert world.status.phase in ("Queued", "Stalled")
    world.give_up()
    world.step(seconds=100)
    assert world.status.phase == "Stalled"
    world.clear()
    world.step()
    world.set(state="Queued", wait=PENDING)
    world.step(seconds=3600)
    assert world.condition("Failed") == ("True", "Deadline"), "it is a wait again since then"


@pytest.mark.parametrize("queue", [QUEUE, {}])
def test_attempts_in_a_row_that_never_had_all_their_pods_wait_as_one(queue: dict[str, Any]) -> None:
    """The first node's pod runs and gives up on the second, which finds no place: the attempt ends with 75, and waited all the time."""
    world = world_of(**queue, queueDeadlineSeconds=1500)
    world.step()
    for _ in range(4):
        if world.status.phase == "Failed":
            break
        world.set(state="Queued", started=False, wait=FULL)
        world.step(seconds=2)
        world.step(seconds=600)
        world.fail("TryAgain", "node 1 of 2 did not come")
        try_again(world)
    assert world.condition("Failed") == ("True", "Deadline")
    assert len(world.made) == 3
    assert "queueDeadlineSeconds (1500)" in world.status.conditions[0].message


def test_a_wait_ends_when_all_pods_have_run() -> None:
    world = world_of(**QUEUE, queueDeadlineSeconds=1500)
    world.step()
    world.step(seconds=1000)
    world.fail("TryAgain", "node 1 of 2 did not come")
    try_again(world)
    world.run_on()
    world.step(seconds=10)
    world.set(state="Queued", started=False, preempted=True, wait=PENDING)
    world.step(seconds=10)
    world.step(seconds=1400)
    assert world.status.phase == "Queued", "a preempted stage waits anew"
    world.step(seconds=100)
    assert world.condition("Failed") == ("True", "Deadline")


def test_pods_that_vanish_after_hours_have_not_waited_all_that_time() -> None:
    """The Job controller is away for a minute just as a pod goes: the run would have failed for its first wait."""
    world = world_of(**QUEUE, queueDeadlineSeconds=600)
    world.step()
    world.run_on()
    world.step(seconds=10)
    world.step(seconds=7200)
    world.set(state="Queued", started=False, vanished=True, wait=Wait(reason="NoPods", message="none"))
    world.step(seconds=20)
    assert (world.status.phase, world.stage.preemptions) == ("Queued", 0)
    world.step(seconds=600)
    assert world.condition("Failed") == ("True", "Deadline"), "it is a wait since then"


@pytest.mark.parametrize("ended", [False, True])
def test_a_job_of_an_earlier_spec_is_made_anew(ended: bool) -> None:
    """The spec may change until the run has begun; we were stopped between making its first Job and writing that down."""
    world = world_of()
    world.step(killed=True)
    world.set(generation=world.run.metadata.generation)
    if ended:
        world.complete()
    world.change(seed=7)
    decision = world.step(seconds=1)
    assert (decision.create, decision.delete) == ([], ["tiny-preflight-a1"])
    assert world.status.start_time is None, "it may still change"
    assert world.step(seconds=1).create == []
    world.clear()
    assert [job.name for job in world.step(seconds=1).create] == ["tiny-preflight-a1"]
    world.set(generation=world.run.metadata.generation)
    world.run_on()
    world.step(seconds=1)
    assert (world.status.phase, world.stage.attempt) == ("Running", 1)


def test_jobs_that_are_written_down_stay_whatever_is_edited() -> None:
    world = world_of()
    world.step()
    world.set(generation=world.run.metadata.generation)
    world.run_on()
    world.step()
    world.change(stage_deadline_seconds=1000)
    assert world.step().delete == []
    assert world.status.phase == "Running"
