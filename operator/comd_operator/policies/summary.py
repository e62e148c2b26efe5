"""The fields of the status that the ledger implies: what `kubectl get` shows."""

from datetime import datetime

from comd_api.run import RunSpec
from comd_api.stages import round_of
from comd_api.status import ArtifactRef, RunPhase, RunStatus
from comd_operator.policies import ledger, stages
from comd_operator.policies.clock import to_text
from comd_operator.policies.deadlines import run_active
from comd_operator.policies.hold import Hold

MAX_TEXT = 64


def summarize(
    spec: RunSpec, status: RunStatus, now: datetime, *, paused: bool, hold: Hold | None, progress: str | None
) -> RunStatus:
    """Phase, stage, round, student, score and progress; the clock stopped when the run has ended."""
    phase = phase_of(spec, status, paused=paused, hold=hold)
    ended = phase in ("Succeeded", "Failed")
    if ended:
        status = status.replace(
            completion_time=status.completion_time or to_text(now),
            active_seconds=run_active(status, now),
            active_since=None,
        )
    last = status.stages[-1].name if status.stages else None
    return status.replace(
        phase=phase,
        stage=last,
        round=max((round_of(stage.name) for stage in status.stages), default=0) or None,
        progress=None if ended or progress is None else progress[:MAX_TEXT],
        score=score_text(spec, status),
        student=newest_student(status),
    )


def phase_of(spec: RunSpec, status: RunStatus, *, paused: bool, hold: Hold | None) -> RunPhase:
    if ledger.failed_stage(status) is not None:
        return "Failed"
    if ledger.current(status) is None and status.stages and stages.upcoming(spec, status) is None:
        return "Succeeded"
    if paused:
        return "Suspended"
    if hold is not None and (hold.stalled or hold.queued):
        return "Stalled" if hold.stalled else "Queued"
    return "Running" if status.start_time is not None else "Pending"


def newest_student(status: RunStatus) -> ArtifactRef | None:
    """The student of the last stage that was finished."""
    students = [ref for stage in status.stages if stage.done for ref in stage.artifacts if ref.name == "student"]
    return students[-1] if students else None


def score_text(spec: RunSpec, status: RunStatus) -> str | None:
    """`0.731 / 0.884`: the newest student and the teacher on the first evaluation set."""
    if not spec.data.evaluation:
        return None
    name = spec.data.evaluation[0].name
    newest = {score.role: score.value for stage in status.stages for score in stage.scores if score.evaluation == name}
    if "student" not in newest:
        return None
    return f"{newest['student']:.3f}" + (f" / {newest['teacher']:.3f}" if "teacher" in newest else "")
