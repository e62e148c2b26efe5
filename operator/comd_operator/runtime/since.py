"""Since when something has been so, on our own clock: the API server's may be minutes off, and what is counted here ends with a
second attempt that is begun beside the first. As with the Lease, the count begins when we see it, anew after a start."""

from collections.abc import Iterable


class Since:
    def __init__(self) -> None:
        self._seen: dict[str, dict[str, float]] = {}
        """By owner: what is so, and when that was seen first."""

    def ages(self, owner: str, so: Iterable[str], *, clock: float) -> dict[str, float]:
        """Seconds for which each thing has been so. so: all that is so of an owner now; what is not named is counted anew later. clock:
        monotonic seconds."""
        before = self._seen.get(owner, {})
        seen = {key: before.get(key, clock) for key in so}
        if seen:
            self._seen[owner] = seen
        else:
            self.forget(owner)
        return {key: clock - first for key, first in seen.items()}

    def forget(self, owner: str) -> None:
        self._seen.pop(owner, None)
