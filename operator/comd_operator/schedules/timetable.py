"""When a schedule's slots are. Pure, but for the time zones' database, which is read once.

An expression means what it means to CronJob (robfig/cron, `ParseStandard`), to the minute: a slot is every moment at which the clock of
the time zone shows what the expression asks for. So a time that the clock skips in spring has no slot that day, and one that it repeats
in autumn has two. Expressions are read, and gone through without any time zone, by cronsim; what follows from a zone is done here, for
cronsim itself moves and merges such slots as Debian's cron does.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from comd_api.schedule import MACROS

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


class TimetableError(ValueError):
    """A sentence that names field, value and what would be right."""


class Timetable:
    """The slots of all expressions together. All moments are aware, those that come out are in UTC."""

    def __init__(self, schedules: Sequence[str], *, time_zone: str) -> None:
        """Raises TimetableError."""
        self.zone = _zone(time_zone)
        self._expressions = [_standard(text, where=f"spec.schedules[{index}]") for index, text in enumerate(schedules)]

    def after(self, moment: datetime) -> datetime | None:
        """The first slot later than this; None when there is none within fifty years."""
        found = (_first(expression, self.zone, moment) for expression in self._expressions)
        return min((slot for slot in found if slot is not None), default=None)

    def until(self, moment: datetime) -> datetime | None:
        """The last slot that is not later than this; None when there was none within fifty years."""
        found = (_last(expression, self.zone, moment) for expression in self._expressions)
        return max((slot for slot in found if slot is not None), default=None)

    def following(self, moment: datetime) -> Iterator[datetime]:
        """Slots later than this, soonest first."""
        slot = self.after(moment)
        while slot is not None:
            yield slot
            slot = self.after(slot)

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Slots later than `after` and not later than `until`, newest first: who wants a few of a year pays for these alone."""

        def backwards() -> Iterator[datetime]:
            slot = self.until(until)
            while slot is not None:
                yield slot
                slot = self.until(slot - SECOND)

        return takewhile(lambda slot: slot > after, backwards())


@lru_cache(maxsize=1024)
def timetable(schedules: tuple[str, ...], time_zone: str) -> "Timetable":
    """Raises TimetableError."""
    return Timetable(schedules, time_zone=time_zone)


def _zone(name: str) -> ZoneInfo:
    try:
        if name.lower() not in ("local", "localtime"):  # Which a machine may have, and each its own.
            return ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # not found, a folder, no file of zones
        pass
    raise TimetableError(
        f"spec.timeZone: {name!r} is no time zone; right would be a name of the IANA database, such as Europe/Berlin"
    )


def _standard(text: str, *, where: str) -> str:
    """The expression as cronsim has to be told, so that it means what robfig/cron understands. Raises TimetableError.

    The two differ where a field begins with `*` and has a step (to cronsim, as to Debian's cron, days of month and week must then both
    fit; to robfig/cron one is enough), in `N/step` of weekdays, and in `?`.
    """
    fields = MACROS.get(text, text).split()
    if len(fields) != len(_RANGES):
        raise TimetableError(
            f"{where}: {text!r} has {len(fields)} fields; right would be five: minute, hour, day of month, month, day of week"
        )
    expression = " ".join(_spelt_out(field, *bounds) for field, bounds in zip(fields, _RANGES, strict=True))
    try:
        if next(CronSim(expression, datetime(2000, 1, 1)), None) is not None:
            return expression
        wrong = "day of month"
    except CronSimError as error:
        wrong = str(error).removeprefix("Bad ").replace("-", " ")
    raise TimetableError(
        f"{where}: {text!r} never comes, because of its {wrong}; "
        "right would be ranges that begin before they end, and days that a month has"
    )


def _spelt_out(field: str, low: int, high: int) -> str:
    """`*/2` → `0-59/2`, `3/2` → `3-59/2`, `?` and a list with a `*` in it → `*`."""
    terms = []
    for term in field.split(","):
        values, _, step = term.partition("/")
        if values in ("*", "?"):
            if step in ("", "1"):
                return "*"
            values = f"{low}-{high}"
        elif step and "-" not in values:
            values = f"{values}-{high}"
        terms.append(f"{values}/{step}" if step else values)
    return ",".join(terms)


def _first(expression: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """The first slot later than a moment. While the zone's offset stays as it is, the clock is gone through as if there were no zones;
    where it changes first, the search goes on from there."""
    start = moment.astimezone(UTC).replace(microsecond=0) + SECOND
    while True:
        offset = _offset(zone, start)
        found = _next(CronSim(expression, _clock(start, offset) - SECOND))
        if found is None:
            return None
        slot = found.replace(tzinfo=UTC) - offset
        change = _change(lambda at: _offset(zone, at), start, slot)
        if change is None:
            return slot
        start = change


def _last(expression: str, zone: ZoneInfo, moment: datetime) -> datetime | None:
    """The last slot not later than a moment; as `_first`, with time going backwards."""
    end = moment.astimezone(UTC).replace(microsecond=0)
    while True:
        offset = _offset(zone, end)
        found = _next(CronSim(expression, _clock(end, offset) + SECOND, reverse=True))
        if found is None:
            return None
        slot = found.replace(tzinfo=UTC) - offset
        change = _change(lambda at: _offset(zone, at), end, slot)
        if change is None:
            return slot
        end = change


def _next(times: CronSim) -> datetime | None:
    try:
        return next(times, None)
    except OverflowError:  # the calendar's end
        return None


def _offset(zone: ZoneInfo, moment: datetime) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None, "a zone knows its offset"
    return offset


def _clock(moment: datetime, offset: timedelta) -> datetime:
    """What the clock shows."""
    return (moment + offset).replace(tzinfo=None)


def _change(offset: Callable[[datetime], timedelta], start: datetime, end: datetime) -> datetime | None:
    """The first second on the way from `start` to `end`, forwards or backwards, at which the offset is another than at `start`; None when
    it stays. Looked for day by day: no zone changes twice in one."""
    direction = 1 if end >= start else -1
    old, here = offset(start), start
    while here != end:
        there = here + direction * DAY if abs(end - here) > DAY else end
        if offset(there) != old:
            return _bisect(offset, old, here, there, direction=direction)
        here = there
    return None


def _bisect(
    offset: Callable[[datetime], timedelta], old: timedelta, same: datetime, other: datetime, *, direction: int
) -> datetime:
    while abs(other - same) > SECOND:
        middle = same + direction * timedelta(seconds=abs(other - same) // SECOND // 2)
        if offset(middle) == old:
            same = middle
        else:
            other = middle
    return other
