"""How a trainer ended, in the words of the contract: what its exit code and its result say together."""

import json
import signal
from dataclasses import dataclass

from pydantic import ValidationError

from comd_api.exit_codes import ExitCode
from comd_api.stage import StageResult
from comd_api.status import ExitClass

MAX_MESSAGE = 1024

CLASS_OF_CODE: dict[int, ExitClass] = {
    ExitCode.USER_ERROR: "UserError",
    ExitCode.BAD_DATA: "BadData",
    ExitCode.TRY_AGAIN: "TryAgain",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    exit_class: ExitClass
    message: str
    result: StageResult | None


def outcome(*, code: int, termination_message: str | None, tail: list[str], stop_asked: bool) -> Outcome:
    """code: as subprocess gives it, negative for a signal. tail: the log's last lines. stop_asked: whether we asked the
    trainer to end.

    The result counts when it agrees with the exit code; without one the exit code decides, and the log's end is the
    message.
    """
    result = parse_result(termination_message)
    if result is not None and (result.exit_class == "Done") == (code == ExitCode.DONE):
        return Outcome(exit_class=result.exit_class, message=result.message, result=result)
    exit_class, what = _from_code(code, stop_asked=stop_asked)
    return Outcome(exit_class=exit_class, message=with_tail(what, tail), result=None)


def parse_result(text: str | None) -> StageResult | None:
    """None when there is no message, or one that is no StageResult."""
    if not text:
        return None
    try:
        return StageResult.model_validate(json.loads(text))
    except (ValueError, ValidationError, RecursionError):
        return None


def _from_code(code: int, *, stop_asked: bool) -> tuple[ExitClass, str]:
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if code == ExitCode.DONE:
        return "Failed", "the trainer ended well but left no result"
    if code in CLASS_OF_CODE:
        return CLASS_OF_CODE[code], f"the trainer ended with code {code} and left no result"
    if stop_asked and number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        return "TryAgain", "stopped by request"
    if number == signal.SIGKILL:
        return "OutOfMemory", "the trainer was killed by signal 9, which is what the kernel does when memory runs out"
    if number == signal.SIGTERM:
        return "TryAgain", "the trainer was stopped by signal 15"
    if number:
        return "Failed", f"the trainer was ended by signal {number} ({_signal_name(number)})"
    return "Failed", f"the trainer ended with code {code} and left no result"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def with_tail(sentence: str, tail: list[str]) -> str:
    """The sentence and as many of the log's last lines as fit."""
    text = sentence
    if tail:
        room = MAX_MESSAGE - len(sentence) - len("; the log ends: ")
        joined = " | ".join(tail)
        text += "; the log ends: " + (joined if len(joined) <= room else "…" + joined[-(room - 1) :])
    return text
