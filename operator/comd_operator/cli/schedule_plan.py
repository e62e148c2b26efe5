"""`comd plan` of a schedule: its next slots, and what the run of each will be."""

from datetime import UTC, datetime
from itertools import islice

from comd_api.run import Storage
from comd_api.schedule import DistillationSchedule, ScheduleSpec
from comd_operator.cli.plan import plan_lines
from comd_operator.policies.clock import to_text
from comd_operator.schedules.decide import timetable_text
from comd_operator.schedules.runs import slot_name, start_of, template_run
from comd_operator.schedules.timetable import timetable

NUM_SLOTS = 5


def schedule_lines(schedule: DistillationSchedule, *, storage: Storage, now: datetime | None = None) -> list[str]:
    """storage: where the runs' artifacts live."""
    spec = schedule.spec
    times = timetable(tuple(spec.schedules), spec.time_zone)
    suspended = "; suspended, so that none is started" if spec.suspend else ""
    lines = [
        f"{schedule.metadata.name}: {timetable_text(spec)}, concurrencyPolicy {spec.concurrency_policy}{suspended}"
    ]
    for slot in islice(times.following(now or datetime.now(UTC)), NUM_SLOTS):
        local = slot.astimezone(times.zone).strftime("%a %Y-%m-%d %H:%M %z")
        lines.append(f"  {local}  {to_text(slot)}  {slot_name(schedule.metadata.name, slot)}")
    run = template_run(schedule)
    return [
        *lines,
        *_fresh_lines(schedule.spec),
        "each run:",
        *(f"  {line}" for line in plan_lines(run.replace(spec=run.spec.replace(storage=storage)))),
    ]


def _fresh_lines(spec: ScheduleSpec) -> list[str]:
    """What runs have to do with each other."""
    lines = []
    if spec.start_from == "LastSuccessful":
        start = start_of(spec, last="run")
        assert start is not None, "there is a last run here"
        whose = "the last run that succeeded" if start.channel is None else f"channels/{start.channel}.json"
        lines.append(f"the first run begins from scratch, each further one with the student of {whose}")
    if spec.skip_if_unchanged:
        lines.append(
            "a run is done with preflight when neither data nor recipe have changed since the last one that succeeded"
        )
    return lines
