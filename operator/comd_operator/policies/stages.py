"""What comes next: the stage to begin, or the end."""

from comd_api.run import RunSpec
from comd_api.stages import stage_names
from comd_api.status import RunStatus
from comd_operator.policies import early_stop


def upcoming(spec: RunSpec, status: RunStatus) -> str | None:
    """The first stage that was not begun; None when the run is through, or ends early."""
    if ended_early(spec, status) is not None:
        return None
    begun = {stage.name for stage in status.stages}
    return next((name for name in stage_names(spec) if name not in begun), None)


def ended_early(spec: RunSpec, status: RunStatus) -> str | None:
    """Why the rounds that are left are not run: a stage found that they make no sense, or `rounds.earlyStop` says so.
    None as well when no round is left."""
    if len(status.stages) >= len(stage_names(spec)):
        return None
    stopped = next((stage.stop for stage in status.stages if stage.stop is not None), None)
    return stopped or early_stop.reason(spec, status)
