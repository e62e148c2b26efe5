"""Publishes a folder and kills itself on the way, as a node that is lost would. Run by test_artifacts.

    python killed_publisher.py STORE_URI ENDPOINT PREFIX FOLDER CACHE POINT

POINT: a number: before so many uploads have ended; `bytes`: once the first bytes of a file that goes in parts have
arrived; `manifest`: before the manifest is written; `published`: right after.
"""

import os
import signal
import sys
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

from comd_api.run import S3Options
from comd_trainer.store.artifacts import publish
from comd_trainer.store.stores import OnBytes, Store, open_store


class Dies:
    """A store that kills its process at a point."""

    def __init__(self, store: Store, point: str) -> None:
        self._store = store
        self._point = point
        self._uploads = 0
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upload(self, local: Path, path: str, *, owned: bool = False, on_bytes: OnBytes | None = None) -> None:
        def die_in_big_file(num_bytes: int) -> None:
            if num_bytes and self._point == "bytes" and local.stat().st_size > 8 << 20:
                die()

        del on_bytes
        with self._lock:  # one at a time, so that "after two files" means it
            if str(self._uploads) == self._point:
                die()
            self._uploads += 1
            self._store.upload(local, path, owned=owned, on_bytes=die_in_big_file)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> bool:
        if self._point == "manifest":
            die()
        written = self._store.write(path, data, if_absent=if_absent)
        if self._point == "published":
            die()
        return written


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


if __name__ == "__main__":
    uri, endpoint, prefix, folder, cache, point = sys.argv[1:]
    store: Any = Dies(open_store(uri, S3Options(endpoint=endpoint or None)), point)
    publish(store, prefix=prefix, kind="tune", key="k", folder=Path(folder), meta={}, cache_dir=Path(cache))
