"""Time on the wire: RFC 3339 in UTC, whole seconds, as Kubernetes writes it."""

import math
from datetime import UTC, datetime, timedelta


def to_text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_text_after(moment: datetime, seconds: float) -> str:
    """The first whole second that is at least `seconds` after `moment`, so that nothing starts too early."""
    exact = moment.timestamp() + seconds
    return to_text(datetime.fromtimestamp(math.ceil(exact), UTC))


def from_text(text: str) -> datetime:
    return datetime.fromisoformat(text)


def since(text: str | None, now: datetime) -> float:
    """Seconds since a time on the wire; 0 when there is none, and never negative (clocks of two machines differ)."""
    return 0.0 if text is None else max(0.0, (now - from_text(text)) / timedelta(seconds=1))


def until(text: str | None, now: datetime) -> float:
    """Seconds until a time on the wire; 0 when there is none or it has passed."""
    return 0.0 if text is None else max(0.0, (from_text(text) - now) / timedelta(seconds=1))
