"""The stage `promote`, and runs that have nothing to do."""

from typing import Any

import pytest

from comd_api.stages import stage_names
from comd_operator.planner import job_manifest, num_nodes, plan_job, stage_config
from tests.unit.runs import World, artifact, make_run, student_score
from tests.unit.test_decide_reuse import ledger

PROMOTION = {"evaluation": "test"}


def condition(world: World, kind: str) -> Any:
    return next(entry for entry in world.status.conditions if entry.type == kind)


def through(world: World, *, until: str) -> None:
    """Every stage ends well, up to the one that is not begun here."""
    while True:
        world.step()
        stage = world.status.stages[-1].name
        if stage == until:
            return
        world.end(artifacts=[artifact("preflight" if stage == "preflight" else "student")])


@pytest.mark.parametrize(("promoted", "words"), [(True, "promoted to channels/stable.json"), (False, "not promoted")])
def test_promote_is_the_last_stage_and_a_run_succeeds_either_way(promoted: bool, words: str) -> None:
    world = World(make_run(promotion=PROMOTION, rounds__count=1))
    assert stage_names(world.run.spec)[-1] == "promote"
    through(world, until="promote")
    assert {ref.name for ref in stage_config(world.run, world.job).inputs} == {"preflight", "student"}
    world.end(promoted=promoted, message=words)
    world.step()
    assert world.status.phase == "Succeeded"
    assert world.status.stages[-1].promoted is promoted
    assert world.status.round == 1, "the last round that was begun"
    assert (condition(world, "Succeeded").reason, condition(world, "Succeeded").message.endswith(f"; {words}")) == (
        "Finished",
        True,
    )


def test_it_needs_no_gpu() -> None:
    run = make_run(
        promotion=PROMOTION,
        trainer__image="trainer",
        trainer__numNodes=2,
        trainer__resourcesPerNode={"limits": {"nvidia.com/gpu": "2"}},
        trainer__preflightResources={"limits": {"memory": "2Gi"}},
        storage={"uri": "s3://bucket/x"},
    )
    run = run.replace(metadata=run.metadata.model_copy(update={"uid": "u"}))
    job = plan_job(run.spec, run="tiny", stage="promote", job_index=0, attempt=1)
    assert num_nodes(run, job) == 1
    made = job_manifest(run, job, stage_config(run, job))
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"memory": "2Gi"}}


def test_rounds_that_end_early_are_followed_by_it() -> None:
    world = World(make_run(promotion=PROMOTION, rounds__count=3))
    through(world, until="round-1")
    world.end(artifacts=[artifact("student")], stop="too few hard items")
    world.step()
    assert world.status.stages[-1].name == "promote"
    world.end(promoted=True, message="promoted")
    world.step()
    assert world.status.phase == "Succeeded"
    assert condition(world, "Succeeded").reason == "StoppedEarly"
    assert condition(world, "Succeeded").message == "too few hard items; promoted"


def test_early_stop_is_followed_by_it() -> None:
    rule = {"evaluation": "test", "patience": 1}
    world = World(make_run(promotion=PROMOTION, rounds__count=3, rounds__earlyStop=rule))
    through(world, until="round-1")
    world.end(artifacts=[artifact("student")], scores=[student_score(0.5)])
    world.step()
    world.end(artifacts=[artifact("student")], scores=[student_score(0.4)])
    world.step()
    assert world.status.stages[-1].name == "promote"


def test_where_nothing_has_changed_nothing_follows_preflight() -> None:
    world = World(make_run(promotion=PROMOTION, skipIfUnchangedSince="before"))
    world.step()
    world.end(artifacts=[artifact("preflight"), artifact("student")], stop="nothing has changed since run before")
    world.step()
    assert ledger(world) == [("preflight", "Succeeded")]
    assert world.status.phase == "Succeeded"
    assert (condition(world, "Succeeded").reason, condition(world, "Ready").message) == (
        "Unchanged",
        "nothing has changed since run before",
    )
    assert world.status.student is not None, "that of the run before"


def test_what_a_run_starts_from_is_the_first_round_s_input() -> None:
    world = World(make_run(startFrom={"run": "before"}, rounds__count=1))
    world.step()
    start = [artifact("student", "file:///store/before/student"), artifact("pools", "file:///store/before/pools")]
    world.end(artifacts=[artifact("preflight"), *start])
    through(world, until="round-1")
    given = {ref.name: ref.uri for ref in stage_config(world.run, world.job).inputs}
    assert given["pools"] == "file:///store/before/pools"
    assert given["student"] == "file:///store/before/student" or "pretrain" in stage_names(world.run.spec)
