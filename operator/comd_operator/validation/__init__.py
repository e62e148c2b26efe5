"""What is wrong with a manifest, in one sentence each: the same verdict as the API server's, before anything is
applied."""

from comd_operator.validation.manifests import (
    InvalidManifestError,
    check_document,
    check_manifest,
    check_update,
    load_manifest,
    load_manifests,
    load_run,
)

__all__ = [
    "InvalidManifestError",
    "check_document",
    "check_manifest",
    "check_update",
    "load_manifest",
    "load_manifests",
    "load_run",
]
