"""What holds of schedules under every interleaving: hypothesis plays the user, the runs, the clock and the crashes. And a whole year of
three zones, played in seconds."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comd_api.promotion import Promotion
from comd_api.schedule import ScheduleStatus
from comd_operator.policies.clock import from_text
from comd_operator.policies.hold import Obstacle
from comd_operator.schedules import decide
from comd_operator.schedules.runs import slot_name, slot_of
from comd_operator.schedules.timetable import Timetable
from tests.unit.schedules import NAME, START, ScheduleWorld

TIMETABLES = [["0 * * * *"], ["*/20 * * * *", "7 3 * * *"], ["30 1,2 * * *"], ["@daily"]]
ZONES = ["Etc/UTC", "America/Los_Angeles", "Europe/Berlin"]
POLICIES = ["Allow", "Forbid", "Replace"]
SPECS = st.fixed_dictionaries(
    {
        "schedules": st.sampled_from(TIMETABLES),
        "timeZone": st.sampled_from(ZONES),
        "concurrencyPolicy": st.sampled_from(POLICIES),
        "startingDeadlineSeconds": st.none() | st.integers(1, 10_000),
        "successfulRunsHistoryLimit": st.integers(0, 3),
        "failedRunsHistoryLimit": st.integers(0, 3),
        "suspend": st.booleans(),
        "startFrom": st.sampled_from(["Scratch", "LastSuccessful"]),
        "skipIfUnchanged": st.booleans(),
    }
)
OBSTACLES = (None, None, None, Obstacle(reason="Forbidden", message="quota", seconds=30.0))
PROMOTION = {"promotion": {"evaluation": "test"}}
JUMPS = st.integers(0, 4000) | st.integers(0, 400_000) | st.integers(-4000, 0)


class Interleavings(RuleBasedStateMachine):
    @initialize(spec=SPECS, catch_up=st.integers(1, 4), template=st.sampled_from([{}, PROMOTION]))
    def begin(self, spec: dict[str, Any], catch_up: int, template: dict[str, Any]) -> None:
        if spec["concurrencyPolicy"] == "Allow":
            spec = {**spec, "catchUp": catch_up}
        given = {key: value for key, value in spec.items() if value is not None}
        self.world = ScheduleWorld(template=template, **given)
        self.seen = START
        """The latest that a clock has shown when the schedule was looked at."""
        self.changed = START
        """When a change of what names slots was last seen."""
        self.edited = False
        """Whether such a change has yet to be seen."""
        self.triggered = 0
        self.noted: set[str] = set()
        """Runs that the status has ever named as the last one that succeeded."""

    @rule(seconds=JUMPS, calls=st.integers(0, 4) | st.just(99), obstacle=st.sampled_from(OBSTACLES))
    def reconcile(self, seconds: int, calls: int, obstacle: Obstacle | None) -> None:
        world = self.world
        before, made, runs = world.status, len(world.made), dict(world.runs)
        decision = world.step(seconds, obstacle=obstacle, calls=calls)
        if self.edited and world.status != before:
            self.changed, self.edited = world.now.replace(microsecond=0), False
        self.seen = max(self.seen, world.now)
        new = world.made[made:]
        self.check_starts(new, runs)
        self.check_last(before)
        if obstacle is not None:
            assert not decision.create or not new
        if before.settled_time is not None and world.status.settled_time is not None:
            assert from_text(world.status.settled_time) >= from_text(before.settled_time), "it only ever grows"

    def check_starts(self, new: list[str], runs: dict[str, Any]) -> None:
        world = self.world
        spec = world.schedule.spec
        assert len(new) <= spec.catch_up
        if not new:
            return
        assert not spec.suspend
        if spec.concurrency_policy != "Allow":
            assert len(new) == 1
            assert not [run for run in runs.values() if not run.ended], "never two at once"
        times = Timetable(spec.schedules, time_zone=spec.time_zone)
        for name in new:
            slot = datetime.fromtimestamp(int(name.rpartition("-")[2]) * 60, UTC)
            assert times.until(slot) == slot, "it is a slot"
            assert slot <= self.seen, "not before its time"
            assert slot > self.changed or self.edited, "not of before the change"
            self.check_spec(world.specs[name], runs)

    def check_spec(self, made: dict[str, Any], runs: dict[str, Any]) -> None:
        """It goes by the newest run that has succeeded, whether it is kept or not, and whether it was written down or not."""
        world = self.world
        spec, begins, since = world.schedule.spec, made.get("startFrom"), made.get("skipIfUnchangedSince")
        known = {name for name, run in runs.items() if run.phase == "Succeeded"} | self.noted
        fresh, promotion = spec.start_from == "LastSuccessful" and bool(known), spec.run_template.spec.promotion
        assert (begins is not None) == fresh
        assert (since is not None) == (spec.skip_if_unchanged and bool(known))
        assert (begins or {}).get("channel") == (promotion.channel if fresh and promotion is not None else None)
        for name in ((begins or {}).get("run"), since):
            assert name is None or name in known
            assert name is None or world.succeeded[name] == max(world.succeeded[each] for each in known)

    def check_last(self, before: ScheduleStatus) -> None:
        """Which run succeeded last is never forgotten, and never an earlier one."""
        when, name = self.world.status.last_successful_time, self.world.status.last_successful_run
        assert (name is None) == (when is None)
        if name is not None and when is not None:
            self.noted.add(name)
            assert from_text(when) == self.world.succeeded[name]
        if before.last_successful_time is not None and before.last_successful_run is not None:
            assert when is not None, "nor is it lost"
            assert (from_text(when), name) >= (from_text(before.last_successful_time), before.last_successful_run)

    @precondition(lambda self: self.world.active)
    @rule(phase=st.sampled_from(["Succeeded", "Failed"]), unchanged=st.booleans(), data=st.data())
    def run_ends(self, phase: Any, unchanged: bool, data: st.DataObject) -> None:
        names = sorted(run.name for run in self.world.active if not run.going)
        if names:
            idle = unchanged and phase == "Succeeded"
            self.world.end(data.draw(st.sampled_from(names)), phase, unchanged=idle)

    @rule()
    def what_was_deleted_is_gone(self) -> None:
        self.world.clear()

    @precondition(lambda self: self.triggered < 6)
    @rule()
    def user_triggers(self) -> None:
        self.triggered += 1
        self.world.trigger(str(self.triggered))

    @rule(timetable=st.sampled_from(TIMETABLES), zone=st.sampled_from(ZONES))
    def user_changes_the_timetable(self, timetable: list[str], zone: str) -> None:
        if self.world.status.settled_time is None:
            return  # It has yet to be seen.
        self.world.edit(schedules=timetable, time_zone=zone)
        self.edited = decide.timetable_text(self.world.schedule.spec) != self.world.status.timetable

    @rule(policy=st.sampled_from(POLICIES), suspend=st.booleans(), limit=st.integers(0, 3))
    def user_edits(self, policy: Any, suspend: bool, limit: int) -> None:
        self.world.edit(concurrency_policy=policy, suspend=suspend, successful_runs_history_limit=limit, catch_up=1)

    @rule(start=st.sampled_from(["Scratch", "LastSuccessful"]), skip=st.booleans(), promotes=st.booleans())
    def user_edits_what_runs_begin_with(self, start: Any, skip: bool, promotes: bool) -> None:
        template = self.world.schedule.spec.run_template
        promotion = Promotion(evaluation="test") if promotes else None
        changed = template.replace(spec=template.spec.replace(promotion=promotion))
        self.world.edit(start_from=start, skip_if_unchanged=skip, run_template=changed)

    @invariant()
    def a_slot_is_started_at_most_once(self) -> None:
        assert len(self.world.made) == len(set(self.world.made))

    @invariant()
    def history_limits_hold_after_a_look(self) -> None:
        spec, decision = self.world.schedule.spec, self.world.decide()
        settled, pending = from_text(decision.status.settled_time or ""), decision.status.pending_slot
        slots = {name: slot_of(NAME, name) or START for name in self.world.runs}
        runs = [
            run
            for name, run in self.world.runs.items()
            if slots[name] <= settled and (pending is None or slots[name] != from_text(pending))
        ]
        gone = {run.name for run in decision.expire}
        for phase, limit in (
            ("Succeeded", spec.successful_runs_history_limit),
            ("Failed", spec.failed_runs_history_limit),
        ):
            kept = [run for run in runs if run.phase == phase and run.name not in gone and not run.going]
            for unchanged in (False, True):
                alike = [run for run in runs if (run.phase, run.unchanged, run.going) == (phase, unchanged, False)]
                left = [run for run in kept if run.unchanged == unchanged]
                assert len(left) == min(len(alike), limit), "quiet nights drive out nothing that was made"
        assert not gone & {run.name for run in self.world.active}, "what runs is never cleaned up"

    @invariant()
    def the_schema_holds_the_status(self) -> None:
        ScheduleStatus.model_validate(self.world.status.to_wire())

    @invariant()
    def asking_again_changes_nothing(self) -> None:
        world = self.world
        decision = world.decide()
        if decision.create or decision.replace or decision.expire:
            return
        world.schedule, kept = world.schedule.replace(status=decision.status), world.schedule
        again = world.decide()
        world.schedule = kept
        assert again.status == decision.status
        assert (again.event, again.create, again.started, again.missed, again.skipped) == (None, (), 0, 0, 0)


Interleavings.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestInterleavings = Interleavings.TestCase


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Europe/Berlin", "Australia/Sydney"])
def test_a_year(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only moves to where it was told to look again, which is as far as the next slot. Every slot is started once, at its
    second, with a write and an event for it and one write for its run's end; also on the days on which clocks change."""
    monkeypatch.setattr(decide, "LONGEST_SECONDS", 8 * 86_400.0)
    began = time.process_time()
    world = ScheduleWorld(schedules=["30 1,2,3 * * *", "0 12 * * MON"], timeZone=zone, concurrencyPolicy="Forbid")
    end = START + timedelta(days=366)
    while world.now < end:
        decision = world.step()
        assert decision.requeue_after is not None
        if world.active:
            world.end_all()
            world.step()
        world.now += timedelta(seconds=decision.requeue_after)
    local = ZoneInfo(zone)
    minutes = (START + timedelta(minutes=30 * number) for number in range(1, 366 * 48))
    clocks = ((minute, minute.astimezone(local)) for minute in minutes)
    expected = [
        slot_name(NAME, minute)
        for minute, clock in clocks
        if (clock.minute, clock.hour) in ((30, 1), (30, 2), (30, 3))
        or (clock.weekday(), clock.hour, clock.minute) == (0, 12, 0)
    ]
    assert world.made == expected[: len(world.made)]
    assert len(world.made) in (len(expected), len(expected) - 1)
    assert len(world.made) == 366 * 3 + 52, "a slot is skipped in spring, and one comes twice in autumn"
    assert world.writes == 1 + 2 * len(world.made)
    assert len(world.events) == len(world.made)
    assert time.process_time() - began < 20
