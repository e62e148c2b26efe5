"""What tools that know nothing of us read from the conditions, by the library that Flux, kpt and others read them with."""

from typing import Any, get_args

import pytest

from comd_api.status import RunPhase
from tests.gitops.judge import Judge
from tests.gitops.situations import (
    RUNS,
    SITUATIONS,
    UNSEEN,
    Situation,
    after,
    made_suspended,
    obstructed,
    succeeded,
    suspended,
)
from tests.unit.cluster_world import ClusterWorld
from tests.unit.test_decide_cluster import begun


def read(judge: Judge, world: ClusterWorld) -> str:
    return judge.kstatus(world.run.to_wire())


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.name)
def test_every_situation_reads_as_what_it_is(judge: Judge, situation: Situation) -> None:
    wire = situation.wire
    conditions: list[dict[str, Any]] = wire["status"]["conditions"]
    assert wire["status"].get("phase") == situation.phase
    assert judge.kstatus(wire) == situation.kstatus
    assert " ".join(found["type"] for found in conditions if found["status"] == "True") == situation.true
    assert {found["observedGeneration"] for found in conditions} == {wire["metadata"]["generation"]}
    assert all(found["status"] in ("True", "False") and found["reason"] for found in conditions)


def test_no_phase_is_left_out() -> None:
    assert {situation.phase for situation in RUNS} == set(get_args(RunPhase))


def test_a_run_that_nobody_has_looked_at_reads_as_done_to_those_who_do_not_ask_for_ready(judge: Judge) -> None:
    """Why all conditions are there from the first visit on, and why that visit comes at once."""
    assert [judge.kstatus(wire) for wire in UNSEEN] == ["InProgress", "Current", "Current"]
    assert read(judge, made_suspended()) == "InProgress"


@pytest.mark.parametrize("world", [begun(), suspended(), succeeded(), after(lambda world: world.fail("UserError"))])
def test_a_change_reads_as_in_progress_until_it_was_looked_at(judge: Judge, world: ClusterWorld) -> None:
    settled = read(judge, world)
    world.change(ttl_seconds_after_finished=7)
    assert read(judge, world) == "InProgress"
    world.step()
    assert read(judge, world) == settled


def test_what_is_stalled_goes_on_once_it_is_mended(judge: Judge) -> None:
    world = obstructed()
    world.step(seconds=10)
    assert read(judge, world) == "InProgress"
    world = after(lambda world: world.give_up())
    world.clear()
    world.step(seconds=60)
    world.run_on()
    world.step()
    assert read(judge, world) == "InProgress"
