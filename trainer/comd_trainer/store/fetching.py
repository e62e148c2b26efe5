"""Tells how far a fetch is that takes a while: a phase has nothing else to show until its inputs are here."""

import logging
import time
from collections.abc import Callable
from threading import Lock

from comd_trainer.store.stores import OnBytes

log = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""Between two lines. A fetch that is over before writes none."""


class FetchLog:
    """Of the files of one folder. Any thread may call any method."""

    def __init__(
        self, what: str, *, num_files: int, num_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._num_files, self._num_bytes = what, num_files, num_bytes
        self._files = self._bytes = 0
        self._clock, self._lock = clock, Lock()
        self._began = self._told = clock()

    def on_bytes(self, then: OnBytes | None) -> OnBytes:
        """What a download calls; `then` is called as well."""

        def moved(num_bytes: int) -> None:
            self._add(num_bytes=num_bytes)
            if then is not None:
                then(num_bytes)

        return moved

    def file_done(self) -> None:
        """Also for a file that was here already."""
        self._add(files=1)

    def _add(self, *, num_bytes: int = 0, files: int = 0) -> None:
        with self._lock:
            self._bytes += num_bytes
            self._files += files
            now = self._clock()
            if now - self._told < LOG_SECONDS:
                return
            self._told = now
            rate = self._bytes / (now - self._began)
            left = f", about {(self._num_bytes - self._bytes) / rate:.0f} s left" if rate > 0 else ""
            line = (
                f"fetching {self._what}: {self._files:,} of {self._num_files:,} files, "
                f"{self._bytes / 1e6:,.0f} of {self._num_bytes / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s{left}"
            )
        log.info("%s", line)
