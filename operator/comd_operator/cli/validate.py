"""`comd validate FILE…`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from comd_api.exit_codes import ExitCode, UserError
from comd_operator.validation import load_runs


def validate_command(files: Sequence[Path]) -> int:
    """Every problem of every file on stderr, one sentence a line; 64 when there is one."""
    bad = False
    for path in files:
        try:
            runs = load_runs(path)
        except UserError as error:
            bad = True
            print(error, file=sys.stderr)
        else:
            print(f"{path}: {', '.join(run.metadata.name for run in runs)} valid")
    return ExitCode.USER_ERROR if bad else ExitCode.DONE
