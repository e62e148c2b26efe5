"""One line a record: JSON in a pod, plain on a terminal, with run, stage and attempt, or schedule, on each."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from comd_operator.runtime import logcontext


class _AddContext(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.about = logcontext.fields()
        return True


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **getattr(record, "about", {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        about = getattr(record, "about", {})
        where = "/".join(str(about[key]) for key in ("namespace", "schedule", "run", "stage") if key in about)
        if "attempt" in about:
            where += f" a{about['attempt']}"
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{moment} {record.levelname.lower():<7} {where + ': ' if where else ''}{record.getMessage()}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure(*, log_format: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Takes the place of whatever was set up before, kopf's own handlers included."""
    plain = log_format == "plain" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if plain else JsonFormatter())
    handler.addFilter(_AddContext())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("kopf", "aiohttp.access", "asyncio"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).setLevel(logging.WARNING)
