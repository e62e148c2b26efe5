"""Why a run waits, and what its clocks do meanwhile."""

from datetime import timedelta
from typing import Any

import pytest

from comd_api.status import RunStatus, StageStatus
from comd_operator.policies import clock, deadlines, queue
from comd_operator.policies.children import Child
from comd_operator.policies.hold import Hold, Obstacle, hold
from comd_operator.policies.queue import Wait
from tests.unit.runs import START, make_run

SPEC = make_run().spec
THEN = clock.to_text(START)
RUNS: dict[str, Any] = {"phase": "Running", "attempt": 2, "attempt_start_time": THEN, "job_name": "x"}
WAITS: dict[str, Any] = {"phase": "Queued", "attempt": 2, "queued_since": THEN, "job_name": "x"}
RETRIES: dict[str, Any] = {"phase": "Retrying", "attempt": 1, "retry_time": THEN}
NO_IMAGE: dict[str, Any] = {"exit_class": "CannotStart", "message": "ImagePullBackOff: no such image"}
COLLISION = Obstacle(reason="NameCollision", message="Job x exists and is not this run's", seconds=10)
NO_QUOTA, TOO_LARGE = (
    Wait(reason="Pending", message="4 more needed"),
    Wait(reason="Pending", message="8 > 4", stuck=True),
)

CANNOT_START = Hold(
    reason="CannotStart", message="round-1: ImagePullBackOff: no such image", queued=False, stalled=True
)


def child(state: Any, *, wait: Wait | None = None, started: bool = False) -> Child:
    return Child(name="x", stage="round-1", attempt=2, state=state, wait=wait, started=started)


@pytest.mark.parametrize(
    ("stage", "job", "obstacle", "held"),
    [
        (None, None, None, None),
        (RUNS, child("Running", started=True), None, None),
        (RUNS, child("Running"), None, None),
        (RUNS, child("Finishing", started=True), None, None),
        (RUNS, None, None, None),
        (RETRIES, None, None, None),
        # What keeps the next Job from being made.
        (None, None, COLLISION, Hold(reason="NameCollision", message=COLLISION.message, queued=False, stalled=True)),
        (RETRIES, None, COLLISION, Hold(reason="NameCollision", message=COLLISION.message, queued=False, stalled=True)),
        (RUNS, child("Running", started=True), COLLISION, None),
        # The queue.
        (WAITS, child("Queued"), None, Hold(reason="Queued", message="round-1 waits to be admitted", queued=True, stalled=False)),
        (WAITS, None, None, Hold(reason="Queued", message="round-1 waits to be admitted", queued=True, stalled=False)),
        (
            WAITS, child("Queued", wait=NO_QUOTA), None,
            Hold(reason="Pending", message="round-1: 4 more needed", queued=True, stalled=False),
        ),
        (
            WAITS, child("Queued", wait=TOO_LARGE), None,
            Hold(reason="Pending", message="round-1: 8 > 4", queued=True, stalled=True),
        ),
        (
            WAITS, child("Queued", wait=NO_QUOTA), COLLISION,
            Hold(reason="Pending", message="round-1: 4 more needed", queued=True, stalled=False),
        ),
        # What could not be started stays so until a later attempt is, whatever that one waits for.
        ({**RETRIES, **NO_IMAGE}, None, None, CANNOT_START),
        ({**RUNS, **NO_IMAGE}, child("Running"), None, CANNOT_START),
        ({**RUNS, **NO_IMAGE}, None, None, CANNOT_START),
        (
            {**WAITS, **NO_IMAGE}, child("Queued", wait=NO_QUOTA), None,
            Hold(reason="CannotStart", message=CANNOT_START.message, queued=True, stalled=True),
        ),
        (
            {**WAITS, **NO_IMAGE}, child("Queued"), None,
            Hold(reason="CannotStart", message=CANNOT_START.message, queued=True, stalled=True),
        ),
        (
            {**WAITS, **NO_IMAGE}, child("Queued", wait=TOO_LARGE), None,
            Hold(reason="Pending", message="round-1: 8 > 4", queued=True, stalled=True),
        ),
        ({**RUNS, **NO_IMAGE}, child("Running", started=True), None, None),
        ({**RETRIES, **NO_IMAGE}, None, COLLISION, Hold(reason="NameCollision", message=COLLISION.message, queued=False, stalled=True)),
        # What has ended waits for nothing.
        ({"phase": "Failed", **NO_IMAGE}, None, COLLISION, None),
        ({"phase": "Failed", "queued_since": THEN}, child("Queued", wait=TOO_LARGE), None, None),
    ],
)  # fmt: skip
def test_hold(stage: dict[str, Any] | None, job: Child | None, obstacle: Obstacle | None, held: Hold | None) -> None:
    status = RunStatus(stages=[StageStatus(name="round-1", **stage)] if stage is not None else [])
    assert hold(SPEC, status, job, obstacle) == held


def test_a_reason_that_nobody_gave() -> None:
    status = RunStatus(stages=[StageStatus(name="round-1", phase="Retrying", exit_class="CannotStart")])
    held = hold(SPEC, status, None, None)
    assert held is not None
    assert held.message == "round-1: no reason was given"


# The clocks. The run has been active for 50 + 10 seconds, its stage for 20 + 10.

RUNNING = StageStatus(name="round-1", phase="Running", attempt=1, active_seconds=20.0, attempt_start_time=THEN)
STATUS = RunStatus(start_time=THEN, active_seconds=50.0, active_since=THEN, stages=[RUNNING])


def after(seconds: float) -> Any:
    return START + timedelta(seconds=seconds)


@pytest.mark.parametrize(("preempted", "preemptions"), [(True, 1), (False, 0)])
def test_entering_the_queue_stops_both_clocks(preempted: bool, preemptions: int) -> None:
    status = queue.enter(STATUS, RUNNING, after(10), preempted=preempted)
    (stage,) = status.stages
    assert (status.active_seconds, status.active_since) == (60.0, None)
    assert (stage.active_seconds, stage.attempt_start_time) == (30.0, None)
    assert (stage.phase, stage.queued_since, stage.preemptions) == ("Queued", clock.to_text(after(10)), preemptions)
    assert (stage.attempt, stage.failures) == (1, 0)
    assert queue.enter(status, stage, after(99), preempted=True) == status, "waiting on changes nothing"


def test_leaving_the_queue_starts_both_clocks_anew() -> None:
    waiting = queue.enter(STATUS, RUNNING, after(10), preempted=True)
    status = queue.leave(waiting, waiting.stages[0], after(110))
    (stage,) = status.stages
    assert (status.active_seconds, status.active_since) == (60.0, clock.to_text(after(110)))
    assert (stage.active_seconds, stage.attempt_start_time) == (30.0, clock.to_text(after(110)))
    assert (stage.phase, stage.queued_since, stage.queued_seconds) == ("Running", None, 100.0)
    assert deadlines.run_active(status, after(115)) == 65.0
    assert deadlines.stage_active(stage, after(115)) == 35.0
    assert queue.leave(status, stage, after(200)) == status, "running on changes nothing"


def test_waits_add_up() -> None:
    status = STATUS
    for begin, end in ((10, 20), (50, 90)):
        status = queue.enter(status, status.stages[0], after(begin), preempted=True)
        status = queue.leave(status, status.stages[0], after(end))
    (stage,) = status.stages
    assert (stage.preemptions, stage.queued_seconds) == (2, 50.0)
    assert deadlines.stage_active(stage, after(100)) == 20 + 10 + 30 + 10
    assert deadlines.run_active(status, after(100)) == 50 + 10 + 30 + 10


@pytest.mark.parametrize(
    ("limits", "waited", "exceeded", "left"),
    [
        ({}, 1e6, None, None),
        ({"queueDeadlineSeconds": 100}, 40, None, 60.0),
        ({"queueDeadlineSeconds": 100}, 100, "queueDeadlineSeconds (100)", None),
        # Nothing else passes while it waits, and nothing else is due.
        ({"queueDeadlineSeconds": 100, "activeDeadlineSeconds": 61}, 40, None, 60.0),
        ({"activeDeadlineSeconds": 61, "stageDeadlineSeconds": 31}, 1e6, None, None),
        ({"queueDeadlineSeconds": 100, "activeDeadlineSeconds": 60}, 200, "activeDeadlineSeconds (60)", None),
        ({"queueDeadlineSeconds": 100, "stageDeadlineSeconds": 30}, 200, "stageDeadlineSeconds (30)", None),
    ],
)
def test_deadlines_of_a_run_that_waits(
    limits: dict[str, int], waited: float, exceeded: str | None, left: float | None
) -> None:
    status = queue.enter(STATUS, RUNNING, after(10), preempted=False)
    found = deadlines.check(make_run(**limits).spec, status, status.stages[0], after(10 + waited))
    assert found.seconds_left == left
    assert (found.exceeded is None) if exceeded is None else exceeded in str(found.exceeded)
