"""Log lines of a stage: JSON where a machine reads them, plain text on a terminal; each says which run, stage, phase
and attempt."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; what else a record carries was given as `extra`."""
ADOPTED = ("DeepSpeed", "transformers", "huggingface_hub", "torch")
"""Libraries that bring handlers of their own: their lines shall look like ours."""
QUIET = ("httpx", "httpcore", "urllib3", "botocore", "boto3", "s3transfer", "PIL")
"""Libraries that write a line per request."""


def configure(
    *,
    run: str,
    stage: str,
    attempt: int,
    phase: str | None = None,
    rank: int | None = None,
    stream: TextIO | None = None,
    level: int = logging.INFO,
) -> None:
    """Sends this process's log lines to `stream` (standard error), in place of what was configured before."""
    stream = stream or sys.stderr
    context = {"run": run, "stage": stage, "phase": phase, "attempt": attempt, "rank": rank}
    context = {name: value for name, value in context.items() if value is not None}
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter(context) if stream.isatty() else JsonFormatter(context))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ADOPTED:
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    if not stream.isatty():
        _silence_progress_bars()
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _silence_progress_bars() -> None:
    """Bars redraw a line, which is noise in a file. transformers reads the environment when it is imported, maybe
    before now."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    library = sys.modules.get("transformers.utils.logging")
    if library is not None:
        library.disable_progress_bar()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, message, the context, and the record's `extra`
    fields."""

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__()
        self.context = context

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self.context,
            **{name: value for name, value in vars(record).items() if name not in STANDARD},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class PlainFormatter(logging.Formatter):
    """`12:00:01 round-1/teach #1 [0] message` for people; a warning or worse says so."""

    def __init__(self, context: dict[str, Any]) -> None:
        super().__init__()
        place = f"{context['run']} {context['stage']}" + (f"/{context['phase']}" if "phase" in context else "")
        self.place = f"{place} #{context['attempt']}" + (f" [{context['rank']}]" if "rank" in context else "")

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        line = f"{datetime.fromtimestamp(record.created):%H:%M:%S} {self.place} {level}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
