"""The operator's log lines: JSON for machines, plain for people, and run, stage and attempt on each."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from comd_api.status import StageStatus
from comd_operator.runtime.logcontext import about
from comd_operator.shell.logs import configure

STAGE = StageStatus(name="round-3", attempt=2)
log = logging.getLogger("comd_operator.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    names = (None, "kopf", "aiohttp.access", "asyncio")
    found = [
        (logging.getLogger(name), list(logging.getLogger(name).handlers), logging.getLogger(name).level)
        for name in names
    ]
    yield
    for logger, handlers, level in found:
        logger.handlers[:] = handlers
        logger.setLevel(level)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json() -> None:
    configure(log_format="json", level="info", stream=(stream := io.StringIO()))
    with about(run="tiny", namespace="team", stage=STAGE):
        log.info("deleting Job %s: “%s”", "x", "über")
    log.debug("not told")
    (line,) = written(stream)
    moment = datetime.fromisoformat(line.pop("time"))
    assert moment.utcoffset() is not None
    assert line == {
        "level": "info",
        "logger": "comd_operator.test",
        "run": "tiny",
        "namespace": "team",
        "stage": "round-3",
        "attempt": 2,
        "message": "deleting Job x: “über”",
    }
    assert "über" in stream.getvalue()


def test_json_is_one_line_each_whatever_happens() -> None:
    configure(log_format="json", level="info", stream=(stream := io.StringIO()))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("first\nsecond")
    (line,) = written(stream)
    assert line["message"] == "first\nsecond"
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize(
    ("context", "where"),
    [
        (None, ""),
        ({"run": "tiny", "namespace": "team", "stage": None}, "team/tiny: "),
        ({"run": "tiny", "namespace": "team", "stage": STAGE}, "team/tiny/round-3 a2: "),
    ],
)
def test_plain(context: dict[str, Any] | None, where: str) -> None:
    configure(log_format="plain", level="info", stream=(stream := io.StringIO()))
    if context is None:
        log.warning("to be tried again")
    else:
        with about(**context):
            log.warning("to be tried again")
    assert stream.getvalue()[8:] == f" warning {where}to be tried again\n"


def test_plain_shows_where_an_error_came_from() -> None:
    configure(log_format="plain", level="info", stream=(stream := io.StringIO()))
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("to be tried again")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   to be tried again")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: no"


@pytest.mark.parametrize(
    ("log_format", "stream", "plain"),
    [
        ("auto", Terminal(), True),
        ("auto", io.StringIO(), False),
        ("json", Terminal(), False),
        ("plain", io.StringIO(), True),
    ],
)
def test_a_terminal_gets_plain_lines_and_a_pod_json(log_format: str, stream: io.StringIO, plain: bool) -> None:
    configure(log_format=log_format, level="info", stream=stream)
    log.info("hello")
    assert stream.getvalue().startswith("{") != plain


@pytest.mark.parametrize(("level", "told"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, told: int) -> None:
    configure(log_format="json", level=level, stream=(stream := io.StringIO()))
    for say in (log.debug, log.info, log.warning, log.error):
        say("x")
    assert len(written(stream)) == told


def test_kopf_says_only_what_is_wrong_and_says_it_once() -> None:
    kopf = logging.getLogger("kopf")
    kopf.handlers[:] = [logging.StreamHandler(own := io.StringIO())]
    configure(log_format="json", level="info", stream=(stream := io.StringIO()))
    logging.getLogger("kopf.activities").info("Activity 'start' succeeded.")
    logging.getLogger("kopf.activities").error("Activity 'start' failed.")
    assert [line["message"] for line in written(stream)] == ["Activity 'start' failed."]
    assert own.getvalue() == ""


def test_configuring_twice_says_nothing_twice() -> None:
    for _ in range(2):
        configure(log_format="json", level="info", stream=(stream := io.StringIO()))
    log.info("once")
    assert len(written(stream)) == 1


def test_lines_of_runs_that_are_worked_on_at_once_are_told_apart() -> None:
    configure(log_format="json", level="info", stream=(stream := io.StringIO()))

    async def work(run: str) -> None:
        with about(run=run, namespace="team", stage=None):
            for _ in range(3):
                log.info(run)
                await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(work("one"), work("two"))
        log.info("neither")

    asyncio.run(both())
    lines = written(stream)
    assert [line["message"] for line in lines] == ["one", "two"] * 3 + ["neither"]
    assert all(line.get("run") == (line["message"] if line["message"] != "neither" else None) for line in lines)


def test_the_context_ends_with_an_error() -> None:
    configure(log_format="json", level="info", stream=(stream := io.StringIO()))
    with pytest.raises(ValueError, match="no"), about(run="tiny", namespace="team", stage=STAGE):
        raise ValueError("no")
    with about(run="outer", namespace="team", stage=None):
        with about(run="inner", namespace="team", stage=STAGE):
            pass
        log.info("x")
    log.info("y")
    first, second = written(stream)
    assert (first["run"], "stage" in first, "run" in second) == ("outer", False, False)
