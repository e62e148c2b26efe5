"""What becomes of a schedule's slots: a table of cases."""

from datetime import timedelta
from typing import Any

import pytest

from comd_api.schedule import ScheduleStatus
from comd_operator.policies.hold import Obstacle
from comd_operator.schedules.decide import LONGEST_SECONDS, decide
from comd_operator.schedules.runs import manual_name, run_manifest, slot_manifest, slot_name
from tests.unit.schedules import NAME, START, ScheduleWorld, make_schedule

HOUR = 3600.0
NOON = START + timedelta(minutes=30)
COLLISION = Obstacle(reason="NameCollision", message="DistillationRun nightly-29627280 exists", seconds=10.0)


def hourly(hour: int) -> str:
    """The name of the slot's run, hours after noon."""
    return slot_name(NAME, NOON + timedelta(hours=hour))


def begun(**spec: Any) -> ScheduleWorld:
    """Seen once, half an hour before its first slot."""
    world = ScheduleWorld(**spec)
    world.step()
    return world


def test_a_slot_that_comes() -> None:
    world = begun()
    assert world.decide().requeue_after == LONGEST_SECONDS
    assert world.status.next_schedule_times == ["2026-05-01T12:00:00Z", "2026-05-01T13:00:00Z", "2026-05-01T14:00:00Z"]
    world.step(seconds=1799)
    assert world.decide().requeue_after == 1.0
    assert (world.made, world.writes) == ([], 1)
    world.step(seconds=1.25)
    assert world.made == [hourly(0)] == ["nightly-29627280"]
    assert (world.writes, world.events) == (2, ["RunStarted: started nightly-29627280"])
    status = world.status
    assert (status.last_schedule_time, status.settled_time) == ("2026-05-01T12:00:00Z", "2026-05-01T12:00:00Z")
    assert [(run.name, run.uid) for run in status.active] == [(hourly(0), f"uid-{hourly(0)}")]
    assert status.num_active == 1
    assert status.next_schedule_times[0] == "2026-05-01T13:00:00Z"


def test_looking_again_changes_nothing() -> None:
    world = begun()
    world.step(seconds=HOUR)
    for _ in range(5):
        world.step(seconds=60)
    assert (world.writes, len(world.events), len(world.made)) == (2, 1, 1)


def test_a_run_s_end_is_one_write() -> None:
    world = begun()
    world.step(seconds=HOUR)
    world.end(hourly(0))
    world.step(seconds=60)
    world.step(seconds=60)
    assert (world.status.num_active, world.status.active, world.writes) == (0, [], 3)
    assert world.status.last_successful_time == "2026-05-01T12:30:00Z"
    assert len(world.events) == 1


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_killed_at_each_call_of_a_slot(calls: int) -> None:
    undisturbed = begun()
    undisturbed.step(seconds=HOUR)
    undisturbed.step(seconds=1)
    world = begun()
    world.step(seconds=HOUR, calls=calls)
    world.step(seconds=1)
    assert world.status == undisturbed.status
    assert (world.made, world.events) == (undisturbed.made, undisturbed.events)


def test_a_run_that_was_deleted_is_not_made_again() -> None:
    world = begun()
    world.step(seconds=HOUR)
    world.runs.clear()
    world.step(seconds=1)
    assert (len(world.made), world.status.num_active) == (1, 0)


def test_slots_while_nobody_was_there() -> None:
    """As CronJob: the last one is made up, and the others are said."""
    world = begun()
    world.step(seconds=5.5 * HOUR)
    assert world.made == [hourly(5)]
    assert world.events == [f"RunStarted: started {hourly(5)}; 5 slots up to 2026-05-01T17:00:00Z were not started"]
    assert world.condition("Missed")[:2] == ("True", "SlotsMissed")
    world.end_all()
    world.step(seconds=HOUR)
    assert world.condition("Missed") == ("False", "NothingMissed", "")


def test_catch_up() -> None:
    world = begun(catchUp=3)
    world.step(seconds=5.5 * HOUR)
    assert world.made == [hourly(3), hourly(4), hourly(5)], "the oldest first"
    assert world.status.last_schedule_time == "2026-05-01T17:00:00Z"
    assert (world.writes, len(world.events)) == (2, 1)


def test_too_late_for_the_deadline() -> None:
    world = begun(startingDeadlineSeconds=600)
    world.step(seconds=HOUR)
    assert world.made == []
    assert world.events == ["SlotsMissed: 1 slot up to 2026-05-01T12:00:00Z was not started"]
    world.step(seconds=60)
    assert (world.writes, len(world.events)) == (2, 1), "told once"
    world.step(seconds=0.5 * HOUR)
    assert world.made == [hourly(1)], "in time"


def test_more_than_a_hundred() -> None:
    world = begun()
    world.step(seconds=200 * HOUR)
    assert len(world.made) == 1
    status, reason, message = world.condition("Missed")
    assert (status, reason) == ("True", "TooManyMissedSlots")
    assert message.startswith("more than 99 slots up to 2026-05-09T19:00:00Z were not started; set startingDeadline")
    assert world.events[-1].startswith("TooManyMissedSlots: started nightly-")


def test_a_new_timetable_has_no_past() -> None:
    world = begun(schedules=["0 23 * * *"])
    world.edit(schedules=["0 * * * *"])
    world.step(seconds=2 * HOUR)
    assert world.made == [], "12:00 and 13:00 were no slots when they came"
    world.step(seconds=0.5 * HOUR)
    assert world.made == [hourly(2)]


def test_a_new_time_zone_has_no_past() -> None:
    world = begun(schedules=["30 13 * * *"])
    world.step(seconds=HOUR)
    world.edit(time_zone="Europe/Berlin")  # where it has been 14:30 for an hour
    world.step()
    assert world.made == []


def test_another_edit_keeps_what_is_due() -> None:
    world = begun()
    world.edit(failed_runs_history_limit=5)
    world.step(seconds=HOUR)
    assert world.made == [hourly(0)]


def test_forbid_skips_once() -> None:
    world = begun(concurrencyPolicy="Forbid")
    world.step(seconds=HOUR)
    world.step(seconds=HOUR)
    world.step(seconds=60)
    assert world.made == [hourly(0)]
    assert world.events[1:] == [f"SlotSkipped: {hourly(0)} is not over, and concurrencyPolicy is Forbid"]
    assert world.status.last_schedule_time == "2026-05-01T12:00:00Z"
    world.end_all()
    world.step(seconds=60)
    assert world.made == [hourly(0)], "what was skipped is not started later"
    world.step(seconds=HOUR)
    assert world.made == [hourly(0), hourly(2)]


def test_forbid_waits_for_what_a_deleted_run_has_left() -> None:
    world = begun(concurrencyPolicy="Forbid")
    world.step(seconds=HOUR)
    (run,) = world.active
    world.runs[run.name] = type(run)(name=run.name, uid=run.uid, phase="Running", created=run.created, going=True)
    world.step(seconds=HOUR)
    assert world.made == [hourly(0)]


def test_forbid_counts_what_was_triggered() -> None:
    world = begun(concurrencyPolicy="Forbid")
    manual = world.trigger("abc")
    world.step(seconds=HOUR)
    assert (world.made, world.status.num_active) == ([], 1)
    assert manual in world.events[-1]


def test_replace_waits_until_the_run_is_gone() -> None:
    world = begun(concurrencyPolicy="Replace", startingDeadlineSeconds=30)
    world.step(seconds=0.5 * HOUR)
    world.step(seconds=HOUR)
    assert (world.made, world.runs[hourly(0)].going) == ([hourly(0)], True)
    assert world.condition("Reconciling")[:2] == ("True", "Replacing")
    assert world.status.pending_slot == "2026-05-01T13:00:00Z"
    world.step(seconds=600)
    assert world.made == [hourly(0)], "still there"
    world.clear()
    world.step(seconds=1)
    assert world.made == [hourly(0), hourly(1)], "waiting has not made it too late"
    after = world.status
    assert (after.pending_slot, after.num_active) == (None, 1)
    assert [event.partition(":")[0] for event in world.events] == ["RunStarted", "RunReplaced", "RunStarted"]


def test_a_slot_that_comes_while_one_waits_takes_its_place() -> None:
    world = begun(concurrencyPolicy="Replace")
    world.step(seconds=0.5 * HOUR)
    world.step(seconds=HOUR)
    world.step(seconds=HOUR)
    world.clear()
    world.step(seconds=1)
    assert world.made == [hourly(0), hourly(2)]


def test_suspend_and_resume() -> None:
    world = begun(suspend=True)
    assert world.condition("Ready")[0] == "True", "as it should be"
    assert world.decide().requeue_after is None
    world.step(seconds=3 * HOUR)
    assert (world.made, world.status.next_schedule_times, world.writes) == ([], [], 1)
    world.edit(suspend=False)
    world.step(seconds=60)
    assert world.made == [hourly(2)], "as CronJob: the last slot is made up"


def test_suspending_leaves_runs_alone() -> None:
    world = begun(successfulRunsHistoryLimit=0)
    world.step(seconds=HOUR)
    world.edit(suspend=True)
    world.step()
    assert [run.going for run in world.active] == [False]
    world.end_all()
    world.step(seconds=60)
    assert (world.runs, world.status.last_successful_time) == ({}, "2026-05-01T12:30:00Z")


def test_history_limits() -> None:
    world = begun(successfulRunsHistoryLimit=2, failedRunsHistoryLimit=1)
    for number in range(8):
        world.step(seconds=HOUR)
        world.end_all("Failed" if number % 2 else "Succeeded")
    manual = world.trigger("abc")
    world.end(manual)
    world.step(seconds=1)
    assert sorted(world.runs) == sorted([hourly(6), hourly(7), manual])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"schedules": ["0 0 31 2 *"]}, "spec.schedules[0]: '0 0 31 2 *' never comes"),
        ({"timeZone": "Europe/Berln"}, "spec.timeZone: 'Europe/Berln' is no time zone"),
    ],
)
def test_a_spec_that_means_nothing(spec: dict[str, Any], words: str) -> None:
    world = begun(**spec)
    world.step(seconds=5 * HOUR)
    assert (world.made, world.writes, len(world.events)) == ([], 1, 1)
    assert world.condition("Stalled")[:2] == ("True", "InvalidSpec")
    assert world.condition("Ready")[0] == "False"
    assert words in world.events[0]
    world.edit(schedules=["0 * * * *"], time_zone="Etc/UTC")
    world.step(seconds=60)
    assert (world.made, world.condition("Stalled")[0]) == ([], "False")


def test_a_template_that_can_not_begin() -> None:
    world = begun()
    world.wrong = "spec.runTemplate.spec.storage is not set"
    world.step(seconds=HOUR)
    assert (world.made, world.events) == ([], ["InvalidSpec: spec.runTemplate.spec.storage is not set"])
    world.wrong = None
    world.step(seconds=60)
    assert world.made == [hourly(0)]


def test_a_name_that_is_another_s() -> None:
    world = begun()
    for _ in range(3):
        world.step(seconds=0.5 * HOUR, obstacle=COLLISION)
    assert world.condition("Stalled")[:2] == ("True", "NameCollision")
    assert world.events == ["NameCollision: DistillationRun nightly-29627280 exists"]
    assert world.decide(COLLISION).requeue_after == 10.0
    world.step(seconds=60)
    assert world.made == [hourly(1)]
    assert world.condition("Stalled")[0] == "False"


def test_a_clock_that_went_back() -> None:
    world = begun()
    world.step(seconds=2 * HOUR)
    world.step(seconds=-1.9 * HOUR)
    assert world.made == [hourly(1)]
    decision = world.decide()
    assert decision.status.next_schedule_times[0] == "2026-05-01T14:00:00Z"


def test_made_while_nobody_was_there() -> None:
    """Slots count from the creation on."""
    schedule = make_schedule()
    decision = decide(schedule, [], START + timedelta(hours=3))
    assert [slot_name(NAME, slot) for slot in decision.create] == [hourly(2)]


def test_what_is_active_is_bounded() -> None:
    world = begun(schedules=["* * * * *"])
    for _ in range(40):
        world.step(seconds=60)
    assert (world.status.num_active, len(world.status.active)) == (40, 32)
    assert world.status.active[-1].name == world.made[-1], "the newest"
    ScheduleStatus.model_validate(world.status.to_wire())


def test_the_run_of_a_slot() -> None:
    metadata = {"labels": {"team": "vision"}, "annotations": {"note": "x"}}
    template = {"metadata": metadata, "spec": make_schedule().spec.run_template.spec.to_wire()}
    run = slot_manifest(make_schedule(runTemplate=template), NOON, last=None)
    assert run["metadata"]["name"] == hourly(0)
    assert run["metadata"]["labels"] == {"team": "vision", "comd.dev/schedule": NAME}
    assert run["metadata"]["annotations"] == {"note": "x", "comd.dev/slot": "2026-05-01T12:00:00Z"}
    (owner,) = run["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("DistillationSchedule", "uid-of-schedule", True)
    assert not owner["blockOwnerDeletion"], "which needs a right to the owner's finalizers"


def test_names_of_triggered_runs() -> None:
    schedule = make_schedule(name="s" * 52)
    name = manual_name(schedule.metadata.name, mark="01234567")
    assert len(name) == 63
    assert name.endswith("-manual-01234567")
    assert manual_name("nightly", mark="01") == "nightly-manual-01"
    assert run_manifest(schedule, name=name, last=None)["metadata"]["annotations"] == {}
    assert len(slot_name(schedule.metadata.name, NOON + timedelta(days=365 * 7000))) <= 63
