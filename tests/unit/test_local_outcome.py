"""How a trainer's end is read: exit code, termination message, log."""

import json
from pathlib import Path

import pytest

from comd_operator.local.log_tail import log_tail
from comd_operator.policies.outcome import MAX_MESSAGE, outcome, parse_result

DONE = json.dumps({"exitClass": "Done"})
BAD_DATA = json.dumps({"exitClass": "BadData", "message": "7 % of the rows can't be used"})


@pytest.mark.parametrize(
    ("code", "message", "stop_asked", "exit_class", "says"),
    [
        (0, DONE, False, "Done", ""),
        (65, BAD_DATA, False, "BadData", "7 % of the rows"),
        (1, '{"exitClass":"OutOfMemory","message":"CUDA"}', False, "OutOfMemory", "CUDA"),
        (0, None, False, "Failed", "left no result"),
        (0, BAD_DATA, False, "Failed", "left no result"),
        (1, DONE, False, "Failed", "ended with code 1"),
        (1, "", False, "Failed", "ended with code 1"),
        (1, "{half a messa", False, "Failed", "ended with code 1"),
        (1, '{"exitClass":"Sunshine"}', False, "Failed", "ended with code 1"),
        (64, None, False, "UserError", "code 64"),
        (65, None, False, "BadData", "code 65"),
        (75, None, False, "TryAgain", "code 75"),
        (-9, None, False, "OutOfMemory", "signal 9"),
        (137, None, False, "OutOfMemory", "signal 9"),
        (-9, None, True, "TryAgain", "stopped by request"),
        (-15, None, True, "TryAgain", "stopped by request"),
        (143, None, False, "TryAgain", "signal 15"),
        (-11, None, False, "Failed", "SIGSEGV"),
        (255, None, False, "Failed", "signal 127"),
        (3, None, True, "Failed", "code 3"),
    ],
)
def test_outcome(code: int, message: str | None, stop_asked: bool, exit_class: str, says: str) -> None:
    found = outcome(code=code, termination_message=message, tail=["last words"], stop_asked=stop_asked)
    assert found.exit_class == exit_class
    assert says in found.message
    assert (found.result is None) == ("last words" in found.message)


def test_a_long_log_is_cut_from_its_beginning() -> None:
    found = outcome(code=1, termination_message=None, tail=["x" * 2000, "the very end"], stop_asked=False)
    assert len(found.message) == MAX_MESSAGE
    assert found.message.endswith("the very end")


def test_parse_result_takes_what_the_contract_writes() -> None:
    result = parse_result(BAD_DATA)
    assert result is not None
    assert parse_result(result.to_termination_message()) == result


def test_log_tail_is_readable(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"old\n" * 50 + b"\x1b[31mred\x1b[0m\n\n 10%\r 20%\r 30%\n\xff\xfe\n")
    assert log_tail(log, lines=3) == ["red", "30%", "\N{REPLACEMENT CHARACTER}" * 2]
    assert log_tail(tmp_path / "none.log") == []
