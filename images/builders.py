"""The programs that build images, and how each is told the same."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from images.recipe import ImageError

BUILDERS = ("docker", "podman", "buildah")
"""In the order in which they are looked for. Kaniko is not among them: its image has neither make nor Python, and docs/images.md has its
command."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""What package indexes are checked against while an image is built, as the Dockerfiles say."""
PASSED = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Variables that a build takes over, in capitals or, of proxies, in small letters."""


@dataclass(frozen=True)
class Build:
    """One image to build."""

    dockerfile: Path
    context: Path
    image: str
    """Its name, with a tag."""
    epoch: int
    base: str | None = None
    """In place of the Dockerfile's own."""
    labels: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    certificates: Path | None = None
    """In place of the base's own, while it is built; docker can't mount them."""


@dataclass(frozen=True)
class Builder:
    name: str
    storage: Path | None = None
    """Where podman and buildah keep images; None: where they always do."""

    def build(self, build: Build) -> list[str]:
        """The command that builds it."""
        values = {
            **({"BASE": build.base} if build.base else {}),
            "SOURCE_DATE_EPOCH": str(build.epoch),
            **build.arguments,
        }
        command = [*self.program(), "build", f"--file={build.dockerfile}", f"--tag={build.image}"]
        command += [f"--build-arg={name}={value}" for name, value in values.items()]
        command += [f"--label={name}={value}" for name, value in build.labels.items()]
        if self.name != "docker":
            # Every file has that time; processes of the build are in no cgroup and no network of their own, as neither is everywhere.
            command += [f"--timestamp={build.epoch}", "--isolation=chroot"]
            if build.certificates is not None:
                command.append(f"--volume={build.certificates}:{CERTIFICATES}:ro")
        return [*command, str(build.context)]

    def save(self, image: str, archive: Path) -> list[str]:
        """The command that writes it as `docker save` does."""
        match self.name:
            case "docker":
                return ["docker", "save", f"--output={archive}", image]
            case "podman":
                return [*self.program(), "save", "--format=docker-archive", f"--output={archive}", image]
            case _:
                return [*self.program(), "push", image, f"docker-archive:{archive}:{image}"]

    def inspect(self, image: str) -> list[str]:
        """The command that succeeds if there is such an image."""
        kind = ["--type=image"] if self.name != "docker" else []
        return [*self.program(), *(["image"] if self.name == "docker" else []), "inspect", *kind, image]

    def program(self) -> list[str]:
        """The command's beginning: the program, and where it keeps images."""
        if self.storage is None or self.name == "docker":
            return [self.name]
        return [self.name, f"--root={self.storage}", f"--runroot={self.storage}.run"]


def find(wanted: str | None = None, *, works: Callable[[str], bool] | None = None) -> str:
    """The first builder that works here.

    Raises:
        ImageError: there is none, or not the one that was asked for.
    """
    works = works or _works
    if wanted is not None and wanted not in BUILDERS:
        raise ImageError(f"--builder {wanted}: no such builder; one of {', '.join(BUILDERS)}")
    names = (wanted,) if wanted else BUILDERS
    found = next((name for name in names if works(name)), None)
    if found is None:
        raise ImageError(f"nothing to build images with: no {' and no '.join(names)} that works here")
    return found


def _works(name: str) -> bool:
    """Whether it is there and, of docker, whether its daemon answers."""
    if shutil.which(name) is None:
        return False
    asked = [name, "info"] if name == "docker" else [name, "--version"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def passed_on(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Build arguments by which a build reaches what this machine reaches."""
    names = [name for wanted in PASSED for name in (wanted, wanted.lower() if wanted.endswith("_PROXY") else "")]
    return {name: environment[name] for name in names if environment.get(name)}


def certificates(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Those that programs of this machine are told to trust, if they are told."""
    told = environment.get("PIP_CERT") or environment.get("SSL_CERT_FILE")
    return Path(told) if told else None


def run(command: list[str]) -> None:
    """Lets it speak to the terminal. Raises ImageError when it fails."""
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise ImageError(f"{command[0]}: there is no such program") from None
    if code:
        raise ImageError(f"{command[0]} ended with exit code {code}, see above")
