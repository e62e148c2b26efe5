"""The brain on a cluster, case by case: queues, Jobs that can't start, Jobs that can't be made, hand-over, crashes."""

from typing import Any

import pytest

from comd_operator.policies.clock import to_text
from comd_operator.policies.hold import Obstacle
from comd_operator.policies.queue import Wait
from tests.unit.cluster_world import PENDING, ClusterWorld
from tests.unit.runs import make_run

QUEUE = {"queue": {"name": "gpus"}}
COLLISION = Obstacle(reason="NameCollision", message="Job tiny-preflight-a1 exists", seconds=10.0)
INVALID = Obstacle(reason="InvalidSpec", message="spec.storage is not set")
TOO_LARGE = Wait(reason="Unschedulable", message="no node is large enough", stuck=True)


def world_of(**changes: Any) -> ClusterWorld:
    return ClusterWorld(make_run(**changes))


def begun(**changes: Any) -> ClusterWorld:
    """Its first Job runs, or is admitted."""
    world = world_of(**changes)
    world.step()
    world.run_on()
    world.step()
    return world


def test_a_run_on_a_cluster_costs_two_writes_for_each_stage() -> None:
    """The next Job is made when the containers have ended; the status and one event follow when the Job is complete."""
    world = world_of()
    world.step()
    for number in range(1, 5):
        assert (len(world.made), world.writes, len(world.events)) == (number, number, number)
        for act in (world.run_on, world.finish):
            act()
            world.step(seconds=5)
        last = world.children[world.made[number - 1]].name
        assert len(world.made) == min(number + 1, 4), "its successor is made before it is complete"
        assert world.writes == number
        world.complete(last)
        world.settle()
    assert (world.status.phase, world.writes) == ("Succeeded", 5)
    assert [event.partition(":")[0] for event in world.events] == ["JobStarted", *["StageSucceeded"] * 3, "Succeeded"]
    assert [stage.attempt for stage in world.status.stages] == [1, 1, 1, 1]
    assert [stage.job_uid for stage in world.status.stages] == [f"uid-{name}" for name in world.made]


# Queues.


def test_a_queue_is_waited_for_without_any_clock() -> None:
    world = world_of(**QUEUE, activeDeadlineSeconds=10, stageDeadlineSeconds=10, retry={"limit": 0})
    world.step()
    assert (world.status.phase, world.stage.phase) == ("Queued", "Queued")
    assert world.condition("Queued") == ("True", "Queued")
    assert world.condition("Reconciling") == ("True", "Queued")
    world.set(wait=PENDING)
    assert world.step(seconds=1000).requeue_after is None, "nothing is due, whatever it waits for"
    assert world.condition("Queued") == ("True", "Pending")
    world.run_on()
    world.step(seconds=1000)
    assert (world.status.phase, world.stage.phase, world.stage.queued_seconds) == ("Running", "Running", 2000.0)
    assert (world.status.active_seconds, world.status.active_since) == (0.0, to_text(world.now))
    assert world.condition("Queued") == ("False", "Running")
    world.step(seconds=9)
    world.complete()
    assert world.step().create
    assert world.status.stages[0].active_seconds == 9.0
    assert world.status.active_seconds == 9.0


def test_preemption_is_the_queue_s_and_no_failure() -> None:
    world = begun(**QUEUE, retry={"limit": 0})
    for number in (1, 2):
        world.set(
            state="Queued", started=False, preempted=True, wait=Wait(reason="Preempted", message="to accommodate")
        )
        world.step(seconds=30)
        assert world.condition("Queued") == ("True", "Preempted")
        assert (world.stage.preemptions, world.stage.failures, world.stage.attempt) == (number, 0, 1)
        assert world.stage.active_seconds == 30.0 * number
        assert not world.step(seconds=600).create, "the same Job goes on"
        world.run_on()
        world.step()
        assert world.status.phase == "Running"
    assert world.made == ["tiny-preflight-a1"]
    assert world.stage.queued_seconds == 1200.0


@pytest.mark.parametrize("limits", [{}, {"activeDeadlineSeconds": 1000, "stageDeadlineSeconds": 1000}])
def test_the_queue_s_deadline_fails_the_run_and_frees_its_place(limits: dict[str, int]) -> None:
    world = world_of(**QUEUE, queueDeadlineSeconds=100, **limits)
    assert world.step().requeue_after == 100
    world.set(wait=PENDING)
    assert world.step(seconds=40).requeue_after == 60
    decision = world.step(seconds=60)
    assert decision.delete == ["tiny-preflight-a1"]
    assert world.condition("Failed") == ("True", "Deadline")
    assert "queueDeadlineSeconds (100)" in world.status.conditions[0].message
    assert world.stage.queued_seconds == 100.0


def test_each_wait_has_the_queue_s_whole_deadline() -> None:
    world = world_of(**QUEUE, queueDeadlineSeconds=100)
    world.step()
    world.step(seconds=90)
    world.run_on()
    world.step()
    world.set(state="Queued", preempted=True, wait=PENDING)
    assert world.step(seconds=1000).requeue_after == 100
    world.step(seconds=99)
    assert world.status.phase == "Queued"


def test_attempts_in_a_row_that_can_not_be_started_wait_as_one() -> None:
    """Each is given up long before the deadline; all of them together are not waited for beyond it."""
    world = world_of(queueDeadlineSeconds=1000, retry={"backoffSeconds": 60, "maxBackoffSeconds": 60})
    world.step()
    for _ in range(20):
        world.set(state="Queued", wait=TOO_LARGE)
        world.step(seconds=1)
        if world.condition("Failed")[0] == "True":
            break
        world.give_up("Unschedulable: no node is large enough")
        world.step(seconds=299)
        world.clear()
        decision = world.step(seconds=60)
        if world.condition("Failed")[0] == "True":
            break
        assert decision.create
    assert world.condition("Failed") == ("True", "Deadline")
    assert len(world.made) == 3


def test_a_wait_that_can_not_end_is_stalled_and_still_queued() -> None:
    world = world_of(**QUEUE)
    world.step()
    world.set(wait=Wait(reason="Inadmissible", message="LocalQueue gpus doesn't exist", stuck=True))
    world.step()
    assert world.status.phase == "Stalled"
    for kind in ("Stalled", "Queued"):
        assert world.condition(kind) == ("True", "Inadmissible")
    assert world.condition("Reconciling") == ("False", "Inadmissible")
    assert world.events[-1] == "Inadmissible: preflight: LocalQueue gpus doesn't exist"
    world.set(wait=PENDING)
    world.step()
    assert (world.status.phase, world.condition("Stalled")[0]) == ("Queued", "False")


def test_scheduling_is_a_wait_too_with_no_queue_at_all() -> None:
    world = begun(stageDeadlineSeconds=100)
    world.complete()
    world.step(seconds=50)
    world.set(state="Queued", wait=Wait(reason="Unschedulable", message="0/2 nodes are available"))
    world.step(seconds=20)
    assert (world.status.phase, world.condition("Queued")) == ("Queued", ("True", "Unschedulable"))
    assert world.stage.preemptions == 0
    world.run_on()
    assert world.step(seconds=5000).requeue_after == 80
    assert world.stage.queued_seconds == 5000.0


def test_suspending_a_run_that_waits_gives_its_place_back() -> None:
    for policy in ("Now", "StageEnd"):
        world = world_of(**QUEUE, suspendPolicy=policy)
        world.step()
        world.change(suspend=True)
        assert world.step(seconds=10).delete == ["tiny-preflight-a1"]
        assert (world.status.phase, world.stage.phase, world.stage.queued_seconds) == ("Suspended", "Suspended", 10.0)
        world.clear()
        assert world.step(seconds=99).requeue_after is None
        world.change(suspend=False)
        world.step()
        assert (world.newest, world.status.phase, world.stage.failures) == ("tiny-preflight-a2", "Queued", 0)


# What can't be started.


def test_what_can_not_start_is_stalled_until_it_does() -> None:
    """It holds nothing meanwhile, is tried again ever more seldom, and costs no retry."""
    world = begun(**QUEUE, retry={"limit": 0, "backoffSeconds": 10, "maxBackoffSeconds": 60})
    world.complete()
    world.step()
    delays = []
    for attempt in (1, 2, 3, 4, 5):
        assert world.newest == f"tiny-pretrain-a{attempt}"
        world.set(state="Running", wait=None)
        world.step()
        world.give_up()
        decision = world.step(seconds=3)
        assert (decision.create, decision.delete) == ([], [f"tiny-pretrain-a{attempt}"])
        assert world.status.phase == "Stalled"
        assert world.condition("Stalled") == ("True", "CannotStart")
        (stalled,) = (entry for entry in world.status.conditions if entry.type == "Stalled")
        assert stalled.message.startswith("pretrain: ImagePullBackOff: no such image; next attempt at ")
        assert world.events[-1] == "CannotStart: pretrain: ImagePullBackOff: no such image"
        assert (world.stage.phase, world.stage.failures, world.stage.attempt) == ("Retrying", 0, attempt)
        assert decision.requeue_after is not None
        delays.append(decision.requeue_after)
        assert not world.step(seconds=delays[-1]).create, "not beside the old one's pods"
        world.clear()
        world.step()
        world.set(wait=PENDING)
        world.step(seconds=1000)
        assert world.condition("Stalled") == ("True", "CannotStart"), "waiting once more shows nothing"
        assert world.condition("Queued")[0] == "True"
    assert [0.75 * full - 1 <= delay <= full + 1 for delay, full in zip(delays, (10, 20, 40, 60, 60), strict=True)] == [
        True
    ] * 5
    told = [event for event in world.events if event.startswith("CannotStart")]
    assert told == ["CannotStart: pretrain: ImagePullBackOff: no such image"] * 5, "one event, counted up"


def test_what_has_started_at_last_is_stalled_no_more_not_even_when_it_is_preempted() -> None:
    world = world_of(**QUEUE, retry={"backoffSeconds": 10})
    world.step()
    world.give_up()
    world.step()
    world.clear()
    world.step(seconds=10)
    world.set(state="Running")
    world.step()
    assert world.status.phase == "Stalled", "its image is still being pulled"
    writes = world.writes
    world.run_on()
    world.step()
    assert (world.status.phase, world.writes) == ("Running", writes + 1)
    world.set(state="Queued", started=False, preempted=True, wait=PENDING)
    world.step(seconds=60)
    assert world.condition("Queued") == ("True", "Pending")
    assert world.condition("Stalled")[0] == "False"
    world.set(state="Running", wait=None, preempted=False)
    world.step(seconds=60)
    assert world.condition("Stalled")[0] == "False", "it was admitted again, and was started before"


def test_the_run_s_deadline_bounds_what_can_not_start() -> None:
    world = world_of(activeDeadlineSeconds=100, retry={"backoffSeconds": 30, "maxBackoffSeconds": 30})
    world.step()
    for _ in range(20):
        if world.status.phase == "Failed":
            break
        world.give_up()
        world.step()
        world.clear()
        world.step(seconds=30)
    assert world.condition("Failed") == ("True", "Deadline")
    assert len(world.made) <= 5


def test_pods_that_no_node_takes_are_given_up_and_tried_again() -> None:
    world = world_of()
    world.step()
    world.set(state="Queued", wait=TOO_LARGE)
    world.step(seconds=1)
    assert (world.status.phase, world.condition("Stalled")) == ("Stalled", ("True", "Unschedulable"))
    world.give_up("Unschedulable: no node is large enough")
    assert world.step(seconds=300).delete == ["tiny-preflight-a1"]
    assert world.condition("Stalled") == ("True", "CannotStart")
    assert (world.stage.queued_seconds, world.stage.failures) == (300.0, 0), "from when it was seen to wait"


def test_an_attempt_that_is_due_is_not_asked_for_again_and_again_while_the_one_before_still_goes() -> None:
    """A queue that is told "in 0 seconds" each time does nothing else any more."""
    world = world_of(retry={"backoffSeconds": 0})
    world.step()
    world.give_up()
    assert world.step(seconds=1).delete == ["tiny-preflight-a1"]
    assert world.step(seconds=1).requeue_after is None, "it is told when the Job has gone"
    world.clear()
    assert world.step().create


def test_an_attempt_that_is_due_waits_for_what_keeps_it_from_being_made() -> None:
    world = world_of(retry={"backoffSeconds": 0})
    world.step()
    world.fail("TryAgain")
    world.step(seconds=1)
    assert world.step(seconds=1, obstacle=COLLISION).requeue_after == 10.0
    assert world.step(seconds=1, obstacle=INVALID).requeue_after is None


# What can't be made.


def test_a_job_that_can_not_be_made_stalls_the_run_and_is_tried_again() -> None:
    world = world_of()
    decision = world.step(obstacle=COLLISION)
    assert (decision.create, decision.requeue_after) == ([], 10.0)
    assert world.status.phase == "Stalled"
    assert world.condition("Stalled") == ("True", "NameCollision")
    assert world.status.start_time is None, "it has not begun: its spec may change"
    assert not world.step(seconds=5, obstacle=COLLISION).event, "told once"
    decision = world.step(seconds=5)
    assert (world.made, world.status.phase) == (["tiny-preflight-a1"], "Running")
    assert decision.event is not None
    assert decision.event.reason == "JobStarted"


def test_what_only_the_user_can_mend_is_not_tried_again() -> None:
    world = world_of()
    assert world.step(obstacle=INVALID).requeue_after is None
    assert world.condition("Stalled") == ("True", "InvalidSpec")


def test_another_obstacle_is_told_of() -> None:
    world = world_of()
    world.step(obstacle=INVALID)
    world.step(obstacle=COLLISION)
    assert [event.partition(":")[0] for event in world.events] == ["InvalidSpec", "NameCollision"]


def test_an_obstacle_is_none_for_a_job_that_is_there() -> None:
    world = begun()
    world.step(obstacle=COLLISION)
    assert world.status.phase == "Running"
    world.complete()
    world.step(killed=True)
    world.step(obstacle=COLLISION)
    assert (world.made[-1], world.stage.name, world.status.phase) == ("tiny-pretrain-a1", "pretrain", "Running"), (
        "adopted"
    )


def test_an_obstacle_between_two_stages() -> None:
    world = begun(activeDeadlineSeconds=100)
    world.complete()
    decision = world.step(seconds=10, obstacle=COLLISION)
    assert (world.status.phase, world.status.stages[0].phase) == ("Stalled", "Succeeded")
    assert decision.requeue_after == 10.0
    world.step(seconds=90, obstacle=COLLISION)
    assert world.condition("Failed") == ("True", "Deadline"), "time passes"


def test_an_obstacle_does_not_keep_a_run_from_being_suspended() -> None:
    world = world_of()
    world.step(obstacle=COLLISION)
    world.change(suspend=True)
    world.step(obstacle=COLLISION)
    assert world.status.phase == "Suspended"


def test_what_preflight_has_found_is_said_at_once() -> None:
    """Before any GPU is at work, and as long as the stage after it goes on."""
    world = begun()
    world.finish(message="2 of 8 images are in an evaluation set too")
    world.complete()
    world.settle()
    (ready,) = (entry for entry in world.status.conditions if entry.type == "Ready")
    assert ready.message == "pretrain, attempt 1; preflight: 2 of 8 images are in an evaluation set too"
    assert world.events[-1].startswith("StageSucceeded: preflight: 2 of 8 images")
    world.run_on()
    world.complete()
    world.settle()
    (ready,) = (entry for entry in world.status.conditions if entry.type == "Ready")
    assert ready.message == "round-1, attempt 1"
