"""How many rows a source has, where that can be seen without any access to a store."""

from pathlib import Path
from urllib.parse import unquote

from comd_api.run import Storage


def count_rows(source: str, storage: Storage) -> int | None:
    """Lines that are not empty of a JSON Lines file on this machine; None for any other source, for a JSON list, and for
    a file that is not there (yet)."""
    path = local_path(source, storage)
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return None
        file.seek(0)
        return sum(1 for line in file if line.strip())


def local_path(source: str, storage: Storage) -> Path | None:
    """Where a source lies on this machine; None when it lies elsewhere."""
    if source.startswith("file://"):
        return Path(unquote(source.removeprefix("file://")))
    if "://" in source or not storage.uri.startswith("file://"):
        return None
    return Path(unquote(storage.uri.removeprefix("file://"))) / source
