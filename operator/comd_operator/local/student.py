"""The link to the newest student, for people and for `from_pretrained`."""

import json
import os
from pathlib import Path
from urllib.parse import unquote

from pydantic import ValidationError

from comd_api.artifact import MANIFEST_NAME, Manifest
from comd_api.status import ArtifactRef
from comd_operator.local.workdir import WorkDir


def student_folder(ref: ArtifactRef) -> Path | None:
    """The folder with the checkpoint's files; None for one that is not on this machine."""
    if not ref.uri.startswith("file://"):
        return None
    prefix = Path(unquote(ref.uri.removeprefix("file://")))
    try:
        manifest = Manifest.model_validate(json.loads((prefix / MANIFEST_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
    return prefix / manifest.root


def link_student(work: WorkDir, ref: ArtifactRef) -> None:
    """WORK/student → the folder, replaced atomically. Does nothing for a store elsewhere."""
    folder = student_folder(ref)
    if folder is None:
        return
    partial = work.root / ".student.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(folder, work.root))
    os.replace(partial, work.student)
