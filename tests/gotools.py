"""Programs that tests need and that Go builds from pinned modules.

What is built is kept outside the checkout, in `~/.cache/comd/bin/KEY/`, so that a fresh clone does not build it again.
KEY is a digest of what decides the result. A lock keeps two test processes from building the same thing at once.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def go() -> str | None:
    return shutil.which("go")


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comd" / "bin"


def key(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256()
    for content in [*(path.read_bytes() for path in files), *(text.encode() for text in more)]:
        digest.update(content)
    return digest.hexdigest()[:16]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Whoever comes second waits, and then finds what the first has made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(module: Path, package: str, target: Path, *, flags: str = "-s -w") -> None:
    """One static program, put in its place when it is whole. At low priority: it takes minutes of all cores."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    command = ["nice", "go", "build", "-trimpath", f"-ldflags={flags}", "-o", str(partial), package]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    try:
        subprocess.run(command, cwd=module, check=True, env=environment)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
