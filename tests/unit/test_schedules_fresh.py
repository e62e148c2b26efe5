"""What the runs of a schedule have to do with each other: what each begins with, and when it has nothing to do."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from comd_api.run import Storage
from comd_api.schedule import ScheduleStatus
from comd_operator.cli.schedule_plan import schedule_lines
from comd_operator.planner import ClusterDefaults
from comd_operator.planner.problems import MAX_CONFIG_BYTES
from comd_operator.policies.clock import to_text
from comd_operator.policies.hold import Obstacle
from comd_operator.runtime.records import read_run
from comd_operator.schedules.decide import decide
from comd_operator.schedules.runs import (
    ScheduledRun,
    manual_manifest,
    slot_manifest,
    slot_name,
    slot_of,
    template_problem,
)
from tests.unit.schedules import NAME, START, ScheduleWorld, make_schedule

HOUR = 3600.0
PROMOTION = {"promotion": {"evaluation": "test", "channel": "best"}}


@pytest.mark.parametrize(
    ("spec", "last", "start", "since"),
    [
        ({}, "nightly-1", None, None),
        ({"startFrom": "LastSuccessful", "skipIfUnchanged": True}, None, None, None),
        ({"startFrom": "LastSuccessful"}, "nightly-1", {"run": "nightly-1"}, None),
        ({"skipIfUnchanged": True}, "nightly-1", None, "nightly-1"),
        (
            {"startFrom": "LastSuccessful", "template": PROMOTION},
            "nightly-1",
            {"run": "nightly-1", "channel": "best"},
            None,
        ),
        (
            {"startFrom": "LastSuccessful", "skipIfUnchanged": True, "template": PROMOTION},
            "nightly-1",
            {"run": "nightly-1", "channel": "best"},
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


@pytest.mark.parametrize(
    ("before", "ended", "after"),
    [
        (None, {}, None),
        (None, {"one": 5}, (5, "one")),
        ((5, "one"), {}, (5, "one")),
        ((5, "one"), {"two": 4}, (5, "one")),
        ((5, "one"), {"two": 6, "three": 7, "four": 1}, (7, "three")),
        ((5, "two"), {"one": 5}, (5, "two")),
        ((5, "two"), {"two": 5, "three": 5}, (5, "two")),
        ((5, None), {"one": 5}, (5, "one")),
        ((5, None), {"one": 4}, (5, None)),
    ],
    ids=str,
)
def test_which_run_succeeded_last(
    before: tuple[int, str | None] | None, ended: dict[str, int], after: tuple[int, str | None] | None
) -> None:
    """Minutes, and names of runs. The status of an earlier version has a time alone."""

    def at(minutes: int) -> datetime:
        return START + timedelta(minutes=minutes)

    status = ScheduleStatus()
    if before is not None:
        status = status.replace(last_successful_time=to_text(at(before[0])), last_successful_run=before[1])
    runs = [
        ScheduledRun(name=name, uid=name, phase="Succeeded", created=START, completed=at(minutes))
        for name, minutes in ended.items()
    ]
    runs.append(ScheduledRun(name="failed", uid="x", phase="Failed", created=START, completed=at(9)))
    found = decide(make_schedule().replace(status=status), runs, START).status
    wanted = (None, None) if after is None else (to_text(at(after[0])), after[1])
    assert (found.last_successful_time, found.last_successful_run) == wanted


@pytest.mark.parametrize("what", ["suspended", "wrong", "refused"])
def test_a_run_is_not_made_again_that_ended_before_its_slot_was_settled(what: str) -> None:
    """It would begin with itself."""
    world = ScheduleWorld(startFrom="LastSuccessful", successfulRunsHistoryLimit=0, catchUp=2)
    world.step()
    world.step(seconds=2 * HOUR, calls=1)
    (first,) = world.made
    world.end(first)
    world.edit(suspend=what == "suspended")
    world.wrong = "no storage" if what == "wrong" else None
    world.step(seconds=60, obstacle=Obstacle(reason="Forbidden", message="quota", seconds=30.0))
    assert list(world.runs) == [first], "by which it is known that its slot was started"
    world.edit(suspend=False)
    world.wrong = None
    world.step(seconds=60)
    assert world.made.count(first) == 1
    assert world.specs[world.made[1]]["startFrom"] == {"run": first}
    world.step(seconds=60)
    assert first not in world.runs


def test_the_slot_of_a_run() -> None:
    assert slot_of(NAME, slot_name(NAME, START)) == START
    suffixes = ("", "-", "-manual-1", "-01", "-1a", "-" + "9" * 10, "-\u0661")
    assert {slot_of(NAME, name) for name in (*(NAME + suffix for suffix in suffixes), "29627280")} == {None}


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
        schedule = make_schedule(**spec)
        template = schedule.spec.run_template
        large = template.spec.replace(data=template.spec.data.replace(images="x" * size))
        full = schedule.spec.replace(run_template=template.replace(spec=large))
        return template_problem(schedule.replace(spec=full), defaults)

    told = re.match(r"spec\.runTemplate\.spec has (\d+) bytes", wrong(MAX_CONFIG_BYTES) or "")
    assert told is not None
    fits = 2 * MAX_CONFIG_BYTES - int(told[1])
    assert wrong(fits) is None
    specs: tuple[dict[str, Any], ...] = ({"startFrom": "LastSuccessful"}, {"skipIfUnchanged": True})
    for spec in specs:
        assert "spec.runTemplate.spec has 120" in (wrong(fits, **spec) or "")
        assert wrong(fits - 200, **spec) is None


def test_the_plan_says_so() -> None:
    def lines(**spec: Any) -> str:
        return "\n".join(schedule_lines(make_schedule(**spec), storage=Storage(uri="file:///s"), now=START))

    assert "each further one" not in lines()
    assert "with the student of the last run that succeeded" in lines(startFrom="LastSuccessful")
    assert "with the student of channels/best.json" in lines(startFrom="LastSuccessful", template=PROMOTION)
    assert "a run is done with preflight when neither data" in lines(skipIfUnchanged=True)
    assert NAME in lines()
