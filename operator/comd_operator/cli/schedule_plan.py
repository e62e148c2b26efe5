"""`comd plan` of a schedule: its next slots, and what the run of each will be."""

from datetime import UTC, datetime
from itertools import islice

from comd_api.run import Storage
from comd_api.schedule import DistillationSchedule
from comd_operator.cli.plan import plan_lines
from comd_operator.policies.clock import to_text
from comd_operator.schedules.decide import timetable_text
from comd_operator.schedules.runs import slot_name, template_run
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
        "each run:",
        *(f"  {line}" for line in plan_lines(run.replace(spec=run.spec.replace(storage=storage)))),
    ]
