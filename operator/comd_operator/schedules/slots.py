"""Which slots are due, and which of them can still be started."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from comd_operator.schedules.timetable import Timetable

MANY = 100
"""More slots than that are not counted: a clock was wrong, or nobody was there for long."""


@dataclass(frozen=True, kw_only=True)
class Due:
    newest: datetime
    """The last slot that has come."""
    start: tuple[datetime, ...] = ()
    """Those to be started, oldest first."""
    missed: int = 0
    """Those that are not: too late, or older than as many as are made up."""
    many: bool = False
    """There were more than are counted."""


def due(
    timetable: Timetable, *, since: datetime, now: datetime, deadline_seconds: int | None, catch_up: int
) -> Due | None:
    """The slots later than `since` that have come; None when none has."""
    come = list(islice(timetable.between(since, now), MANY + 1))
    if not come:
        return None
    deadline = None if deadline_seconds is None else timedelta(seconds=deadline_seconds)
    in_time = [slot for slot in come if deadline is None or now - slot <= deadline]
    start = tuple(reversed(in_time[:catch_up]))
    return Due(newest=come[0], start=start, missed=len(come) - len(start), many=len(come) > MANY)
