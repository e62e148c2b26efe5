"""Builds a container image with the builder that this machine has.

    python -m images operator [trainer]        build them: comd/operator:VERSION, comd/trainer:VERSION

The version is that of pyproject.toml, the time that of SOURCE_DATE_EPOCH, else of the commit.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from images import base, builders, recipe

DEBIAN = "debian"
"""The word for a base that is made here."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        builder = builders.Builder(builders.find(arguments.builder))
        epoch = recipe.epoch()
        for name in arguments.images:
            build(name, builder, epoch=epoch, arguments=arguments)
    except recipe.ImageError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("images", nargs="+", choices=recipe.NAMES)
    top.add_argument(
        "--repository", default="comd", help="in front of the name, such as registry.example.com/comd (default: comd)"
    )
    top.add_argument(
        "--base", help=f"base image, or `{DEBIAN}`: made here of Debian's packages (default: the Dockerfile's)"
    )
    top.add_argument("--source", help="address of the source, for the label org.opencontainers.image.source")
    top.add_argument("--builder", help=f"one of {', '.join(builders.BUILDERS)} (default: the first that works)")
    top.add_argument(
        "--archive", type=Path, metavar="FOLDER", help="also write each as NAME.tar, as `docker save` does"
    )
    return top


def build(name: str, builder: builders.Builder, *, epoch: int, arguments: argparse.Namespace) -> None:
    version = recipe.version()
    image = f"{arguments.repository}/{name}:{version}"
    wanted = builders.Build(
        dockerfile=recipe.dockerfile(name),
        context=recipe.ROOT,
        image=image,
        epoch=epoch,
        base=base.provide(builder, print) if arguments.base == DEBIAN else arguments.base,
        labels=recipe.labels(version=version, epoch=epoch, revision=recipe.revision(), source=arguments.source),
        arguments=builders.passed_on(),
        certificates=builders.certificates(),
    )
    command = builder.build(wanted)
    print(shlex.join(without_secrets(command)), flush=True)
    builders.run(command)
    if arguments.archive is not None:
        arguments.archive.mkdir(parents=True, exist_ok=True)
        target = arguments.archive / f"{name}.tar"
        target.unlink(missing_ok=True)  # buildah adds to an archive that is there
        builders.run(builder.save(image, target))
    print(f"built {image}")


def without_secrets(command: list[str]) -> list[str]:
    """Addresses of indexes and proxies may hold a password."""
    hidden = tuple(f"--build-arg={name}=" for name in (*builders.PASSED, *map(str.lower, builders.PASSED)))
    return [
        part.partition("=")[0] + "=" + part.split("=")[1] + "=…" if part.startswith(hidden) else part
        for part in command
    ]


if __name__ == "__main__":
    sys.exit(main())
