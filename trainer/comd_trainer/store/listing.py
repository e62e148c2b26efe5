"""A folder of a source as it lies where it lies: names, sizes and single bytes of it, without fetching the folder."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from comd_api.exit_codes import UserError
from comd_trainer.store.artifacts import Artifact
from comd_trainer.store.errors import local_errors
from comd_trainer.store.hashing import fold, in_parallel, sha256_of
from comd_trainer.store.stores import Store, StoredFile

HASHES_AT_ONCE = 4
HASHES_PER_TASK = 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    size: int
    """Bytes."""
    content: str | None = None
    """Equal for files of equal content in this listing, where that is known without reading them; not the reverse."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What `Sources.listing` gives. `field` and `source` are what errors blame."""

    source: str
    field: str
    files: Mapping[str, Entry]
    """By path below the folder, at any depth."""
    read_range: Callable[[str, int, int], bytes]
    """(path, first byte, bytes): fewer bytes where the file ends before."""
    fingerprint: Callable[[], str]
    """As `Sources.fingerprint`. Reads all of a folder on this machine, and nothing elsewhere."""
    folder: Path | None = None
    """The folder itself, if it lies on this machine."""

    @property
    def names(self) -> list[str]:
        """Of the files in the folder itself, sorted."""
        return sorted(path for path in self.files if "/" not in path)

    def has(self, path: str) -> bool:
        """Whether `path`, as a row or a person may write it (`./a//b.png`), is a file of the folder."""
        if self.folder is not None:
            return os.path.isfile(self.folder / path)
        return not path.endswith("/") and _plain(path) in self.files

    def read(self, path: str, *, start: int = 0, size: int | None = None) -> bytes:
        """Bytes of one file, all of them when `size` is left out. Errors: UserError when it has gone since it was listed."""
        name = _plain(path)
        if size is None:
            size = self.files[name].size if name in self.files else 0
        try:
            return self.read_range(name, start, size)
        except FileNotFoundError as error:
            raise UserError(
                f"{self.field} ({self.source}): {path} was removed while it was looked at; put it back"
            ) from error

    def content(self, path: str) -> str | None:
        """Equal for files of equal content. Reads a file on this machine; elsewhere it is the service's own digest, or None where the
        service gives none."""
        name = _plain(path)
        if self.folder is not None:
            with local_errors(self.folder, field=self.field):
                return sha256_of(self.folder / name) if os.path.isfile(self.folder / name) else None
        return self.files[name].content if name in self.files else None


def local_listing(folder: Path, *, source: str, field: str) -> Listing:
    """A folder on this machine."""

    def read_range(path: str, start: int, size: int) -> bytes:
        with local_errors(folder, field=field), (folder / path).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def fingerprint() -> str:
        with local_errors(folder, field=field):
            return fingerprint_local(folder)

    top = len(str(folder)) + 1
    with local_errors(folder, field=field):
        files = {path[top:]: Entry(size=os.path.getsize(path)) for path in _walk(folder, above=())}
    return Listing(
        source=source, field=field, files=files, read_range=read_range, fingerprint=fingerprint, folder=folder
    )


def stored_listing(store: Store, stored: Iterable[StoredFile], *, top: str, source: str, field: str) -> Listing:
    """The files below `top` of a store that is no folder. Their ETags are taken for digests: equal ones of equal sizes are those of
    equal contents with every way of storing an object; of the same bytes they may differ (several parts, other keys)."""
    listed = list(stored)
    return Listing(
        source=source,
        field=field,
        files={below(file.path, top): Entry(size=file.size, content=f"{file.size}-{file.etag}") for file in listed},
        read_range=lambda path, start, size: store.read_range(f"{top}/{path}" if top else path, start=start, size=size),
        fingerprint=lambda: fingerprint_listed(listed, top=top),
    )


def artifact_listing(artifact: Artifact, *, source: str, field: str) -> Listing:
    """The files of an artifact, under the names that its manifest gives them."""
    top = "/".join(part for part in (artifact.prefix, artifact.manifest.root) if part)
    return Listing(
        source=source,
        field=field,
        files={entry.path: Entry(size=entry.size, content=entry.sha256) for entry in artifact.manifest.files},
        read_range=lambda path, start, size: artifact.store.read_range(f"{top}/{path}", start=start, size=size),
        fingerprint=lambda: fingerprint_artifact(artifact),
    )


def fingerprint_artifact(artifact: Artifact) -> str:
    """As that of a folder with the same files."""
    return fold(sorted((entry.path, entry.sha256) for entry in artifact.manifest.files))


def fingerprint_listed(files: Iterable[StoredFile], *, top: str) -> str:
    return fold([("listed", top), *sorted((file.path, file.size, file.etag) for file in files)])


def fingerprint_local(local: Path) -> str:
    """Of one file: its bytes, whatever its name. Of a folder: the relative paths and contents of all that it holds."""
    if not local.is_dir():
        return "sha256:" + sha256_of(local)
    files = list(_walk(local, above=()))
    batches = [files[start : start + HASHES_PER_TASK] for start in range(0, len(files), HASHES_PER_TASK)]
    digests = in_parallel(lambda batch: [sha256_of(file) for file in batch], batches, threads=HASHES_AT_ONCE)
    hashed = zip(files, itertools.chain.from_iterable(digests), strict=True)
    return fold(sorted((file[len(str(local)) + 1 :], digest) for file, digest in hashed))


def below(path: str, top: str) -> str:
    return path.removeprefix(f"{top}/") if top else path


def _plain(path: str) -> str:
    """`./a//b.png` → `a/b.png`. A path that climbs (`..`) is none of ours and stays as it is."""
    return str(PurePosixPath(path))


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
