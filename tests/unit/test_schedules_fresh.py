"""What the runs of a schedule have to do with each other: what each begins with, and when it has nothing to do."""

from typing import Any

import pytest

from comd_api.run import Storage
from comd_api.schedule import ScheduleStatus
from comd_operator.cli.schedule_plan import schedule_lines
from comd_operator.runtime.records import read_run
from comd_operator.schedules.runs import manual_manifest, slot_manifest
from comd_operator.validation import check_document
from tests.unit.schedules import NAME, START, ScheduleWorld, make_schedule, schedule_manifest

HOUR = 3600.0
PROMOTION = {"promotion": {"evaluation": "test", "channel": "best"}}


@pytest.mark.parametrize(
    ("spec", "last", "start", "since"),
    [
        ({}, "nightly-1", None, None),
        ({"startFrom": "LastSuccessful", "skipIfUnchanged": True}, None, None, None),
        ({"startFrom": "LastSuccessful"}, "nightly-1", {"run": "nightly-1"}, None),
        ({"skipIfUnchanged": True}, "nightly-1", None, "nightly-1"),
        ({"startFrom": "LastSuccessful", "template": PROMOTION}, "nightly-1", {"channel": "best"}, None),
        (
            {"startFrom": "LastSuccessful", "skipIfUnchanged": True, "template": PROMOTION},
            "nightly-1",
            {"channel": "best"},
            "nightly-1",
        ),
        ({"template": {"startFrom": {"channel": "x"}}}, "nightly-1", {"channel": "x"}, None),
        ({"template": {"skipIfUnchangedSince": "x"}}, "nightly-1", None, "x"),
    ],
)
def test_what_a_slot_s_run_begins_with(
    spec: dict[str, Any], last: str | None, start: dict[str, Any] | None, since: str | None
) -> None:
    made = slot_manifest(make_schedule(**spec), START, last=last)["spec"]
    assert (made.get("startFrom"), made.get("skipIfUnchangedSince")) == (start, since)


def test_a_run_that_somebody_wants_is_not_skipped() -> None:
    schedule = make_schedule(startFrom="LastSuccessful", skipIfUnchanged=True)
    assert "startFrom" not in manual_manifest(schedule, mark="x", last=None)["spec"]
    made = manual_manifest(schedule, mark="x", last="nightly-1")
    assert made["spec"]["startFrom"] == {"run": "nightly-1"}
    assert "skipIfUnchangedSince" not in made["spec"]


def test_each_begins_with_the_last_that_succeeded_also_when_it_is_not_kept() -> None:
    world = ScheduleWorld(startFrom="LastSuccessful", skipIfUnchanged=True, successfulRunsHistoryLimit=0)
    world.step()
    for _ in range(3):
        world.step(seconds=HOUR)
        world.end(world.made[-1], "Succeeded")
        world.step(seconds=60)
        world.step(seconds=60)
        assert not world.runs, "history"
    first, second, third = world.made
    assert "startFrom" not in world.specs[first]
    assert (world.specs[second]["startFrom"], world.specs[third]["startFrom"]) == ({"run": first}, {"run": second})
    assert world.specs[third]["skipIfUnchangedSince"] == second
    world.step(seconds=HOUR)
    world.end(world.made[-1], "Failed")
    world.step(seconds=HOUR)
    assert world.specs[world.made[-1]]["startFrom"] == {"run": third}, "not with one that failed"
    assert world.status.last_successful_run == third


def test_a_run_that_ends_when_the_next_slot_comes_counts() -> None:
    """Nothing was written of it yet."""
    world = ScheduleWorld(startFrom="LastSuccessful")
    world.step()
    world.step(seconds=HOUR)
    world.end(world.made[-1])
    world.step(seconds=HOUR)
    assert world.specs[world.made[1]]["startFrom"] == {"run": world.made[0]}


def test_quiet_nights_drive_out_no_run_that_has_made_something() -> None:
    world = ScheduleWorld(skipIfUnchanged=True, successfulRunsHistoryLimit=2)
    world.step()
    for night in range(8):
        world.step(seconds=HOUR)
        world.end(world.made[-1], unchanged=night > 0)
    world.step(seconds=60)
    world.step(seconds=60)
    first, *_, before_last, last = world.made
    assert sorted(world.runs) == sorted([first, before_last, last])
    assert world.status.last_successful_run == last, "which has passed on what the first has come to"


def test_how_a_run_without_anything_to_do_is_known() -> None:
    def read(reason: str) -> bool:
        metadata = {"name": "n", "namespace": "x", "uid": "u", "resourceVersion": "1"}
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        conditions = [{"type": "Ready", "reason": reason}, {"type": "Succeeded", "reason": reason}]
        return read_run({"metadata": metadata, "status": {"phase": "Succeeded", "conditions": conditions}}).unchanged

    assert (read("Unchanged"), read("Finished")) == (True, False)


def test_a_template_to_which_no_more_fits() -> None:
    """The first run would begin, and no later one."""
    defaults = ClusterDefaults(trainer_image="x", storage_uri="s3://bucket/x")

    def wrong(size: int, **spec: Any) -> str | None:
        env = {"trainer": {"env": [{"name": "PADDING", "value": "x" * size}]}}
        return template_problem(make_schedule(template=env, **spec), defaults)

    fits = max(size for size in range(MAX_CONFIG_BYTES - 4000, MAX_CONFIG_BYTES) if wrong(size) is None)
    assert wrong(fits + 1, startFrom="Scratch") is not None
    for spec in ({"startFrom": "LastSuccessful"}, {"skipIfUnchanged": True}):
        told = wrong(fits, **spec)
        assert told is not None and told.startswith("spec.runTemplate.spec has 120")
        assert wrong(fits - 200, **spec) is None


def test_the_plan_says_so() -> None:
    def lines(**spec: Any) -> str:
        return "\n".join(schedule_lines(make_schedule(**spec), storage=Storage(uri="file:///s"), now=START))

    assert "each further one" not in lines()
    assert "with the student of the last run that succeeded" in lines(startFrom="LastSuccessful")
    assert "with the student of channels/best.json" in lines(startFrom="LastSuccessful", template=PROMOTION)
    assert "a run is done with preflight when neither data" in lines(skipIfUnchanged=True)
    assert NAME in lines()
