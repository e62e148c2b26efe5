"""Each policy with its table of cases."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comd_api.early_stop import Scored, early_stop_reason
from comd_api.run import Retry
from comd_api.stage import StageResult
from comd_api.status import Counts, PhaseTime, RunStatus, StageStatus
from comd_operator.policies import (
    clock,
    conditions,
    deadlines,
    ledger,
    queue,
    results,
    retry,
    stages,
    summary,
    suspend,
)
from comd_operator.policies.events import event
from comd_operator.policies.hold import Hold
from tests.unit.runs import START, artifact, make_run, student_score

RETRY = Retry(limit=3, backoff_seconds=10, max_backoff_seconds=100)


@pytest.mark.parametrize(
    ("exit_class", "failures", "again", "counts"),
    [
        ("UserError", 0, False, True),
        ("BadData", 0, False, True),
        ("Deadline", 0, False, False),
        ("TryAgain", 0, True, False),
        ("TryAgain", 99, True, False),
        ("Failed", 0, True, True),
        ("Failed", 2, True, True),
        ("Failed", 3, False, True),
        ("OutOfMemory", 2, True, True),
        ("OutOfMemory", 3, False, True),
    ],
)
def test_retry(exit_class: str, failures: int, again: bool, counts: bool) -> None:
    verdict = retry.after(exit_class, failures=failures, attempt=failures + 1, lasted=1.0, retry=RETRY, seed="x")  # type: ignore[arg-type]
    assert (verdict.again, verdict.counts) == (again, counts)
    assert (verdict.delay > 0) == again


@pytest.mark.parametrize(("doublings", "full"), [(-1, 10), (0, 10), (1, 20), (3, 80), (4, 100), (500, 100)])
def test_backoff_doubles_up_to_the_limit(doublings: int, full: float) -> None:
    waits = {retry.backoff(doublings, retry=RETRY, seed=str(number)) for number in range(50)}
    assert all(0.75 * full <= wait <= full for wait in waits)
    assert len(waits) == 50, "jitter differs by name"
    assert retry.backoff(doublings, retry=RETRY, seed="1") == retry.backoff(doublings, retry=RETRY, seed="1")


def test_an_attempt_that_lived_long_starts_waiting_anew() -> None:
    def delay(lasted: float) -> float:
        return retry.after("TryAgain", failures=0, attempt=9, lasted=lasted, retry=RETRY, seed="x").delay

    assert delay(100.0) > 70
    assert delay(101.0) <= 10


@pytest.mark.parametrize(
    ("scores", "patience", "min_gain", "stops"),
    [
        ([], 1, 0.0, False),
        ([0.5], 1, 0.0, False),
        ([0.5, 0.6], 1, 0.0, False),
        ([0.5, 0.5], 1, 0.0, True),
        ([0.5, 0.4], 1, 0.0, True),
        ([0.5, 0.4], 2, 0.0, False),
        ([0.5, 0.4, 0.45], 2, 0.0, True),
        ([0.5, 0.4, 0.51], 2, 0.0, False),
        ([0.5, 0.51], 1, 0.02, True),
        ([0.5, 0.52], 1, 0.02, False),
        ([0.5, 0.51, 0.52], 2, 0.02, False),
        ([0.5, None, 0.4], 1, 0.0, True),
        ([None, 0.5], 1, 0.0, False),
    ],
)
def test_early_stop(scores: list[float | None], patience: int, min_gain: float, stops: bool) -> None:
    rule = {"evaluation": "test", "patience": patience, "minGain": min_gain}
    spec = make_run(rounds__earlyStop=rule, rounds__count=9).spec
    done = [Scored(stage.name, stage.scores) for stage in done_stages(scores)]
    assert (early_stop_reason(spec, done) is not None) == stops


def done_stages(scores: list[float | None]) -> list[StageStatus]:
    names = ["pretrain", *(f"round-{number}" for number in range(1, 10))]
    return [
        StageStatus(name=name, phase="Succeeded", scores=[] if score is None else [student_score(score)])
        for name, score in zip(names, scores, strict=False)
    ]


def test_what_comes_next() -> None:
    spec = make_run().spec
    names = ["preflight", "pretrain", "round-1", "round-2"]
    for count in range(4):
        status = RunStatus(stages=[StageStatus(name=name, phase="Succeeded") for name in names[:count]])
        assert stages.upcoming(spec, status) == names[count]
    full = RunStatus(stages=[StageStatus(name=name, phase="Succeeded", stop="too few") for name in names])
    assert stages.upcoming(spec, full) is None
    assert stages.ended_early(spec, full) is None, "nothing was left out"
    stopped = RunStatus(stages=full.stages[:3])
    assert stages.upcoming(spec, stopped) is None
    assert stages.ended_early(spec, stopped) == "too few"


@pytest.mark.parametrize(
    ("suspended", "policy", "stage", "pauses"),
    [
        (False, "Now", {"attempt_start_time": "2026-01-01T00:00:00Z"}, False),
        (True, "Now", {"attempt_start_time": "2026-01-01T00:00:00Z"}, True),
        (True, "StageEnd", {"attempt_start_time": "2026-01-01T00:00:00Z", "phase": "Running"}, False),
        (True, "StageEnd", {"phase": "Running", "completed_jobs": 1}, False),
        (True, "StageEnd", {"phase": "Retrying", "completed_jobs": 1}, True),
        (True, "StageEnd", {"phase": "Suspended", "completed_jobs": 1}, True),
        (True, "StageEnd", None, True),
    ],
)
def test_suspend(suspended: bool, policy: str, stage: dict[str, object] | None, pauses: bool) -> None:
    spec = make_run(suspend=suspended, suspendPolicy=policy).spec
    entry = StageStatus(name="round-1", **stage) if stage is not None else None  # type: ignore[arg-type]
    assert suspend.must_pause(spec, entry) == pauses


def test_pausing_twice_is_pausing_once() -> None:
    begun = clock.to_text(START)
    stage = StageStatus(name="round-1", phase="Running", attempt=1, attempt_start_time=begun)
    status = RunStatus(start_time=begun, active_since=begun, stages=[stage])
    now = START + timedelta(seconds=7)
    once = suspend.pause(status, now, message="suspended")
    assert (once.active_seconds, once.stages[0].active_seconds) == (7.0, 7.0)
    assert suspend.pause(once, now + timedelta(days=1), message="suspended") == once
    assert queue.start_clock(once, now).active_since == clock.to_text(now)
    assert queue.start_clock(RunStatus(), now) == RunStatus(), "a run that was never started has no clock"


@pytest.mark.parametrize(
    ("run_limit", "stage_limit", "exceeded", "left"),
    [
        (None, None, None, None),
        (100, None, None, 40.0),
        (60, None, "activeDeadlineSeconds (60)", None),
        (None, 60, None, 30.0),
        (None, 30, "stageDeadlineSeconds (30)", None),
        (70, 31, None, 1.0),
        (60, 30, "activeDeadlineSeconds (60)", None),
    ],
)
def test_deadlines(run_limit: int | None, stage_limit: int | None, exceeded: str | None, left: float | None) -> None:
    """The run was active for 50 + 10 seconds, the stage for 20 + 10."""
    spec = make_run(activeDeadlineSeconds=run_limit, stageDeadlineSeconds=stage_limit).spec
    begun = clock.to_text(START)
    status = RunStatus(active_seconds=50.0, active_since=begun)
    stage = StageStatus(name="round-1", active_seconds=20.0, attempt_start_time=begun)
    found = deadlines.check(spec, status, stage, START + timedelta(seconds=10))
    assert found.seconds_left == left
    assert (found.exceeded is None) if exceeded is None else exceeded in str(found.exceeded)


@given(st.datetimes(), st.floats(0, 1e6))
def test_a_wait_ends_at_a_whole_second_and_not_before(moment: object, seconds: float) -> None:
    from datetime import UTC, datetime

    assert isinstance(moment, datetime)
    now = moment.replace(year=2028, tzinfo=UTC)
    text = clock.to_text_after(now, seconds)
    assert seconds - 1e-3 <= clock.until(text, now) <= seconds + 1.0
    assert clock.to_text(clock.from_text(text)) == text


def test_since_is_never_negative() -> None:
    assert clock.since("2030-01-01T00:00:00Z", START) == 0.0
    assert clock.since(None, START) == 0.0


def test_merging_results() -> None:
    stage = StageStatus(
        name="round-1",
        artifacts=[artifact("student", "file:///old"), artifact("pools")],
        scores=[student_score(0.5), student_score(0.9, role="teacher")],
        phases=[PhaseTime(name="teach", seconds=9.0), PhaseTime(name="tune", seconds=0.0, reused=True)],
        counts=Counts(train=5, hard=1),
    )
    result = StageResult(
        exit_class="Done",
        artifacts=[artifact("student", "file:///new")],
        scores=[student_score(0.6)],
        phases=[PhaseTime(name="teach", seconds=0.1, reused=True), PhaseTime(name="tune", seconds=4.0)],
        counts=Counts(hard=2, easy=3),
        stop="too few",
    )
    merged = results.merge(stage, result)
    assert {ref.name: ref.uri for ref in merged.artifacts} == {"student": "file:///new", "pools": "file:///store/x"}
    assert [(score.role, score.value) for score in merged.scores] == [("student", 0.6), ("teacher", 0.9)]
    assert [(time.name, time.seconds) for time in merged.phases] == [("teach", 9.0), ("tune", 4.0)]
    assert merged.counts == Counts(train=5, hard=2, easy=3)
    assert merged.stop == "too few"
    assert results.merge(merged, StageResult(exit_class="Done")).stop == "too few"


def test_a_long_message_is_cut_to_the_schema() -> None:
    stage = StageStatus(name="preflight", attempt=1, attempt_start_time=clock.to_text(START))
    spec = make_run().spec
    ended = results.record(
        stage, spec=spec, exit_class="Failed", message="x" * 5000, result=None, ended=START, seed="x"
    )
    assert StageStatus.model_validate(ended.to_wire()) == ended


@pytest.mark.parametrize("phase", list(conditions.TRUE_TYPES))
def test_conditions(phase: str) -> None:
    run = make_run()
    failed = StageStatus(name="round-1", phase="Failed", exit_class="BadData", message="m")
    status = RunStatus(phase=phase, stages=[failed] if phase == "Failed" else [])  # type: ignore[arg-type]
    held = Hold(reason="Pending", message="no quota", queued=phase == "Queued", stalled=phase == "Stalled")
    first = conditions.conditions(run, status, START, hold=held)
    true = {condition.type for condition in first if condition.status == "True"}
    assert true == set(conditions.TRUE_TYPES[phase])  # type: ignore[index]
    assert [condition.type for condition in first] == sorted(conditions.TYPES)
    assert all(condition.reason for condition in first)
    assert {condition.type for condition in first if condition.message} == {*true, "Ready"}

    later = START + timedelta(seconds=60)
    again = conditions.conditions(run, status.replace(conditions=first), later, hold=held)
    assert again == first, "nothing flipped"
    other = "Suspended" if phase != "Suspended" else "Pending"
    flipped = conditions.conditions(run, status.replace(conditions=first, phase=other, stages=[]), later)
    for old, new in zip(first, flipped, strict=True):
        moved = old.last_transition_time != new.last_transition_time
        assert moved == (old.status != new.status)


@pytest.mark.parametrize(
    ("exit_class", "retry_time", "words"),
    [
        ("CannotStart", clock.to_text(START), "no image; next attempt at 00:00:00Z"),
        ("CannotStart", None, "no image"),
        ("Failed", clock.to_text(START), "round-1: attempt 2 ended with Failed: m; next attempt at 00:00:00Z"),
    ],
)
def test_when_it_is_tried_again_stands_in_the_message(exit_class: Any, retry_time: str | None, words: str) -> None:
    stage = StageStatus(
        name="round-1", phase="Retrying", attempt=2, exit_class=exit_class, message="m", retry_time=retry_time
    )
    phase: Any = "Stalled" if exit_class == "CannotStart" else "Running"
    held = Hold(reason="CannotStart", message="no image", queued=False, stalled=True) if phase == "Stalled" else None
    told = conditions.conditions(make_run(), RunStatus(phase=phase, stages=[stage]), START, hold=held)
    assert {condition.message for condition in told if condition.message} == {words}


def test_a_run_that_is_to_be_suspended_at_the_end_of_its_stage_says_so() -> None:
    stage = StageStatus(name="round-3", phase="Running", attempt=1, attempt_start_time=clock.to_text(START))
    run, status = make_run(suspend=True, suspendPolicy="StageEnd"), RunStatus(phase="Running", stages=[stage])
    told = {condition.type: condition.message for condition in conditions.conditions(run, status, START)}
    assert told["Reconciling"] == told["Ready"] == "round-3, attempt 1; will be suspended when round-3 has ended"
    assert not told["Suspended"]


def test_the_message_of_a_condition_never_says_how_far_it_is() -> None:
    run = make_run()
    stage = StageStatus(name="round-1", phase="Running", attempt=1)
    one = conditions.conditions(run, RunStatus(phase="Running", stages=[stage], progress="tune 1 %"), START)
    two = conditions.conditions(run, RunStatus(phase="Running", stages=[stage], progress="tune 2 %"), START)
    assert one == two


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ([], None),
        ([[student_score(0.7312)]], "0.731"),
        ([[student_score(0.7), student_score(0.884, role="teacher")], [student_score(0.75)]], "0.750 / 0.884"),
        ([[student_score(0.7, evaluation="other")]], None),
    ],
)
def test_score_text(scores: list[list[object]], text: str | None) -> None:
    entries = [StageStatus(name=f"round-{i}", scores=entry) for i, entry in enumerate(scores)]  # type: ignore[arg-type]
    assert summary.score_text(make_run().spec, RunStatus(stages=entries)) == text


def test_a_repeated_decision_tells_nothing_twice() -> None:
    stage = StageStatus(name="round-1", phase="Running", attempt=1, job_name="a", attempt_start_time="x")
    before, after = RunStatus(), RunStatus(phase="Running", stages=[stage])
    told = event(before, after, queue=False)
    assert told is not None
    assert told.reason == "JobStarted"
    assert event(after, after, queue=False) is None


def test_ledger() -> None:
    done, going = StageStatus(name="a", phase="Succeeded"), StageStatus(name="b", phase="Running")
    assert ledger.current(RunStatus()) is None
    assert ledger.current(RunStatus(stages=[done])) is None
    assert ledger.current(RunStatus(stages=[done, going])) == going
    changed = going.replace(attempt=2)
    assert ledger.put(RunStatus(stages=[done, going]), changed).stages == [done, changed]
    assert ledger.put(RunStatus(stages=[done]), going).stages == [done, going]
