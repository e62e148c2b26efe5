"""This machine's clock against the service's, which stands in the header `Date` of every reply."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any


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
