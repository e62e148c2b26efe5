"""What `preflight` finds finished in the store is booked without a Job."""

from typing import Any

import pytest

from comd_api.stage import ReusedStage
from comd_api.stages import phases_of
from comd_operator.planner import stage_config
from tests.unit.cluster_world import ClusterWorld
from tests.unit.runs import World, artifact, make_run, student_score
from tests.unit.test_decide_cluster import begun


def found(*names: str, **more: Any) -> list[ReusedStage]:
    """Each with a student of its own, and pools where a round follows."""
    return [
        ReusedStage(
            name=name,
            artifacts=[
                artifact("student", f"file:///store/other/{name}"),
                artifact("pools", f"file:///store/p/{name}"),
            ],
            **more,
        )
        for name in names
    ]


def after_preflight(reused: list[ReusedStage], **changes: Any) -> World:
    world = World(make_run(**changes))
    world.step()
    world.end(artifacts=[artifact("preflight")], reused=reused)
    return world


def ledger(world: World | ClusterWorld) -> list[tuple[str, str]]:
    return [(stage.name, stage.phase) for stage in world.status.stages]


def test_the_first_stage_that_is_not_there_is_run() -> None:
    world = after_preflight(found("pretrain", "round-1"))
    assert ledger(world) == [
        ("preflight", "Succeeded"),
        ("pretrain", "Reused"),
        ("round-1", "Reused"),
        ("round-2", "Running"),
    ]
    assert [job.stage for job in world.jobs] == ["preflight", "round-2"], "nothing was made for what is there"
    config = stage_config(world.run, world.job)
    assert {ref.name: ref.uri for ref in config.inputs} == {
        "preflight": "file:///store/x",
        "student": "file:///store/other/round-1",
        "pools": "file:///store/p/round-1",
    }
    taken = world.status.stages[1]
    assert [(time.name, time.reused) for time in taken.phases] == [
        (phase, True) for phase in phases_of(world.run.spec, "pretrain")
    ]
    assert (taken.attempt, taken.job_name, taken.active_seconds) == (0, None, 0.0)
    assert taken.completion_time is not None
    assert world.status.student is not None
    assert world.status.student.uri == "file:///store/other/round-1"


def test_a_run_of_which_everything_is_there_is_done_with_preflight() -> None:
    world = after_preflight(found("pretrain", "round-1", "round-2"))
    assert world.status.phase == "Succeeded"
    assert [job.stage for job in world.jobs] == ["preflight"]
    ready = next(condition for condition in world.status.conditions if condition.type == "Ready")
    assert ready.message == "all 4 stages are done, 3 of them reused"
    assert world.status.student is not None
    assert world.status.student.uri == "file:///store/other/round-2"
    before = world.status
    world.step(seconds=60)
    assert world.status == before


def test_on_a_cluster_the_next_job_is_made_before_preflight_is_complete() -> None:
    world = begun()
    world.finish(artifacts=[artifact("preflight")], reused=found("pretrain"))
    decision = world.step(seconds=1)
    assert [job.name for job in decision.create] == ["tiny-round-1-a1"]
    assert {ref.name for ref in stage_config(world.run.replace(status=decision.ahead), decision.create[0]).inputs} == {
        "preflight",
        "student",
        "pools",
    }
    world.complete("tiny-preflight-a1")
    world.step(seconds=1)
    assert ledger(world) == [("preflight", "Succeeded"), ("pretrain", "Reused"), ("round-1", "Running")]
    assert world.events[-1] == "StageSucceeded: preflight; reused: pretrain; round-1: attempt 1, Job tiny-round-1-a1"


@pytest.mark.parametrize(
    ("reused", "taken"),
    [
        (found("round-1"), []),
        (found("pretrain", "round-2"), ["pretrain"]),
        (found("round-1", "pretrain"), []),
        (found("pretrain", "pretrain"), ["pretrain"]),
        (found("pretrain", "round-1", "round-2", "round-3"), ["pretrain", "round-1", "round-2"]),
    ],
)
def test_only_what_comes_next_is_taken_over(reused: list[ReusedStage], taken: list[str]) -> None:
    world = after_preflight(reused)
    assert [name for name, phase in ledger(world) if phase == "Reused"] == taken


def test_rounds_end_as_early_as_if_they_had_been_run() -> None:
    told = after_preflight(found("pretrain") + found("round-1", stop="too few hard items") + found("round-2"))
    assert ledger(told)[-1] == ("round-1", "Reused")
    assert told.status.phase == "Succeeded"
    stands_still = found("pretrain", "round-1", "round-2", scores=[student_score(0.5)])
    early = after_preflight(
        stands_still,
        rounds__earlyStop={"evaluation": "test", "patience": 1},
        data__evaluation=[{"name": "test", "items": "test.jsonl"}],
    )
    assert ledger(early)[-1] == ("round-1", "Reused")
    assert early.status.phase == "Succeeded"


def test_what_was_reused_is_said_while_the_next_stage_runs() -> None:
    world = after_preflight(found("pretrain"))
    ready = next(condition for condition in world.status.conditions if condition.type == "Ready")
    assert ready.message == "round-1, attempt 1; reused: pretrain"
    before, told = world.status, len(world.events)
    world.step(seconds=1)
    assert (world.status, len(world.events)) == (before, told), "once"


def test_a_preflight_that_failed_has_found_nothing() -> None:
    world = World(make_run(retry__limit=0))
    world.step()
    world.end("Failed", message="lost", reused=found("pretrain"))
    assert ledger(world) == [("preflight", "Failed")]
