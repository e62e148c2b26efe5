"""What an attempt's end means: on with it, again (when, and at whose expense), or over."""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from comd_api.run import Retry
from comd_api.status import ExitClass
from comd_operator.policies.clock import until

NEVER_AGAIN: frozenset[ExitClass] = frozenset({"UserError", "BadData", "Deadline"})
"""Trying again would end the same way."""

FREE: frozenset[ExitClass] = frozenset({"TryAgain", "CannotStart"})
"""Nothing that the run did: spends no `spec.retry.limit`."""

_JITTER = 0.25
"""A wait is shortened by up to this share, so that runs that failed together don't come back together."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    again: bool
    counts: bool
    """Whether the failure spends `spec.retry.limit`."""
    delay: float = 0.0
    """Seconds until the next attempt."""


def after(exit_class: ExitClass, *, failures: int, attempt: int, lasted: float, retry: Retry, seed: str) -> Verdict:
    """The verdict on an attempt that did not end well.

    failures: failures that counted so far, without this one. lasted: seconds the attempt was active: one that lived
    longer than the longest wait was no crash loop, and the wait starts small again, as kubelet's does. seed: what the
    jitter is derived from.
    """
    if exit_class in NEVER_AGAIN:
        return Verdict(again=False, counts=exit_class != "Deadline")
    counts = exit_class not in FREE
    if counts and failures >= retry.limit:
        return Verdict(again=False, counts=True)
    doublings = (failures if counts else attempt - failures - 1) if lasted <= retry.max_backoff_seconds else 0
    return Verdict(again=True, counts=counts, delay=backoff(doublings, retry=retry, seed=f"{seed}/{attempt}"))


def backoff(doublings: int, *, retry: Retry, seed: str) -> float:
    """`backoffSeconds`, doubled so many times, at most `maxBackoffSeconds`, less the jitter that the seed gives."""
    full = min(float(retry.max_backoff_seconds), retry.backoff_seconds * 2.0 ** min(max(doublings, 0), 32))
    share = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") / 2**32
    return full * (1.0 - _JITTER * share)


def pause_left(retry_time: str | None, retry: Retry, now: datetime) -> float:
    """Seconds until the next attempt. A pause that is longer than any that we make was written by a clock that has been set since."""
    left = until(retry_time, now)
    return left if left <= retry.max_backoff_seconds + 1 else 0.0
