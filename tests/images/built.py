"""Images that tests run, built as `make images` does, by buildah upon a base of Debian's packages: without a registry.

Archives are kept in `~/.cache/comd/images/NAME-KEY/`, KEY being a digest of what the image is made of, so that nothing is built twice.
Of each image the newest is kept.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import base, builders, recipe
from images.builders import Build, Builder
from tests import gotools
from tests.cluster import doctor
from tests.cluster.processes import ClusterError

PACKAGES = ("buildah", "mmdebstrap")
REPOSITORY = "localhost/comd"


class MissingError(Exception):
    """Why there is no image here, in one line."""


@dataclass(frozen=True)
class Built:
    archive: Path
    """As `docker save` writes it."""
    repository: str
    tag: str

    @property
    def image(self) -> str:
        return f"{self.repository}:{self.tag}"


def builder(say: Callable[[str], None]) -> Builder:
    """buildah, installed where it is missing. Images that it makes are kept apart from the machine's own. Raises MissingError."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MissingError("no container images, so what runs them is not run: not root on Linux")
    absent = [name for name in PACKAGES if shutil.which(name) is None]
    if absent and shutil.which("apt-get") is None:
        raise MissingError(
            f"no container images, so what runs them is not run: no apt-get to install {' '.join(absent)}"
        )
    if absent:
        say(f"installing {' '.join(absent)}")
        try:
            with gotools.locked(gotools.cache()):
                doctor.install(absent)
        except ClusterError as error:
            raise MissingError(f"no container images, so what runs them is not run: {error}") from None
    return Builder("buildah", storage=base.cache() / "storage")


def provide(name: str, say: Callable[[str], None]) -> Built:
    """The image of that name, built where it is not there. Raises MissingError."""
    with tempfile.TemporaryDirectory() as folder, gotools.locked(base.cache()):
        root = frozen(Path(folder))
        tag = recipe.version(root)
        key = recipe.key(name, base.key(), root=root)
        built = Built(base.cache() / f"{name}-{key}" / "image.tar", f"{REPOSITORY}/{name}", tag)
        if built.archive.exists():
            return built
        tool = builder(say)
        say(f"building the image of the {name}")
        try:
            build(tool, name, built.image, say=say, root=root)
            save(tool, built)
        except recipe.ImageError as error:
            raise MissingError(f"no image of the {name}, so what runs it is not run: {error}") from None
        for old in base.cache().glob(f"{name}-*"):
            if old != built.archive.parent:
                shutil.rmtree(old)
    return built


def build(tool: Builder, name: str, image: str, *, say: Callable[[str], None], root: Path = recipe.ROOT) -> None:
    """buildah takes no layers of earlier builds, and leaves none. Raises ImageError."""
    wanted = Build(
        dockerfile=recipe.dockerfile(name, root),
        context=root,
        image=image,
        epoch=base.EPOCH,
        base=base.provide(tool, say),
        labels=recipe.labels(version=recipe.version(root), epoch=base.EPOCH, revision=None, source=None),
        arguments=builders.passed_on(),
        certificates=builders.certificates(),
    )
    done = subprocess.run(["nice", *tool.build(wanted)], capture_output=True, text=True, check=False)
    if done.returncode:
        said(*tool.program(), "rm", "--all")
        raise recipe.ImageError(
            f"buildah ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
        )
    said(*tool.program(), "rmi", "--prune", "--force")  # what had this name before


def frozen(folder: Path) -> Path:
    """A copy of the context, which nobody changes while images are built of it."""
    for path in {path for name in recipe.NAMES for path in recipe.files(name)}:
        target = folder / path.relative_to(recipe.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def save(tool: Builder, built: Built) -> None:
    built.archive.parent.mkdir(parents=True, exist_ok=True)
    partial = built.archive.with_name("partial.tar")
    partial.unlink(missing_ok=True)
    said(*tool.save(built.image, partial))
    partial.rename(built.archive)


def said(*command: str) -> str:
    """What a command prints. Raises ImageError when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise recipe.ImageError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
