"""What comes next: the stage to begin, or the end."""

from comd_api.early_stop import Scored, early_stop_reason
from comd_api.run import RunSpec
from comd_api.stages import round_of, stage_names
from comd_api.status import RunStatus


def upcoming(spec: RunSpec, status: RunStatus) -> str | None:
    """The first stage that was not begun; None when the run is through. When the rounds end early, what comes after them does not,
    unless there was nothing to do at all."""
    begun = {stage.name for stage in status.stages}
    names = stage_names(spec)
    if unchanged(status) is not None:
        return None
    if ended_early(spec, status) is not None:
        names = [name for name in names if not round_of(name)]
        names = names[names.index("promote") :] if "promote" in names else []
    return next((name for name in names if name not in begun), None)


def unchanged(status: RunStatus) -> str | None:
    """Why there is nothing to do, as `preflight` has found (`spec.skipIfUnchangedSince`)."""
    return next((stage.stop for stage in status.stages if stage.name == "preflight"), None)


def ended_early(spec: RunSpec, status: RunStatus) -> str | None:
    """Why the stages or rounds that are left are not run: a stage found that they make no sense, or `rounds.earlyStop` says so.
    None as well when no round is left."""
    begun = {stage.name for stage in status.stages}
    if all(name in begun for name in stage_names(spec) if round_of(name)):
        return None
    stopped = next((stage.stop for stage in status.stages if stage.stop is not None), None)
    return stopped or early_stop_reason(
        spec, [Scored(stage.name, stage.scores) for stage in status.stages if stage.done]
    )
