"""Exit codes of `comd-trainer` and `comd`: a contract, because the operator decides by them.

64, 65 and 75 are sysexits.h's EX_USAGE, EX_DATAERR and EX_TEMPFAIL.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    """Something unforeseen: retried within `spec.retry.limit`."""
    USER_ERROR = 64
    """The manifest or what it names is wrong: never retried."""
    BAD_DATA = 65
    """The data or a model's answers can't be used: never retried."""
    TRY_AGAIN = 75
    """Preempted, or storage is away: retried without spending the budget."""


class ComdError(Exception):
    """An error with a sentence for the user: it names the field, the value and what would be right."""

    exit_code = ExitCode.FAILED


class UserError(ComdError):
    exit_code = ExitCode.USER_ERROR


class BadDataError(ComdError):
    exit_code = ExitCode.BAD_DATA


class TryAgainError(ComdError):
    exit_code = ExitCode.TRY_AGAIN
