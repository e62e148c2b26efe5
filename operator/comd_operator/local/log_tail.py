"""The end of a trainer's log, for the message of a run that failed."""

import os
import re
from pathlib import Path

_TAIL_LINES = 12
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def log_tail(path: Path, *, lines: int = _TAIL_LINES) -> list[str]:
    """The last lines of a log that say something, without terminal codes and redrawn progress bars."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    kept = [_TERMINAL_CODES.sub("", line.rpartition("\r")[2]).strip() for line in text.split("\n")]
    return [line for line in kept if line][-lines:]
