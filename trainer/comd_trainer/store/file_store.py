"""A folder as a store."""

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from comd_api.exit_codes import TryAgainError, UserError
from comd_trainer.store.errors import local_errors
from comd_trainer.store.stores import PROBE, STORAGE_FIELD, OnBytes, StoredFile, checked, probe_path

_TEMPORARY = ".comd-partial-"
_LOCK = f"{_TEMPORARY}lock"
_LOCK_SECONDS = 60.0
"""Who holds it reads a small file and renames another. Somebody who is stopped in the middle must not stop everybody."""
_LOCK_PAUSE_SECONDS = 0.02
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class FileStore:
    """Each file is written under another name, flushed to disk, then given its name, so that no reader ever sees a part
    of one."""

    def __init__(self, uri: str, *, field: str = STORAGE_FIELD) -> None:
        """`uri`: `file:///absolute/folder`, percent-encoded where need be (RFC 8089). The folder is made by the first
        write."""
        path = uri.removeprefix("file://")
        if not uri.startswith("file:///"):
            raise UserError(f"{field}: {uri!r} is no store; write s3://bucket/prefix or file:///absolute/folder")
        self._field = field
        self._root = Path(unquote(path))
        self._uri = "file://" + path.rstrip("/")

    @property
    def uri(self) -> str:
        return self._uri

    def uri_of(self, path: str) -> str:
        return f"{self._uri}/{path}"

    def local_path(self, path: str) -> Path:
        return self._root / checked(path, field=self._field)

    def list(self, prefix: str, *, marks: Sequence[str] = ()) -> Iterator[StoredFile]:
        del marks  # nothing to gain here
        top = self.local_path(prefix) if prefix else self._root
        with local_errors(top, field=self._field):
            files = [file for folder, _, names in _walk(top) for file in self._stat_all(Path(folder), names)]
        yield from sorted(files, key=lambda file: file.path.encode())

    def stat(self, path: str) -> StoredFile | None:
        local = self.local_path(path)
        with local_errors(local, field=self._field):
            return next(self._stat_all(local.parent, [local.name]), None)

    def exists(self, path: str) -> bool:
        return self.stat(path) is not None

    def read(self, path: str) -> bytes:
        return self._read(path, start=0, size=-1)

    def read_range(self, path: str, *, start: int, size: int) -> bytes:
        return self._read(path, start=start, size=size)

    def probe(self, prefix: str) -> None:
        path = probe_path(prefix)
        made = [folder for folder in self.local_path(path).parents if not folder.exists()]
        try:
            next(self.list(prefix), None)
            # With `if_absent`, which needs hard links and so more than a plain write does.
            if not self.write(path, PROBE, if_absent=True) or self.read(path) != PROBE:
                raise UserError(
                    f"{self._field}: {self.uri_of(path)} does not read as it was written; use another folder"
                )
        finally:
            self.delete(path)
            for folder in made:
                with suppress(OSError):  # somebody has put something there since, or it was never made
                    folder.rmdir()

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        def fill(temporary: Path) -> None:
            temporary.write_bytes(data)

        return self._put(path, fill, name=self._name if if_absent else _replace)

    def swap(self, path: str, data: bytes, *, expected: bytes | None) -> bytes | None:
        found = self._content(path)

        def fill(temporary: Path) -> None:
            temporary.write_bytes(data)

        def name(temporary: Path, target: Path) -> bool:
            nonlocal found
            with self._locked(target.parent):
                found = self._content(path)
                if found != expected or found == data:
                    return False
                if expected is not None:
                    return _replace(temporary, target)
                # By `link` though we hold the lock: an NFS client may remember for a while that there was no such file.
                if self._name(temporary, target):
                    return True
                found = self._content(path)
                if found is None:
                    raise FileExistsError(errno.EEXIST, "it is no file", str(target))
                return False

        # Looked at before the lock is asked for, so that nothing is made where nothing is to be done.
        if found == expected and found != data and self._put(path, fill, name=name):
            return data
        return found

    def probe_swap(self, prefix: str) -> None:
        path = probe_path(prefix)
        made = [folder for folder in self.local_path(path).parents if not folder.exists()]
        try:
            if self.swap(path, PROBE, expected=None) != PROBE:
                raise UserError(
                    f"{self._field}: {self.uri_of(path)} does not read as it was written; use another folder"
                )
        finally:
            self.delete(path)
            self.delete(f"{prefix}/{_LOCK}")
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()

    def upload(self, local: Path, path: str, *, owned: bool = False, on_bytes: OnBytes | None = None) -> None:
        def fill(temporary: Path) -> None:
            # A file that has other names already (or is a link) may be changed through those: it is copied.
            status = local.lstat()
            if owned and not local.is_symlink() and status.st_nlink == 1 and _linked(local, temporary):
                return
            shutil.copyfile(local, temporary)

        self._put(path, fill, name=_replace)
        if on_bytes is not None:
            on_bytes(local.stat().st_size)

    def download(self, path: str, local: Path, *, size: int | None = None, on_bytes: OnBytes | None = None) -> None:
        del size  # nothing to gain here
        source = self.local_path(path)
        with local_errors(local, field=self._field):
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = _temporary(local)
            try:
                shutil.copyfile(source, temporary)
                os.replace(temporary, local)
            finally:
                temporary.unlink(missing_ok=True)
        if on_bytes is not None:
            on_bytes(local.stat().st_size)

    def clock_offset(self) -> None:
        return None

    def delete(self, path: str) -> None:
        local = self.local_path(path)
        with local_errors(local, field=self._field):
            local.unlink(missing_ok=True)

    def _read(self, path: str, *, start: int, size: int) -> bytes:
        local = self.local_path(path)
        with local_errors(local, field=self._field):
            try:
                with local.open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except (IsADirectoryError, NotADirectoryError) as error:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(local)) from error

    def _content(self, path: str) -> bytes | None:
        """None when there is no such file."""
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def _put(self, path: str, fill: Callable[[Path], None], *, name: Callable[[Path, Path], bool]) -> bool:
        """`fill` writes a file of a temporary name, `name` gives it its own, or returns False if it may not."""
        target = self.local_path(path)
        with local_errors(target, field=self._field):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except (
                FileNotFoundError
            ) as error:  # parents are made, so this file system takes no folders: /proc, an automounter's
                raise UserError(
                    f"{self._field}: the folder {target.parent} can't be made ({error.strerror}); choose another path"
                ) from error
            temporary = _temporary(target)
            try:
                fill(temporary)
                _flush(temporary)
                if not name(temporary, target):
                    return False
            finally:
                temporary.unlink(missing_ok=True)
            _flush(target.parent)
        return True

    def _name(self, temporary: Path, target: Path) -> bool:
        """Gives a finished file its name unless that is taken. `link` is the one call that does both at once, over NFS
        as well."""
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise UserError(
                f"{self._field}: the file system of {target.parent} has no hard links, which keep two writers apart; "
                "use a folder on a local disk or on NFS, or s3://"
            ) from error
        return True

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Keeps others out who swap a file of this folder: threads, processes, and other machines too over NFS, whose client makes
        a lock on the server of `flock`. The kernel, or the server, gives it back when its holder dies.

        The lock is a file of its own, since those that are swapped are replaced; it stays, since whoever waits for one that is
        removed would hold nothing. NFS gives this lock only on a file that is open for writing, and so not on the folder.

        Raises:
            UserError: the file system has no locks.
            TryAgainError: somebody holds it all the time.
        """
        deadline = time.monotonic() + _LOCK_SECONDS
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(PermissionError):  # somebody else's
                # Who may write to the folder may take the lock, whatever the umask of the first of them.
                os.fchmod(descriptor, stat.S_IMODE(folder.stat().st_mode) & 0o666)
            while not self._try_lock(descriptor, folder):
                if time.monotonic() > deadline:
                    raise TryAgainError(f"{self._field}: somebody has held {folder / _LOCK} for {_LOCK_SECONDS:.0f} s")
                time.sleep(_LOCK_PAUSE_SECONDS)
            try:
                yield
            finally:  # not left to `close`: a child that another thread has forked meanwhile would go on holding it
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)

    def _try_lock(self, descriptor: int, folder: Path) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"{self._field}: the file system of {folder} has no locks ({error.strerror}), which keep two writers apart; "
                "use a folder on a local disk or on NFS that is mounted with locks, or s3://"
            ) from error
        return True

    def _stat_all(self, folder: Path, names: Sequence[str]) -> Iterator[StoredFile]:
        for name in names:
            if name.startswith(_TEMPORARY):
                continue
            local = folder / name
            try:
                status = local.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue  # deleted since the folder was read, or a link to nowhere
            if stat.S_ISREG(status.st_mode):
                etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
                yield StoredFile(path=local.relative_to(self._root).as_posix(), size=status.st_size, etag=etag)


def _walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, which takes a folder that may not be read for an empty one. Errors: OSError, not for one that is not there."""

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    return os.walk(top, onerror=tell)


def _temporary(target: Path) -> Path:
    return target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")


def _replace(temporary: Path, target: Path) -> bool:
    os.replace(temporary, target)
    return True


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` could be made a second name of `source`: same file system, and one that has hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _flush(path: Path) -> None:
    """Until the disk has it: a manifest must never outlive the files that it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
