"""`comd validate FILE…`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from comd_api.exit_codes import ExitCode, UserError
from comd_operator.validation import load_manifests


def validate_command(files: Sequence[Path]) -> int:
    """Every problem of every file on stderr, one sentence a line; 64 when there is one."""
    bad = False
    for path in files:
        try:
            manifests = load_manifests(path)
        except UserError as error:
            bad = True
            print(error, file=sys.stderr)
        else:
            print(f"{path}: {', '.join(manifest.metadata.name for manifest in manifests)} valid")
    return ExitCode.USER_ERROR if bad else ExitCode.DONE
