"""Prometheus and promtool: those on PATH, else out of Debian's package, which is unpacked and not installed: no service is started."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import gotools

PACKAGE = "prometheus"
PROGRAMS = ("prometheus", "promtool")


class MissingError(Exception):
    """Why there is no Prometheus here, in one line."""


def find(name: str) -> Path | None:
    """Where it is, without getting it."""
    for path in filter(None, (os.environ.get("COMD_TEST_BIN"), os.environ.get("PATH"), str(_unpacked()))):
        found = shutil.which(name, path=path)
        if found:
            return Path(found)
    return None


def provide(say: Callable[[str], None]) -> dict[str, Path]:
    """Where each program is. Raises MissingError."""
    if any(find(name) is None for name in PROGRAMS):
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise MissingError("no Prometheus here, and no apt-get to get it by; put prometheus and promtool on PATH")
        with gotools.locked(gotools.cache()):
            if any(find(name) is None for name in PROGRAMS):
                say(f"getting Debian's package {PACKAGE}")
                _unpack()
    found = {name: place for name in PROGRAMS if (place := find(name)) is not None}
    if len(found) < len(PROGRAMS):
        raise MissingError(f"Debian's package {PACKAGE} has no {' and '.join(set(PROGRAMS) - found.keys())}")
    return found


def _unpacked() -> Path:
    return gotools.cache() / PACKAGE / "usr" / "bin"


def _unpack() -> None:
    target = gotools.cache() / PACKAGE
    with TemporaryDirectory(dir=gotools.cache()) as folder:
        download = ["apt-get", "download", "--quiet", PACKAGE]
        if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
            # apt's lists are read again only if they don't know the package.
            subprocess.run(["apt-get", "update", "--quiet"], capture_output=True, check=False)
            done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MissingError(f"no Prometheus here: apt-get download {PACKAGE}: {done.stderr.strip()}")
        (archive,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", archive, f"{folder}/all"], check=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(f"{folder}/all", target)
