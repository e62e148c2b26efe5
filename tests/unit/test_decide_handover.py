"""From one Job to the next: before the first is complete, after the operator was killed, after somebody has deleted it; and after
the end."""

from typing import Any

import pytest

from comd_api.stages import stage_names
from comd_operator.planner import content_mark, plan_job, stage_config
from tests.unit.cluster_world import ClusterWorld
from tests.unit.runs import artifact
from tests.unit.test_decide_cluster import COLLISION, QUEUE, begun, world_of


def finishing(**changes: Any) -> ClusterWorld:
    """`pretrain` is finishing, and `round-1` was made."""
    world = begun(**changes)
    world.complete()
    world.step()
    world.run_on()
    world.step(seconds=60)
    world.finish()
    world.step(seconds=1)
    assert world.made[-2:] == ["tiny-pretrain-a1", "tiny-round-1-a1"]
    assert world.stage.name == "pretrain"
    return world


def test_a_successor_is_made_without_a_write_and_told_what_was_made() -> None:
    world = begun()
    world.complete()
    world.step()
    world.run_on()
    world.step()
    before, writes, events = world.status, world.writes, list(world.events)
    world.finish(artifacts=[artifact("student", "file:///new")])
    decision = world.step(seconds=1)
    assert [job.name for job in decision.create] == ["tiny-round-1-a1"]
    assert (decision.status, decision.event, decision.delete) == (before, None, [])
    assert (world.writes, world.events) == (writes, events)
    plan = plan_job(world.run.spec, run="tiny", stage="round-1", job_index=0, attempt=1)
    config = stage_config(world.run.replace(status=decision.ahead), plan)
    assert [ref.uri for ref in config.inputs] == ["file:///new"]
    assert not world.step(seconds=1).create, "once"


def test_both_are_written_at_once_when_it_is_complete() -> None:
    world = finishing()
    writes, events = world.writes, len(world.events)
    world.run_on()
    world.step(seconds=1)
    assert (world.writes, world.status.stage) == (writes, "pretrain"), "its pods may still hold their GPUs"
    world.complete("tiny-pretrain-a1")
    world.step(seconds=1)
    assert (world.writes, len(world.events)) == (writes + 1, events + 1)
    assert [(stage.name, stage.phase) for stage in world.status.stages[1:]] == [
        ("pretrain", "Succeeded"),
        ("round-1", "Running"),
    ]
    assert world.events[-1] == "StageSucceeded: pretrain; round-1: attempt 1, Job tiny-round-1-a1"
    assert world.stage.job_uid == "uid-tiny-round-1-a1"
    assert world.stage.start_time is not None
    assert world.step().status == world.status


@pytest.mark.parametrize("end", ["finish", "complete"])
def test_successors_may_be_done_before_their_predecessor_is_booked(end: str) -> None:
    world = finishing(rounds__count=3)
    getattr(world, end)()
    world.step(seconds=1)
    assert (world.newest, world.stage.name) == ("tiny-round-2-a1", "pretrain")
    getattr(world, end)()
    world.step(seconds=1)
    assert (world.newest == "tiny-round-3-a1") == (end == "complete"), "never beside the pods of three"
    assert world.stage.name == "pretrain"
    for job in ("tiny-pretrain-a1", "tiny-round-1-a1", "tiny-round-2-a1"):
        world.complete(job)
    world.settle()
    assert [stage.phase for stage in world.status.stages] == ["Succeeded"] * 4 + ["Running"]
    assert len(world.made) == len(set(world.made)) == 5


def test_nothing_follows_the_last_stage_and_it_is_done_when_its_job_is() -> None:
    world = finishing(rounds__count=1)
    world.complete("tiny-pretrain-a1")
    world.run_on()
    world.step()
    world.finish()
    assert not world.step(seconds=1).create
    assert world.condition("Succeeded")[0] == "False"
    world.complete()
    world.step(seconds=1)
    assert world.condition("Succeeded")[0] == "True"


def test_a_successor_waits_in_the_queue_behind_the_place_of_its_predecessor() -> None:
    world = finishing(**QUEUE, activeDeadlineSeconds=1000)
    assert world.children["tiny-round-1-a1"].state == "Queued"
    world.complete("tiny-pretrain-a1")
    world.step(seconds=2)
    assert (world.status.phase, world.stage.name, world.status.active_since) == ("Queued", "round-1", None)


def test_a_job_that_nobody_saw_running_has_run_when_it_finishes() -> None:
    world = world_of(**QUEUE, queueDeadlineSeconds=100)
    world.step()
    world.finish()
    world.step(seconds=50)
    assert (world.stage.phase, world.stage.queued_seconds) == ("Running", 50.0)
    assert world.newest == "tiny-pretrain-a1"


@pytest.mark.parametrize("policy", ["Now", "StageEnd"])
def test_a_run_that_is_suspended_meanwhile_takes_its_successor_back(policy: str) -> None:
    world = finishing(suspendPolicy=policy)
    world.change(suspend=True)
    decision = world.step(seconds=1)
    assert (decision.create, decision.delete) == ([], ["tiny-round-1-a1"]), "what ends by itself may end"
    world.clear()
    assert not world.step(seconds=1).create
    world.complete("tiny-pretrain-a1")
    world.step(seconds=1)
    assert (world.status.phase, world.stage.name, world.stage.phase) == ("Suspended", "pretrain", "Succeeded")
    world.change(suspend=False)
    world.children.clear()
    assert [job.name for job in world.step(seconds=60).create] == ["tiny-round-1-a1"]


def test_a_job_that_is_deleted_while_it_finishes_takes_its_successor_with_it() -> None:
    world = finishing()
    world.vanish("tiny-pretrain-a1")
    decision = world.step(seconds=1)
    assert decision.delete == ["tiny-round-1-a1"], "it was made for a stage that is not done"
    assert (world.stage.phase, world.stage.failures) == ("Retrying", 0)
    world.clear()
    world.step(seconds=60)
    assert world.newest == "tiny-pretrain-a2"
    world.complete()
    world.step(seconds=60)
    assert (world.stage.name, world.stage.attempt) == ("round-1", 1)


def test_the_run_s_deadline_does_not_undo_what_finishes() -> None:
    world = begun(activeDeadlineSeconds=100)
    world.finish()
    decision = world.step(seconds=150)
    assert (decision.create, decision.delete) == ([], [])
    assert world.status.phase == "Running"
    world.complete()
    world.step(seconds=1)
    assert [stage.phase for stage in world.status.stages] == ["Succeeded", "Failed"]
    assert world.condition("Failed") == ("True", "Deadline")


def test_an_obstacle_to_a_successor_is_told_when_its_predecessor_is_complete() -> None:
    world = begun()
    world.finish()
    assert not world.step(seconds=1, obstacle=COLLISION).create
    assert world.status.phase == "Running"
    world.complete()
    world.step(seconds=1, obstacle=COLLISION)
    assert world.condition("Stalled") == ("True", "NameCollision")
    assert world.status.stages[0].phase == "Succeeded"


def test_phases_are_handed_over_within_a_stage() -> None:
    world = begun(execution="Phase", rounds__count=1)
    world.complete()
    world.step()
    while world.status.phase == "Running":
        assert len([child for child in world.children.values() if child.live and child.state != "Finishing"]) <= 1
        last = world.newest
        world.finish(last)
        world.step(seconds=1)
        world.complete(last)
        world.step(seconds=1)
    assert world.status.phase == "Succeeded"
    assert [name.rpartition("-")[2] for name in world.made[2:]] == ["teach", "tune", "answer", "assess", "evaluate"]


def test_a_job_that_its_pods_outlive_is_booked_and_deleted_before_another_follows() -> None:
    world = finishing()
    world.set("tiny-pretrain-a1", state="Succeeded", exit_class="Done", lingers=True)
    world.finish("tiny-round-1-a1")
    decision = world.step(seconds=15)
    assert (decision.create, decision.delete) == ([], ["tiny-pretrain-a1"])
    assert [(stage.name, stage.phase) for stage in world.status.stages[1:]] == [
        ("pretrain", "Succeeded"),
        ("round-1", "Running"),
    ]
    assert not world.step(seconds=1).create
    world.vanish("tiny-pretrain-a1")
    assert [job.name for job in world.step(seconds=1).create] == ["tiny-round-2-a1"]


def test_a_failure_that_a_pod_hides_ends_the_run_and_the_pod() -> None:
    world = begun()
    world.fail("UserError", "no such bucket")
    world.set(lingers=True)
    decision = world.step(seconds=15)
    assert decision.delete == ["tiny-preflight-a1"]
    assert world.condition("Failed") == ("True", "UserError")


def test_an_edit_that_changes_no_job_leaves_the_successor_alone() -> None:
    world = finishing()
    mark = content_mark(world.run.spec)
    world.set("tiny-round-1-a1", generation=world.run.metadata.generation, content=mark)
    world.change(ttl_seconds_after_finished=1000)
    world.complete("tiny-pretrain-a1")
    decision = world.step(seconds=1)
    assert (decision.create, decision.delete, world.stage.name) == ([], [], "round-1")
    assert content_mark(world.run.spec) == mark != content_mark(world.run.spec.replace(seed=8))


def test_the_attempt_that_runs_is_kept_when_the_status_is_taken_away() -> None:
    world = begun(retry={"limit": 3, "backoffSeconds": 1})
    world.fail()
    world.step()
    world.step(seconds=60)
    world.run_on()
    world.step()
    assert world.newest == "tiny-preflight-a2"
    world.run = world.run.replace(status=None)
    decision = world.step(seconds=1)
    assert (decision.create, decision.delete) == ([], [])
    assert (world.stage.attempt, world.stage.job_name, world.stage.phase) == (2, "tiny-preflight-a2", "Running")


def ready_message(world: ClusterWorld) -> str:
    return next(condition.message for condition in world.status.conditions if condition.type == "Ready")


def test_a_run_that_waits_for_a_job_to_go_says_so() -> None:
    """Its suspended Job is kept by somebody's finalizer."""
    world = begun()
    world.change(suspend=True)
    world.step(seconds=1)
    world.change(suspend=False)
    writes = world.writes
    assert not world.step(seconds=1).create
    assert world.status.phase == "Running"
    assert (world.writes, world.condition("Ready")) == (writes + 1, ("False", "Waiting"))
    assert ready_message(world) == "preflight waits for Job tiny-preflight-a1 to go"
    world.set(overdue=True)
    world.step(seconds=300)
    assert world.condition("Stalled") == ("True", "Waiting")
    assert "a finalizer may keep it" in ready_message(world)
    world.clear()
    assert [job.name for job in world.step(seconds=1).create] == ["tiny-preflight-a2"]
    assert world.status.phase == "Running"


# The operator is killed.


@pytest.mark.parametrize(
    "changes", [{}, QUEUE, {"execution": "Phase"}, {"trainer__numProcPerNode": 1, "rounds__count": 1}]
)
@pytest.mark.parametrize("handover", [False, True])
def test_a_job_that_was_made_and_not_written_down_is_taken_over(changes: dict[str, Any], handover: bool) -> None:
    """At every Job of a run's life."""
    world = world_of(**changes)
    for _ in range(40):
        made = len(world.made)
        world.step(seconds=1, killed=True)
        assert len(world.made) <= made + 1
        world.step(seconds=1)
        assert len(world.made) <= made + 1, "the one that is there is taken"
        if world.status.phase == "Succeeded":
            break
        world.run_on()
        world.step(seconds=1)
        if handover:
            world.finish(last := world.newest)
            world.step(seconds=1, killed=True)
            world.step(seconds=1)
            world.complete(last)
        else:
            world.complete()
    assert world.status.phase == "Succeeded"
    assert len(world.made) == len(set(world.made))
    assert {stage.attempt for stage in world.status.stages} == {1}
    assert [stage.name for stage in world.status.stages] == stage_names(world.run.spec)


def test_its_start_is_when_the_job_was_made_and_not_when_it_was_found() -> None:
    world = world_of()
    world.step(killed=True)
    made = world.now
    world.step(seconds=300)
    assert world.stage.attempt_start_time == made.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert world.stage.job_uid == "uid-tiny-preflight-a1"


@pytest.mark.parametrize("end", ["complete", "fail", "give_up"])
def test_a_job_that_ended_before_it_was_written_down(end: str) -> None:
    world = world_of(retry={"limit": 3, "backoffSeconds": 10})
    world.step(killed=True)
    getattr(world, end)()
    world.step(seconds=1)
    if end == "complete":
        assert [(stage.name, stage.phase) for stage in world.status.stages] == [
            ("preflight", "Succeeded"),
            ("pretrain", "Running"),
        ]
    else:
        assert (world.stage.attempt, world.stage.phase) == (1, "Retrying")
        assert world.made == ["tiny-preflight-a1"], "its end is written down first"


def test_a_retry_follows_its_write_and_is_taken_over_too() -> None:
    world = begun(retry={"limit": 3, "backoffSeconds": 10})
    world.fail()
    assert not world.step(killed=True).create
    assert world.stage.failures == 0, "killed before the write: nothing has happened"
    assert not world.step().create
    assert world.stage.phase == "Retrying"
    world.step(seconds=20, killed=True)
    assert world.newest == "tiny-preflight-a2"
    world.step(seconds=1)
    assert (world.stage.attempt, world.stage.failures, world.stage.phase) == (2, 1, "Running")
    assert world.made == ["tiny-preflight-a1", "tiny-preflight-a2"]


# Somebody deletes Jobs.


@pytest.mark.parametrize("changes", [{}, QUEUE])
@pytest.mark.parametrize("state", ["Queued", "Running"])
def test_a_job_that_was_deleted_is_followed_by_another_attempt(changes: dict[str, Any], state: str) -> None:
    world = world_of(**changes, retry={"limit": 0})
    world.step()
    if state == "Running":
        world.run_on()
        world.step()
    events = len(world.events)
    world.set(deleting=True)
    world.step(seconds=5)
    assert len(world.made) == 1, "not beside it"
    assert len(world.events) == events, "nothing was admitted"
    world.vanish()
    decision = world.step(seconds=5)
    assert (world.stage.phase, world.stage.exit_class, world.stage.failures) == ("Retrying", "TryAgain", 0)
    assert decision.event is not None
    assert decision.event.reason == "AttemptFailed"
    assert "Job tiny-preflight-a1 was deleted" in decision.event.message
    world.step(seconds=20)
    assert world.newest == "tiny-preflight-a2"


# The end.


def ended(**changes: Any) -> ClusterWorld:
    world = begun(rounds__count=1, **changes)
    while world.status.phase != "Succeeded":
        world.complete()
        world.step(seconds=60)
    return world


def test_what_has_ended_is_not_begun_again() -> None:
    world = ended()
    status, writes = world.status, world.writes
    world.children.clear()
    for _ in range(3):
        decision = world.step(seconds=1e5)
        assert (decision.create, decision.delete, decision.event, decision.requeue_after) == ([], [], None, None)
    assert (world.status, world.writes) == (status, writes)


def test_jobs_of_a_run_that_has_ended_are_kept_and_then_removed() -> None:
    world = ended(ttlSecondsAfterFinished=100)
    assert world.step().requeue_after == 100
    decision = world.step(seconds=99)
    assert (decision.delete, decision.requeue_after) == ([], 1)
    decision = world.step(seconds=1)
    assert sorted(decision.delete) == sorted(world.made)
    assert not world.step(seconds=1).delete, "once is enough"
    world.clear()
    assert world.step(seconds=1).requeue_after is None
    assert world.status.phase == "Succeeded"


@pytest.mark.parametrize("ttl", [0, 100])
@pytest.mark.parametrize("exit_class", ["Done", "UserError"])
def test_the_end_itself_says_when_the_jobs_are_to_go(exit_class: str, ttl: int) -> None:
    """Nothing else may ever happen to the run or its Jobs that would make anybody look."""
    world = begun(ttlSecondsAfterFinished=ttl, rounds__count=1)
    while world.status.phase == "Running":
        if exit_class == "Done":
            world.complete()
        else:
            world.fail(exit_class)
        decision = world.step()
    assert world.status.phase == ("Succeeded" if exit_class == "Done" else "Failed")
    assert decision.requeue_after == ttl
    assert world.step(seconds=ttl).delete == list(world.children)
    assert world.step().requeue_after is None


def test_a_ttl_that_is_set_later_holds_too() -> None:
    world = ended()
    world.step(seconds=1000)
    world.change(ttl_seconds_after_finished=1)
    assert sorted(world.step().delete) == sorted(world.made)


def test_what_still_runs_at_the_end_is_removed_at_once() -> None:
    world = begun(ttlSecondsAfterFinished=1000)
    world.change(active_deadline_seconds=10)
    assert world.step(seconds=10).delete == ["tiny-preflight-a1"]
    assert world.status.phase == "Failed"
    world.clear()
    world.children["tiny-preflight-a1"] = world.children.get("tiny-preflight-a1") or _straggler()
    decision = world.step(seconds=1)
    assert decision.delete == ["tiny-preflight-a1"]
    assert decision.requeue_after == 999


def _straggler() -> Any:
    from comd_operator.policies.children import Child

    return Child(name="tiny-preflight-a1", stage="preflight", attempt=1, state="Running")
