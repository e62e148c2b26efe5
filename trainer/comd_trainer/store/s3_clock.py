"""This machine's clock against the service's, which stands in the header `Date` of every reply."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from comd_api.exit_codes import UserError

MOST_SKEW = timedelta(minutes=15)
"""From here on AWS refuses a request for its time."""


class ClockError(UserError):
    """This machine's clock is too far from the service's."""


class Clock:
    """Hears a client's replies, from any thread."""

    def __init__(self) -> None:
        self.offset: timedelta | None = None
        """How far ours is ahead, by the newest reply that told the time."""

    def hear(self, http_response: Any, **_: Any) -> None:
        """A handler of botocore's event `after-call`, of replies of all kinds."""
        theirs = date_of(http_response.headers.get("Date"))
        if theirs is not None:
            self.offset = datetime.now(UTC) - theirs


def date_of(header: str | None) -> datetime | None:
    """Of a header `Date` (RFC 9110); None for one that is missing or can't be read."""
    try:
        found = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def clock_sentence(offset: timedelta, *, uri: str) -> str:
    """`offset`: how far this machine's clock is ahead of the service's."""
    way = "ahead of" if offset > timedelta(0) else "behind"
    return (
        f"this machine's clock is {_span(abs(offset))} {way} that of the service of {uri}, and requests are refused from "
        f"{_span(MOST_SKEW)} on; set the clock (NTP)"
    )


def _span(span: timedelta) -> str:
    minutes = round(span / timedelta(minutes=1))
    return f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes} minute{'s' if minutes != 1 else ''}"
