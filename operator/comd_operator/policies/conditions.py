"""Conditions, as kstatus reads them: `Reconciling` and `Stalled` are true only when something is so, `Ready` is there
from the first visit (an absent one would read as done), and `kubectl wait` finds `Succeeded` and `Failed`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from comd_api.run import DistillationRun
from comd_api.status import Condition, RunPhase, RunStatus
from comd_operator.policies import ledger, stages
from comd_operator.policies.clock import to_text
from comd_operator.policies.hold import Hold, with_next_attempt

TRUE_TYPES: dict[RunPhase, tuple[str, ...]] = {
    "Pending": ("Reconciling",),
    "Queued": ("Queued", "Reconciling"),
    "Running": ("Reconciling",),
    "Stalled": ("Stalled",),
    "Suspended": ("Suspended",),
    "Succeeded": ("Ready", "Succeeded"),
    "Failed": ("Failed", "Stalled"),
}
"""Which conditions are true in which phase; all others are false."""

TYPES = ("Failed", "Queued", "Ready", "Reconciling", "Stalled", "Succeeded", "Suspended")
"""All of them, always, in this order."""

MAX_REASON, MAX_MESSAGE = 64, 1024
UNCHANGED = "Unchanged"
"""Reason of a run that succeeded because it had nothing to do."""


def conditions(
    run: DistillationRun,
    status: RunStatus,
    now: datetime,
    *,
    hold: Hold | None = None,
    suspended_because: str | None = None,
) -> list[Condition]:
    """All conditions of a run whose phase and ledger are settled. One whose status did not flip keeps its time. All have the reason;
    the message stands in those that are true and in `Ready`, for `Failed=False` with an error's words reads as a failure."""
    reason, message = _why(run, status, hold=hold, suspended_because=suspended_because)
    true_types = TRUE_TYPES[status.phase]
    if status.phase == "Stalled" and hold is not None and hold.queued:
        true_types = ("Queued", *true_types)
    return [
        condition(
            kind,
            status="True" if kind in true_types else "False",
            reason=reason,
            message=message,
            before=status.conditions,
            generation=run.metadata.generation,
            now=now,
        )
        for kind in TYPES
    ]


def refused(status: RunStatus, generation: int, *, message: str, now: datetime) -> RunStatus:
    """The status of a run whose spec can't be read, and of which nothing was begun."""
    entries = [
        condition(
            kind,
            status="True" if kind == "Stalled" else "False",
            reason="InvalidSpec",
            message=message[:MAX_MESSAGE],
            before=status.conditions,
            generation=generation,
            now=now,
        )
        for kind in TYPES
    ]
    return status.replace(phase="Stalled", observed_generation=generation, conditions=entries)


def condition(
    kind: str,
    *,
    status: Literal["True", "False"],
    reason: str,
    message: str,
    before: Sequence[Condition],
    generation: int,
    now: datetime,
) -> Condition:
    """One whose status did not flip keeps its time. before: the conditions as they were."""
    old = next((entry for entry in before if entry.type == kind), None)
    flipped = old is None or old.status != status
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message if status == "True" or kind == "Ready" else "",
        last_transition_time=to_text(now) if flipped or old is None else old.last_transition_time,
        observed_generation=generation,
    )


def _why(
    run: DistillationRun, status: RunStatus, *, hold: Hold | None, suspended_because: str | None
) -> tuple[str, str]:
    """Reason and message. They say what the run is at, never how far it is: that would be a write every few seconds."""
    stage = ledger.current(status)
    match status.phase:
        case "Pending":
            return "Pending", "nothing was started yet"
        case "Succeeded":
            return _how_it_ended(run, status)
        case "Failed":
            failed = ledger.failed_stage(status)
            assert failed is not None, "a run fails in a stage"
            return failed.exit_class or "Failed", f"{failed.name}: {failed.message or 'no reason was given'}"
        case "Suspended":
            if suspended_because is not None:
                return "Interrupted", suspended_because
            return "Suspended", "spec.suspend is true"
        case "Queued" | "Stalled":
            assert hold is not None, "it is in this phase because of it"
            message = hold.message[:MAX_MESSAGE]
            if hold.reason == "CannotStart" and stage is not None:
                message = with_next_attempt(message, stage)
            return hold.reason[:MAX_REASON], message
        case "Running":
            if stage is None:
                return "Running", "between two stages"
            if hold is not None:
                return hold.reason, hold.message[:MAX_MESSAGE]
            if stage.phase == "Retrying":
                ended = (
                    f"attempt {stage.attempt} ended with {stage.exit_class}: {stage.message or 'no reason was given'}"
                )
                return "Retrying", with_next_attempt(f"{stage.name}: {ended}", stage)
            stops = f"; will be suspended when {stage.name} has ended" if run.spec.suspend else ""
            return "Running", f"{stage.name}, attempt {stage.attempt}{stops}{_findings(status)}"[:MAX_MESSAGE]


def _findings(status: RunStatus) -> str:
    """What preflight has found, said until the first stage that is run after it is done."""
    first, between = status.stages[0], status.stages[1:-1]
    if len(status.stages) == 1 or first.name != "preflight" or any(stage.phase != "Reused" for stage in between):
        return ""
    reused = f"; reused: {', '.join(stage.name for stage in between)}" if between else ""
    return f"; preflight: {first.message}{reused}" if first.message else reused


def _how_it_ended(run: DistillationRun, status: RunStatus) -> tuple[str, str]:
    unchanged = stages.unchanged(status)
    if unchanged is not None:
        return UNCHANGED, unchanged
    early = stages.ended_early(run.spec, status)
    reason, words = ("StoppedEarly", early) if early else ("Finished", _all_done(status))
    promotion = next((stage.message for stage in status.stages if stage.promoted is not None), None)
    return reason, (f"{words}; {promotion}" if promotion else words)[:MAX_MESSAGE]


def _all_done(status: RunStatus) -> str:
    reused = sum(stage.phase == "Reused" for stage in status.stages)
    return f"all {len(status.stages)} stages are done" + (f", {reused} of them reused" if reused else "")
