"""Log lines: JSON for machines, plain for people, and the stage's names on each."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime

import pytest

from comd_trainer.logs import configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_file_gets_one_json_object_a_line() -> None:
    stream = io.StringIO()
    configure(run="digits", stage="round-1", phase="teach", attempt=2, rank=1, stream=stream)
    logging.getLogger("comd_trainer.x").info("made %d answers\nin all", 3, extra={"seconds": 1.5, "folder": object})
    logging.getLogger("comd_trainer.x").debug("not told")
    (line,) = lines(stream)
    assert datetime.fromisoformat(str(line.pop("time"))).utcoffset() is not None
    assert str(line.pop("folder")).startswith("<class")
    assert line == {
        "level": "info",
        "logger": "comd_trainer.x",
        "message": "made 3 answers\nin all",
        "run": "digits",
        "stage": "round-1",
        "phase": "teach",
        "attempt": 2,
        "rank": 1,
        "seconds": 1.5,
    }


def test_names_that_are_not_known_are_left_out() -> None:
    stream = io.StringIO()
    configure(run="digits", stage="preflight", attempt=1, stream=stream)
    logging.info("hello")
    assert not {"phase", "rank"} & set(lines(stream)[0])


def test_exceptions_and_warnings_stay_on_their_line() -> None:
    stream = io.StringIO()
    configure(run="r", stage="s", attempt=1, stream=stream)
    try:
        raise ValueError("no")
    except ValueError:
        logging.exception("it failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    failed, warned = lines(stream)
    assert failed["level"] == "error"
    assert "ValueError: no" in str(failed["exception"])
    assert "old" in str(warned["message"])


def test_a_terminal_gets_plain_lines() -> None:
    stream = Terminal()
    configure(run="digits", stage="round-1", phase="teach", attempt=2, rank=0, stream=stream)
    logging.info("hello")
    logging.warning("careful")
    first, second = stream.getvalue().splitlines()
    assert first.partition(" ")[2] == "digits round-1/teach #2 [0] hello"
    assert second.endswith("[0] WARNING: careful")


def test_configuring_again_replaces_what_was() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(run="r", stage="s", phase="teach", attempt=1, stream=first)
    configure(run="r", stage="s", phase="tune", attempt=1, stream=second)
    logging.info("hello")
    assert first.getvalue() == ""
    assert lines(second)[0]["phase"] == "tune"


def test_libraries_look_like_us_and_chatter_is_left_out() -> None:
    stream, own = io.StringIO(), io.StringIO()
    library = logging.getLogger("DeepSpeed")
    library.addHandler(logging.StreamHandler(own))
    library.propagate = False
    configure(run="r", stage="s", attempt=1, stream=stream)
    library.warning("from a library")
    logging.getLogger("httpx").info("HTTP Request: POST")
    assert own.getvalue() == ""
    assert [line["message"] for line in lines(stream)] == ["from a library"]
