"""A container of an image, without a cluster: buildah runs processes in it as pods do, by a user that owns nothing."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.builders import Builder
from tests.images.built import said

USER = "65532:65532"


@dataclass(frozen=True)
class Container:
    tool: Builder
    name: str

    def run(
        self, *command: str, variables: Mapping[str, str] | None = None, volumes: Mapping[Path, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """A process of its own; a volume is a folder here and its place there."""
        options = [f"--env={name}={value}" for name, value in (variables or {}).items()]
        options += [f"--volume={here}:{there}" for here, there in (volumes or {}).items()]
        whole = [
            *self.tool.program(),
            "run",
            "--isolation=chroot",
            f"--user={USER}",
            *options,
            self.name,
            "--",
            *command,
        ]
        return subprocess.run(["nice", *whole], capture_output=True, text=True, check=False)


@contextmanager
def container(tool: Builder, image: str) -> Iterator[Container]:
    name = said(*tool.program(), "from", "--pull=never", image).strip()
    try:
        yield Container(tool, name)
    finally:
        said(*tool.program(), "rm", name)


def config(tool: Builder, image: str) -> dict[str, Any]:
    """The image's, as OCI has it."""
    found: dict[str, Any] = json.loads(said(*tool.program(), "inspect", "--type=image", image))["OCIv1"]["config"]
    return found


def identity(tool: Builder, image: str) -> tuple[str, str]:
    """The image's id, which is its config's digest, and its manifest's digest."""
    listed = json.loads(said(*tool.program(), "images", "--no-trunc", "--json", image))[0]
    return listed["id"], listed["digest"]
