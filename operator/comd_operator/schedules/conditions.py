"""Conditions of a schedule, as kstatus reads them: one that is suspended is as it should be, and so it is ready."""

from dataclasses import dataclass
from datetime import datetime

from comd_api.schedule import ScheduleStatus
from comd_api.status import Condition
from comd_operator.policies.clock import to_text
from comd_operator.policies.conditions import MAX_MESSAGE, MAX_REASON, condition
from comd_operator.schedules.slots import Due

TYPES = ("Missed", "Ready", "Reconciling", "Stalled", "Suspended")
"""All of them, always, in this order."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the schedule is at."""

    true: tuple[str, ...]
    """Which of the conditions are so."""
    reason: str
    message: str


def conditions(
    state: State, due: Due | None, *, before: list[Condition], generation: int, now: datetime
) -> list[Condition]:
    """due: slots that were settled just now. `Missed` keeps its words until the next ones are."""
    reasons = {kind: (kind in state.true, state.reason, state.message) for kind in TYPES}
    old = next((entry for entry in before if entry.type == "Missed"), None)
    if due is not None:
        reasons["Missed"] = _missed(due)
    elif old is not None:
        reasons["Missed"] = (old.status == "True", old.reason, old.message)
    else:
        reasons["Missed"] = (False, "NothingMissed", "")
    return [
        condition(
            kind,
            status="True" if true else "False",
            reason=reason[:MAX_REASON],
            message=message[:MAX_MESSAGE],
            before=before,
            generation=generation,
            now=now,
        )
        for kind, (true, reason, message) in reasons.items()
    ]


def refused(status: ScheduleStatus, generation: int, *, message: str, now: datetime) -> ScheduleStatus:
    """The status of a schedule whose spec can't be read."""
    state = State(true=("Stalled",), reason="InvalidSpec", message=message)
    entries = conditions(state, None, before=status.conditions, generation=generation, now=now)
    return status.replace(observed_generation=generation, next_schedule_times=[], conditions=entries)


def _missed(due: Due) -> tuple[bool, str, str]:
    if not due.missed:
        return False, "NothingMissed", ""
    return True, "TooManyMissedSlots" if due.many else "SlotsMissed", missed_text(due)


def missed_text(due: Due) -> str:
    """`3 slots up to 2026-01-01T02:00:00Z were not started`."""
    count = f"more than {due.missed - 1} slots" if due.many else "1 slot" if due.missed == 1 else f"{due.missed} slots"
    words = f"{count} up to {to_text(due.newest)} {'was' if due.missed == 1 else 'were'} not started"
    return f"{words}; set startingDeadlineSeconds, or look whether a clock is wrong" if due.many else words
