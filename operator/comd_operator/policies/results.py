"""What a Job that ended puts into the ledger."""

from datetime import datetime

from comd_api.run import RunSpec
from comd_api.stage import ReusedStage, StageResult
from comd_api.stages import phases_of
from comd_api.status import Counts, ExitClass, PhaseTime, StageStatus
from comd_operator.planner.jobs import jobs_of
from comd_operator.policies import queue, retry
from comd_operator.policies.clock import since, to_text, to_text_after

MAX_MESSAGE = 1024


def record(
    stage: StageStatus,
    *,
    spec: RunSpec,
    exit_class: ExitClass,
    message: str,
    result: StageResult | None,
    ended: datetime,
    seed: str,
) -> StageStatus:
    """The ledger's entry after a Job of the stage has ended."""
    lasted = since(stage.attempt_start_time, ended)
    stage = merge(stage, result) if result is not None else stage
    waiting = stage.waiting_since or stage.queued_since or stage.attempt_start_time or to_text(ended)
    never_began = exit_class == "CannotStart" or stage.queued_since is not None
    stage = queue.end_wait(stage, ended)
    stage = stage.replace(active_seconds=stage.active_seconds + lasted, attempt_start_time=None, exit_class=exit_class)
    if exit_class == "Done":
        return _one_job_further(stage, spec=spec, message=message, ended=ended)

    verdict = retry.after(
        exit_class, failures=stage.failures, attempt=stage.attempt, lasted=lasted, retry=spec.retry, seed=seed
    )
    stage = stage.replace(
        message=message[:MAX_MESSAGE] or None,
        failures=stage.failures + verdict.counts,
        # Attempts in a row of which none could begin wait as one.
        waiting_since=waiting if never_began else None,
    )
    if verdict.again:
        return stage.replace(phase="Retrying", retry_time=to_text_after(ended, verdict.delay))
    return stage.replace(phase="Failed", completion_time=to_text(ended))


def _one_job_further(stage: StageStatus, *, spec: RunSpec, message: str, ended: datetime) -> StageStatus:
    """A message that comes with success is what the stage has to tell, such as preflight's findings."""
    stage = stage.replace(
        completed_jobs=stage.completed_jobs + 1, message=message[:MAX_MESSAGE] or None, waiting_since=None
    )
    if stage.completed_jobs < len(jobs_of(spec, stage.name)):
        return stage
    return stage.replace(phase="Succeeded", completion_time=to_text(ended))


def take_over(found: ReusedStage, *, spec: RunSpec, ended: datetime) -> StageStatus:
    """The ledger's entry of a stage that was found finished when `preflight` ended. It has no attempt and took no time."""
    return StageStatus(
        name=found.name,
        phase="Reused",
        message="found finished in the store; nothing was run",
        start_time=to_text(ended),
        completion_time=to_text(ended),
        stop=found.stop,
        artifacts=found.artifacts,
        phases=[PhaseTime(name=phase, seconds=0.0, reused=True) for phase in phases_of(spec, found.name)],
        counts=found.counts,
        scores=found.scores,
    )


def merge(stage: StageStatus, result: StageResult) -> StageStatus:
    """A result added to what earlier Jobs and attempts of the stage have reported: newer values win, and a phase that
    was found finished keeps the time that it took when it ran."""
    artifacts = {ref.name: ref for ref in (*stage.artifacts, *result.artifacts)}
    scores = {(score.evaluation, score.role): score for score in (*stage.scores, *result.scores)}
    return stage.replace(
        artifacts=list(artifacts.values()),
        scores=list(scores.values()),
        phases=_merge_times(stage.phases, result.phases),
        counts=_merge_counts(stage.counts, result.counts),
        stop=result.stop or stage.stop,
        promoted=stage.promoted if result.promoted is None else result.promoted,
    )


def _merge_times(old: list[PhaseTime], new: list[PhaseTime]) -> list[PhaseTime]:
    times = {time.name: time for time in old}
    for time in new:
        before = times.get(time.name)
        if before is None or before.reused or not time.reused:
            times[time.name] = time
    return list(times.values())


def _merge_counts(old: Counts | None, new: Counts | None) -> Counts | None:
    if old is None or new is None:
        return new or old
    return old.replace(**{name: value for name in Counts.model_fields if (value := getattr(new, name)) is not None})
