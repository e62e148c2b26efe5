"""`concurrencyPolicy`: what becomes of slots that are due while runs of the schedule are not over."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from comd_api.schedule import ScheduleSpec
from comd_operator.schedules.runs import ScheduledRun, slot_name


@dataclass(frozen=True, kw_only=True)
class Start:
    """What to do about slots, of which none or all are started, skipped, or wait."""

    create: tuple[datetime, ...] = ()
    """Slots whose runs are not there yet."""
    outcome: Literal["Started", "Skipped", "Waits"]
    in_the_way: tuple[ScheduledRun, ...] = ()
    """Because of which they are skipped or wait."""


def start(spec: ScheduleSpec, slots: Sequence[datetime], runs: Sequence[ScheduledRun], *, schedule: str) -> Start:
    """schedule: its name. A slot whose run is there was started, whatever else runs by now."""
    there = {run.name for run in runs}
    missing = tuple(slot for slot in slots if slot_name(schedule, slot) not in there)
    own = {slot_name(schedule, slot) for slot in slots}
    others = tuple(run for run in runs if not run.ended and run.name not in own)
    if missing and others and spec.concurrency_policy != "Allow":
        return Start(outcome="Skipped" if spec.concurrency_policy == "Forbid" else "Waits", in_the_way=others)
    return Start(create=missing, outcome="Started")
