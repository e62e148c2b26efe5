"""When slots are: as CronJob has them. vectors.jsonl is what robfig/cron says, whom its controller asks; cronjob/main.go wrote it."""

import json
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comd_operator.schedules.timetable import Timetable, TimetableError

VECTORS = [json.loads(line) for line in (Path(__file__).parent / "cronjob" / "vectors.jsonl").read_text().splitlines()]
ZONES = ("America/Los_Angeles", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Etc/UTC")


def text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def table(*schedules: str, zone: str = "Etc/UTC") -> Timetable:
    return Timetable(schedules, time_zone=zone)


def at(moment: str) -> datetime:
    return datetime.fromisoformat(moment)


@pytest.mark.parametrize("zone", sorted({vector["timeZone"] for vector in VECTORS}))
def test_as_cronjob(zone: str) -> None:
    compared = 0
    for vector in (vector for vector in VECTORS if vector["timeZone"] == zone):
        timetable, after = table(vector["schedule"], zone=zone), at(vector["after"])
        found = list(islice(timetable.following(after), len(vector["slots"])))
        assert [text(slot) for slot in found] == vector["slots"], vector
        assert list(timetable.between(after, found[-1])) == found[::-1], "backwards the same"
        compared += 1
    assert compared >= 30


# The table of Argo's manual (docs/cron-workflows.md), in its time zone.
ARGO: list[tuple[str, str, list[str]]] = [
    ("59 1 * * *", "2020-03-08T00:00:00-08:00", ["2020-03-08T01:59:00-08:00", "2020-03-09T01:59:00-07:00"]),
    ("0 2 * * *", "2020-03-08T00:00:00-08:00", ["2020-03-09T02:00:00-07:00", "2020-03-10T02:00:00-07:00"]),
    ("1 2 * * *", "2020-03-08T00:00:00-08:00", ["2020-03-09T02:01:00-07:00", "2020-03-10T02:01:00-07:00"]),
    ("59 1 * * *", "2020-11-01T00:00:00-07:00", ["2020-11-01T01:59:00-07:00", "2020-11-01T01:59:00-08:00"]),
    ("0 2 * * *", "2020-11-01T00:00:00-07:00", ["2020-11-01T02:00:00-08:00", "2020-11-02T02:00:00-08:00"]),
    ("1 2 * * *", "2020-11-01T00:00:00-07:00", ["2020-11-01T02:01:00-08:00", "2020-11-02T02:01:00-08:00"]),
]


@pytest.mark.parametrize(("schedule", "after", "slots"), ARGO)
def test_an_hour_that_is_skipped_and_one_that_comes_twice(schedule: str, after: str, slots: list[str]) -> None:
    timetable = table(schedule, zone="America/Los_Angeles")
    assert list(islice(timetable.following(at(after)), len(slots))) == [at(slot) for slot in slots]


def test_midnights_that_the_clock_skips() -> None:
    """São Paulo's clocks went from 24:00 to 1:00."""
    found = table("0 0 * * *", zone="America/Sao_Paulo").following(at("2017-10-13T12:00:00Z"))
    assert [text(slot) for slot in islice(found, 2)] == ["2017-10-14T03:00:00Z", "2017-10-16T02:00:00Z"]


def test_several_expressions_are_one_timetable() -> None:
    """A time that two of them name is one slot."""
    timetable = table("0 * * * *", "0,30 12 * * *", "@daily")
    found = list(islice(timetable.following(at("2026-05-01T11:00:00Z")), 3))
    assert [text(slot)[11:16] for slot in found] == ["12:00", "12:30", "13:00"]
    assert list(timetable.between(at("2026-05-01T11:00:00Z"), at("2026-05-01T13:00:30Z"))) == found[::-1]


def test_the_ends_of_between() -> None:
    timetable, noon = table("0 12 * * *"), at("2026-05-01T12:00:00Z")
    assert list(timetable.between(noon, noon + timedelta(hours=1))) == [], "later than its beginning"
    assert list(timetable.between(noon - timedelta(seconds=1), noon)) == [noon], "its end included"
    assert timetable.after(noon - timedelta(microseconds=1)) == noon
    assert timetable.until(noon - timedelta(microseconds=1)) == noon - timedelta(days=1)


def test_a_leap_day_and_what_never_comes_again() -> None:
    assert text(table("0 2 29 2 *").after(at("2097-01-01T00:00:00Z")) or at("1970-01-01")) == "2104-02-29T02:00:00Z"
    assert table("* * * * *").after(datetime(9999, 12, 31, 23, 59, 30, tzinfo=UTC)) is None


BAD: list[tuple[list[str], str, str]] = [
    (["30-10 * * * *"], "Etc/UTC", "spec.schedules[0]: '30-10 * * * *' never comes, because of its minute"),
    (["@daily", "0 0 31 2 *"], "Etc/UTC", "spec.schedules[1]: '0 0 31 2 *' never comes, because of its day of month"),
    (["0 0 30-31 FEB *"], "Etc/UTC", "day of month"),
    (["0 0 * * FRI-MON"], "Etc/UTC", "day of week"),
    (["0 0 * * 9"], "Etc/UTC", "day of week"),
    (["@every 1h"], "Etc/UTC", "has 2 fields; right would be five"),
    (["TZ=Europe/Berlin 0 0 * * *"], "Etc/UTC", "has 6 fields"),
    (["@daily"], "Europe/Berln", "spec.timeZone: 'Europe/Berln' is no time zone; right would be"),
    (["@daily"], "Local", "spec.timeZone: 'Local' is no time zone"),
    (["@daily"], "Europe", "spec.timeZone: 'Europe' is no time zone"),
    (["@daily"], "../../etc/passwd", "is no time zone"),
]


@pytest.mark.parametrize(("schedules", "zone", "words"), BAD)
def test_what_can_not_be_read(schedules: list[str], zone: str, words: str) -> None:
    with pytest.raises(TimetableError) as error:
        Timetable(schedules, time_zone=zone)
    assert words in str(error.value)


def matches(schedule: str, moment: datetime) -> bool:
    """What an expression of plain numbers and stars says, asked of the clock."""
    minute, hour, day, month, weekday = schedule.split()

    def fits(field: str, value: int) -> bool:
        return field == "*" or int(field) == value

    days = fits(day, moment.day), fits(weekday, moment.isoweekday() % 7)
    day_fits = any(days) if "*" not in (day, weekday) else all(days)
    return fits(minute, moment.minute) and fits(hour, moment.hour) and fits(month, moment.month) and day_fits


def or_star(*, most: int, least: int = 0) -> Any:
    return st.just("*") | st.integers(least, most).map(str)


PLAIN = st.tuples(or_star(most=59), or_star(most=23), or_star(most=28, least=1), st.just("*"), or_star(most=6)).map(
    " ".join
)


@settings(max_examples=60, deadline=None)
@given(schedule=PLAIN, zone=st.sampled_from(ZONES), day=st.integers(0, 365 * 12))
def test_every_minute_whose_clock_fits_and_no_other(schedule: str, zone: str, day: int) -> None:
    """Asked of each minute of two days, among them those on which clocks change."""
    start = datetime(2010, 1, 1, tzinfo=UTC) + timedelta(days=day)
    end, local = start + timedelta(days=2), ZoneInfo(zone)
    minutes = (start + timedelta(minutes=number) for number in range(1, 2 * 1440 + 1))
    expected = [minute for minute in minutes if matches(schedule, minute.astimezone(local))]
    timetable = table(schedule, zone=zone)
    assert list(takewhile(lambda slot: slot <= end, timetable.following(start))) == expected
    assert list(timetable.between(start, end)) == expected[::-1]


def test_a_few_of_many_cost_little() -> None:
    """A schedule of each minute that nobody looked at for ten years."""
    began = time.process_time()
    found = list(
        islice(
            table("* * * * *", zone="Europe/Berlin").between(at("2016-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z")),
            101,
        )
    )
    assert len(found) == 101
    assert time.process_time() - began < 0.5
