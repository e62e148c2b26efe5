"""Where artifacts live: a folder (`file://`) or a bucket (`s3://`), behind one small interface.

A path is relative to the store's URI, uses `/`, and has no `.`, `..` or empty part. A prefix is a path that is taken as
a folder.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from comd_api.exit_codes import BadDataError, UserError
from comd_api.run import S3Options

STORAGE_FIELD = "spec.storage.uri"

OnBytes = Callable[[int], None]
"""Called with the number of bytes moved since the last call, from any thread."""

Check = Callable[[], None]
"""Raises a `ComdError` when there is no more time for what its caller is doing. Called often, from any thread."""


def go_on() -> None:
    """A check that never ends anything."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    path: str
    """Below the store's URI."""
    size: int
    """Bytes."""
    etag: str
    """Changes when the content does; not a digest of it."""


class DamagedError(BadDataError):
    """What a store gives back is not what it was given."""


class MissingRightsError(UserError):
    """The credentials are known and may not do everything."""

    def __init__(self, message: str, *, deeds: Set[str]) -> None:
        super().__init__(message)
        self.deeds = deeds
        """What is refused: `list`, `read`, `write`, `delete`."""


class Store(Protocol):
    """Files below one URI.

    All methods may be called from several threads. Errors: `FileNotFoundError` for a path that is not there,
    `UserError` for a bucket, right or key that is wrong, `TryAgainError` for a store that is away or full,
    `DamagedError` for bytes that a service's own checksum does not fit.
    """

    @property
    def uri(self) -> str:
        """Without a slash at the end."""
        ...

    def uri_of(self, path: str) -> str:
        """What a user would call `path`."""
        ...

    def list(self, prefix: str, *, marks: Sequence[str] = ()) -> Iterator[StoredFile]:
        """Files at any depth below `prefix`, sorted by path. None of them when there is no such folder. `marks`: paths below
        `prefix`, there or not, at which a long listing may be cut so that its parts are asked for side by side."""
        ...

    def stat(self, path: str) -> StoredFile | None:
        """What is known of one file; None when it is not there."""
        ...

    def exists(self, path: str) -> bool: ...

    def read(self, path: str) -> bytes: ...

    def read_range(self, path: str, *, start: int, size: int) -> bytes:
        """`size` bytes from byte `start` on; fewer, or none, where the file ends before."""
        ...

    def probe(self, prefix: str) -> None:
        """Makes sure that files below `prefix` can be listed, read, written, written only if absent, and deleted, by doing it to a
        file of a few bytes that is gone afterwards. Errors: UserError names everything that is not allowed; TryAgainError."""
        ...

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Whole or not at all. With `if_absent` False is returned, and nothing changed, when the path is taken. After a
        lost reply the path may be taken by this very call: compare the content before believing that somebody else was
        first."""
        ...

    def swap(self, path: str, data: bytes, *, expected: bytes | None) -> bytes | None:
        """Gives a small file the content `data` if, and only if, its content is `expected` (None: it is not there), whole or not
        at all. Of several with the same `expected` one succeeds.

        Returns what is there now: `data` when it is ours, else what somebody else has put there (None: nothing), which is what to
        expect in a next try. Content that equals `data` is taken for ours whoever wrote it, for the reply to our own write may have
        been lost: put something into `data` that no other writer would. Nothing but `swap` may write to such a path, because a
        folder keeps it apart from its like alone.

        Errors: as for all methods; TryAgainError also when others are at it all the time."""
        ...

    def probe_swap(self, prefix: str) -> None:
        """Makes sure that `swap` keeps writers apart here, on a file below `prefix` that is gone afterwards. Errors: UserError."""
        ...

    def upload(self, local: Path, path: str, *, owned: bool = False, on_bytes: OnBytes | None = None) -> None:
        """Whole or not at all. `owned`: the caller will not change `local` any more, so that a folder may link it
        instead of copying."""
        ...

    def download(self, path: str, local: Path, *, size: int | None = None, on_bytes: OnBytes | None = None) -> None:
        """`local` appears whole or not at all; its folder is made. `size`: the file's bytes if the caller knows, which saves a request."""
        ...

    def delete(self, path: str) -> None:
        """Nothing happens when it is not there."""
        ...

    def clock_offset(self) -> timedelta | None:
        """How far this machine's clock is ahead of the service's, by the newest reply, to about a second; None before there was
        one, and for a folder."""
        ...

    def local_path(self, path: str) -> Path | None:
        """The file or folder itself, whether it exists or not, where the store is a folder; None elsewhere."""
        ...


def open_store(uri: str, s3: S3Options, *, field: str = STORAGE_FIELD, check: Check = go_on) -> Store:
    """Asks nothing of the store yet. `field` is what errors blame. What is moved is counted; `check` may end downloads."""
    from comd_trainer.store.counted import CountedStore

    if uri.startswith("s3://"):
        from comd_trainer.store.s3_store import S3Store  # boto3 takes a third of a second to import

        return CountedStore(S3Store(uri, s3, field=field), check=check)
    from comd_trainer.store.file_store import FileStore

    return CountedStore(FileStore(uri, field=field), check=check)


PROBE = b"made and removed by comd's preflight\n"


def probe_path(prefix: str) -> str:
    """A name that nobody else's probe has."""
    return f"{prefix}/.probe-{uuid.uuid4().hex[:12]}"


def path_problem(path: str) -> str | None:
    """What is wrong with a path, or None. The same rules for every store, so that an artifact can move between them."""
    if not path:
        return "is empty"
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        return "holds a control character"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "must be relative, with no part that is empty, '.' or '..'"
    return None


def checked(path: str, *, field: str) -> str:
    """The path itself. Errors: UserError when it could leave the store."""
    problem = path_problem(path)
    if problem is not None:
        raise UserError(f"{field}: the path {path!r} {problem}")
    return path
