"""What a manifest's sources stand for: files and folders on this machine, and a digest of their content.

A source that is the prefix of an artifact (a student of another run, say) stands for the artifact's files, verified.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from comd_api.exit_codes import UserError
from comd_api.run import Storage
from comd_trainer.store import hub
from comd_trainer.store.artifacts import Artifact, CorruptArtifactError, open_artifact
from comd_trainer.store.cache import CACHE_FIELD, locked
from comd_trainer.store.errors import local_errors
from comd_trainer.store.fetching import FetchLog
from comd_trainer.store.hashing import in_parallel
from comd_trainer.store.listing import (
    Listing,
    artifact_listing,
    below,
    fingerprint_artifact,
    fingerprint_listed,
    fingerprint_local,
    local_listing,
    stored_listing,
)
from comd_trainer.store.stores import Check, OnBytes, Store, StoredFile, go_on, open_store, path_problem

FILES_AT_ONCE = 32
"""Images are small: many requests have to be on their way to fill a line."""


@dataclass(frozen=True)
class Sources:
    storage: Storage
    store: Store
    """Rooted at `storage.uri`: what relative sources are relative to."""
    cache_dir: Path
    """Where files of a bucket are kept on this machine."""
    check: Check = go_on
    """May end a fetch from another bucket than the store's, which has its own."""

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
            return _folder(local, source=source, field=field)
        store, path = self._remote(source, field=field)
        return self._bring(store, _files_below(store, path, source=source, field=field), top=path, on_bytes=on_bytes)

    def listing(self, source: str, *, field: str = "spec", marks: Sequence[str] = ()) -> Listing:
        """What a folder holds, without fetching it. `marks`: see `Store.list`. Errors: as `folder`."""
        if source.startswith("hf://"):
            return hub.listing(source, field=field)
        artifact = self._artifact(source, field=field)
        if artifact is not None:
            return artifact_listing(artifact, source=source, field=field)
        local = self._local(source, field=field)
        if local is not None:
            return local_listing(_folder(local, source=source, field=field), source=source, field=field)
        store, path = self._remote(source, field=field)
        files = _files_below(store, path, source=source, field=field, marks=marks)
        return stored_listing(store, files, top=path, source=source, field=field)

    def fingerprint(self, source: str, *, field: str = "spec") -> str:
        """Changes when the content does, `sha256:…`. Local files: names and contents, wherever they lie. A bucket's:
        names, sizes and ETags, for reading them all would take hours. The hub's: the commit."""
        if source.startswith("hf://"):
            return hub.fingerprint(source, field=field)
        artifact = self._artifact(source, field=field)
        if artifact is not None:
            return fingerprint_artifact(artifact)
        local = self._local(source, field=field)
        if local is not None:
            with local_errors(local, field=field):
                return fingerprint_local(local)
        store, path = self._remote(source, field=field)
        found = store.stat(path)
        files = [found] if found is not None else list(store.list(path))
        if not files:
            raise UserError(f"{field}: {source} is not there; {_RIGHT}")
        return fingerprint_listed(files, top=path)

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
        return open_store(f"s3://{bucket}", self.storage.s3, field=field, check=self.check), path

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
        name = fingerprint_listed(files, top=store.uri_of(top)).removeprefix("sha256:")
        done = self.cache_dir / "sources" / name
        partial = self.cache_dir / "partial" / name
        fetch_log = FetchLog(
            store.uri_of(top) if top else store.uri, num_files=len(files), num_bytes=sum(file.size for file in files)
        )

        def bring(file: StoredFile) -> None:
            name = below(file.path, top)
            if path_problem(name):
                raise UserError(f"{store.uri_of(file.path)!r} has a name that no folder can hold; rename it")
            local = partial / name
            if not (local.exists() and local.stat().st_size == file.size):
                store.download(file.path, local, size=file.size, on_bytes=fetch_log.on_bytes(on_bytes))
            fetch_log.file_done()

        with local_errors(done, field=CACHE_FIELD):
            if done.exists():
                return done
            with locked(self.cache_dir / "locks" / name):
                if not done.exists():
                    in_parallel(bring, files, threads=FILES_AT_ONCE)
                    _keep_only(partial, {partial / below(file.path, top) for file in files})
                    done.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(partial, done)
        return done


_IS_FILE = "is a file, and a folder is needed here; name the folder that holds it"
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


def _folder(local: Path, *, source: str, field: str) -> Path:
    if not local.is_dir():
        raise UserError(f"{field}: {source} {_IS_FILE}")
    return local


def _files_below(store: Store, path: str, *, source: str, field: str, marks: Sequence[str] = ()) -> list[StoredFile]:
    files = list(store.list(path, marks=marks))
    if not files:
        wrong = _IS_FILE if store.stat(path) else "is not there; " + _RIGHT
        raise UserError(f"{field}: {source} {wrong}")
    return files


def _any(store: Store, prefix: str) -> bool:
    return next(iter(store.list(prefix)), None) is not None


def _keep_only(folder: Path, wanted: set[Path]) -> None:
    """Removes what a download that was killed has left beside its file."""
    for path in list(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()
