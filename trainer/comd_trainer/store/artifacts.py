"""Artifacts: immutable prefixes that exist when their manifest does.

    <prefix>/manifest.json          written last, by a put that fails when it is there already
    <prefix>/<writer>/<file> …      each writer has a folder of its own, so that two writers never mix

Whoever was killed before its manifest leaves files that no reader looks at; the next writer that succeeds removes them.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from comd_api.artifact import MANIFEST_NAME, FileEntry, Manifest
from comd_api.exit_codes import BadDataError, ComdError
from comd_api.status import ArtifactRef
from comd_trainer.store.cache import FileCache, WrongContentError
from comd_trainer.store.fetching import FetchLog
from comd_trainer.store.hashing import in_parallel, sha256_of
from comd_trainer.store.stores import DamagedError, OnBytes, Store, path_problem

log = logging.getLogger(__name__)

FILES_AT_ONCE = 8
"""Files hashed and moved side by side; each large one has several parts on their way besides."""


class CorruptArtifactError(BadDataError):
    """An artifact that is not what its manifest says. Not retried: it would not get better."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    store: Store
    prefix: str
    manifest: Manifest
    digest: str
    """Over its files (`Manifest.digest`): `sha256:…`."""
    cache_dir: Path
    """Where files of a bucket are kept on this machine."""

    @property
    def uri(self) -> str:
        return self.store.uri_of(self.prefix)

    @property
    def meta(self) -> dict[str, Any]:
        return self.manifest.meta

    @property
    def files(self) -> list[str]:
        return [entry.path for entry in self.manifest.files]

    def ref(self, name: str) -> ArtifactRef:
        return ArtifactRef(name=name, uri=self.uri, digest=self.digest)

    def path(self, file: str, *, on_bytes: OnBytes | None = None) -> Path:
        """One file, on this machine and verified. Errors: CorruptArtifactError names artifact and file."""
        entry = next((entry for entry in self.manifest.files if entry.path == file), None)
        if entry is None:
            raise CorruptArtifactError(f"artifact {self.uri} has no file {file!r}; it has {_shortened(self.files)}")
        return self._fetch(entry, on_bytes)

    def folder(self, *, on_bytes: OnBytes | None = None) -> Path:
        """All files, on this machine and verified. Not to be written to."""
        fetch_log = FetchLog(
            self.uri, num_files=len(self.manifest.files), num_bytes=sum(entry.size for entry in self.manifest.files)
        )

        def fetch(entry: FileEntry) -> None:
            self._fetch(entry, fetch_log.on_bytes(on_bytes))
            fetch_log.file_done()

        in_parallel(fetch, self.manifest.files, threads=FILES_AT_ONCE)
        folder = self.store.local_path(self.stored_path("")) or FileCache(self.cache_dir).tree(self._tree)
        folder.mkdir(parents=True, exist_ok=True)  # an artifact without files has none yet
        return folder

    def check_files(self) -> None:
        """Makes sure that every file is there and as long as the manifest says; none is fetched. Errors: CorruptArtifactError."""
        there = {file.path: file.size for file in self.store.list(self.prefix)}
        for entry in self.manifest.files:
            size = there.get(self.stored_path(entry.path))
            if size is None:
                raise CorruptArtifactError(f"artifact {self.uri} lacks its file {entry.path!r}; {_REMEDY}")
            if size != entry.size:
                raise CorruptArtifactError(
                    f"artifact {self.uri}: the file {entry.path!r} has {size} bytes instead of {entry.size}; {_REMEDY}"
                )

    @property
    def _tree(self) -> str:
        return self.digest.removeprefix("sha256:")

    def stored_path(self, file: str) -> str:
        """Where in the store one of its files lies."""
        return "/".join(part for part in (self.prefix, self.manifest.root, file) if part)

    def _fetch(self, entry: FileEntry, on_bytes: OnBytes | None) -> Path:
        stored = self.stored_path(entry.path)
        local = self.store.local_path(stored)
        try:
            if local is not None:
                _verify_once(local, entry)
                return local
            return FileCache(self.cache_dir).get(
                entry.sha256,
                tree=self._tree,
                path=entry.path,
                fetch=lambda partial: self.store.download(stored, partial, size=entry.size, on_bytes=on_bytes),
            )
        except FileNotFoundError as error:
            raise CorruptArtifactError(f"artifact {self.uri} lacks its file {entry.path!r}; {_REMEDY}") from error
        except (WrongContentError, DamagedError) as error:
            raise CorruptArtifactError(
                f"artifact {self.uri}: the file {entry.path!r} is damaged "
                f"({error}; the manifest says {entry.sha256}); {_REMEDY}"
            ) from error


_REMEDY = "delete the whole prefix, so that it is made again"
_verified: set[tuple[str, int, int, int, str]] = set()
_verified_lock = Lock()


def _verify_once(local: Path, entry: FileEntry) -> None:
    """Hashes a file of a folder store the first time that this process meets it, and again if it was touched since."""
    status = local.stat()
    if status.st_size != entry.size:
        raise WrongContentError(f"it has {status.st_size} bytes instead of {entry.size}")
    seen = (str(local), status.st_ino, status.st_mtime_ns, status.st_ctime_ns, entry.sha256)
    with _verified_lock:
        if seen in _verified:
            return
    found = sha256_of(local)
    if found != entry.sha256:
        raise WrongContentError(f"its SHA-256 is {found}")
    with _verified_lock:
        _verified.add(seen)


def open_artifact(store: Store, prefix: str, *, cache_dir: Path) -> Artifact | None:
    """None when there is no manifest: such a prefix is no artifact, whatever lies there. Errors: CorruptArtifactError
    for a manifest that does not parse or that names files elsewhere."""
    try:
        data = store.read(f"{prefix}/{MANIFEST_NAME}")
    except FileNotFoundError:
        return None
    return _parse(store, prefix, data, cache_dir)


def open_ref(ref: ArtifactRef, *, store: Store, cache_dir: Path) -> Artifact:
    """The artifact that an earlier stage reported. Errors: CorruptArtifactError when it is gone, changed since, or lies
    in another store."""
    prefix = ref.uri.removeprefix(store.uri + "/")
    if prefix == ref.uri or path_problem(prefix):
        raise CorruptArtifactError(f"artifact {ref.name} at {ref.uri} does not lie in this run's store {store.uri}")
    artifact = open_artifact(store, prefix, cache_dir=cache_dir)
    if artifact is None:
        raise CorruptArtifactError(
            f"artifact {ref.name} at {ref.uri} is gone: {MANIFEST_NAME} is not there; a new run makes it again"
        )
    if artifact.digest != ref.digest:
        raise CorruptArtifactError(
            f"artifact {ref.name} at {ref.uri} was changed: its digest is {artifact.digest}, not {ref.digest}"
        )
    return artifact


def publish(
    store: Store,
    *,
    prefix: str,
    kind: str,
    key: str,
    folder: Path,
    meta: Mapping[str, Any],
    cache_dir: Path,
    on_bytes: OnBytes | None = None,
) -> Artifact:
    """Makes everything in `folder` an artifact, or returns the one that is there already (a lost race too).

    The folder is handed over: a folder store, or this node's cache of a bucket, takes the files themselves where it can
    (a second name for the same bytes), and nobody may change them afterwards. So they are gone from `folder` when this
    returns; after an error they are still there and the publication can be repeated.
    """
    present = open_artifact(store, prefix, cache_dir=cache_dir)
    if present is not None:
        return present
    root = uuid.uuid4().hex[:16]

    def move(local: Path) -> FileEntry:
        name = local.relative_to(folder).as_posix()
        problem = path_problem(name)
        if problem:
            raise BadDataError(f"phase {kind} left the file {name!r}, whose name {problem}")
        entry = FileEntry(path=name, size=local.stat().st_size, sha256=sha256_of(local))
        store.upload(local, f"{prefix}/{root}/{name}", owned=True, on_bytes=on_bytes)
        return entry

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = in_parallel(move, files, threads=FILES_AT_ONCE)
    manifest = Manifest(kind=kind, key=key, root=root, files=entries, meta=dict(meta))
    store.write(f"{prefix}/{MANIFEST_NAME}", manifest.to_bytes(), if_absent=True)
    # Read back, whatever the write said: its reply may have been lost and the put repeated, so that we lost a race
    # against ourselves.
    winner = open_artifact(store, prefix, cache_dir=cache_dir)
    assert winner is not None, f"{prefix} has no manifest after one was written"
    _sweep(store, prefix, keep=winner.manifest.root, mine=root)
    if store.local_path(prefix) is None:
        for local, entry in zip(files, entries, strict=True):
            FileCache(cache_dir).adopt(local, entry.sha256)
    for local in files:
        local.unlink()
    return winner


def _sweep(store: Store, prefix: str, *, keep: str, mine: str) -> None:
    """Removes files that no manifest names: the winner those of writers that were killed or will lose, a loser its
    own."""
    start = prefix if keep == mine else f"{prefix}/{mine}"
    kept = (f"{prefix}/{keep}/", f"{prefix}/{MANIFEST_NAME}")
    try:
        stale = [file.path for file in store.list(start) if not file.path.startswith(kept)]
        in_parallel(store.delete, stale, threads=FILES_AT_ONCE)
    except ComdError as error:
        log.warning("files that belong to no artifact are left below %s: %s", store.uri_of(start), error)


def _parse(store: Store, prefix: str, data: bytes, cache_dir: Path) -> Artifact:
    uri = store.uri_of(prefix)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptArtifactError(
            f"the manifest of artifact {uri} does not parse ({first['msg']}); {_REMEDY}"
        ) from error
    for path in [*([manifest.root] if manifest.root else []), *(entry.path for entry in manifest.files)]:
        problem = path_problem(path)
        if problem:
            raise CorruptArtifactError(f"the manifest of artifact {uri} names the file {path!r}, which {problem}")
    return Artifact(store=store, prefix=prefix, manifest=manifest, digest=manifest.digest(), cache_dir=cache_dir)


def _shortened(names: list[str], limit: int = 8) -> str:
    return (
        ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
        if names
        else "none"
    )
