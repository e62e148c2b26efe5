"""What is told of a run, from one status to the next; and what is left of one that has ended."""

from datetime import timedelta
from typing import Any

import pytest

from comd_api.status import Condition, RunStatus, StageStatus
from comd_operator.policies.children import Child
from comd_operator.policies.cleanup import CleanUp, after_the_end
from comd_operator.policies.clock import to_text
from comd_operator.policies.events import event
from tests.unit.runs import START, make_run

THEN = to_text(START)


def stage(
    name: str = "round-1", phase: Any = "Running", *, attempt: int = 1, flies: bool = True, **fields: Any
) -> StageStatus:
    waits = phase == "Queued"
    clock: dict[str, Any] = {"queued_since": THEN} if waits else {"attempt_start_time": THEN}
    return StageStatus(
        name=name, phase=phase, attempt=attempt, job_name=f"{name}-a{attempt}", **(clock if flies else {}), **fields
    )


def status(phase: Any, *stages: StageStatus, reason: str = "", message: str = "m") -> RunStatus:
    ready = Condition(
        type="Ready",
        status="False",
        reason=reason or phase,
        message=message,
        last_transition_time=THEN,
        observed_generation=1,
    )
    return RunStatus(phase=phase, stage=stages[-1].name if stages else None, stages=list(stages), conditions=[ready])


NOTHING = RunStatus()
RUNS = status("Running", stage())
QUEUED = status("Queued", stage(phase="Queued"), reason="Pending")
STALLED = status("Stalled", stage(phase="Queued"), reason="Inadmissible")
DONE = stage("pretrain", "Succeeded", flies=False, exit_class="Done")
NEXT = stage("round-1")
RETRIES = stage(phase="Retrying", flies=False, exit_class="Failed", message="loss is NaN")
NO_START = stage(phase="Retrying", flies=False, exit_class="CannotStart", message="no image")
NO_IMAGE: Any = {"reason": "CannotStart", "message": "round-1: no image; the field; next attempt at 12:00:10Z"}
AGAIN = stage(attempt=2, exit_class="Failed", message="loss is NaN")
STARTED = "round-1: attempt 1, Job round-1-a1"


@pytest.mark.parametrize(
    ("before", "after", "kind", "reason", "message"),
    [
        # Begins.
        (NOTHING, RUNS, "Normal", "JobStarted", STARTED),
        (NOTHING, QUEUED, "Normal", "JobStarted", STARTED),
        (NOTHING, status("Stalled", reason="NameCollision", message="exists"), "Warning", "NameCollision", "exists"),
        (NOTHING, status("Suspended", message="spec.suspend is true"), "Normal", "Suspended", "spec.suspend is true"),
        (status("Stalled", reason="NameCollision"), RUNS, "Normal", "JobStarted", STARTED),
        # Waits.
        (QUEUED, RUNS, "Normal", "Running", "round-1 runs"),
        (STALLED, RUNS, "Normal", "Running", "round-1 runs"),
        (RUNS, QUEUED, "Normal", "Queued", "m"),
        (QUEUED, STALLED, "Warning", "Inadmissible", "m"),
        (STALLED, QUEUED, None, None, None),
        (STALLED, status("Stalled", stage(phase="Queued"), reason="NoKueue"), "Warning", "NoKueue", "m"),
        (STALLED, status("Stalled", stage(phase="Queued"), reason="Inadmissible", message="n"), None, None, None),
        (QUEUED, status("Queued", stage(phase="Queued"), reason="Preempted"), None, None, None),
        # Ends of stages and attempts, and what followed at once.
        (status("Running", stage("pretrain")), status("Running", DONE), "Normal", "StageSucceeded", "pretrain"),
        (
            status("Running", stage("pretrain")), status("Running", DONE, NEXT), "Normal", "StageSucceeded",
            f"pretrain; {STARTED}",
        ),
        (
            status("Running", stage("pretrain")), status("Queued", DONE, stage(phase="Queued")), "Normal", "StageSucceeded",
            f"pretrain; {STARTED}",
        ),
        (
            status("Queued", stage("pretrain", "Queued")), status("Running", DONE, NEXT), "Normal", "StageSucceeded",
            f"pretrain; {STARTED}",
        ),
        (status("Queued", stage("pretrain", "Queued")), status("Running", DONE), "Normal", "StageSucceeded", "pretrain"),
        (RUNS, status("Running", RETRIES), "Warning", "AttemptFailed", "round-1: Failed: loss is NaN"),
        (QUEUED, status("Running", RETRIES), "Warning", "AttemptFailed", "round-1: Failed: loss is NaN"),
        (STALLED, status("Running", RETRIES), "Warning", "AttemptFailed", "round-1: Failed: loss is NaN"),
        (RUNS, status("Stalled", NO_START, **NO_IMAGE), "Warning", "CannotStart", "round-1: no image; the field"),
        (status("Running", RETRIES), status("Running", AGAIN), "Normal", "JobStarted", "round-1: attempt 2, Job round-1-a2"),
        (
            status("Running", RETRIES), status("Queued", stage(phase="Queued", attempt=2)), "Normal", "JobStarted",
            "round-1: attempt 2, Job round-1-a2",
        ),
        (
            status("Stalled", NO_START), status("Stalled", stage(attempt=2, exit_class="CannotStart")), "Normal", "JobStarted",
            "round-1: attempt 2, Job round-1-a2",
        ),
        (
            status("Running", RETRIES),
            status("Running", stage(phase="Retrying", attempt=2, flies=False, exit_class="TryAgain", message="evicted")),
            "Warning", "AttemptFailed", "round-1: TryAgain: evicted",
        ),
        (
            status("Stalled", stage(attempt=2, exit_class="CannotStart")),
            status("Stalled", NO_START.replace(attempt=2), **NO_IMAGE),
            "Warning", "CannotStart", "round-1: no image; the field",
        ),
        # Stops.
        (RUNS, status("Suspended", stage(phase="Suspended", flies=False)), "Normal", "Suspended", "m"),
        (status("Running", stage("pretrain")), status("Suspended", DONE), "Normal", "Suspended", "m"),
        (status("Suspended", stage(phase="Suspended", flies=False)), status("Running", AGAIN), "Normal", "Resumed",
         "round-1: attempt 2, Job round-1-a2"),
        (status("Suspended", stage(phase="Suspended", flies=False)), RUNS.replace(stages=[RETRIES]), "Normal", "Resumed",
         "the run goes on"),
        (
            status("Suspended", stage(phase="Suspended", flies=False)), status("Queued", stage(phase="Queued", attempt=2)),
            "Normal", "JobStarted", "round-1: attempt 2, Job round-1-a2",
        ),
        # The end.
        (RUNS, status("Succeeded", DONE, reason="Finished", message="all"), "Normal", "Succeeded", "all"),
        (RUNS, status("Failed", stage(phase="Failed", flies=False), reason="BadData", message="row 7"), "Warning", "Failed",
         "BadData: row 7"),
        (QUEUED, status("Failed", stage(phase="Failed", flies=False), reason="Deadline"), "Warning", "Failed", "Deadline: m"),
        (status("Suspended"), status("Failed", stage(phase="Failed", flies=False), reason="Deadline"), "Warning", "Failed",
         "Deadline: m"),
        # Nothing.
        (RUNS, RUNS, None, None, None),
        (RUNS, RUNS.replace(progress="tune 43 %"), None, None, None),
        (QUEUED, QUEUED, None, None, None),
        (status("Running", RETRIES), status("Running", RETRIES), None, None, None),
        (status("Succeeded", DONE), status("Succeeded", DONE), None, None, None),
    ],
)  # fmt: skip
def test_events(before: RunStatus, after: RunStatus, kind: str | None, reason: str | None, message: str | None) -> None:
    told = event(before, after, queue=False)
    assert ((told.type, told.reason, told.message) if told is not None else (None, None, None)) == (
        kind,
        reason,
        message,
    )


@pytest.mark.parametrize("before", [QUEUED, STALLED])
def test_only_a_queue_admits(before: RunStatus) -> None:
    told = event(before, RUNS, queue=True)
    assert told is not None
    assert (told.type, told.reason, told.message) == ("Normal", "Admitted", "round-1 runs")


def child(name: str, state: Any, **fields: Any) -> Child:
    return Child(name=name, stage="round-1", attempt=1, state=state, **fields)


ENDED = [child("a", "Succeeded"), child("b", "Failed")]
LIVE = [child("c", "Running"), child("d", "Queued"), child("e", "Finishing"), child("f", "Failed", lingers=True)]
GOING = [child("g", "Running", deleting=True), child("h", "Succeeded", deleting=True)]


@pytest.mark.parametrize(
    ("ttl", "children", "after", "found"),
    [
        (None, [], 0, CleanUp(delete=[])),
        (None, ENDED, 1e9, CleanUp(delete=[])),
        (None, [*ENDED, *LIVE], 0, CleanUp(delete=["c", "d", "e", "f"])),
        (100, ENDED, 0, CleanUp(delete=[], seconds_left=100)),
        (100, ENDED, 60, CleanUp(delete=[], seconds_left=40)),
        (100, [*ENDED, *LIVE], 60, CleanUp(delete=["c", "d", "e", "f"], seconds_left=40)),
        (100, ENDED, 100, CleanUp(delete=["a", "b"], over=True)),
        (100, [*ENDED, *LIVE, *GOING], 1e9, CleanUp(delete=["a", "b", "c", "d", "e", "f"], over=True)),
        (100, [], 60, CleanUp(delete=[])),
        (0, ENDED, 0, CleanUp(delete=["a", "b"], over=True)),
    ],
)
def test_what_is_left_of_a_run_that_has_ended(
    ttl: int | None, children: list[Child], after: float, found: CleanUp
) -> None:
    spec = make_run(ttlSecondsAfterFinished=ttl).spec
    ended = RunStatus(phase="Succeeded", completion_time=THEN)
    assert after_the_end(spec, ended, children, START + timedelta(seconds=after)) == found
