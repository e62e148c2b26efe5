"""The manifest of an artifact: written last, so that the artifact exists when it does."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field

from comd_api.base import ApiModel

MANIFEST_NAME = "manifest.json"


def root_of(uri: str) -> str:
    """The URI of a store as those of its artifacts begin: without slashes before a bucket's prefix or after it."""
    if not uri.startswith("s3://"):
        return uri.rstrip("/")
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return f"s3://{bucket}/{prefix.strip('/')}".rstrip("/")


class FileEntry(ApiModel):
    path: Annotated[str, Field(min_length=1, max_length=1024)]
    """Below the artifact's prefix."""
    size: int
    """Bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(ApiModel):
    kind: str
    """The phase that made it."""
    key: str
    """Digest of everything the content depends on: recipe, inputs, seed."""
    root: str = ""
    """Folder below the prefix in which the files lie. Each writer has its own, so that two writers of one artifact (an attempt that
    was given up but still runs, and its successor) never mix: whoever writes the manifest first wins."""
    files: list[FileEntry]
    meta: dict[str, Any] = Field(default_factory=dict)
    """Small facts that later phases and reports need without reading the files."""

    def to_bytes(self) -> bytes:
        return (json.dumps(self.to_wire(), indent=1, sort_keys=True) + "\n").encode()

    def digest(self) -> str:
        """`sha256:…` over path, size and SHA-256 of every file. Neither `root` nor `meta` is part of it: the same content has the same
        digest whoever wrote it and however often that was interrupted, so that keys made from it agree between runs."""
        content = [[entry.path, entry.size, entry.sha256] for entry in sorted(self.files, key=lambda entry: entry.path)]
        return "sha256:" + hashlib.sha256(json.dumps([self.kind, content]).encode()).hexdigest()
