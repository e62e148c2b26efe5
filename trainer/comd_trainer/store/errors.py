"""What the operating system's errors mean for a run."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from comd_api.exit_codes import ComdError, TryAgainError, UserError

SCRATCH_FIELD = "the trainer's scratch folder"
"""What is to blame for files of this machine that are on their way to a bucket or from it."""
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IMPOSSIBLE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_AWAY = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENODEV}


def explain_local(error: OSError, *, path: Path, field: str) -> ComdError | None:
    """One sentence for the user; None for errors that say nothing about the disk.

    A full disk is worth another try (75): other runs and pods give space back, and what was finished is kept.
    """
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return TryAgainError(
            f"{field}: no space is left for {path} ({reason}); "
            "free some, the next attempt goes on from what was finished"
        )
    if error.errno in _DENIED:
        return UserError(
            f"{field}: {path} can't be used ({reason}); give this process's user the right to read and write there"
        )
    if error.errno in _IMPOSSIBLE:
        return UserError(f"{field}: {path} can't be used ({reason}); choose another path")
    if error.errno in _AWAY:
        return TryAgainError(f"{field}: the file system of {path} does not answer ({reason})")
    return None


@contextmanager
def local_errors(path: Path, *, field: str) -> Iterator[None]:
    """Turns the operating system's errors at `path` into ours; `FileNotFoundError` passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        explained = explain_local(error, path=path, field=field)
        if explained is None:
            raise
        raise explained from error
