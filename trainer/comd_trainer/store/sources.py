"""What a manifest's sources stand for: files and folders on this machine, and a digest of their content.

A source that is the prefix of an artifact (a student of another run, say) stands for the artifact's files, verified.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from comd_api.exit_codes import UserError
from comd_api.run import Storage
from comd_trainer.store import hub
from comd_trainer.store.artifacts import Artifact, CorruptArtifactError, open_artifact
from comd_trainer.store.cache import CACHE_FIELD, locked
from comd_trainer.store.errors import local_errors
from comd_trainer.store.hashing import fold, in_parallel, sha256_of
from comd_trainer.store.stores import OnBytes, Store, StoredFile, open_store, path_problem

HASHES_AT_ONCE = 4
HASHES_PER_TASK = 64
FILES_AT_ONCE = 32
"""Images are small: many requests have to be on their way to fill a line."""


@dataclass(frozen=True)
class Sources:
    storage: Storage
    store: Store
    """Rooted at `storage.uri`: what relative sources are relative to."""
    cache_dir: Path
    """Where files of a bucket are kept on this machine."""

    def file(self, source: str, *, field: str = "spec", on_bytes: OnBytes | None = None) -> Path:
        """The file itself, or a copy. `field` is what errors blame. Errors: UserError when it is not there or is a
        folder."""
        local = self._local(source, field=field)
        if local is not None:
            if local.is_dir():
                raise UserError(f"{field}: {source} is a folder, and a file is needed here; add the file's name")
            return local
        store, path = self._remote(source, field=field)
        found = store.stat(path)
        if found is None:
            wrong = (
                "is a folder, and a file is needed here; add the file's name"
                if _any(store, path)
                else "is not there; " + _RIGHT
            )
            raise UserError(f"{field}: {source} {wrong}")
        return self._bring(store, [found], top=path.rpartition("/")[0], on_bytes=on_bytes) / Path(path).name

    def folder(self, source: str, *, field: str = "spec", on_bytes: OnBytes | None = None) -> Path:
        """The folder itself, or a copy of all of it; not to be written to. Errors: UserError when it is not there or is
        a file."""
        artifact = self._artifact(source, field=field)
        if artifact is not None:
            return artifact.folder(on_bytes=on_bytes)
        local = self._local(source, field=field)
        if local is not None:
            if not local.is_dir():
                raise UserError(
                    f"{field}: {source} is a file, and a folder is needed here; name the folder that holds it"
                )
            return local
        store, path = self._remote(source, field=field)
        files = list(store.list(path))
        if not files:
            wrong = (
                "is a file, and a folder is needed here; name the folder that holds it"
                if store.stat(path)
                else "is not there; " + _RIGHT
            )
            raise UserError(f"{field}: {source} {wrong}")
        return self._bring(store, files, top=path, on_bytes=on_bytes)

    def fingerprint(self, source: str, *, field: str = "spec") -> str:
        """Changes when the content does, `sha256:…`. Local files: names and contents, wherever they lie. A bucket's:
        names, sizes and ETags, for reading them all would take hours. The hub's: the commit."""
        if source.startswith("hf://"):
            return fold([("hub", hub.commit_of(source, field=field), hub.parse(source, field=field).path)])
        artifact = self._artifact(source, field=field)
        if artifact is not None:
            return fold(sorted((entry.path, entry.sha256) for entry in artifact.manifest.files))
        local = self._local(source, field=field)
        if local is not None:
            with local_errors(local, field=field):
                return _fingerprint_local(local)
        store, path = self._remote(source, field=field)
        found = store.stat(path)
        files = [found] if found is not None else list(store.list(path))
        if not files:
            raise UserError(f"{field}: {source} is not there; {_RIGHT}")
        return _fingerprint_listed(files, top=path)

    def _local(self, source: str, *, field: str) -> Path | None:
        """The file or folder, if it lies on this machine; None if it lies in a bucket."""
        if source.startswith("hf://"):
            return hub.fetch(source, field=field)
        if source.startswith("s3://"):
            return None
        if source.startswith("file://"):
            local: Path | None = Path(unquote(source.removeprefix("file://")))
        else:
            local = self.store.local_path(_inside(source, field=field))
        if local is not None and not local.exists():
            raise UserError(f"{field}: {source} is not there: this machine has no {local}; put it there, or {_RIGHT}")
        return local

    def _remote(self, source: str, *, field: str) -> tuple[Store, str]:
        """Where a source in a bucket lies: its store and its path there."""
        if not source.startswith("s3://"):
            return self.store, _inside(source, field=field)
        bucket, _, path = source.removeprefix("s3://").partition("/")
        path = path.rstrip("/")
        if path_problem(path):
            raise UserError(
                f"{field}: {source!r} names no file or folder of a bucket ({path_problem(path)}); write s3://bucket/path"
            )
        return open_store(f"s3://{bucket}", self.storage.s3, field=field), path

    def _artifact(self, source: str, *, field: str) -> Artifact | None:
        if source.startswith("hf://"):
            return None
        if source.startswith("file://"):
            store, path = (
                open_store("file:///", self.storage.s3, field=field),
                unquote(source.removeprefix("file://")).strip("/"),
            )
            if path_problem(path):
                return None
        else:
            store, path = self._remote(source, field=field)
        try:
            return open_artifact(store, path, cache_dir=self.cache_dir)
        except CorruptArtifactError:
            return None  # some other program's manifest.json

    def _bring(self, store: Store, files: list[StoredFile], *, top: str, on_bytes: OnBytes | None) -> Path:
        """A local copy of `files`, named below `top`, in a folder that is named by what it holds. Ranks wait for the
        first that wants it; after an interruption the files that had arrived are kept."""
        name = _fingerprint_listed(files, top=store.uri_of(top)).removeprefix("sha256:")
        done = self.cache_dir / "sources" / name
        partial = self.cache_dir / "partial" / name

        def bring(file: StoredFile) -> None:
            below = _below(file.path, top)
            if path_problem(below):
                raise UserError(f"{store.uri_of(file.path)!r} has a name that no folder can hold; rename it")
            local = partial / below
            if not (local.exists() and local.stat().st_size == file.size):
                store.download(file.path, local, size=file.size, on_bytes=on_bytes)

        with local_errors(done, field=CACHE_FIELD):
            if done.exists():
                return done
            with locked(self.cache_dir / "locks" / name):
                if not done.exists():
                    in_parallel(bring, files, threads=FILES_AT_ONCE)
                    _keep_only(partial, {partial / _below(file.path, top) for file in files})
                    done.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(partial, done)
        return done


_RIGHT = (
    "write s3://bucket/path, file:///absolute/path, hf://owner/name[@revision], or a path below spec.storage.uri "
    "that exists"
)


def _inside(source: str, *, field: str) -> str:
    path = source.rstrip("/")
    problem = path_problem(path)
    if problem:
        raise UserError(f"{field}: {source!r} {problem}; write a path below spec.storage.uri")
    return path


def _any(store: Store, prefix: str) -> bool:
    return next(iter(store.list(prefix)), None) is not None


def _keep_only(folder: Path, wanted: set[Path]) -> None:
    """Removes what a download that was killed has left beside its file."""
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()


def _below(path: str, top: str) -> str:
    return path.removeprefix(f"{top}/") if top else path


def _fingerprint_listed(files: list[StoredFile], *, top: str) -> str:
    return fold([("listed", top), *sorted((file.path, file.size, file.etag) for file in files)])


def _fingerprint_local(local: Path) -> str:
    """Of one file: its bytes, whatever its name. Of a folder: the relative paths and contents of all that it holds."""
    if not local.is_dir():
        return "sha256:" + sha256_of(local)
    files = list(_walk(local, above=()))
    batches = [files[start : start + HASHES_PER_TASK] for start in range(0, len(files), HASHES_PER_TASK)]
    digests = in_parallel(lambda batch: [sha256_of(file) for file in batch], batches, threads=HASHES_AT_ONCE)
    hashed = zip(files, itertools.chain.from_iterable(digests), strict=True)
    return fold(sorted((file[len(str(local)) + 1 :], digest) for file, digest in hashed))


def _walk(folder: str | Path, *, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """All files below, through links; a link to a folder that we are in already is not followed. Strings, because a
    Path for each of 100,000 images takes longer than to hash them."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, above=(*above, here))
            elif entry.is_file():
                yield entry.path
