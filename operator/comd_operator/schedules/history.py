"""`successfulRunsHistoryLimit` and `failedRunsHistoryLimit`."""

from collections.abc import Sequence

from comd_api.schedule import ScheduleSpec
from comd_operator.schedules.runs import ScheduledRun


def expired(spec: ScheduleSpec, runs: Sequence[ScheduledRun]) -> list[ScheduledRun]:
    """Runs that are over and more than are kept: those that ended first."""
    limits = (("Succeeded", spec.successful_runs_history_limit), ("Failed", spec.failed_runs_history_limit))
    found: list[ScheduledRun] = []
    for phase, limit in limits:
        ended = sorted(
            (run for run in runs if run.phase == phase and not run.going),
            key=lambda run: (run.completed or run.created, run.name),
        )
        found += ended[: max(0, len(ended) - limit)]
    return found
