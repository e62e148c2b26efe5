"""What a change of a run's status adds to the metrics."""

from comd_api.status import RunStatus, StageStatus
from comd_operator.runtime.metrics import Cause, Metrics


def stage_kind(name: str) -> str:
    """`round-3` → `round`: rounds are told apart in the status, not in labels."""
    return "round" if name.startswith("round-") else name


def cause_of(message: str) -> Cause:
    """A pod that has failed is seldom scraped again, so its own count of the store's errors is lost. Its last sentence is not, and that
    names the field to blame."""
    return "store" if "spec.storage" in message else "other"


def measure(metrics: Metrics, before: RunStatus, after: RunStatus) -> None:
    """Stage durations and queue waits when a stage ends, retries when an attempt does."""
    for stage in after.stages:
        old = before.stage_named(stage.name) or StageStatus(name=stage.name)
        kind = stage_kind(stage.name)
        if stage.phase in ("Succeeded", "Failed") and old.phase != stage.phase:
            metrics.stage_duration.labels(stage=kind, result=stage.phase).observe(stage.active_seconds)
            metrics.stage_queue_wait.labels(stage=kind).observe(stage.queued_seconds)
        ended = stage.phase == "Retrying" and (old.phase != "Retrying" or old.attempt != stage.attempt)
        if ended and stage.exit_class is not None:
            metrics.stage_retries.labels(
                stage=kind, exit_class=stage.exit_class, cause=cause_of(stage.message or "")
            ).inc()
