"""What `comd run` shows: the line, the picture, the tables."""

import io
from typing import Any

import pytest
from rich.console import Console

from comd_api.stage import Progress
from comd_api.status import Counts, GroupScore, PhaseTime, RunStatus, StageStatus
from comd_operator.local.process import read_progress
from comd_operator.local.report import plain, print_tables, tables
from comd_operator.local.view import LiveView, PlainView, duration, picture, progress_line
from comd_operator.policies.events import Event
from comd_operator.policies.progress import progress_text
from tests.unit.runs import make_run, student_score

TUNING = Progress(
    stage="round-1",
    phase="tune",
    done=40,
    total=120,
    unit="steps",
    rate=2.134,
    seconds_left=37.5,
    metrics={"loss": 1.23456},
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (8.44, "8.4 s"), (42.4, "42 s"), (200, "3 min 20 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_line() -> None:
    status = RunStatus(stage="round-1")
    assert progress_line(status, TUNING) == "round-1 tune 40/120 steps 33% loss=1.235 2.13 steps/s 38 s left"
    assert progress_line(status, Progress(stage="round-1")) == "round-1 starting"


def test_progress_text() -> None:
    assert progress_text(TUNING) == "tune 33 %"
    assert progress_text(Progress(stage="x", phase="teach")) == "teach"
    assert progress_text(None) is None


def test_progress_that_makes_no_sense_is_none(tmp_path: Any) -> None:
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text('{"stage": "round-1", "done": "many"}')
    assert read_progress(path) is None


def status() -> RunStatus:
    def stage(name: str, value: float, **fields: Any) -> StageStatus:
        group = [
            GroupScore(name="count", value=value / 2, num_items=60),
            GroupScore(name="read", value=value, num_items=40),
        ]
        scores = [
            student_score(value).replace(groups=group),
            student_score(0.95, role="teacher").replace(groups=group[:1]),
        ]
        return StageStatus(name=name, phase="Succeeded", scores=scores, **fields)

    counts = Counts(train=100, compared=50, hard=20, easy=29, dropped=1, accepted=40, rejected=8, teacher_answers=48)
    phases = [PhaseTime(name="teach", seconds=3.0, reused=True), PhaseTime(name="tune", seconds=75.0)]
    return RunStatus(
        phase="Running",
        stage="round-2",
        stages=[
            stage("pretrain", 0.25),
            stage("round-1", 0.5, counts=counts, phases=phases, attempt=2),
            StageStatus(name="round-2", phase="Running", attempt=1),
        ],
    )


def test_tables() -> None:
    found = {table.title: table for table in tables(make_run().replace(status=status()))}
    assert found["Accuracy (95 % interval)"].rows == [
        ["test", "before round 1", "0.250 [0.000, 1.000]", "0.950 [0.000, 1.000]", "100"],
        ["test", "after round 1", "0.500 [0.000, 1.000]", "0.950 [0.000, 1.000]", "100"],
    ]
    groups = found["Accuracy on test by group"]
    assert groups.header == ["group", "items", "before round 1", "after round 1", "teacher"]
    assert groups.rows == [["count", "60", "0.125", "0.250", "0.250"], ["read", "40", "0.250", "0.500", ""]]
    assert found["Items"].rows == [["round-1", "100", "50", "20", "29", "1", "40", "8", "48"]]
    assert found["Time"].rows == [["round-1", "(reused)", "1 min 15 s", "1 min 15 s"]]


def test_a_run_without_results_has_no_tables() -> None:
    assert tables(make_run()) == []


def test_tables_in_a_pipe_and_on_a_terminal() -> None:
    made = tables(make_run().replace(status=status()))
    pipe = io.StringIO()
    print_tables(made, pipe)
    assert plain(made[0]) in pipe.getvalue()
    assert max(len(line) for line in pipe.getvalue().splitlines()) < 140

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    print_tables(made, terminal)
    assert "before round 1" in terminal.getvalue()


def test_picture_shows_stages_phases_and_numbers() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    run = make_run().replace(status=status())
    console.print(picture(run, TUNING.replace(stage="round-2")))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in (
        "preflight",
        "Succeeded (attempt 2)",
        "20 / 29",
        "0.500 / 0.950",
        "✓ teach  ▶ tune  · answer",
        "loss=1.235",
    ):
        assert expected in text


def test_live_view_draws_and_tells_events() -> None:
    file = io.StringIO()
    run = make_run().replace(status=status())
    with LiveView(Console(file=file, width=120, force_terminal=True)) as view:
        view.update(run, TUNING)
        view.event(Event(type="Warning", reason="AttemptFailed", message="[round-1] (no markup)"))
    assert "AttemptFailed: [round-1] (no markup)" in file.getvalue()
    assert "▶ tune" in file.getvalue()


def test_plain_view_keeps_its_interval_and_quiet_leaves_warnings() -> None:
    run = make_run().replace(status=status())
    file = io.StringIO()
    with PlainView(stream=file, interval=3600) as view:
        view.update(run, TUNING)
        view.update(run, TUNING)
        view.event(Event(type="Normal", reason="StageSucceeded", message="pretrain"))
    assert len(file.getvalue().splitlines()) == 2

    file = io.StringIO()
    with PlainView(stream=file, quiet=True) as view:
        view.update(run, TUNING)
        view.event(Event(type="Normal", reason="StageSucceeded", message="pretrain"))
        view.event(Event(type="Warning", reason="Failed", message="no luck"))
    assert len(file.getvalue().splitlines()) == 1
