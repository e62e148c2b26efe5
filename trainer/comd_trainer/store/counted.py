"""A store that counts what is moved, for how long, and what goes wrong: for `/metrics`. And that gives up a download when it is told to."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from comd_api.exit_codes import ComdError
from comd_trainer import metrics
from comd_trainer.store.stores import Check, OnBytes, Store, StoredFile, go_on

Direction = Literal["upload", "download"]


class CountedStore:
    """`store`, counted. Time counts when a transfer has ended, bytes as they move, those of a part that is sent again twice.

    `check` is called before a download and while it goes on; what it raises ends the download. Nothing else asks it: whoever was
    told to stop still has to save.
    """

    def __init__(self, store: Store, *, check: Check = go_on) -> None:
        self._store, self._check = store, check
        for end in ("repeated", "failed"):
            metrics.add(metrics.STORE_ERRORS, 0, end=end)

    @property
    def uri(self) -> str:
        return self._store.uri

    def uri_of(self, path: str) -> str:
        return self._store.uri_of(path)

    def local_path(self, path: str) -> Path | None:
        return self._store.local_path(path)

    def clock_offset(self) -> timedelta | None:
        return self._store.clock_offset()

    def list(self, prefix: str, *, marks: Sequence[str] = ()) -> Iterator[StoredFile]:
        with _failures():
            yield from self._store.list(prefix, marks=marks)

    def stat(self, path: str) -> StoredFile | None:
        with _failures():
            return self._store.stat(path)

    def exists(self, path: str) -> bool:
        with _failures():
            return self._store.exists(path)

    def probe(self, prefix: str) -> None:
        with _failures():
            self._store.probe(prefix)

    def delete(self, path: str) -> None:
        with _failures():
            self._store.delete(path)

    def read(self, path: str) -> bytes:
        with _transfer("download"):
            data = self._store.read(path)
        _moved("download", len(data))
        return data

    def read_range(self, path: str, *, start: int, size: int) -> bytes:
        with _transfer("download"):
            data = self._store.read_range(path, start=start, size=size)
        _moved("download", len(data))
        return data

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        with _transfer("upload"):
            written = self._store.write(path, data, if_absent=if_absent)
        _moved("upload", len(data))
        return written

    def swap(self, path: str, data: bytes, *, expected: bytes | None) -> bytes | None:
        with _transfer("upload"):
            found = self._store.swap(path, data, expected=expected)
        _moved("upload", len(data))
        return found

    def probe_swap(self, prefix: str) -> None:
        self._store.probe_swap(prefix)

    def upload(self, local: Path, path: str, *, owned: bool = False, on_bytes: OnBytes | None = None) -> None:
        with _transfer("upload"):
            self._store.upload(local, path, owned=owned, on_bytes=_counting("upload", on_bytes))

    def download(self, path: str, local: Path, *, size: int | None = None, on_bytes: OnBytes | None = None) -> None:
        self._check()

        def unless_stopped(num_bytes: int) -> None:
            try:
                self._check()
            except ComdError as error:
                raise _StoppedError(error) from error
            if on_bytes is not None:
                on_bytes(num_bytes)

        try:
            with _transfer("download"):
                self._store.download(path, local, size=size, on_bytes=_counting("download", unless_stopped))
        except _StoppedError as stopped:
            raise stopped.reason from None


class _StoppedError(Exception):
    """No failure of the store."""

    def __init__(self, reason: ComdError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def _failures() -> Iterator[None]:
    """A file that is not there is no failure."""
    try:
        yield
    except ComdError:
        metrics.add(metrics.STORE_ERRORS, end="failed")
        raise


@contextmanager
def _transfer(direction: Direction) -> Iterator[None]:
    began = time.monotonic()
    with _failures():
        yield
    metrics.add(metrics.TRANSFERS, direction=direction)
    metrics.add(metrics.TRANSFER_SECONDS, time.monotonic() - began, direction=direction)


def count_repeats(parsed: Mapping[str, Any], **_: Any) -> None:
    """botocore's event `after-call`: how often a request was made again, before it got the answer that is returned."""
    repeats = parsed.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    if repeats:
        metrics.add(metrics.STORE_ERRORS, repeats, end="repeated")


def _moved(direction: Direction, num_bytes: int) -> None:
    metrics.add(metrics.TRANSFER_BYTES, num_bytes, direction=direction)


def _counting(direction: Direction, then: OnBytes | None) -> OnBytes:
    def on_bytes(num_bytes: int) -> None:
        if num_bytes > 0:  # less than 0 when a part is sent again, and its bytes will come once more
            _moved(direction, num_bytes)
        if then is not None:
            then(num_bytes)

    return on_bytes
