"""A node's copies of what lies in a bucket: each file once, named by its SHA-256, shared by ranks, phases and
attempts."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from comd_trainer.store.errors import local_errors
from comd_trainer.store.hashing import sha256_of

CACHE_FIELD = "the trainer's cache folder"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path` against threads and processes of this machine. The kernel gives it back when its
    holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class FileCache:
    """`blobs/<sha256>` holds files, `trees/<name>/` gives them their names again, as hard links."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tree(self, name: str) -> Path:
        return self._folder / "trees" / name

    def get(self, sha256: str, *, tree: str, path: str, fetch: Callable[[Path], None]) -> Path:
        """The file with this content as `path` of a tree; `fetch(local)` brings it if it is not here. Ranks that want
        the same file wait for the first instead of fetching it again. Errors: `WrongContentError` when what was fetched
        has another digest."""
        named = self.tree(tree) / path
        with local_errors(named, field=CACHE_FIELD):
            if not named.exists():
                blob = self._folder / "blobs" / sha256
                with locked(self._folder / "locks" / sha256):
                    if not blob.exists():
                        self._fetch(blob, sha256, fetch)
                _link(blob, named)
        return named

    def adopt(self, local: Path, sha256: str) -> None:
        """Keeps a file that has just been uploaded, so that this node need not download it. The caller hands it over:
        it may be deleted, but not changed. A cache on another file system stays as it is."""
        status = local.lstat()
        blob = self._folder / "blobs" / sha256
        if local.is_symlink() or status.st_nlink > 1 or blob.exists():
            return
        with local_errors(blob, field=CACHE_FIELD):
            blob.parent.mkdir(parents=True, exist_ok=True)
            if blob.parent.stat().st_dev == status.st_dev:
                _flush(local)
                _link(local, blob)

    def _fetch(self, blob: Path, sha256: str, fetch: Callable[[Path], None]) -> None:
        blob.parent.mkdir(parents=True, exist_ok=True)
        attempt = self._folder / "partial" / sha256  # we hold its lock: what lies there was left by a process that died
        shutil.rmtree(attempt, ignore_errors=True)
        attempt.mkdir(parents=True)
        partial = attempt / "file"
        try:
            fetch(partial)
            found = sha256_of(partial)
            if found != sha256:
                raise WrongContentError(f"its SHA-256 is {found}")
            _flush(partial)  # the name vouches for the content, after a crash of the node as well
            os.replace(partial, blob)
        finally:
            shutil.rmtree(attempt, ignore_errors=True)


class WrongContentError(Exception):
    """Bytes that have another digest than was asked for."""


def _link(source: Path, target: Path) -> None:
    """A second name for a file that never changes; a copy where the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        partial = target.with_name(f".{uuid.uuid4().hex}.partial")
        try:
            shutil.copyfile(source, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
