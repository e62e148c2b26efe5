"""The brain, case by case."""

from datetime import timedelta

import pytest

from comd_api.run import Retry
from comd_api.status import ExitClass, RunPhase
from comd_operator.decide import decide, interrupt
from comd_operator.policies.children import Child
from tests.unit.runs import START, World, artifact, make_run, running, student_score


def condition(world: World, kind: str) -> tuple[str, str]:
    return next((c.status, c.reason) for c in world.status.conditions if c.type == kind)


def phase_of(world: World) -> RunPhase:
    return world.status.phase


def test_a_run_in_which_nothing_fails() -> None:
    world = World(make_run())
    world.step()
    while world.status.phase == "Running":
        world.end(scores=[student_score(0.5)])
    assert [job.name for job in world.jobs] == [
        "tiny-preflight-a1",
        "tiny-pretrain-a1",
        "tiny-round-1-a1",
        "tiny-round-2-a1",
    ]
    assert world.status.phase == "Succeeded"
    assert world.status.student == artifact("student", "file:///store/round-2")
    assert world.status.round == 2
    assert world.status.score == "0.500"
    assert world.events == ["JobStarted", "StageSucceeded", "StageSucceeded", "StageSucceeded", "Succeeded"]
    assert condition(world, "Ready") == ("True", "Finished")


def test_one_job_for_each_phase() -> None:
    world = World(make_run(execution="Phase"))
    world.step()
    while world.status.phase == "Running":
        world.end("TryAgain" if world.job.phases == ("tune",) and world.job.attempt == 1 else "Done")
        world.step(seconds=700)
    round_one = [job for job in world.jobs if job.stage == "round-1"]
    assert [(job.phases[0], job.attempt, job.job_index) for job in round_one] == [
        ("teach", 1, 0),
        ("tune", 1, 1),
        ("tune", 2, 1),
        ("answer", 2, 2),
        ("assess", 2, 3),
        ("augment", 2, 4),
        ("evaluate", 2, 5),
    ]
    assert world.status.phase == "Succeeded"


def test_conditions_are_all_there_at_the_first_visit() -> None:
    world = World(make_run(suspend=True))
    world.step()
    assert [c.type for c in world.status.conditions] == sorted(c.type for c in world.status.conditions)
    assert condition(world, "Ready") == ("False", "Suspended")
    assert world.status.start_time is None
    assert not world.jobs


@pytest.mark.parametrize("exit_class", ["UserError", "BadData"])
def test_errors_of_the_user_end_the_run_at_once(exit_class: ExitClass) -> None:
    world = World(make_run())
    world.step()
    world.end(exit_class, message="spec.data.images: no such folder")
    assert world.status.phase == "Failed"
    assert condition(world, "Failed") == ("True", exit_class)
    assert condition(world, "Stalled") == ("True", exit_class)
    assert "no such folder" in world.status.conditions[0].message
    assert world.step(seconds=1e6).create == []


def test_failures_are_retried_within_the_limit() -> None:
    world = World(make_run(retry={"limit": 2, "backoffSeconds": 10}))
    world.step()
    for failures in (1, 2):
        decision = world.end("Failed", message="no luck")
        assert decision.create == []
        assert world.status.stages[0].failures == failures
        assert world.status.stages[0].phase == "Retrying"
        assert condition(world, "Reconciling") == ("True", "Retrying")
        assert decision.requeue_after is not None
        assert world.step(seconds=decision.requeue_after - 1).create == []
        assert [job.attempt for job in world.step(seconds=1).create] == [failures + 1]
    world.end("OutOfMemory", message="killed")
    assert world.status.phase == "Failed"
    assert condition(world, "Failed") == ("True", "OutOfMemory")


def test_preemption_costs_nothing() -> None:
    world = World(make_run(retry={"limit": 0, "backoffSeconds": 1}))
    world.step()
    for _ in range(20):
        world.end("TryAgain")
        world.step(seconds=600)
    assert world.status.stages[0].failures == 0
    assert world.status.stages[0].attempt == 21
    assert world.status.phase == "Running"


def test_a_job_that_was_deleted_is_followed_by_another_attempt_at_no_cost() -> None:
    world = World(make_run(retry={"limit": 0}))
    world.step()
    world.children.clear()
    assert world.step().create == []
    assert world.status.stages[0].phase == "Retrying"
    assert "tiny-preflight-a1 was deleted" in (world.status.stages[0].message or "")
    assert [job.name for job in world.step(seconds=10).create] == ["tiny-preflight-a2"]
    assert world.status.stages[0].failures == 0


def test_a_finished_stage_stays_finished_when_its_job_is_gone() -> None:
    world = World(make_run())
    world.step()
    world.end()
    del world.children["tiny-preflight-a1"]
    assert world.step().create == []
    assert world.status.stage == "pretrain"


def test_suspending_now_deletes_the_job_and_goes_on_with_a_new_attempt() -> None:
    world = World(make_run())
    world.step()
    world.change(suspend=True)
    decision = world.step(seconds=30)
    assert decision.delete == ["tiny-preflight-a1"]
    assert world.status.phase == "Suspended"
    assert world.status.active_seconds == 30
    assert world.status.stages[0].active_seconds == 30
    assert world.step(seconds=1000).create == []
    world.change(suspend=False)
    assert [job.name for job in world.step().create] == ["tiny-preflight-a2"]
    assert world.status.active_seconds == 30
    assert world.status.stages[0].failures == 0
    assert world.events[-2:] == ["Suspended", "Resumed"]


def test_nothing_new_starts_while_the_old_job_still_ends() -> None:
    world = World(make_run())
    world.step()
    old = world.live[0]
    world.change(suspend=True)
    world.step()
    world.children[old.name] = old
    world.change(suspend=False)
    decision = world.step()
    assert decision.delete == [old.name]
    assert decision.create == []
    assert [job.attempt for job in world.step().create] == [2]


def test_suspending_at_the_end_of_a_stage() -> None:
    world = World(make_run(suspendPolicy="StageEnd"))
    world.step()
    world.change(suspend=True)
    assert world.step().delete == []
    assert phase_of(world) == "Running"
    world.end()
    assert phase_of(world) == "Suspended"
    assert len(world.jobs) == 1


def test_suspending_at_the_end_of_a_stage_of_several_jobs() -> None:
    world = World(make_run(suspendPolicy="StageEnd", execution="Phase"))
    world.step()
    while world.job.stage != "round-1":
        world.end()
    world.change(suspend=True)
    world.step()
    while world.live:
        world.end()
    assert world.status.stages[-1].name == "round-1"
    assert world.status.stages[-1].phase == "Succeeded"
    assert world.status.phase == "Suspended"


def test_the_run_s_deadline_leaves_out_suspended_time() -> None:
    world = World(make_run(activeDeadlineSeconds=100))
    assert world.step().requeue_after == 100
    world.change(suspend=True)
    world.step(seconds=60)
    world.change(suspend=False)
    assert world.step(seconds=5000).requeue_after == 40
    decision = world.step(seconds=40)
    assert decision.delete == ["tiny-preflight-a2"]
    assert condition(world, "Failed") == ("True", "Deadline")
    assert "activeDeadlineSeconds (100)" in world.status.conditions[0].message


def test_a_stage_s_deadline_counts_all_attempts() -> None:
    world = World(make_run(stageDeadlineSeconds=100, retry={"limit": 9, "backoffSeconds": 0}))
    world.step()
    world.end("Failed", after=60)
    world.step()
    assert world.status.stages[0].attempt == 2
    world.step(seconds=39)
    assert world.status.phase == "Running"
    world.step(seconds=1)
    assert condition(world, "Failed") == ("True", "Deadline")


def test_no_stage_is_begun_after_the_run_s_deadline() -> None:
    world = World(make_run(activeDeadlineSeconds=100))
    world.step()
    decision = world.end(after=150)
    assert decision.create == []
    assert condition(world, "Failed") == ("True", "Deadline")
    assert [stage.phase for stage in world.status.stages] == ["Succeeded", "Failed"]


def test_the_deadline_of_the_last_stage_does_not_hold_in_the_next() -> None:
    world = World(make_run(stageDeadlineSeconds=100))
    world.step()
    world.end(after=90)
    world.step(seconds=90)
    assert world.status.phase == "Running"


def test_too_few_hard_items_end_the_run_well() -> None:
    world = World(make_run(rounds__count=5))
    world.step()
    while world.job.stage != "round-2":
        world.end()
    world.end(stop="12 hard items are fewer than hardItemsFloor (50)")
    assert world.status.phase == "Succeeded"
    assert condition(world, "Succeeded") == ("True", "StoppedEarly")
    (ready,) = (entry for entry in world.status.conditions if entry.type == "Ready")
    assert "12 hard items" in ready.message
    assert world.status.student == artifact("student", "file:///store/round-2")


def test_a_stop_that_one_of_several_jobs_reports_waits_for_the_stage_to_end() -> None:
    world = World(make_run(rounds__count=5, execution="Phase"))
    world.step()
    while world.status.phase == "Running":
        stop = "too few" if world.job.phases == ("assess",) else None
        world.end(stop=stop)
    assert world.job.phases == ("evaluate",)
    assert world.job.stage == "round-1"
    assert condition(world, "Succeeded") == ("True", "StoppedEarly")


def test_progress_is_shown_and_forgotten() -> None:
    world = World(make_run())
    world.step()
    world.children[world.job.name] = running(world.job, progress="tune 43 %")
    world.step()
    assert world.status.progress == "tune 43 %"
    world.end()
    assert world.status.progress is None


def test_a_child_without_result_is_judged_by_its_state() -> None:
    world = World(make_run())
    world.step()
    job = world.job
    world.children[job.name] = Child(
        name=job.name, stage=job.stage, attempt=1, state="Failed", exit_class="OutOfMemory", message="killed"
    )
    world.step()
    assert world.status.stages[0].exit_class == "OutOfMemory"
    assert world.status.stages[0].message == "killed"


def test_terminal_acknowledges_a_new_generation_and_nothing_else() -> None:
    world = World(make_run())
    world.step()
    world.end("UserError", message="wrong")
    before = world.status
    world.change(suspend=True)
    world.step(seconds=5)
    assert world.status.observed_generation == 2
    assert world.status.replace(observed_generation=1, conditions=before.conditions) == before
    assert [c.last_transition_time for c in world.status.conditions] == [
        c.last_transition_time for c in before.conditions
    ]


def test_terminal_removes_what_still_runs() -> None:
    world = World(make_run())
    world.step()
    job = world.job
    world.end("UserError", message="wrong")
    decision = decide(world.run, [running(job)], world.now)
    assert decision.delete == [job.name]
    assert decision.create == []


def test_an_interruption_is_no_failure() -> None:
    world = World(make_run())
    world.step()
    stopped = interrupt(world.run, START + timedelta(seconds=20), message="comd run was stopped")
    assert stopped.phase == "Suspended"
    assert {c.reason for c in stopped.conditions} == {"Interrupted"}
    assert stopped.active_seconds == 20
    world.run, world.now = world.run.replace(status=stopped), START + timedelta(days=3)
    world.children.clear()
    assert [job.name for job in world.step().create] == ["tiny-preflight-a2"]
    assert world.status.active_seconds == 20
    assert world.status.stages[0].failures == 0


def test_retry_time_never_comes_early() -> None:
    world = World(make_run(retry=Retry(backoff_seconds=10).to_wire()))
    world.step()
    world.now += timedelta(milliseconds=300)
    decision = world.end("Failed")
    assert decision.requeue_after is not None
    assert world.step(seconds=decision.requeue_after).create
