"""A base image without a registry: Debian's packages, put together by mmdebstrap.

It stands in for the image of Python that the Dockerfiles name: Debian 12's Python 3.11 with venv, and what Debian calls essential.
It is made once and kept in `~/.cache/comd/images/base-KEY`; who wants newer packages removes that folder.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from images.builders import Build, Builder, run
from images.recipe import ImageError, dockerfile

SUITE = "bookworm"
PACKAGES = ("ca-certificates", "libstdc++6", "python3", "python3-venv")
NOT_SHIPPED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
)
"""Of these packages. Licences are."""
EPOCH = 1_767_225_600
"""Files that are made here have this time."""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comd" / "images"


def key() -> str:
    """Of what decides which base it is."""
    recipe = [
        dockerfile("base").read_text(encoding="utf-8"),
        " ".join(mmdebstrap(Path("rootfs.tar"))),
        platform.machine(),
    ]
    return hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:16]


def mmdebstrap(target: Path) -> list[str]:
    """The command that makes the file system. Bytecode of the standard library is left to the Dockerfiles."""
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=essential",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={place}" for place in NOT_SHIPPED),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        '--customize-hook=find "$1/usr/lib" "$1/usr/share" -type d -name __pycache__ -prune -exec rm -r {} +',
        SUITE,
        str(target),
    ]


def provide(builder: Builder, say: Callable[[str], None]) -> str:
    """The name by which the builder finds the base. Raises ImageError."""
    name = f"localhost/comd-base:{key()}"
    if subprocess.run(builder.inspect(name), capture_output=True, check=False).returncode == 0:
        return name
    folder = files(say)
    say(f"the base is {name}")
    run(builder.build(Build(dockerfile=dockerfile("base"), context=folder, image=name, epoch=EPOCH)))
    return name


def files(say: Callable[[str], None]) -> Path:
    """The folder with rootfs.tar, made if it is not there. Raises ImageError."""
    folder = cache() / f"base-{key()}"
    target = folder / "rootfs.tar"
    if target.exists():
        say(f"the base's packages are those of {folder}; remove it to have newer ones")
        return folder
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        raise ImageError("a base of Debian's packages takes root and mmdebstrap (apt-get install mmdebstrap)")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{os.getpid()}.partial.tar"
    say("making a base of Debian's packages")
    try:
        done = subprocess.run(
            mmdebstrap(partial),
            env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ImageError(f"mmdebstrap ended with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return folder
