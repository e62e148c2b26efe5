"""What an image is made of: files, version, time."""

import hashlib
import os
import subprocess
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout, which is the context of both builds."""
NAMES = ("operator", "trainer")
CONTEXT = ("LICENSE", "README.md", "crds", "operator", "pyproject.toml", "requirements", "trainer")
"""What .dockerignore lets through."""
LEFT_OUT = ("__pycache__", ".pyc")
"""Of these, what it does not: ends of names."""


class ImageError(Exception):
    """Why there is no image, as a sentence."""


def dockerfile(name: str, root: Path = ROOT) -> Path:
    return root / "images" / name / "Dockerfile"


def version(root: Path = ROOT) -> str:
    """Of the project; images, chart and wheel have the same."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def revision(root: Path = ROOT) -> str | None:
    """The commit, with `-dirty` when files of the context differ from it; None outside a git checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(root, "status", "--porcelain", "--", *CONTEXT, "images", ".dockerignore")
    return f"{commit}-dirty" if changed else commit


def epoch(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> int:
    """The time that everything in the image has, in seconds since 1970: SOURCE_DATE_EPOCH, else the commit's.

    Raises:
        ImageError: there is neither, or the variable is no number.
    """
    text = environment.get("SOURCE_DATE_EPOCH") or _git(root, "log", "-1", "--format=%ct")
    if not text:
        raise ImageError(
            "SOURCE_DATE_EPOCH is not set, and this is no git checkout whose commit has a time; set it, such as to 1767225600"
        )
    if not text.isdecimal():
        raise ImageError(f"SOURCE_DATE_EPOCH is {text!r}; it must be whole seconds since 1970, such as 1767225600")
    return int(text)


def labels(*, version: str, epoch: int, revision: str | None, source: str | None) -> dict[str, str]:
    """OCI's labels that change from build to build; the others are in the Dockerfile. What is not known is left out."""
    known = {
        "version": version,
        "created": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "revision": revision,
        "source": source,
    }
    return {f"org.opencontainers.image.{name}": value for name, value in known.items() if value}


def files(name: str, root: Path = ROOT) -> list[Path]:
    """All that decides what the image holds, besides its base."""
    found = [dockerfile(name, root), root / ".dockerignore"]
    for place in CONTEXT:
        path = root / place
        found += [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sorted(path for path in found if not any(part.endswith(LEFT_OUT) for part in path.parts))


def key(name: str, *more: str, root: Path = ROOT) -> str:
    """A digest of these files and of `more`: equal keys, equal images."""
    digest = hashlib.sha256()
    for path in files(name, root):
        digest.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for text in more:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:16]


def _git(root: Path, *arguments: str) -> str:
    """What git says; nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
