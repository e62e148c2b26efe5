"""`comd promote`: where a channel points, and pointing it elsewhere. The trainer does it, who alone knows stores."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from comd_api.base import FORMS, NAME_FORM
from comd_api.exit_codes import UserError
from comd_api.run import DistillationRun, RunSpec, Storage
from comd_operator.cli.storage import choose_storage
from comd_operator.local.workdir import WorkDir
from comd_operator.schedules.runs import template_run
from comd_operator.validation import load_manifest

PROMOTE_COMMAND = (sys.executable, "-m", "comd_trainer", "promote")
DEFAULT_CHANNEL = "stable"


def promote_command(
    file: Path | None,
    *,
    storage: str | None,
    channel: str | None,
    to: str | None,
    command: Sequence[str] = PROMOTE_COMMAND,
) -> int:
    """Returns the trainer's exit code. command: what starts the trainer; tests have their own.

    Raises:
        UserError: neither a manifest nor --storage says where the channel is.
    """
    spec, chosen = _place(file, storage)
    if channel is None:
        channel = spec.promotion.channel if spec is not None and spec.promotion is not None else DEFAULT_CHANNEL
    if not re.fullmatch(NAME_FORM, channel):
        raise UserError(f"--channel {channel!r}: right would be {FORMS[NAME_FORM]}")
    asked = {"storage": chosen.to_wire(), "channel": channel} | ({"to": to} if to is not None else {})
    return subprocess.run([*command], input=json.dumps(asked), text=True, check=False).returncode


def _place(file: Path | None, storage: str | None) -> tuple[RunSpec | None, Storage]:
    if file is None:
        if storage is None:
            raise UserError("where is the channel? give --storage s3://bucket/prefix, or a manifest by -f FILE")
        return None, choose_storage(None, storage, default=Path())
    manifest = load_manifest(file)
    run = manifest if isinstance(manifest, DistillationRun) else template_run(manifest)
    own = "manifest" if run.spec.storage is not None else None
    return run.spec, choose_storage(run.spec, storage or own, default=WorkDir(Path("runs") / run.metadata.name).store)
